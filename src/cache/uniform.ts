/**
 * The first KV store: one sequence, the same cells in all layers and heads.
 *
 * Keys of a layer are head-major, [d, cells, Hkv]: each head's keys lie together, which reads 2 to 4 times faster than
 * libllama's token-major rows. Values lie either the same way, or transposed, [cells, d, Hkv], so that the weighted sum over
 * cells is a plain matrix product (see `docs/decisions`). Everything is cleared when made: a masked row still takes part in
 * products, and 0 x NaN is NaN.
 */
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { CellId } from '../contract/units.ts'
import { Buffer } from '../ggml/buffer.ts'
import { Context } from '../ggml/context.ts'
import type { Device } from '../ggml/device.ts'
import * as ops from '../ggml/ops/index.ts'
import { contiguous, type Tensor } from '../ggml/tensor.ts'
import { GGML_TYPES, type GgmlType, isQuantized } from '../ggml/types.ts'

/** Types that both keys and values can be stored in. */
export const CACHE_TYPES = ['f16', 'bf16', 'f32', 'q8_0'] as const
export type CacheType = (typeof CACHE_TYPES)[number]

/** Cells are read in whole multiples of this, so that a graph serves many steps; the rest is masked. */
export const CELL_PADDING = 256

export interface CacheShape {
  readonly layers: number
  readonly headDim: number
  readonly kvHeads: number
  /** Cells, rounded up to {@link CELL_PADDING}. */
  readonly cells: number
  readonly keyType: CacheType
  readonly valueType: CacheType
  /** Whether values lie transposed; only for types without blocks. */
  readonly valuesTransposed: boolean
}

/** Bytes that a cache of this shape takes. */
export function cacheBytes(s: CacheShape): number {
  const cells = Math.ceil(s.cells / CELL_PADDING) * CELL_PADDING
  const bytes = (type: GgmlType) => contiguous(type, [s.headDim, cells, s.kvHeads, 1])[3]
  return s.layers * (bytes(s.keyType) + bytes(s.valueType))
}

export class UniformCache implements Disposable {
  readonly shape: CacheShape
  /** Position of the token in each cell; -1: the cell is free. */
  readonly positions: Int32Array
  readonly bytes: number
  readonly #context: Context
  readonly #buffer: Buffer
  readonly #keys: readonly Tensor[]
  readonly #values: readonly Tensor[]
  #used = 0

  /** @throws KvasirError INVALID_ARGUMENT for types that do not fit the heads, OUT_OF_MEMORY. */
  constructor(shape: CacheShape, device: Device) {
    for (const type of [shape.keyType, shape.valueType])
      if (shape.headDim % GGML_TYPES[type].block)
        throw new KvasirError(
          'INVALID_ARGUMENT',
          `cache type ${type} needs heads of a multiple of ${GGML_TYPES[type].block}; they are ${shape.headDim}`,
        )
    if (shape.valuesTransposed && isQuantized(shape.valueType))
      throw new KvasirError('INVALID_ARGUMENT', `${shape.valueType} values cannot be stored transposed`)
    const cells = Math.ceil(shape.cells / CELL_PADDING) * CELL_PADDING
    const { layers, headDim: d, kvHeads } = shape
    if (d * cells * kvHeads >= 2 ** 31)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `${cells} cells of ${d * kvHeads} values are more than 32-bit indices reach`,
      )
    this.shape = { ...shape, cells }
    this.positions = new Int32Array(cells).fill(-1)
    this.#context = new Context({ tensors: 2 * layers })
    const valueNe = shape.valuesTransposed ? ([cells, d, kvHeads] as const) : ([d, cells, kvHeads] as const)
    this.#keys = each(layers, () => this.#context.tensor(shape.keyType, d, cells, kvHeads))
    this.#values = each(layers, () => this.#context.tensor(shape.valueType, ...valueNe))
    try {
      this.#buffer = Buffer.forContext(this.#context, device.bufferType)
    } catch (cause) {
      this.#context.dispose()
      const size = showBytes(cacheBytes(this.shape))
      throw new KvasirError(
        'OUT_OF_MEMORY',
        `no memory for a KV cache of ${cells} cells (${size}). Ask for a shorter context or a smaller cache type`,
        {},
        cause,
      )
    }
    this.#buffer.clear()
    this.bytes = this.#buffer.bytes
  }

  /** Cells in use: [0, used). */
  get used(): number {
    return this.#used
  }

  get capacity(): number {
    return this.shape.cells
  }

  /** The next `count` cells, for tokens at `position` and on; they count as used at once. @throws CONTEXT_OVERFLOW */
  append(position: number, count: number): CellId[] {
    if (this.#used + count > this.capacity)
      throw new KvasirError(
        'CONTEXT_OVERFLOW',
        `${count} more rows do not fit: ${this.#used} of ${this.capacity} cells in use`,
      )
    const first = this.#used
    for (let i = 0; i < count; i++) this.positions[first + i] = position + i
    this.#used += count
    return each(count, (i) => (first + i) as CellId)
  }

  /** Frees all cells from `cell` on. */
  truncate(cell: number): void {
    this.positions.fill(-1, cell, this.#used)
    this.#used = Math.min(this.#used, cell)
  }

  /** Bytes that the used cells stand for. */
  get usedBytes(): number {
    return (this.bytes / this.capacity) * this.#used
  }

  /** Keys of the first `cells` cells, [d, cells, Hkv]. */
  keys(c: Context, layer: number, cells: number): Tensor {
    return ops.slice(c, this.#keys[layer]!, 1, 0, cells)
  }

  /** Values of the first `cells` cells: [d, cells, Hkv], or [cells, d, Hkv] when transposed. */
  values(c: Context, layer: number, cells: number): Tensor {
    const all = this.#values[layer]!
    if (!this.shape.valuesTransposed) return ops.slice(c, all, 1, 0, cells)
    return ops.view(c, all, [cells, all.ne[1], all.ne[2]], [all.nb[1], all.nb[2]])
  }

  /** The whole arena of a layer's keys or values, for writing. */
  arena(layer: number, of: 'keys' | 'values'): Tensor {
    return (of === 'keys' ? this.#keys : this.#values)[layer]!
  }

  [Symbol.dispose](): void {
    this.#buffer.dispose()
    this.#context.dispose()
  }
}

function each<T>(n: number, make: (i: number) => T): T[] {
  return Array.from({ length: n }, (_, i) => make(i))
}
