/** Views, reshapes, copies: ops that move or rename data. */
import { ShapeError } from '../../contract/errors.ts'
import type { Context } from '../context.ts'
import { ffi } from '../library.ts'
import { contiguous, type Four, four, show, Tensor } from '../tensor.ts'
import { canBecomeFloats, canHoldFloats, GGML_TYPES, type GgmlType, isQuantized } from '../types.ts'
import { fail, needDenseRows, needType, readable, wholeSizes } from './check.ts'

/**
 * A window on `a`: sizes `ne`, byte strides for dimensions 1 to 3 (default: those of `a`), starting at byte `offset`.
 * Strides of dimensions that are not given follow from the last one. @throws ShapeError when it would leave `a`.
 */
export function view(c: Context, a: Tensor, ne: readonly number[], strides?: readonly number[], offset = 0): Tensor {
  readable('view', c, a)
  const sizes = four(ne)
  wholeSizes('view', sizes)
  needDenseRows('view', a) // C gives every view the element stride of a new tensor
  const { block, bytes } = GGML_TYPES[a.type]
  if (sizes[0] % block) fail('view', [a], `a row of ${sizes[0]} elements is no multiple of ${block}`)
  const nb1 = strides?.[0] ?? a.nb[1]
  const nb2 = strides?.[1] ?? (strides ? nb1 * sizes[1] : a.nb[2])
  const nb3 = strides?.[2] ?? (strides ? nb2 * sizes[2] : a.nb[3])
  const nb: Four = [a.nb[0], nb1, nb2, nb3]
  for (const n of [nb1, nb2, nb3, offset])
    if (!(n >= 0 && n % bytes === 0))
      fail('view', [a], `${n} is no stride or offset: not a multiple of ${bytes}, from 0 up`)
  const end = offset + new Tensor(c, a.ptr, a.type, sizes, nb).bytes
  // C asks for room for all elements without overlap, whatever the strides are.
  const packedEnd = offset + contiguous(a.type, sizes)[3] * sizes[3]
  if (!(end <= a.bytes && packedEnd <= a.bytes))
    fail('view', [a], `bytes [${offset}, ${Math.max(end, packedEnd)}) are outside its ${a.bytes}`)
  return c.adopt(ffi.ggml_view_4d(c.reserve(a), a.ptr, ...sizes, nb1, nb2, nb3, offset), a.type, sizes, nb)
}

/** The same elements in another shape. */
export function reshape(c: Context, a: Tensor, ...ne: number[]): Tensor {
  readable('reshape', c, a)
  if (!a.isContiguous) fail('reshape', [a], 'must be contiguous (use cont)')
  const sizes = four(ne)
  wholeSizes('reshape', sizes)
  if (sizes[0] * sizes[1] * sizes[2] * sizes[3] !== a.elements || sizes[0] % GGML_TYPES[a.type].block)
    fail('reshape', [a], `does not fill [${ne.join(', ')}]`)
  return c.adopt(ffi.ggml_reshape_4d(c.reserve(a), a.ptr, ...sizes), a.type, sizes)
}

/** Renames dimensions without moving data: dimension i of `a` becomes dimension `axes[i]` of the result. */
export function permute(c: Context, a: Tensor, ...axes: [number, number, number, number]): Tensor {
  readable('permute', c, a)
  const [x, y, z, w] = axes
  const order = axes.length === 4 && axes.every((i) => i in a.ne) && ((1 << x) | (1 << y) | (1 << z) | (1 << w)) === 15
  if (!order) fail('permute', [a], `[${axes.join(', ')}] is no order of 0, 1, 2, 3`)
  if (isQuantized(a.type) && axes[0] !== 0) fail('permute', [a], 'blocks of dimension 0 cannot be taken apart')
  const ne: [number, number, number, number] = [1, 1, 1, 1]
  const nb: [number, number, number, number] = [0, 0, 0, 0]
  for (let i = 0; i < 4; i++) {
    ne[axes[i]!] = a.ne[i]!
    nb[axes[i]!] = a.nb[i]!
  }
  return c.adopt(ffi.ggml_permute(c.reserve(a), a.ptr, ...axes), a.type, ne, nb)
}

/** Swaps dimensions 0 and 1, as a view. */
export function transpose(c: Context, a: Tensor): Tensor {
  return permute(c, a, 1, 0, 2, 3)
}

/** A contiguous copy, of shape `ne` if given. */
export function cont(c: Context, a: Tensor, ...ne: number[]): Tensor {
  readable('cont', c, a)
  const sizes = ne.length ? four(ne) : a.ne
  wholeSizes('cont', sizes)
  if (sizes[0] * sizes[1] * sizes[2] * sizes[3] !== a.elements) fail('cont', [a], `does not fill [${ne.join(', ')}]`)
  checkCopy('cont', a, a.type, sizes)
  return c.adopt(ffi.ggml_cont_4d(c.reserve(a), a.ptr, ...sizes), a.type, sizes)
}

const FLOATS: readonly GgmlType[] = ['f32', 'f16', 'bf16']

/** Pairs that ggml's CPU copy can do; anything else must pass through f32. */
function canCopy(from: GgmlType, to: GgmlType): boolean {
  if (from === to) return true
  if (from === 'f32') return canHoldFloats(to) || to === 'i32'
  if (to === 'f32') return canBecomeFloats(from) || from === 'i32'
  return FLOATS.includes(from) && (FLOATS.includes(to) || to === 'q8_0')
}

/** What C asks of a copy from `a` to elements of `type` in shape `ne`; `into` is null for a new, contiguous tensor. */
function checkCopy(op: string, a: Tensor, type: GgmlType, ne: Four, into: Tensor | null = null): void {
  const operands = into ? [a, into] : [a]
  if (!canCopy(a.type, type)) fail(op, operands, `${a.type} cannot become ${type} in one step: go through f32`)
  const { block } = GGML_TYPES[type]
  if (ne[0] % block || a.ne[0] % block) fail(op, operands, `rows are no multiple of ${type}'s block of ${block}`)
  const whole = a.isContiguous && (!into || into.isContiguous)
  if (isQuantized(a.type) && a.type === type) {
    const rowByRow = a.hasDenseRows && (!into || into.hasDenseRows) && ne.every((n, i) => n === a.ne[i])
    if (!whole && !rowByRow)
      fail(op, operands, 'quantised rows can only be copied whole: shapes must agree (use cont first)')
  } else if (isQuantized(type)) {
    if (!a.hasDenseRows || (into && !into.isContiguous))
      fail(op, operands, 'quantising needs dense rows and a contiguous destination (use cont)')
  } else if (isQuantized(a.type) && into && !into.hasDenseRows) needDenseRows(op, into)
}

/** A contiguous copy of another type. Quantised to f16 or to another quantised type must go through f32. */
export function cast(c: Context, a: Tensor, type: GgmlType): Tensor {
  readable('cast', c, a)
  checkCopy('cast', a, type, a.ne)
  return c.adopt(ffi.ggml_cast(c.reserve(a), a.ptr, GGML_TYPES[type].id), type, a.ne)
}

/** Writes `a` over `into` (any shape with as many elements); the result is a view of `into`. */
export function copy(c: Context, a: Tensor, into: Tensor): Tensor {
  readable('copy', c, a, into)
  if (a.elements !== into.elements) fail('copy', [a, into], 'must have as many elements')
  checkCopy('copy', a, into.type, into.ne, into)
  return c.adopt(ffi.ggml_cpy(c.reserve(a, into), a.ptr, into.ptr), into.type, into.ne, into.nb)
}

/** Puts `b` behind `a` along dimension `dim`; all other sizes and the types must agree. */
export function concat(c: Context, a: Tensor, b: Tensor, dim: 0 | 1 | 2 | 3): Tensor {
  readable('concat', c, a, b)
  if (!(dim in a.ne) || a.type !== b.type || a.ne.some((n, i) => i !== dim && n !== b.ne[i]))
    fail('concat', [a, b], `types and all sizes but that of dimension ${dim} must agree`)
  const ne: [number, number, number, number] = [...a.ne]
  ne[dim] += b.ne[dim]
  return c.adopt(ffi.ggml_concat(c.reserve(a, b), a.ptr, b.ptr, dim), a.type, ne)
}

/** Repeats `a` along each dimension until it fills `ne`. */
export function repeat(c: Context, a: Tensor, ...ne: number[]): Tensor {
  readable('repeat', c, a)
  needType('repeat', a, 'f32', 'f16', 'i32', 'i16')
  needDenseRows('repeat', a)
  const sizes = four(ne)
  wholeSizes('repeat', sizes)
  if (sizes.some((n, i) => n % a.ne[i]!)) fail('repeat', [a], `does not repeat into [${ne.join(', ')}]`)
  return c.adopt(ffi.ggml_repeat_4d(c.reserve(a), a.ptr, ...sizes), a.type, sizes)
}

/** Rows `[from, to)` along dimension `dim` (1 to 3), as a view. */
export function slice(c: Context, a: Tensor, dim: 1 | 2 | 3, from: number, to: number): Tensor {
  if (!(Number.isSafeInteger(from) && Number.isSafeInteger(to) && from >= 0 && from < to && to <= a.ne[dim]))
    throw new ShapeError(`slice: [${from}, ${to}) of dimension ${dim} of ${show(a)}`)
  const ne: [number, number, number, number] = [...a.ne]
  ne[dim] = to - from
  return view(c, a, ne, a.nb.slice(1), from * a.nb[dim])
}
