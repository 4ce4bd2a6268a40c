/**
 * A matrix as a product of two thin ones: block power iteration, as GEAR fits what codes lack (arXiv 2403.05527).
 *
 *   B random;  three times:  B <- orth(B), A <- orth(X B), B <- X^T A;  X ~ A B^T
 *
 * The authors orthonormalise in the last round only: the same spaces, but small directions drown in rounding when r is large.
 */

const ROUNDS = 3

/** Columns of which less than this share is left, when those before are taken out, are rounding errors. */
const NOTHING_LEFT = 1e-9

type Floats = Float64Array<ArrayBuffer>

/**
 * Close to the best product of this rank.
 * @param x f32 [d, n]
 * @param rank r; where d or n is less, the columns that are over are 0
 * @param seed same seed, same factors
 * @returns A [r, n], its columns orthonormal or 0, and B [r, d]: x[c, t] ~ sum over k of A[k, t] B[k, c]
 */
export function lowRank(
  x: Float32Array,
  d: number,
  rank: number,
  seed: number,
): { a: Float32Array<ArrayBuffer>; b: Float32Array<ArrayBuffer> } {
  const n = x.length / d
  const r = Math.min(rank, n, d)
  // Columns one behind the other here: A [n, r], B [d, r].
  let a: Floats = new Float64Array(0)
  let b = randoms(d * r, seed)
  for (let round = 0; round < ROUNDS; round++) {
    orthonormalise(b, d)
    a = timesB(x, b, d)
    orthonormalise(a, n)
    b = transposedTimesA(x, a, d)
  }
  return { a: transposed(a, n, rank), b: transposed(b, d, rank) }
}

/** From -1 to 1, by mulberry32. */
function randoms(count: number, seed: number): Floats {
  let state = seed | 0
  return Float64Array.from({ length: count }, () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1
  })
}

/** X B, f64 [n, r], of b [d, r]. */
function timesB(x: Float32Array, b: Floats, d: number): Floats {
  const n = x.length / d
  const out = new Float64Array((b.length / d) * n)
  for (let row = 0; row < n; row++)
    for (let to = row, column = 0; column < b.length; to += n, column += d) {
      let sum = 0
      for (let i = 0; i < d; i++) sum += x[row * d + i]! * b[column + i]!
      out[to] = sum
    }
  return out
}

/** X^T A, f64 [d, r], of a [n, r]. */
function transposedTimesA(x: Float32Array, a: Floats, d: number): Floats {
  const n = x.length / d
  const out = new Float64Array((a.length / n) * d)
  for (let row = 0; row < n; row++)
    for (let from = row, column = 0; column < out.length; from += n, column += d) {
      const factor = a[from]!
      for (let i = 0; i < d; i++) out[column + i]! += x[row * d + i]! * factor
    }
  return out
}

/**
 * The columns of a QR decomposition, in place, by modified Gram-Schmidt. A column that depends on those before it becomes 0.
 * @param q [length, r]
 */
function orthonormalise(q: Floats, length: number): void {
  for (let k = 0; k < q.length; k += length) {
    const before = Math.sqrt(dot(q, k, k, length))
    // The second time takes out what rounding left of the first.
    for (let time = 0; time < 2; time++)
      for (let j = 0; j < k; j += length) subtract(q, k, j, dot(q, k, j, length), length)
    const after = Math.sqrt(dot(q, k, k, length))
    const scale = after > NOTHING_LEFT * before ? 1 / after : 0
    for (let at = k; at < k + length; at++) q[at]! *= scale
  }
}

/** Of the columns that start at k and j. */
function dot(q: Floats, k: number, j: number, length: number): number {
  let sum = 0
  for (let i = 0; i < length; i++) sum += q[k + i]! * q[j + i]!
  return sum
}

/** The column at k less the one at j times a factor. */
function subtract(q: Floats, k: number, j: number, factor: number, length: number): void {
  for (let i = 0; i < length; i++) q[k + i]! -= factor * q[j + i]!
}

/** f32 [rank, length] of [length, r], r at most the rank. */
function transposed(m: Floats, length: number, rank: number): Float32Array<ArrayBuffer> {
  const out = new Float32Array(length * rank)
  for (let k = 0; k < m.length / length; k++) for (let i = 0; i < length; i++) out[i * rank + k] = m[k * length + i]!
  return out
}
