/**
 * Quantised caches hold keys and values rotated, head by head, so that what is large in a few channels is spread over all of them:
 * a block of 32 numbers has one scale, and a large number in it costs the others their precision. Queries are rotated alike, which
 * leaves their products with keys as they are; what attention gives is rotated back.
 *
 * The rotation is the orthonormal Walsh-Hadamard matrix, which is its own inverse: QuaRot, Ashkboos et al. 2024, arXiv 2404.00456.
 * libllama does the same. A sequence's own arena decides for all its rows, in whatever arenas they come to lie.
 */
import { isQuantized } from '../ggml/types.ts'
import type { ArenaFormat } from './arena.ts'

/** Which of a sequence's rows are rotated in the cache. */
export interface Rotation {
  readonly keys: boolean
  readonly values: boolean
}

export function rotationOf({ keyType, valueType }: Pick<ArenaFormat, 'keyType' | 'valueType'>): Rotation {
  return { keys: isQuantized(keyType), values: isQuantized(valueType) }
}

/** For names of cached bytes: `plain`, or what is rotated. */
export function rotationName(f: Pick<ArenaFormat, 'keyType' | 'valueType'>): string {
  const { keys, values } = rotationOf(f)
  if (keys && values) return 'rotated'
  return keys ? 'keys rotated' : values ? 'values rotated' : 'plain'
}

/** Numbers that are rotated together: the largest power of two that divides the heads. A multiple of 32 where types are quantised. */
export function rotationSize(headDim: number): number {
  return headDim & -headDim
}

/** f32 [n, n], symmetric; `n` a power of two. */
export function hadamardMatrix(n: number): Float32Array {
  const m = new Float32Array(n * n)
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) m[i * n + j] = (isOdd(i & j) ? -1 : 1) / Math.sqrt(n)
  return m
}

/** Whether a number has an odd count of ones. */
function isOdd(bits: number): boolean {
  let odd = false
  for (let b = bits; b; b &= b - 1) odd = !odd
  return odd
}

/** Rotates vectors of `headDim` numbers in place. Twice: they are what they were, up to rounding. */
export function rotate(x: Float32Array, headDim: number): void {
  const n = rotationSize(headDim)
  const scale = 1 / Math.sqrt(n)
  for (let from = 0; from < x.length; from += n) {
    for (let step = 1; step < n; step *= 2)
      for (let i = from; i < from + n; i += 2 * step)
        for (let j = i; j < i + step; j++) {
          const [a, b] = [x[j]!, x[j + step]!]
          x[j] = a + b
          x[j + step] = a - b
        }
    for (let i = from; i < from + n; i++) x[i]! *= scale
  }
}
