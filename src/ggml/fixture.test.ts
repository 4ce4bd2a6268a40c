/**
 * Tensors with data, in any memory layout, and the numbers they stand for, worked out without ggml's own shape code. Not a
 * test itself, but kept out of the build by its name.
 */
import koffi from 'koffi'
import { Backend, SingleRunner } from './backend.ts'
import { Buffer, hostBufferType } from './buffer.ts'
import { Context } from './context.ts'
import { cpuDevice } from './device.ts'
import { Graph } from './graph.ts'
import { ffi, loadNative } from './library.ts'
import { fromFloats, toFloats } from './numbers.ts'
import * as ops from './ops/index.ts'
import { contiguous, type Four, four, type Tensor } from './tensor.ts'
import { GGML_TYPES, type GgmlType, isQuantized, typeFromId } from './types.ts'

await loadNative()

/** mulberry32: one seed, one sequence. */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = seed | 0
  }

  /** [0, 1) */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }

  /** A whole number from `low` to `high`, both included. */
  int(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low + 1))
  }

  pick<T>(from: readonly T[]): T {
    return from[this.int(0, from.length - 1)]!
  }

  chance(p: number): boolean {
    return this.next() < p
  }

  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.next())) * Math.cos(2 * Math.PI * this.next())
  }
}

/** Numbers of a tensor in logical order, dimension 0 fastest. */
export interface Values {
  readonly ne: Four
  readonly data: Float64Array
}

export function values(ne: readonly number[], at: (i0: number, i1: number, i2: number, i3: number) => number): Values {
  const size = four(ne)
  const data = new Float64Array(size[0] * size[1] * size[2] * size[3])
  let i = 0
  for (let i3 = 0; i3 < size[3]; i3++)
    for (let i2 = 0; i2 < size[2]; i2++)
      for (let i1 = 0; i1 < size[1]; i1++) for (let i0 = 0; i0 < size[0]; i0++) data[i++] = at(i0, i1, i2, i3)
  return { ne: size, data }
}

/** The element, indices taken modulo the sizes: that is ggml's broadcasting. */
export function at(v: Values, i0: number, i1 = 0, i2 = 0, i3 = 0): number {
  const [n0, n1, n2, n3] = v.ne
  return v.data[(i0 % n0) + n0 * ((i1 % n1) + n1 * ((i2 % n2) + n2 * (i3 % n3)))]!
}

/** What an operand holds. `rows: n` are indices below n that do not repeat along dimension 0 while they can. */
export type Fill = 'normal' | 'positive' | 'mask' | { readonly rows: number }

/** `plain`, or a view that leaves gaps, starts late, or lies in another dimension order. */
export type Layout = 'plain' | 'gaps' | 'permuted' | 'permuted-gaps'

export interface Operand {
  readonly type: GgmlType
  readonly ne: readonly number[]
  readonly fill?: Fill
  readonly layout?: Layout
}

/** Leafs of one case, with their bytes, in one context; everything else in another, with a graph. */
export class Bench implements Disposable {
  readonly c = new Context({ tensors: 96, graphNodes: 192 })
  readonly #leafs = new Context({ tensors: 32 })
  readonly #data = new Map<Tensor, Uint8Array>()
  #buffer: Buffer | null = null

  /** Makes all operands of the case; once per bench, since a context gets its memory as a whole. */
  operands(r: Random, ...wanted: readonly Operand[]): Tensor[] {
    const plans = wanted.map((w) => this.#leaf(r, w))
    this.#buffer = Buffer.forContext(this.#leafs, hostBufferType())
    for (const [leaf, bytes] of this.#data) leaf.set(bytes)
    return plans.map((p) => p())
  }

  #leaf(r: Random, { type, ne, fill = 'normal', layout = 'plain' }: Operand): () => Tensor {
    const size = four(ne)
    const { block } = GGML_TYPES[type]
    const axes = layout.startsWith('permuted') ? shuffledAxes(r, isQuantized(type)) : ([0, 1, 2, 3] as const)
    const gaps = layout.endsWith('gaps')
    const inner = axes.map((to) => size[to]!) as [number, number, number, number] // sizes before permuting
    const whole = [...inner] as [number, number, number, number]
    const first = [0, 0, 0, 0]
    if (gaps)
      for (let i = 0; i < 4; i++) {
        first[i] = r.int(0, 1)
        whole[i]! += (i === 0 ? block : 1) * (first[i]! + r.int(0, 1))
        first[i]! *= contiguous(type, four(whole))[i]!
      }
    const leaf = this.#leafs.tensor(type, ...whole)
    this.#data.set(leaf, filled(r, type, leaf.ne, fill))
    return () => {
      const offset = first.reduce((sum, n) => sum + n, 0)
      const t = gaps ? ops.view(this.c, leaf, inner, leaf.nb.slice(1), offset) : leaf
      return layout.startsWith('permuted') ? ops.permute(this.c, t, ...(axes as [number, number, number, number])) : t
    }
  }

  /** Computes `t` on one thread and returns its numbers. */
  compute(t: Tensor): Values {
    t.asOutput()
    const graph = new Graph(this.c)
    graph.expand(t)
    runner.allocate(graph)
    runner.run(graph)
    return read(t)
  }

  /** Leafs whose bytes are no longer those they were given: only ops that write into an operand may change one. */
  changed(): number[] {
    return [...this.#data].flatMap(([leaf, bytes], i) => (same(bytes, raw(leaf.ptr, bytes.length)) ? [] : [i]))
  }

  [Symbol.dispose](): void {
    this.#buffer?.dispose()
    this.#leafs.dispose()
    this.c.dispose()
  }
}

/** One thread: tests share their cores, and ggml's barriers spin. */
export const backend = new Backend(cpuDevice(), Number(process.env['KVASIR_TEST_THREADS'] ?? 1))
export const runner = new SingleRunner(backend)

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.every((x, i) => x === b[i])
}

function shuffledAxes(r: Random, keepFirst: boolean): readonly [number, number, number, number] {
  const axes = [0, 1, 2, 3]
  for (let i = 3; i > (keepFirst ? 1 : 0); i--) {
    const j = r.int(keepFirst ? 1 : 0, i)
    ;[axes[i], axes[j]] = [axes[j]!, axes[i]!]
  }
  return axes as unknown as readonly [number, number, number, number]
}

const INTEGERS: Partial<Record<GgmlType, number>> = { i8: 1, i16: 2, i32: 4, i64: 8 }

/** Types that `fromFloats` refuses get bytes whose f16 scales are below 1, so that no number is NaN or huge. */
const LARGEST_SCALE_BYTE = 0x3b

function filled(r: Random, type: GgmlType, ne: Four, fill: Fill): Uint8Array {
  const n = ne[0] * ne[1] * ne[2] * ne[3]
  const offset = typeof fill === 'object' ? r.int(0, fill.rows - 1) : 0
  const number = (i: number): number => {
    if (typeof fill === 'object') return (offset + i) % fill.rows
    if (fill === 'mask') return r.chance(0.3) && i % ne[0] ? Number.NEGATIVE_INFINITY : 0
    if (fill === 'positive') return Math.abs(r.normal()) + 0.1
    return r.normal()
  }
  const integer = INTEGERS[type]
  if (integer || type === 'f64') {
    const whole = (x: number) => (Number.isFinite(x) ? Math.trunc(x) : -9)
    const numbers = Array.from({ length: n }, (_, i) => (integer ? whole(number(i)) : number(i)))
    if (type === 'f64') return bytesOf(Float64Array.from(numbers))
    if (type === 'i64') return bytesOf(BigInt64Array.from(numbers.map(BigInt)))
    return bytesOf({ i8: Int8Array, i16: Int16Array, i32: Int32Array }[type as 'i8' | 'i16' | 'i32'].from(numbers))
  }
  try {
    return fromFloats(
      type,
      Float32Array.from({ length: n }, (_, i) => number(i)),
      ne[0],
    )
  } catch {
    const bytes = new Uint8Array(contiguous(type, ne)[3] * ne[3])
    return bytes.map(() => r.int(0, LARGEST_SCALE_BYTE))
  }
}

export function bytesOf(a: ArrayBufferView): Uint8Array {
  return new Uint8Array(a.buffer, a.byteOffset, a.byteLength)
}

/** `struct ggml_tensor`, 64 bit. */
export function structOf(t: Tensor): { type: GgmlType | undefined; ne: number[]; nb: number[]; bytes: number } {
  const long = (offset: number) => Number(koffi.decode(t.ptr, offset, 'int64_t'))
  return {
    type: typeFromId(koffi.decode(t.ptr, 0, 'int') as number),
    ne: [16, 24, 32, 40].map(long),
    nb: [48, 56, 64, 72].map(long),
    bytes: ffi.ggml_nbytes(t.ptr),
  }
}

function raw(tensor: bigint, bytes: number): Uint8Array {
  const data = koffi.decode(tensor, 248, 'void*') as bigint
  return new Uint8Array(koffi.view(data, bytes))
}

/** Dequantised numbers of a tensor with any strides, read through the strides of the C struct. */
export function read(t: Tensor): Values {
  const s = structOf(t)
  const type = t.type
  const { block, bytes } = GGML_TYPES[type]
  const memory = raw(t.ptr, s.bytes)
  const [n0, n1, n2, n3] = t.ne
  const out = new Float64Array(t.elements)
  const cell = new Uint8Array(bytes)
  const view = new DataView(cell.buffer)
  let k = 0
  for (let i3 = 0; i3 < n3; i3++)
    for (let i2 = 0; i2 < n2; i2++)
      for (let i1 = 0; i1 < n1; i1++)
        for (let i0 = 0; i0 < n0; i0 += block) {
          const from = (i0 / block) * s.nb[0]! + i1 * s.nb[1]! + i2 * s.nb[2]! + i3 * s.nb[3]!
          cell.set(memory.subarray(from, from + bytes))
          for (const x of decoded(type, cell, view)) out[k++] = x
        }
  return { ne: t.ne, data: out }
}

function decoded(type: GgmlType, cell: Uint8Array, view: DataView): Iterable<number> {
  if (type === 'f32') return [view.getFloat32(0, true)]
  if (type === 'f64') return [view.getFloat64(0, true)]
  if (type === 'i8') return [view.getInt8(0)]
  if (type === 'i16') return [view.getInt16(0, true)]
  if (type === 'i32') return [view.getInt32(0, true)]
  if (type === 'i64') return [Number(view.getBigInt64(0, true))]
  const { block } = GGML_TYPES[type]
  if (type === 'q8_1' || type === 'q8_K') return new Float64Array(block) // internal types: nothing turns them into f32
  return toFloats(type, cell, block)
}

/** Root mean square of the difference over that of the reference; infinite when one is NaN where the other is not. */
export function rmsError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let difference = 0
  let norm = 0
  for (let i = 0; i < want.length; i++) {
    const [g, w] = [got[i]!, want[i]!]
    if (Object.is(g, w) || (Number.isNaN(g) && Number.isNaN(w))) {
      if (Number.isFinite(w)) norm += w * w
      continue
    }
    if (!Number.isFinite(g) || !Number.isFinite(w)) {
      if (g === w) continue
      return Number.POSITIVE_INFINITY
    }
    difference += (g - w) ** 2
    norm += w * w
  }
  return Math.sqrt(difference / (norm || 1))
}

/** Shape, strides, type and bytes on the TypeScript side against the C struct; a text when they differ. */
export function structMismatch(t: Tensor): string | null {
  const s = structOf(t)
  const mine = { type: t.type, ne: [...t.ne], nb: [...t.nb], bytes: t.bytes }
  // Strides of dimensions of size 1 are never used to reach an element, but must agree all the same: views inherit them.
  return JSON.stringify(mine) === JSON.stringify(s) ? null : `${JSON.stringify(mine)} here, ${JSON.stringify(s)} in C`
}
