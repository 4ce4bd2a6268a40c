/**
 * Checks shared by the op constructors. A failed check in C ends the process, so each constructor asks here first what C
 * would ask, and throws a ShapeError that shows the operands.
 */
import { ShapeError } from '../../contract/errors.ts'
import type { Context } from '../context.ts'
import { type Four, show, type Tensor } from '../tensor.ts'
import type { GgmlType } from '../types.ts'

export function fail(op: string, operands: readonly (Tensor | null)[], rule: string): never {
  throw new ShapeError(`${op}(${operands.map((t) => (t ? show(t) : 'none')).join(', ')}): ${rule}`)
}

/**
 * Operands must be alive and readable, and the graph under construction is the operands' only other owner. Packed weights
 * hold rearranged bytes: any op but a matrix product would read garbage.
 */
export function readable(op: string, _c: Context, ...operands: readonly (Tensor | null)[]): void {
  for (const t of operands) {
    if (!t) continue
    t.checkAlive()
    if (t.ctx.packed) fail(op, operands, 'a packed weight can only be read by mulMat')
  }
}

export function needType(op: string, t: Tensor, ...types: readonly GgmlType[]): void {
  if (!types.includes(t.type)) fail(op, [t], `must be ${types.join(' or ')}`)
}

/** ggml's kernels ask for the stride of dimension 0 even where it has one element; {@link Tensor.isContiguous} does not. */
export function needContiguous(op: string, t: Tensor): void {
  if (!t.isContiguous || !t.hasDenseRows) fail(op, [t], 'must be contiguous (use cont)')
}

/** Contiguous, and with the strides of a new tensor in dimensions of one element too: some checks in C compare those. */
export function needPacked(op: string, t: Tensor): void {
  const { nb, ne } = t
  needContiguous(op, t)
  if (nb[2] !== nb[1] * ne[1] || nb[3] !== nb[2] * ne[2])
    fail(op, [t], 'must have the strides of a new tensor (use cont)')
}

export function needDenseRows(op: string, t: Tensor): void {
  if (!t.hasDenseRows) fail(op, [t], 'elements of a row must lie next to each other (use cont)')
}

export function sameShape(a: Tensor, b: Tensor): boolean {
  return a.ne.every((n, i) => n === b.ne[i])
}

/** Whether `b`, repeated a whole number of times along each dimension, gives the shape of `a`. */
export function repeatsInto(a: Tensor, b: Tensor): boolean {
  return a.ne.every((n, i) => n % b.ne[i]! === 0)
}

export function wholeSizes(op: string, sizes: Four): void {
  if (sizes.some((n) => !Number.isSafeInteger(n) || n < 1))
    throw new ShapeError(`${op}: sizes [${sizes.join(', ')}] must be whole numbers from 1 up`)
}
