/**
 * Quantised caches hold keys and values rotated, head by head, so that what is large in a few channels is spread over all of them:
 * a block of 32 numbers has one scale, and a large number in it costs the others their precision. Queries are rotated alike, which
 * leaves their products with keys as they are; what attention gives is rotated back.
 *
 * The rotation is the orthonormal Walsh-Hadamard matrix, which is its own inverse: QuaRot, Ashkboos et al. 2024, arXiv 2404.00456.
 * Sizes are libllama's, so that its logits are ours. A sequence's own arena decides for all its rows, in whatever arenas they come to lie.
 */
import { isQuantized } from '../ggml/types.ts'
import type { ArenaShape } from './arena.ts'

/** How many neighbouring numbers of a head are rotated together, a power of two; 0: they are stored as they are. */
export interface Rotation {
  readonly keys: number
  readonly values: number
}

/** Heads that this does not divide are not rotated. */
const VALUES_TOGETHER = 64

export function rotationOf({ keyType, valueType, headDim }: RotatedShape): Rotation {
  if (headDim % VALUES_TOGETHER) return { keys: 0, values: 0 }
  return {
    keys: isQuantized(keyType) ? largestPowerOfTwo(headDim) : 0,
    values: isQuantized(valueType) ? VALUES_TOGETHER : 0,
  }
}

type RotatedShape = Pick<ArenaShape, 'keyType' | 'valueType' | 'headDim'>

/** That divides a number. */
function largestPowerOfTwo(n: number): number {
  return n & -n
}

/** For names of cached bytes. */
export function rotationName(shape: RotatedShape): string {
  const { keys, values } = rotationOf(shape)
  return keys || values ? `rotated ${keys},${values}` : 'plain'
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

/** Rotates each `n` numbers in place. Twice: they are what they were, up to rounding. */
export function rotate(x: Float32Array, n: number): void {
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
