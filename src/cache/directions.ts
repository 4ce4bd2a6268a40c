/** One direction for two vectors, and the length of each (MiniCache, arXiv 2405.14366). */
import { fromHalves, toHalves } from './half.ts'

export interface Directions {
  /** f32 [d, n], of length 1; of two vectors of no length 0. */
  readonly directions: Float32Array
  /** [n]: what a direction is multiplied by to give the row of the lower layer, of the upper; rounded to f16. */
  readonly lower: Float32Array
  readonly upper: Float32Array
}

/** Radians at which 1 / sin(O) says nothing any more. */
const NEAR = 1e-4

/**
 * e = sin((1 - t) O) / sin(O) ua + sin(t O) / sin(O) ub, on the great circle between the directions ua and ub, O apart. Where a vector
 * has no length it is the direction of the other, and both come back as they were. Computed in f64.
 * @param a f32 [d, n], the lower layer's
 * @param b f32 [d, n], the upper layer's
 * @param t how far from the direction of a to that of b, 0 to 1
 */
export function sharedDirections(a: Float32Array, b: Float32Array, d: number, t: number): Directions {
  const n = a.length / d
  const directions = new Float32Array(a.length)
  const lower = new Float32Array(n)
  const upper = new Float32Array(n)
  const e = new Float64Array(d)
  for (let row = 0; row < n; row++) {
    const at = row * d
    const [la, lb] = [lengthAt(a, at, d), lengthAt(b, at, d)]
    const [wa, wb] = weights(angleAt(a, b, at, d, la, lb), t, la, lb)
    for (let i = 0; i < d; i++) e[i] = wa * a[at + i]! + wb * b[at + i]!
    // 1 already, but for the straight line of small angles.
    const length = lengthAt(e, 0, d) || 1
    for (let i = 0; i < d; i++) directions[at + i] = e[i]! / length
    lower[row] = la
    upper[row] = lb
  }
  const rounded = (x: Float32Array) => fromHalves(toHalves(x))
  return { directions, lower: rounded(lower), upper: rounded(upper) }
}

/** What vectors of lengths `la` and `lb`, `angle` apart, are multiplied by. */
function weights(angle: number, t: number, la: number, lb: number): readonly [number, number] {
  if (la === 0 || lb === 0) return [la && 1 / la, lb && 1 / lb]
  if (angle < NEAR) return [(1 - t) / la, t / lb]
  // Opposite: no great circle is the one between them. What lies at the nearer end comes back as it was.
  if (angle > Math.PI - NEAR) return t < 0.5 ? [1 / la, 0] : [0, 1 / lb]
  const sin = Math.sin(angle)
  return [Math.sin((1 - t) * angle) / (sin * la), Math.sin(t * angle) / (sin * lb)]
}

/** 2 atan2(|u - v|, |u + v|): as exact near 0 and near pi as between them, which acos(u.v) is not. */
function angleAt(a: Float32Array, b: Float32Array, at: number, d: number, la: number, lb: number): number {
  if (la === 0 || lb === 0) return 0
  let apart = 0
  let along = 0
  for (let i = at; i < at + d; i++) {
    const [u, v] = [a[i]! / la, b[i]! / lb]
    apart += (u - v) ** 2
    along += (u + v) ** 2
  }
  return 2 * Math.atan2(Math.sqrt(apart), Math.sqrt(along))
}

function lengthAt(x: Float32Array | Float64Array, at: number, d: number): number {
  let squares = 0
  for (let i = at; i < at + d; i++) squares += x[i]! ** 2
  return Math.sqrt(squares)
}
