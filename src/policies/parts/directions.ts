/** How far the vectors of two layers point apart. They are the columns of f32 [d, n]; what is computed is computed in f64. */
import { ShapeError } from '../../contract/errors.ts'
import type { HeadRows } from '../../contract/observation.ts'
import type { ModelDims } from '../../contract/policy.ts'

/**
 * The angle between a vector of one and the same of the other, in radians, 0 to pi; 0 where one of them is all zeros, since
 * nothing is lost of such a pair.
 * @param a f32 [d, n]
 * @param b f32 [d, n]
 * @param rows which of the n
 * @returns f64 [rows]
 */
export function angles(a: Float32Array, b: Float32Array, d: number, rows: Int32Array): Float64Array {
  checkShapes(a, b, d)
  return Float64Array.from(rows, (row) => angleAt(a, b, row * d, d))
}

/** Mean cosine between neighbouring layers, the pair of layers l and l + 1 at l: [Lyr - 1] each. */
export interface AdjacentCosines {
  readonly keys: readonly number[]
  readonly values: readonly number[]
}

/**
 * How alike neighbouring layers are at each depth, over all rows and KV heads.
 * @param rows of the cache; each head is read once. All layers have the same rows
 */
export function adjacentCosines(
  rows: (layer: number, kvHead: number) => HeadRows,
  { layers, kvHeads, headDim }: ModelDims,
): AdjacentCosines {
  const keys = new Array<number>(Math.max(0, layers - 1)).fill(0)
  const values = [...keys]
  for (let head = 0; head < kvHeads; head++) {
    let lower = rows(0, head)
    for (let l = 0; l < keys.length; l++) {
      const upper = rows(l + 1, head)
      keys[l]! += meanCosine(lower.keys, upper.keys, headDim) / kvHeads
      values[l]! += meanCosine(lower.values, upper.values, headDim) / kvHeads
      lower = upper
    }
  }
  return { keys, values }
}

function meanCosine(a: Float32Array, b: Float32Array, d: number): number {
  checkShapes(a, b, d)
  let sum = 0
  for (let at = 0; at < a.length; at += d) sum += Math.cos(angleAt(a, b, at, d))
  return (sum * d) / a.length
}

/**
 * Between directions u and v it is 2 atan2(|u - v|, |u + v|): as exact near 0 and near pi as between them, which acos(u.v) is not
 * (W. Kahan, How Futile are Mindless Assessments of Roundoff, 12).
 */
function angleAt(a: Float32Array, b: Float32Array, at: number, d: number): number {
  const la = lengthAt(a, at, d)
  const lb = lengthAt(b, at, d)
  if (la === 0 || lb === 0) return 0
  let apart = 0
  let along = 0
  for (let i = 0; i < d; i++) {
    const u = a[at + i]! / la
    const v = b[at + i]! / lb
    apart += (u - v) ** 2
    along += (u + v) ** 2
  }
  return 2 * Math.atan2(Math.sqrt(apart), Math.sqrt(along))
}

function lengthAt(x: Float32Array, at: number, d: number): number {
  let squares = 0
  for (let i = at; i < at + d; i++) squares += x[i]! ** 2
  return Math.sqrt(squares)
}

function checkShapes(a: Float32Array, b: Float32Array, d: number): void {
  if (a.length !== b.length || a.length % d !== 0)
    throw new ShapeError(`vectors [${d}, n] of two layers cannot have ${a.length} and ${b.length} numbers`)
}
