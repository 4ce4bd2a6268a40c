/**
 * Rows in codes as attention reads them: unpacked, and, where it cannot do with the codes (`lower/blocks.ts`), scaled back and
 * corrected. All by ggml ops, through f32 numbers that live as long as one layer's attention: memory that is read for a step, not kept.
 */
import { type Arena, PAGE_CELLS } from '../cache/arena.ts'
import type { BlockExtras, CodeArena, KeysOrValues } from '../cache/code-arena.ts'
import type { CodeExtras } from '../cache/codes.ts'
import type { BlockRef } from '../cache/column.ts'
import type { Codes } from '../contract/format.ts'
import type { Context } from '../ggml/context.ts'
import * as ops from '../ggml/ops/index.ts'
import type { Tensor } from '../ggml/tensor.ts'
import { type CodedRows, isCoded, numbersOf } from './lower/blocks.ts'
import type { KvPart } from './lower/lowering.ts'
import type { Load, PlacedItem } from './place.ts'

/** Which extras the blocks of a part have: what a graph depends on. */
export interface ExtrasShape {
  readonly scale: boolean
  readonly base: boolean
  /** Rank of what is added; 0: nothing. */
  readonly rank: number
  /** Outliers of all its blocks, with room for more, so that a graph serves many steps. */
  readonly outliers: number
}

/** Outliers are filled up to a multiple of this. */
const OUTLIER_STEP = 512

/** @param blocks by head */
export function extrasShape(
  arena: CodeArena,
  layer: number,
  blocks: readonly (readonly BlockRef[])[],
): Readonly<Record<KeysOrValues, ExtrasShape>> {
  const shape = (what: KeysOrValues): ExtrasShape => {
    let [scale, base, rank, outliers] = [false, false, 0, 0]
    for (const [head, list] of blocks.entries())
      for (const b of list) {
        const e = arena.extras(layer, head, b.page)?.[what]
        if (!e) continue
        scale ||= e.channelScale !== null
        base ||= e.channelBase !== null
        if (e.lowRank) rank = e.lowRank.a.length / PAGE_CELLS
        outliers += e.outliers?.at.length ?? 0
      }
    return { scale, base, rank, outliers: Math.ceil(outliers / OUTLIER_STEP) * OUTLIER_STEP }
  }
  return { keys: shape('keys'), values: shape('values') }
}

export function extrasKey({ keys, values }: Readonly<Record<KeysOrValues, ExtrasShape>>): string {
  return [keys, values].map((e) => `${e.scale ? 's' : ''}${e.base ? 'b' : ''}${e.rank},${e.outliers}`).join(';')
}

/** f16 each; P pages of a part. */
interface ExtraInputs {
  /** [d, 1, Hkv]: all that a head stores in a format shares it. */
  readonly scale: Tensor | null
  readonly base: Tensor | null
  /** [rank, 32, P, Hkv] and [rank, d, P, Hkv] */
  readonly lowRank: { readonly a: Tensor; readonly b: Tensor } | null
  /** i32 [m], places in what is read; f16 [1, m] */
  readonly outliers: { readonly at: Tensor; readonly values: Tensor } | null
}

export interface CodedInput {
  readonly item: PlacedItem
  readonly load: Load
  /** Index of the part in the load. */
  readonly part: number
  readonly layer: number
  /** i32 [P, Hkv] */
  readonly pages: Tensor
  readonly keys: ExtraInputs
  readonly values: ExtraInputs
}

/** Makes the inputs of a part. */
export function codedInput(
  c: Context,
  at: Pick<CodedInput, 'item' | 'load' | 'part' | 'layer'>,
  shapes: Readonly<Record<KeysOrValues, ExtrasShape>>,
  { pages, d, heads }: { readonly pages: number; readonly d: number; readonly heads: number },
): CodedInput {
  const extras = ({ scale, base, rank, outliers }: ExtrasShape): ExtraInputs => ({
    scale: scale ? c.tensor('f16', d, 1, heads).asInput() : null,
    base: base ? c.tensor('f16', d, 1, heads).asInput() : null,
    lowRank: rank
      ? {
          a: c.tensor('f16', rank, PAGE_CELLS, pages, heads).asInput(),
          b: c.tensor('f16', rank, d, pages, heads).asInput(),
        }
      : null,
    outliers: outliers
      ? { at: c.tensor('i32', outliers).asInput(), values: c.tensor('f16', 1, outliers).asInput() }
      : null,
  })
  const ids = c.tensor('i32', pages, heads).asInput()
  return { ...at, pages: ids, keys: extras(shapes.keys), values: extras(shapes.values) }
}

/** The part as attention reads it. */
export function readCodes(c: Context, arena: CodeArena, input: CodedInput): KvPart {
  const keys = read(c, arena, 'keys', input)
  const values = read(c, arena, 'values', input)
  return {
    ...{ keys: keys.rows, keysTransposed: keys.isTransposed },
    ...(keys.scale ? { keyScale: keys.scale } : {}),
    ...(keys.base ? { keyBase: keys.base } : {}),
    // The weights of values belong to rows, and so must their groups.
    values: isCoded(values.rows) && values.rows.by === 'channel' ? numbersOf(c, values.rows) : values.rows,
    valuesTransposed: values.isTransposed,
    ...(values.scale ? { valueScale: values.scale } : {}),
  }
}

interface Read {
  /** Codes, or f32 [d, n, Hkv], [n, d, Hkv] when transposed. */
  readonly rows: Tensor | CodedRows
  readonly isTransposed: boolean
  /** f32 [d, 1, Hkv]: what is left to be done with each channel. */
  readonly scale: Tensor | null
  readonly base: Tensor | null
}

function read(c: Context, arena: CodeArena, what: KeysOrValues, input: CodedInput): Read {
  const { scale, base, lowRank, outliers } = input[what]
  const isTransposed = arena.format[what].groups.by === 'token'
  const floats = (t: Tensor | null) => t && ops.cast(c, t, 'f32')
  const [channelScale, channelBase] = [floats(scale), floats(base)]
  const rows = codedRows(c, arena, what, input)
  // Values have no base of their own that the lowerings know, and corrections come behind both.
  if (!lowRank && !outliers && !(what === 'values' && channelBase))
    return { rows, isTransposed, scale: channelScale, base: channelBase }
  let x = isCoded(rows) ? numbersOf(c, rows) : rows
  const [d, , Hkv] = (channelScale ?? channelBase)?.ne ?? [0, 0, 0]
  const shape = isTransposed ? ([1, d, Hkv] as const) : ([d, 1, Hkv] as const)
  if (channelScale) x = ops.mul(c, x, ops.reshape(c, channelScale, ...shape))
  if (channelBase) x = ops.add(c, x, ops.reshape(c, channelBase, ...shape))
  if (lowRank) x = ops.add(c, x, lowRankOf(c, lowRank, isTransposed))
  return { rows: outliers ? exact(c, x, outliers) : x, isTransposed, scale: null, base: null }
}

/** A B^T, f32 [d, n, Hkv], or [n, d, Hkv]. */
function lowRankOf(c: Context, { a, b }: NonNullable<ExtraInputs['lowRank']>, isTransposed: boolean): Tensor {
  const [, , P, heads] = a.ne
  const [inner, outer] = (isTransposed ? [a, b] : [b, a]).map((t) => ops.transpose(c, ops.cast(c, t, 'f32')))
  // As outer products: so short a row is no work for a matrix product.
  const product = ops.outProd(c, ops.cont(c, inner!), outer!) // [d, 32, P, Hkv], or [32, d, P, Hkv]
  if (!isTransposed) return ops.reshape(c, product, product.ne[0], PAGE_CELLS * P, heads)
  return ops.reshape(c, ops.cont(c, ops.permute(c, product, 0, 2, 1, 3)), PAGE_CELLS * P, product.ne[1], heads)
}

/** Groups of channels in a row of an arena of codes, keys and values together; of other arenas none. */
export function channelGroups(arena: CodeArena | Arena): number {
  if (arena.kind !== 'codes') return 0
  const of = ({ groups }: Codes) => (groups.by === 'token' ? arena.dims.headDim / groups.size : 1)
  return of(arena.format.keys) + of(arena.format.values)
}

/** Codes and the parameters of their groups; groups by tier have none in the blocks: f32 [d, n, Hkv] then. */
function codedRows(c: Context, arena: CodeArena, what: KeysOrValues, input: CodedInput): Tensor | CodedRows {
  const { layer, pages } = input
  const { headDim: d } = arena.dims
  const { planes, params } = arena.coded(layer, what)
  const [low, high] = planes.map((plane) => ops.getRows(c, plane, pages)) // f32 [32 d, P, Hkv]
  const y = high ? ops.add(c, low!, ops.scale(c, high, 4)) : low!
  const { groups } = arena.format[what]
  const [P, heads] = [pages.ne[0], pages.ne[1]]
  if (!params || groups.by === 'tier') return ops.reshape(c, y, d, PAGE_CELLS * P, heads)
  const numbers = ops.getRows(c, params, pages) // f32 [scales and bases, P, Hkv]
  const half = (numbers.ne[0] / 2) * numbers.nb[0]
  const of = (rows: number, columns: number, from: number) =>
    ops.view(c, numbers, [rows, columns, P, heads], [rows * numbers.nb[0], numbers.nb[1], numbers.nb[2]], from)
  if (groups.by === 'channel') {
    const codes = ops.reshape(c, y, d, PAGE_CELLS, P, heads)
    return { by: 'channel', codes, scale: of(d, 1, 0), base: of(d, 1, half) }
  }
  const codes = ops.reshape(c, y, PAGE_CELLS, d, P, heads)
  const perRow = d / groups.size
  const [scale, base] = [of(PAGE_CELLS, perRow, 0), of(PAGE_CELLS, perRow, half)]
  return { by: 'token', size: groups.size, codes, scale, base }
}

/** Outliers in their places of x, [d, n, Hkv] or [n, d, Hkv]. */
function exact(c: Context, x: Tensor, outliers: NonNullable<ExtraInputs['outliers']>): Tensor {
  const flat = ops.reshape(c, x, 1, x.elements)
  const set = ops.setRows(c, flat, ops.cast(c, outliers.values, 'f32'), outliers.at)
  return ops.reshape(c, set, x.ne[0], x.ne[1], x.ne[2])
}

/** Sets a part's inputs. @param load the load of the step at hand that takes the place of the graph's */
export function feedCoded(input: CodedInput, load: Load, arena: CodeArena, firstSlot: number): void {
  const [P, heads] = [input.pages.ne[0], input.pages.ne[1]]
  const { headDim: d } = arena.dims
  const pages = new Int32Array(P * heads)
  const extras: (BlockExtras | undefined)[] = new Array(P * heads)
  const { layer } = input
  for (let h = 0; h < heads; h++)
    for (let s = 0; s < P; s++) {
      const block = load.slots[h]![firstSlot + s]!
      // Padding reads any page; the mask hides it.
      if (block < 0) continue
      const { page } = load.columns[h]!.blocks[block]!
      pages[h * P + s] = page
      extras[h * P + s] = arena.extras(layer, h, page)
    }
  set(input.pages, pages)
  for (const what of ['keys', 'values'] as const) {
    const isTransposed = arena.format[what].groups.by === 'token'
    feedExtras(input[what], what, extras, { P, d, isTransposed })
  }
}

function feedExtras(
  { scale, base, lowRank, outliers }: ExtraInputs,
  what: KeysOrValues,
  extras: readonly (BlockExtras | undefined)[],
  { P, d, isTransposed }: { readonly P: number; readonly d: number; readonly isTransposed: boolean },
): void {
  const byBlock = (tensor: Tensor, of: (e: CodeExtras) => Uint16Array | null) => {
    const size = tensor.elements / extras.length
    const out = new Uint16Array(tensor.elements)
    for (const [i, e] of extras.entries()) {
      const part = e && of(e[what])
      if (part) out.set(part, i * size)
    }
    set(tensor, out)
  }
  const byHead = (tensor: Tensor, of: (e: CodeExtras) => Uint16Array | null, fallback: number) => {
    const out = new Uint16Array(tensor.elements).fill(fallback)
    for (let at = 0, i = 0; i < extras.length; at += d, i += P) {
      const first = extras.slice(i, i + P).find((e) => e !== undefined)
      const part = first && of(first[what])
      if (part) out.set(part, at)
    }
    set(tensor, out)
  }
  if (scale) byHead(scale, (e) => e.channelScale, ONE)
  if (base) byHead(base, (e) => e.channelBase, 0)
  if (lowRank) {
    byBlock(lowRank.a, (e) => e.lowRank?.a ?? null)
    byBlock(lowRank.b, (e) => e.lowRank?.b ?? null)
  }
  if (!outliers) return
  const at = new Int32Array(outliers.at.elements)
  const values = new Uint16Array(at.length)
  let m = 0
  const n = P * PAGE_CELLS
  for (const [i, e] of extras.entries()) {
    const own = e?.[what].outliers
    if (!own) continue
    const [head, first] = [Math.floor(i / P), (i % P) * PAGE_CELLS]
    values.set(own.values, m)
    // Thousands in each step: no iterators, and places of blocks that lie as they are read are only moved.
    const start = (head * n + first) * d
    for (let k = 0; k < own.at.length; k++) {
      const place = own.at[k]!
      at[m++] = isTransposed ? (head * d + (place % d)) * n + first + Math.floor(place / d) : start + place
    }
  }
  // The last one again, as often as there is room.
  at.fill(at[m - 1]!, m)
  values.fill(values[m - 1]!, m)
  set(outliers.at, at)
  set(outliers.values, values)
}

/** f16 bits of 1. */
const ONE = 0x3c00

function set(tensor: Tensor, data: Int32Array | Uint16Array): void {
  if (tensor.hasMemory) tensor.set(data)
}
