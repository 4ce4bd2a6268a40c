/**
 * An arena: memory for the keys and values of all layers, in one type each, cut into pages.
 *
 * A layer's keys are head-major, [d, cells, Hkv]: each head's keys lie together, which reads 2 to 4 times faster than
 * libllama's token-major rows. Its values lie the same way or transposed, [cells, d, Hkv], so that the weighted sum over
 * cells is a plain matrix product (docs/decisions). A *page* is 32 consecutive cells in all layers and heads; the part of
 * a page in one layer and head is a *block*, the unit that ragged tables hold.
 *
 * Everything is cleared when made: a masked cell still takes part in products, and 0 x NaN is NaN.
 */
import { KvasirError, showBytes } from '../contract/errors.ts'
import { BLOCK_ROWS, type RowType } from '../contract/format.ts'
import { Buffer } from '../ggml/buffer.ts'
import { Context } from '../ggml/context.ts'
import type { Device } from '../ggml/device.ts'
import * as ops from '../ggml/ops/index.ts'
import { contiguous, type Tensor } from '../ggml/tensor.ts'
import { GGML_TYPES, type GgmlType, isQuantized, rowBytes } from '../ggml/types.ts'

/** Types that both keys and values can be stored in. */
export const CACHE_TYPES = [
  'f16',
  'bf16',
  'f32',
  'q8_0',
  'q5_1',
  'q5_0',
  'q4_1',
  'q4_0',
  'iq4_nl',
] as const satisfies readonly RowType[]
export type CacheType = (typeof CACHE_TYPES)[number]

/** Cells of a page: the rows of a block. */
export const PAGE_CELLS = BLOCK_ROWS
/** Cells are read in whole multiples of this, so that a graph serves many steps; the rest is masked. */
export const CELL_PADDING = 256
/** An arena holds a multiple of this many pages. */
const PAGES_STEP = CELL_PADDING / PAGE_CELLS

export interface ArenaFormat {
  readonly keyType: CacheType
  readonly valueType: CacheType
  /** Whether values lie transposed; only for types without blocks. */
  readonly valuesTransposed: boolean
}

/** What all arenas of a store share: the model's shape. */
export interface CacheDims {
  readonly layers: number
  readonly headDim: number
  readonly kvHeads: number
}

export interface ArenaShape extends ArenaFormat, CacheDims {
  /** Rounded up so that {@link CELL_PADDING} divides the cells. */
  readonly pages: number
}

/** Bytes of one block: 32 keys and 32 values of one head in one layer. */
export function blockBytes(f: ArenaFormat, headDim: number): number {
  return PAGE_CELLS * (rowBytes(f.keyType, headDim) + rowBytes(f.valueType, headDim))
}

/** Bytes of one page: its blocks in all layers and heads. */
export function pageBytes(s: ArenaFormat & CacheDims): number {
  return blockBytes(s, s.headDim) * s.layers * s.kvHeads
}

/** Pages that an arena for `cells` cells has. */
export function pagesFor(cells: number): number {
  return Math.ceil(cells / CELL_PADDING) * PAGES_STEP
}

export class Arena implements Disposable {
  readonly kind = 'rows'
  readonly shape: ArenaShape
  readonly pages: number
  readonly cells: number
  /** Native bytes taken. */
  readonly bytes: number
  readonly blockBytes: number
  readonly pageBytes: number
  readonly #context: Context
  readonly #buffer: Buffer
  readonly #keys: readonly Tensor[]
  readonly #values: readonly Tensor[]
  /** The same memory for JS, when it is the host's; [layer]. */
  readonly #hostKeys: readonly Uint32Array[] | null
  readonly #hostValues: readonly Uint32Array[] | null
  readonly #hostKeyBytes: readonly Uint8Array[] | null
  readonly #hostValueBytes: readonly Uint8Array[] | null

  /** @throws KvasirError INVALID_ARGUMENT for types that do not fit the heads, OUT_OF_MEMORY. */
  constructor(shape: ArenaShape, device: Device) {
    checkFormat(shape)
    const { layers, headDim: d, kvHeads } = shape
    this.pages = Math.ceil(shape.pages / PAGES_STEP) * PAGES_STEP
    this.shape = { ...shape, pages: this.pages }
    this.cells = this.pages * PAGE_CELLS
    if (d * this.cells * kvHeads >= 2 ** 31)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `${this.cells} cells of ${d * kvHeads} values are more than 32-bit indices reach`,
      )
    this.blockBytes = blockBytes(shape, d)
    this.pageBytes = pageBytes(shape)
    const valueNe = shape.valuesTransposed ? ([this.cells, d, kvHeads] as const) : ([d, this.cells, kvHeads] as const)
    this.#context = new Context({ tensors: 2 * layers })
    this.#keys = each(layers, () => this.#context.tensor(shape.keyType, d, this.cells, kvHeads))
    this.#values = each(layers, () => this.#context.tensor(shape.valueType, ...valueNe))
    try {
      this.#buffer = Buffer.forContext(this.#context, device.bufferType)
    } catch (cause) {
      this.#context.dispose()
      const size = showBytes(this.pages * this.pageBytes)
      throw new KvasirError(
        'OUT_OF_MEMORY',
        `no memory for a KV cache of ${this.cells} cells (${size}). Ask for less kvMemory, a shorter context or a smaller cache type`,
        {},
        cause,
      )
    }
    this.#buffer.clear()
    this.bytes = this.#buffer.bytes
    const host = device.bufferType.isHost
    this.#hostKeys = host ? this.#keys.map((t) => t.hostWords()) : null
    this.#hostValues = host ? this.#values.map((t) => t.hostWords()) : null
    this.#hostKeyBytes = this.#hostKeys?.map(bytesOf) ?? null
    this.#hostValueBytes = this.#hostValues?.map(bytesOf) ?? null
  }

  /** Keys of a layer, [d, cells, Hkv], for writing. */
  keys(layer: number): Tensor {
    return this.#keys[layer]!
  }

  /** Values of a layer, [d, cells, Hkv] or, transposed, [cells, d, Hkv], for writing. */
  values(layer: number): Tensor {
    return this.#values[layer]!
  }

  /** Keys of cells [from, to), [d, n, Hkv]. */
  keyRun(c: Context, layer: number, from: number, to: number): Tensor {
    return ops.slice(c, this.#keys[layer]!, 1, from, to)
  }

  /** Values of cells [from, to): [d, n, Hkv], or [n, d, Hkv] when transposed. */
  valueRun(c: Context, layer: number, from: number, to: number): Tensor {
    const all = this.#values[layer]!
    if (!this.shape.valuesTransposed) return ops.slice(c, all, 1, from, to)
    return ops.view(c, all, [to - from, all.ne[1], all.ne[2]], [all.nb[1], all.nb[2]], from * all.nb[0])
  }

  /**
   * The bytes of a page in an order that does not depend on the arena's size: for each layer its keys by head, then its
   * values by head (transposed: by head and element).
   */
  readPage(page: number): Uint8Array {
    const out = new Uint8Array(this.pageBytes)
    this.#transfer(page, new Uint32Array(out.buffer), 'read')
    return out
  }

  /** Puts back what {@link readPage} gave, in this or another arena of the same types and dimensions. */
  writePage(page: number, bytes: Uint8Array): void {
    if (bytes.byteLength !== this.pageBytes)
      throw new KvasirError('INVALID_ARGUMENT', `a page has ${this.pageBytes} bytes, got ${bytes.byteLength}`)
    // Not `slice`: that of a Node Buffer makes no copy.
    const aligned = bytes.byteOffset % 4 ? new Uint8Array(bytes) : bytes
    this.#transfer(page, new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4), 'write')
  }

  copyPage(from: number, to: number): void {
    this.writePage(to, this.readPage(from))
  }

  /** The bytes of one block, keys then values. */
  readBlock(layer: number, head: number, page: number): Uint8Array {
    const out = new Uint8Array(this.blockBytes)
    this.#transferBlock(layer, head, page, new Uint32Array(out.buffer), 0, 'read')
    return out
  }

  writeBlock(layer: number, head: number, page: number, bytes: Uint8Array): void {
    if (bytes.byteLength !== this.blockBytes)
      throw new KvasirError('INVALID_ARGUMENT', `a block has ${this.blockBytes} bytes, got ${bytes.byteLength}`)
    const aligned = bytes.byteOffset % 4 ? new Uint8Array(bytes) : bytes
    this.#transferBlock(
      layer,
      head,
      page,
      new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4),
      0,
      'write',
    )
  }

  /** Copies the key and value of one head's cell to another cell, of this arena or one of the same types. */
  copyRow(layer: number, head: number, from: number, to: number, into: Arena = this): void {
    const rowOf = (t: Tensor, cell: number) => head * t.nb[2] + cell * t.nb[1]
    const [keys, intoKeys] = [this.#part('keys', layer), into.#part('keys', layer)]
    copyBytes(keys, rowOf(keys.tensor, from), intoKeys, rowOf(intoKeys.tensor, to), keys.tensor.nb[1])
    const [values, intoValues] = [this.#part('values', layer), into.#part('values', layer)]
    if (!this.shape.valuesTransposed) {
      copyBytes(values, rowOf(values.tensor, from), intoValues, rowOf(intoValues.tensor, to), values.tensor.nb[1])
      return
    }
    const size = values.tensor.nb[0]
    const [step, intoStep] = [values.tensor.nb[1], intoValues.tensor.nb[1]]
    let at = head * values.tensor.nb[2] + from * size
    let intoAt = head * intoValues.tensor.nb[2] + to * size
    for (let i = 0; i < this.shape.headDim; i++, at += step, intoAt += intoStep)
      copyBytes(values, at, intoValues, intoAt, size)
  }

  /**
   * Nobody needs what lies in pages [from, to): their memory goes back to the system where it can. Transposed values lie in short pieces,
   * so it takes a long run of pages for theirs to be whole pages of the system.
   * @returns bytes that went back
   */
  giveBack(from: number, to: number): number {
    let bytes = 0
    const give = (t: Tensor, cellBytes: number, row: number) => {
      bytes += this.#buffer.giveBack(t, row + from * PAGE_CELLS * cellBytes, (to - from) * PAGE_CELLS * cellBytes)
    }
    const { layers, kvHeads, headDim, valuesTransposed } = this.shape
    for (let layer = 0; layer < layers; layer++) {
      const [keys, values] = [this.#keys[layer]!, this.#values[layer]!]
      for (let h = 0; h < kvHeads; h++) {
        give(keys, keys.nb[1], h * keys.nb[2])
        if (!valuesTransposed) give(values, values.nb[1], h * values.nb[2])
        else for (let i = 0; i < headDim; i++) give(values, values.nb[0], h * values.nb[2] + i * values.nb[1])
      }
    }
    return bytes
  }

  #part(what: 'keys' | 'values', layer: number): Part {
    return what === 'keys'
      ? { tensor: this.#keys[layer]!, host: this.#hostKeyBytes?.[layer] ?? null }
      : { tensor: this.#values[layer]!, host: this.#hostValueBytes?.[layer] ?? null }
  }

  [Symbol.dispose](): void {
    this.#buffer.dispose()
    this.#context.dispose()
  }

  #transfer(page: number, words: Uint32Array, way: 'read' | 'write'): void {
    let at = 0
    for (let layer = 0; layer < this.shape.layers; layer++) {
      for (let h = 0; h < this.shape.kvHeads; h++) at = this.#keyPart(layer, h, page, words, at, way)
      for (let h = 0; h < this.shape.kvHeads; h++) at = this.#valuePart(layer, h, page, words, at, way)
    }
  }

  #transferBlock(layer: number, head: number, page: number, words: Uint32Array, at: number, way: 'read' | 'write') {
    this.#valuePart(layer, head, page, words, this.#keyPart(layer, head, page, words, at, way), way)
  }

  #keyPart(layer: number, head: number, page: number, words: Uint32Array, at: number, way: 'read' | 'write'): number {
    const t = this.#keys[layer]!
    const n = (PAGE_CELLS * t.nb[1]) / 4
    this.#move(t, this.#hostKeys?.[layer], (head * t.nb[2] + page * PAGE_CELLS * t.nb[1]) / 4, words, at, n, way)
    return at + n
  }

  #valuePart(layer: number, head: number, page: number, words: Uint32Array, at: number, way: 'read' | 'write'): number {
    const t = this.#values[layer]!
    const host = this.#hostValues?.[layer]
    if (!this.shape.valuesTransposed) {
      const n = (PAGE_CELLS * t.nb[1]) / 4
      this.#move(t, host, (head * t.nb[2] + page * PAGE_CELLS * t.nb[1]) / 4, words, at, n, way)
      return at + n
    }
    const n = (PAGE_CELLS * t.nb[0]) / 4
    const first = (head * t.nb[2] + page * PAGE_CELLS * t.nb[0]) / 4
    for (let i = 0; i < this.shape.headDim; i++, at += n)
      this.#move(t, host, first + (i * t.nb[1]) / 4, words, at, n, way)
    return at
  }

  /** `n` words between the tensor's word `offset` and `words[at]`. */
  #move(
    t: Tensor,
    host: Uint32Array | undefined,
    offset: number,
    words: Uint32Array,
    at: number,
    n: number,
    way: 'read' | 'write',
  ): void {
    if (!host) {
      const part = words.subarray(at, at + n)
      if (way === 'read') t.get(part, 4 * offset)
      else t.set(part, 4 * offset)
    } else if (n > 64) {
      if (way === 'read') words.set(host.subarray(offset, offset + n), at)
      else host.set(words.subarray(at, at + n), offset)
    } else if (way === 'read') for (let i = 0; i < n; i++) words[at + i] = host[offset + i]!
    else for (let i = 0; i < n; i++) host[offset + i] = words[at + i]!
  }
}

/** A layer's keys or values, and the same memory for JS when it is the host's. */
interface Part {
  readonly tensor: Tensor
  readonly host: Uint8Array | null
}

function bytesOf(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength)
}

const copied = new Uint8Array(4096)

/** Few bytes from one tensor to another. */
function copyBytes(from: Part, offset: number, into: Part, intoOffset: number, bytes: number): void {
  const [a, b] = [from.host, into.host]
  if (a && b) {
    for (let i = 0; i < bytes; i++) b[intoOffset + i] = a[offset + i]!
    return
  }
  const room = bytes <= copied.length ? copied.subarray(0, bytes) : new Uint8Array(bytes)
  into.tensor.set(from.tensor.get(room, offset), intoOffset)
}

function checkFormat(s: ArenaShape): void {
  for (const name of ['pages', 'layers', 'headDim', 'kvHeads'] as const)
    if (!(Number.isSafeInteger(s[name]) && s[name] >= 1))
      throw new KvasirError('INVALID_ARGUMENT', `an arena with ${s[name]} ${name}: must be a whole number from 1 up`)
  for (const type of [s.keyType, s.valueType])
    if (!CACHE_TYPES.includes(type))
      throw new KvasirError('INVALID_ARGUMENT', `no cache type "${type}"; there are: ${CACHE_TYPES.join(', ')}`)
    else if (s.headDim % GGML_TYPES[type].block)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `cache type ${type} needs heads of a multiple of ${GGML_TYPES[type].block}; they are ${s.headDim}`,
      )
  if (s.valuesTransposed && isQuantized(s.valueType))
    throw new KvasirError('INVALID_ARGUMENT', `${s.valueType} values cannot be stored transposed`)
}

/** Bytes that a tensor of keys or values of `cells` cells takes; for estimates before anything is made. */
export function arenaBytes(s: ArenaShape): number {
  const cells = Math.ceil(s.pages / PAGES_STEP) * CELL_PADDING
  const bytes = (type: GgmlType) => contiguous(type, [s.headDim, cells, s.kvHeads, 1])[3]
  return s.layers * (bytes(s.keyType) + bytes(s.valueType))
}

function each<T>(n: number, make: (i: number) => T): T[] {
  return Array.from({ length: n }, (_, i) => make(i))
}
