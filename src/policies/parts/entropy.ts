/**
 * How many directions a matrix of token states really uses: the entropy of its spectrum, cut off behind the largest part.
 *
 * Paper    Xiong et al. 2024, arXiv 2410.03090.  Code  menik1126/UNComp, entropy_utils.py.  Spec  uncomp.md
 * Formula  rows x_t less their mean, then each of length 1;  A = X^T X / T, then A / trace(A) + 1e-10 I
 *          H_k = -sum over the k largest eigenvalues s of A of s ln s
 * Differs  in nats; the authors' function divides by ln d, a constant
 */
import { ShapeError } from '../../contract/errors.ts'

/**
 * Close to 0 where the tokens differ in one direction, ln d where they differ in all alike.
 * @param x f32 [d, T]
 * @param k eigenvalues that count, 1 to d
 * @returns nats
 */
export function truncatedEntropy(x: Float32Array, d: number, k: number): number {
  if (!Number.isInteger(d) || d < 1 || x.length === 0 || x.length % d !== 0)
    throw new ShapeError(`states [d, T] with d = ${d} cannot have ${x.length} numbers`)
  if (!Number.isInteger(k) || k < 1 || k > d) throw new ShapeError(`of ${d} eigenvalues 1 to ${d} can count, got ${k}`)
  const largest = eigenvalues(density(directions(x, d), d), d)
    .toSorted()
    .reverse()
    .subarray(0, k)
  return largest.reduce((sum, s) => (s > 0 ? sum - s * Math.log(s) : sum), 0)
}

/** Rows less their mean, each then of length 1; a row that is the mean stays 0. f64 [d, T] */
function directions(x: Float32Array, d: number): Float64Array {
  const out = new Float64Array(x.length)
  const mean = new Float64Array(d)
  for (let at = 0; at < x.length; at += d) for (let i = 0; i < d; i++) mean[i]! += (x[at + i]! * d) / x.length
  for (let at = 0; at < x.length; at += d) {
    let squares = 0
    for (let i = 0; i < d; i++) squares += (x[at + i]! - mean[i]!) ** 2
    const scale = squares > 0 ? 1 / Math.sqrt(squares) : 0
    for (let i = 0; i < d; i++) out[at + i] = (x[at + i]! - mean[i]!) * scale
  }
  return out
}

/** A = X^T X / T, of trace 1, and 1e-10 more on its diagonal. f64 [d, d], symmetric */
function density(x: Float64Array, d: number): Float64Array {
  const a = new Float64Array(d * d)
  for (let at = 0; at < x.length; at += d)
    for (let i = 0; i < d; i++) {
      const xi = x[at + i]!
      for (let j = 0; j <= i; j++) a[i * d + j]! += xi * x[at + j]!
    }
  let trace = 0
  for (let i = 0; i < d; i++) trace += a[i * d + i]!
  for (let i = 0; i < d; i++)
    for (let j = 0; j <= i; j++) {
      // The trace takes 1 / T with it. Without one all rows are the same: there is nothing to scale.
      if (trace > 0) a[i * d + j]! /= trace
      a[j * d + i] = a[i * d + j]!
    }
  for (let i = 0; i < d; i++) a[i * d + i]! += 1e-10
  return a
}

/** Off-diagonal squares against all squares at which a matrix counts as diagonal: far below what f64 tells apart in them. */
const DIAGONAL = 1e-30
/** Quadratic convergence: 128 x 128 takes about 9. */
const MAX_SWEEPS = 50

/**
 * Of a symmetric matrix, in no order: cyclic Jacobi rotations (Golub and Van Loan, Matrix Computations, 8.5).
 * @param symmetric f64 [d, d]
 */
export function eigenvalues(symmetric: Float64Array, d: number): Float64Array {
  const a = symmetric.slice()
  const all = a.reduce((sum, v) => sum + v * v, 0)
  for (let sweep = 0; sweep < MAX_SWEEPS && offDiagonal(a, d) > DIAGONAL * all; sweep++)
    for (let p = 0; p < d - 1; p++) for (let q = p + 1; q < d; q++) rotate(a, d, p, q)
  return Float64Array.from({ length: d }, (_, i) => a[i * d + i]!)
}

function offDiagonal(a: Float64Array, d: number): number {
  let sum = 0
  for (let i = 0; i < d; i++) for (let j = 0; j < i; j++) sum += 2 * a[i * d + j]! ** 2
  return sum
}

/** A <- J^T A J with the rotation J of the plane (p, q) that makes A[p, q] zero. */
function rotate(a: Float64Array, d: number, p: number, q: number): void {
  const apq = a[p * d + q]!
  if (apq === 0) return
  const tau = (a[q * d + q]! - a[p * d + p]!) / (2 * apq)
  const t = (tau >= 0 ? 1 : -1) / (Math.abs(tau) + Math.hypot(1, tau))
  const c = 1 / Math.hypot(1, t)
  const s = t * c
  for (let i = 0; i < d; i++) {
    const [ip, iq] = [a[i * d + p]!, a[i * d + q]!]
    a[i * d + p] = c * ip - s * iq
    a[i * d + q] = s * ip + c * iq
  }
  for (let i = 0; i < d; i++) {
    const [pi, qi] = [a[p * d + i]!, a[q * d + i]!]
    a[p * d + i] = c * pi - s * qi
    a[q * d + i] = s * pi + c * qi
  }
}
