/**
 * An arena for rows in codes (`codes.ts`): pages of 32 cells like any other, but a block of keys or values is written as a whole and
 * never changed. Its memory is planes of codes and the parameters of their groups; what several blocks share, or what only some
 * have (low rank, outliers), is kept beside it.
 *
 *   planes   `tq2_0` [32 d, pages, Hkv] each
 *   params   f16 [params, pages, Hkv]
 */
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { Codes, RowFormat } from '../contract/format.ts'
import { Buffer } from '../ggml/buffer.ts'
import { Context } from '../ggml/context.ts'
import type { Device } from '../ggml/device.ts'
import type { Tensor } from '../ggml/tensor.ts'
import { type CacheDims, PAGE_CELLS } from './arena.ts'
import {
  blockCodeBytes,
  type CodeExtras,
  type CodeLayout,
  checkCodes,
  codeLayout,
  type EncodedBlock,
  extrasBytes,
} from './codes.ts'

export type CodeFormat = Extract<RowFormat, { kind: 'codes' }>

export type KeysOrValues = 'keys' | 'values'
const BOTH = ['keys', 'values'] as const

/** Keys, or values, of one layer. */
interface Coded {
  readonly planes: readonly Tensor[]
  /** Null: the groups have none in the blocks. */
  readonly params: Tensor | null
}

export type BlockExtras = Readonly<Record<KeysOrValues, CodeExtras>>

/** Bytes of one block in the arena, without what lies beside it. */
export function codeBlockBytes(format: CodeFormat, headDim: number): number {
  return blockCodeBytes(format.keys, headDim) + blockCodeBytes(format.values, headDim)
}

/** Bytes of one page: its blocks in all layers and heads. */
export function codePageBytes(format: CodeFormat, { layers, kvHeads, headDim }: CacheDims): number {
  return codeBlockBytes(format, headDim) * layers * kvHeads
}

export class CodeArena implements Disposable {
  readonly kind = 'codes'
  readonly format: CodeFormat
  readonly dims: CacheDims
  readonly pages: number
  readonly cells: number
  readonly bytes: number
  readonly blockBytes: number
  readonly pageBytes: number
  readonly layouts: Readonly<Record<KeysOrValues, CodeLayout>>
  readonly #context: Context
  readonly #buffer: Buffer
  readonly #layers: readonly Readonly<Record<KeysOrValues, Coded>>[]
  /** By block: column * pages + page. */
  readonly #extras = new Map<number, BlockExtras>()
  #extraBytes = 0

  /** @throws KvasirError INVALID_ARGUMENT for a format that does not fit the heads, OUT_OF_MEMORY */
  constructor(format: CodeFormat, dims: CacheDims, pages: number, device: Device) {
    const { layers, headDim: d, kvHeads } = dims
    for (const what of BOTH) checkCodes(format[what], d)
    this.format = format
    this.dims = dims
    this.pages = pages
    this.cells = this.pages * PAGE_CELLS
    this.layouts = { keys: codeLayout(format.keys, d), values: codeLayout(format.values, d) }
    this.blockBytes = codeBlockBytes(format, d)
    this.pageBytes = codePageBytes(format, dims)
    this.#context = new Context({ tensors: layers * 8 })
    const coded = (codes: Codes): Coded => {
      const { planes, params } = codeLayout(codes, d)
      return {
        planes: Array.from({ length: planes }, () =>
          this.#context.tensor('tq2_0', PAGE_CELLS * d, this.pages, kvHeads),
        ),
        params: params ? this.#context.tensor('f16', params, this.pages, kvHeads) : null,
      }
    }
    this.#layers = Array.from({ length: layers }, () => ({ keys: coded(format.keys), values: coded(format.values) }))
    try {
      this.#buffer = Buffer.forContext(this.#context, device.bufferType)
    } catch (cause) {
      this.#context.dispose()
      const size = showBytes(this.pages * this.pageBytes)
      throw new KvasirError('OUT_OF_MEMORY', `no memory for ${this.cells} cells of codes (${size})`, {}, cause)
    }
    // Masked cells take part in products, and a page of padding is read for nobody.
    this.#buffer.clear()
    this.bytes = this.#buffer.bytes
  }

  /** Bytes of what lies beside the blocks. */
  get extraBytes(): number {
    return this.#extraBytes
  }

  coded(layer: number, what: KeysOrValues): Coded {
    return this.#layers[layer]![what]
  }

  extras(layer: number, head: number, page: number): BlockExtras | undefined {
    return this.#extras.get(this.#blockId(layer, head, page))
  }

  write(layer: number, head: number, page: number, block: Readonly<Record<KeysOrValues, EncodedBlock>>): void {
    for (const what of BOTH) {
      const { planes, params } = this.coded(layer, what)
      const { planeBytes } = this.layouts[what]
      const at = (t: Tensor) => head * t.nb[2] + page * t.nb[1]
      for (const [i, plane] of planes.entries())
        plane.set(block[what].planes.subarray(i * planeBytes, (i + 1) * planeBytes), at(plane))
      params?.set(block[what].params, at(params))
    }
    this.forget(layer, head, page)
    const extras = { keys: block.keys.extras, values: block.values.extras }
    this.#extras.set(this.#blockId(layer, head, page), extras)
    this.#extraBytes += extrasBytes(extras.keys) + extrasBytes(extras.values)
  }

  read(layer: number, head: number, page: number): Readonly<Record<KeysOrValues, EncodedBlock>> {
    const extras = this.extras(layer, head, page)
    if (!extras)
      throw new KvasirError('INVALID_ARGUMENT', `block ${page} of layer ${layer}, head ${head} was not written`)
    const one = (what: KeysOrValues): EncodedBlock => {
      const { planes, params } = this.coded(layer, what)
      const layout = this.layouts[what]
      const bytes = new Uint8Array(layout.planes * layout.planeBytes)
      const at = (t: Tensor) => head * t.nb[2] + page * t.nb[1]
      for (const [i, plane] of planes.entries())
        plane.get(bytes.subarray(i * layout.planeBytes, (i + 1) * layout.planeBytes), at(plane))
      const numbers = new Uint16Array(layout.params)
      params?.get(numbers, at(params))
      return { planes: bytes, params: numbers, extras: extras[what] }
    }
    return { keys: one('keys'), values: one('values') }
  }

  /** A block is free: what lies beside it goes. */
  forget(layer: number, head: number, page: number): void {
    const id = this.#blockId(layer, head, page)
    const old = this.#extras.get(id)
    if (!old) return
    this.#extras.delete(id)
    this.#extraBytes -= extrasBytes(old.keys) + extrasBytes(old.values)
  }

  /** Nobody needs what lies in pages [from, to): their memory goes back to the system where it can. @returns bytes that went back */
  giveBack(from: number, to: number): number {
    let bytes = 0
    for (const layer of this.#layers)
      for (const what of BOTH)
        for (const t of [...layer[what].planes, layer[what].params])
          for (let h = 0; t && h < this.dims.kvHeads; h++)
            bytes += this.#buffer.giveBack(t, h * t.nb[2] + from * t.nb[1], (to - from) * t.nb[1])
    return bytes
  }

  #blockId(layer: number, head: number, page: number): number {
    return (layer * this.dims.kvHeads + head) * this.pages + page
  }

  [Symbol.dispose](): void {
    this.#extras.clear()
    this.#buffer.dispose()
    this.#context.dispose()
  }
}
