/**
 * Attention as nodes of a step's graph, the seam between a block and the cache: keys and values of the rows at hand are
 * stored, then each item's rows attend to what its loads name. What changes from run to run is an input, set by `feed.ts`.
 *
 * Shapes: T rows, d head size, H query heads, Hkv KV heads, n cells that are read.
 */
import { PAGE_CELLS } from '../cache/arena.ts'
import type { CodeArena, KeysOrValues } from '../cache/code-arena.ts'
import type { KvStore } from '../cache/store.ts'
import type { Context } from '../ggml/context.ts'
import type { Graph } from '../ggml/graph.ts'
import * as ops from '../ggml/ops/index.ts'
import type { Tensor } from '../ggml/tensor.ts'
import { isWindowed, ropeOf } from '../model/config.ts'
import type { Model } from '../model/model.ts'
import { type CodedInput, codedInput, type ExtrasShape, readCodes } from './coded.ts'
import { chooseLowering } from './lower/choose.ts'
import { plainKeys } from './lower/flash.ts'
import type { KvPart, Lowering, LoweringName, PlainPart } from './lower/lowering.ts'
import { Observer } from './observe/build.ts'
import { ObservationReader } from './observe/read.ts'
import { OBSERVED_ROWS } from './observe/wanted.ts'
import { type GatherPart, type Load, type PlacedItem, type PlacedStep, partCells } from './place.ts'

/** Which part of what an item reads an input belongs to. */
interface PartInput {
  readonly item: PlacedItem
  readonly load: Load
  /** Index of the part in the load. */
  readonly part: number
}

/** Indices of a part that is gathered. */
export interface GatherInput extends PartInput {
  /** i32 [n, Hkv]: cells whose keys (and row-major values) are read. */
  readonly rows: Tensor
  /** i32 [n / 32 * d * Hkv]: pieces of 32 cells of a transposed arena; null when values are row-major. */
  readonly pieces: Tensor | null
}

/** By how much keys of a part are rotated, i32 [n * Hkv]: one row of a rotation for each key. */
export interface ShiftInput extends PartInput {
  readonly tensor: Tensor
}

/** By what keys and values of a part are multiplied, f32 [n * Hkv] each. */
export interface RowScaleInput extends PartInput {
  readonly keys: Tensor
  readonly values: Tensor
}

export interface MaskInput {
  readonly item: PlacedItem
  readonly load: Load
  readonly window: boolean
  /** f16 [n, T], or [n, T, H] for ragged tables. */
  readonly tensor: Tensor
  /** Room for it on the host, kept from run to run. */
  readonly bits: Uint16Array
}

/** Where the rows of a ragged item are stored in one layer. */
interface RaggedStoreInput {
  readonly item: PlacedItem
  readonly layer: number
  /** i32 [T, Hkv] */
  readonly rows: Tensor
  /** i32 [d * Hkv * T]: element of each value in a transposed arena; null when values are row-major. */
  readonly elements: Tensor | null
}

/** What attention adds to a step's graph: inputs to be set before a run, and what is read behind it. */
export interface StepAttention {
  /** i32 [all rows]: cell in the arena, of uniform items. */
  readonly cells: Tensor
  /** i32 [d * Hkv * rows that are scattered]: element of each value in a transposed arena. */
  readonly elements: Tensor | null
  readonly raggedStores: readonly RaggedStoreInput[]
  readonly gathers: readonly GatherInput[]
  readonly shifts: readonly ShiftInput[]
  readonly coded: readonly CodedInput[]
  readonly rowScales: readonly RowScaleInput[]
  readonly masks: readonly MaskInput[]
  /** Rotations of quantised rows, f32 [n, n], by their size. */
  readonly rotations: ReadonlyMap<number, Tensor>
  /** f32, all 1, for observations; null: not used. */
  readonly ones: Tensor | null
  /** Rotated queries that were asked for, f32 [d, H, T], by the first row of their item, layer after layer. */
  readonly queries: ReadonlyMap<number, readonly Tensor[]>
  readonly observations: ObservationReader
}

/** Rows of an item that is active in a layer, from row `at` of the layer's table on. */
export interface Active {
  readonly item: PlacedItem
  readonly at: number
}

export class AttentionBuilder {
  readonly #c: Context
  readonly #graph: Graph
  readonly #model: Model
  readonly #store: KvStore
  readonly #step: PlacedStep
  readonly #lowering: LoweringName
  /** Uniform items whose transposed values are stored by index: they come first in their arena. */
  readonly #scattered: readonly PlacedItem[]
  readonly #cells: RangedInput
  readonly #elements: RangedInput | null
  readonly #raggedStores: RaggedStoreInput[] = []
  readonly #gathers: GatherInput[] = []
  readonly #shifts: ShiftInput[] = []
  readonly #coded: CodedInput[] = []
  readonly #rowScales: RowScaleInput[] = []
  readonly #masks: (MaskInput & { readonly lowered: Tensor })[] = []
  readonly #rotations: ReadonlyMap<number, Tensor>
  readonly #queries = new Map<number, Tensor[]>()
  readonly #observer: Observer

  constructor(c: Context, graph: Graph, model: Model, store: KvStore, step: PlacedStep, lowering: LoweringName) {
    this.#c = c
    this.#graph = graph
    this.#model = model
    this.#store = store
    this.#step = step
    this.#lowering = lowering
    this.#cells = new RangedInput(c, step.rows + step.padding)
    this.#scattered = step.items.filter((p) => p.stored && !p.ragged && !p.pieces && this.#isTransposed(p.arena))
    const scattered = rowsOf(this.#scattered)
    this.#elements = scattered ? new RangedInput(c, this.#perRow * scattered) : null
    const sizes = new Set(step.items.flatMap(({ rotation: { keys, values } }) => [keys, values]).filter(Boolean))
    this.#rotations = new Map([...sizes].map((size) => [size, c.tensor('f32', size, size).asInput()]))
    const observes = step.items.some((p) => p.item.outputs.observe) && model.device.kind === 'cpu'
    const ones = observes ? c.tensor('f32', 1, OBSERVED_ROWS, model.config.heads).asInput() : null
    this.#observer = new Observer(c, graph, ones)
  }

  /** Stores k and v f32 [d, Hkv, T] of the active rows, then attends with q f32 [d, H, T] -> f32 [d * H, T]. */
  attend(layer: number, q: Tensor, k: Tensor, v: Tensor, scale: number, active: readonly Active[]): Tensor {
    this.#storeUniform(layer, k, v, active)
    for (const a of active) if (a.item.ragged && a.item.stored) this.#storeRagged(layer, a, k, v)
    const outs = active.map((a) => this.#attendItem(layer, a, q, scale))
    // Rows of padding attend to nothing; any finite numbers will do in their place.
    const { rows, padding } = this.#step
    if (padding) outs.push(ops.cont(this.#c, rowsOf3(this.#c, q, rows, padding), q.ne[0] * q.ne[1], padding))
    return sideBySide(this.#c, outs, 1)
  }

  /** Behind the last layer. */
  finish(): StepAttention {
    return {
      cells: this.#cells.tensor,
      elements: this.#elements?.tensor ?? null,
      raggedStores: this.#raggedStores,
      gathers: this.#gathers,
      shifts: this.#shifts,
      coded: this.#coded,
      rowScales: this.#rowScales,
      masks: this.#masks,
      rotations: this.#rotations,
      ones: this.#observer.ones,
      queries: this.#queries,
      observations: new ObservationReader(this.#observer.layers),
    }
  }

  /** Values of a row, in all heads. */
  get #perRow(): number {
    return this.#model.config.headDim * this.#model.config.kvHeads
  }

  #isTransposed(arena: number): boolean {
    return this.#store.rowArena(arena).shape.valuesTransposed
  }

  #attendItem(layer: number, { item, at }: Active, q: Tensor, scale: number): Tensor {
    const { config } = this.#model
    const load = item.loads[item.ragged ? layer - item.item.layers.from : 0]!
    const parts = load.parts.map((_, part) => this.#part({ item, load, part }, layer))
    // The fused op would first turn and join several parts, row by row.
    const apart = parts.length > 1 || parts[0]!.valuesTransposed
    const lowered = chooseLowering(this.#lowering, item.rows, config.heads / config.kvHeads, apart)
    const mask = this.#mask(item, load, isWindowed(config, layer), lowered)
    const own = rowsOf3(this.#c, q, at, item.rows)
    if (item.item.outputs.queries) this.#keepQueries(item, own)
    const { keys, values } = item.rotation
    const inputs = { q: this.#rotated(own, keys), parts, scale, softcap: config.attentionSoftcap }
    const { out, probabilities } = lowered.attend(this.#c, { ...inputs, mask: mask.lowered })
    if (item.item.outputs.observe) this.#observer.observe({ ...inputs, mask: mask.tensor, item, load, probabilities })
    return this.#rotated(out, values)
  }

  /** Brings out the queries q f32 [d, H, T] of an item in one layer. */
  #keepQueries(item: PlacedItem, q: Tensor): void {
    const kept = ops.cont(this.#c, q).asOutput()
    this.#graph.expand(kept)
    this.#queries.set(item.first, [...(this.#queries.get(item.first) ?? []), kept])
  }

  /** Made once for all layers that read a load alike. */
  #mask(item: PlacedItem, load: Load, window: boolean, lowering: Lowering): MaskInput & { readonly lowered: Tensor } {
    const known = this.#masks.find((m) => m.load === load && m.window === window)
    if (known) return known
    const { heads } = this.#model.config
    const sizes = item.ragged ? [load.cells, item.rows, heads] : [load.cells, item.rows]
    const tensor = this.#c.tensor('f16', ...sizes).asInput()
    const lowered = lowering.mask(this.#c, tensor, heads)
    const made = { item, load, window, tensor, bits: new Uint16Array(tensor.elements), lowered }
    this.#masks.push(made)
    return made
  }

  /** Numbers of heads, f32 [d, ...] or [d * H, T], rotated `size` by `size`; 0: as they are. */
  #rotated(x: Tensor, size: number): Tensor {
    if (size === 0) return x
    const matrix = this.#rotations.get(size)!
    const vectors = ops.reshape(this.#c, x.isContiguous ? x : ops.cont(this.#c, x), size, x.elements / size)
    return ops.reshape(this.#c, ops.hadamard(this.#c, matrix, vectors), ...x.ne)
  }

  // storing --------------------------------------------------------------------------------------------------------------

  /** Stores the keys of neighbours in one arena by one op, and the values likewise or piece by piece. */
  #storeUniform(layer: number, k: Tensor, v: Tensor, active: readonly Active[]): void {
    const uniform = active.filter((a) => !a.item.ragged && a.item.stored)
    const kind = ({ item: { arena, rotation } }: Active) => `${arena} ${rotation.keys} ${rotation.values}`
    for (const { item, at, rows } of neighbours(uniform, kind)) {
      const arena = this.#store.rowArena(item.arena)
      const cells = this.#cells.range(item.first, item.first + rows)
      const own = (t: Tensor, rotation: number) => this.#rotated(rowsOf3(this.#c, t, at, rows), rotation)
      this.#storeRows(arena.keys(layer), own(k, item.rotation.keys), cells)
      if (!arena.shape.valuesTransposed) this.#storeRows(arena.values(layer), own(v, item.rotation.values), cells)
    }
    const transposed = uniform.filter((a) => this.#isTransposed(a.item.arena))
    for (const a of transposed) if (a.item.pieces) this.#storePieces(layer, a, v)
    this.#storeScattered(
      layer,
      transposed.filter((a) => !a.item.pieces),
      v,
    )
  }

  /** Transposed values whose cells are not consecutive, or are few. */
  #storeScattered(layer: number, active: readonly Active[], v: Tensor): void {
    for (const { item, at, rows } of neighbours(active, (a) => String(a.item.arena))) {
      const before = rowsOf(this.#scattered.filter((p) => p.first < item.first))
      const elements = this.#elements!.range(before * this.#perRow, (before + rows) * this.#perRow)
      this.#storeElements(this.#store.rowArena(item.arena).values(layer), rowsOf3(this.#c, v, at, rows), elements)
    }
  }

  #storeRagged(layer: number, { item, at }: Active, k: Tensor, v: Tensor): void {
    const arena = this.#store.rowArena(item.arena)
    const rows = this.#c.tensor('i32', item.rows, this.#model.config.kvHeads).asInput()
    const elements = arena.shape.valuesTransposed ? this.#c.tensor('i32', this.#perRow * item.rows).asInput() : null
    this.#raggedStores.push({ item, layer, rows, elements })
    const keys = this.#rotated(rowsOf3(this.#c, k, at, item.rows), item.rotation.keys)
    const values = this.#rotated(rowsOf3(this.#c, v, at, item.rows), item.rotation.values)
    this.#storeRows(arena.keys(layer), keys, rows)
    if (elements) this.#storeElements(arena.values(layer), values, elements)
    else this.#storeRows(arena.values(layer), values, rows)
  }

  /** x f32 [d, Hkv, T] into rows `cells` of [d, cells, Hkv]. */
  #storeRows(arena: Tensor, x: Tensor, cells: Tensor): void {
    this.#graph.expand(ops.setRows(this.#c, arena, ops.permute(this.#c, x, 0, 2, 1, 3), cells))
  }

  /** v f32 [d, Hkv, T] into single elements of [cells, d, Hkv]. */
  #storeElements(arena: Tensor, v: Tensor, elements: Tensor): void {
    const flat = ops.reshape(this.#c, arena, 1, arena.elements)
    const dense = v.isContiguous ? v : ops.cont(this.#c, v)
    this.#graph.expand(ops.setRows(this.#c, flat, ops.reshape(this.#c, dense, 1, v.elements), elements))
  }

  /** Rows of v f32 [d, Hkv, T] into consecutive cells of [cells, d, Hkv], as blocks. */
  #storePieces(layer: number, { item, at }: Active, v: Tensor): void {
    const arena = this.#store.rowArena(item.arena).values(layer)
    const [d, Hkv] = v.ne
    for (const { row, rows, cell } of item.pieces!) {
      const block = ops.view(this.#c, arena, [rows, d, Hkv], [arena.nb[1], arena.nb[2]], cell * arena.nb[0])
      const own = rowsOf3(this.#c, v, at + row, rows)
      this.#graph.expand(ops.copy(this.#c, ops.permute(this.#c, own, 1, 2, 0, 3), block)) // [d, Hkv, T] -> [T, d, Hkv]
    }
  }

  // reading --------------------------------------------------------------------------------------------------------------

  /** A part as the lowerings read it. */
  #part(at: PartInput, layer: number): KvPart {
    const part = at.load.parts[at.part]!
    const read =
      part.kind === 'view' ? this.#viewed(part.arena, part.from, part.to, layer) : this.#indexed(at, part, layer)
    return part.shifted ? this.#shiftedPart(read, at, layer) : read
  }

  /** Consecutive cells where they lie. */
  #viewed(index: number, from: number, to: number, layer: number): PlainPart {
    const arena = this.#store.rowArena(index)
    return {
      keys: arena.keyRun(this.#c, layer, from, to),
      values: arena.valueRun(this.#c, layer, from, to),
      valuesTransposed: arena.shape.valuesTransposed,
    }
  }

  #indexed(at: PartInput, part: GatherPart, layer: number): KvPart {
    if (part.codes) return this.#codedPart(at, part.codes, layer)
    // Layers only share rows that are numbers.
    const rows = this.#gathered(at, part, part.layer ?? layer)
    return part.layer === undefined ? rows : this.#scaled(rows, at, part.cells)
  }

  #codedPart(at: PartInput, shapes: Readonly<Record<KeysOrValues, ExtrasShape>>, layer: number): KvPart {
    const part = at.load.parts[at.part]!
    const { headDim: d, kvHeads: heads } = this.#model.config
    const size = { pages: partCells(part) / PAGE_CELLS, d, heads }
    const input = codedInput(this.#c, { ...at, layer }, shapes, size)
    this.#coded.push(input)
    return readCodes(this.#c, this.#store.arenas[part.arena] as CodeArena, input)
  }

  /** Rows of layer `layer` by index. */
  #gathered(at: PartInput, part: GatherPart, layer: number): PlainPart {
    const arena = this.#store.rowArena(part.arena)
    const { valuesTransposed } = arena.shape
    const { rows, pieces } = this.#gather(at, part)
    const keys = ops.getRows(this.#c, arena.keys(layer), rows) //                          f32 [d, n, Hkv]
    const all = arena.values(layer)
    if (!pieces) return { keys, values: ops.getRows(this.#c, all, rows), valuesTransposed }
    const { headDim, kvHeads } = this.#model.config
    const inPieces = ops.reshape(this.#c, all, PAGE_CELLS, all.elements / PAGE_CELLS)
    const values = ops.getRows(this.#c, inPieces, pieces) //                               f32 [32, n / 32 * d * Hkv]
    return { keys, values: ops.reshape(this.#c, values, part.cells, headDim, kvHeads), valuesTransposed }
  }

  /** Made once for all layers. */
  #gather(at: PartInput, { arena, cells }: GatherPart): GatherInput {
    const known = this.#gathers.find((g) => g.load === at.load && g.part === at.part)
    if (known) return known
    const rows = this.#c.tensor('i32', cells, this.#model.config.kvHeads).asInput()
    const pieces = this.#isTransposed(arena)
      ? this.#c.tensor('i32', (cells / PAGE_CELLS) * this.#perRow).asInput()
      : null
    const made = { ...at, rows, pieces }
    this.#gathers.push(made)
    return made
  }

  /** Each of n rows' key and value times numbers of its own. */
  #scaled({ keys: k, values: v, valuesTransposed }: PlainPart, at: PartInput, n: number): PlainPart {
    const { kvHeads } = this.#model.config
    const keys = this.#c.tensor('f32', 1, n, kvHeads).asInput()
    const values = this.#c.tensor('f32', n * kvHeads).asInput()
    this.#rowScales.push({ ...at, keys, values })
    const shape = valuesTransposed ? ([n, 1, kvHeads] as const) : ([1, n, kvHeads] as const)
    return {
      keys: ops.mul(this.#c, k, keys),
      values: ops.mul(this.#c, v, ops.reshape(this.#c, values, ...shape)),
      valuesTransposed,
    }
  }

  #shiftedPart(part: KvPart, at: PartInput, layer: number): KvPart {
    const { keys: _, keysTransposed, keyScale, keyBase, ...values } = part
    return { ...values, keys: this.#shifted(plainKeys(this.#c, part), at, layer) }
  }

  /** Keys [d, n, Hkv] rotated from their rows' positions on to their places in the cache. */
  #shifted(keys: Tensor, at: PartInput, layer: number): Tensor {
    const [d, n, Hkv] = keys.ne
    const { tensor: shifts } = this.#shift(at, n * Hkv)
    const floats = keys.type === 'f32' && keys.isContiguous ? keys : ops.cast(this.#c, keys, 'f32')
    const { keys: rotation } = at.item.rotation
    const rows = ops.reshape(this.#c, this.#rotated(floats, rotation), d, 1, n * Hkv)
    const { config, ropeFactors } = this.#model
    const turned = ops.rope(this.#c, rows, shifts, ropeFactors, turnOf(ropeOf(config, layer)))
    return ops.reshape(this.#c, this.#rotated(turned, rotation), d, n, Hkv)
  }

  /** Made once for all layers. */
  #shift(at: PartInput, keys: number): ShiftInput {
    const known = this.#shifts.find((s) => s.load === at.load && s.part === at.part)
    if (known) return known
    const made = { ...at, tensor: this.#c.tensor('i32', keys).asInput() }
    this.#shifts.push(made)
    return made
  }
}

/** An input i32 [n] of which ranges are read. */
export class RangedInput {
  readonly tensor: Tensor
  readonly #c: Context
  /** By range: made once for all layers. */
  readonly #views = new Map<string, Tensor>()

  constructor(c: Context, n: number) {
    this.#c = c
    this.tensor = c.tensor('i32', n).asInput()
  }

  /** Elements [from, to), as they are or as a view. */
  range(from: number, to: number): Tensor {
    if (from === 0 && to === this.tensor.ne[0]) return this.tensor
    const key = `${from} ${to}`
    const made = this.#views.get(key) ?? ops.view(this.#c, this.tensor, [to - from], [], from * this.tensor.nb[0])
    this.#views.set(key, made)
    return made
  }
}

/** Puts tensors side by side, in pairs: each byte is copied log(n) times. */
export function sideBySide(c: Context, pieces: readonly Tensor[], dim: 0 | 1): Tensor {
  let level = [...pieces]
  while (level.length > 1) {
    const next: Tensor[] = []
    for (let i = 0; i < level.length; i += 2)
      next.push(i + 1 < level.length ? ops.concat(c, level[i]!, level[i + 1]!, dim) : level[i]!)
    level = next
  }
  return level[0]!
}

/** A rotation on top of one that has been: YaRN's scale has been applied, and must not be again. */
function turnOf(rope: ops.RopeOptions): ops.RopeOptions {
  const scale = rope.extFactor ? 1 + 0.1 * Math.log(1 / rope.frequencyScale) : 1
  return { ...rope, attentionFactor: 1 / scale }
}

function rowsOf(items: readonly PlacedItem[]): number {
  return items.reduce((sum, p) => sum + p.rows, 0)
}

/** Rows [at, at + rows) of [d, heads, T]; all of them as they are. */
function rowsOf3(c: Context, t: Tensor, at: number, rows: number): Tensor {
  if (rows === t.ne[2]) return t
  return ops.view(c, t, [t.ne[0], t.ne[1], rows], [t.nb[1], t.nb[2]], at * t.nb[2])
}

/** Splits a list into stretches whose rows follow each other in both tables, and that agree in `kind`: the first of each, and all rows. */
function neighbours(
  list: readonly Active[],
  kind: (a: Active) => string,
): readonly (Active & { readonly rows: number })[] {
  const out: (Active & { rows: number })[] = []
  for (const a of list) {
    const last = out.at(-1)
    const follows =
      last !== undefined &&
      kind(last) === kind(a) &&
      a.at === last.at + last.rows &&
      a.item.first === last.item.first + last.rows
    if (follows) last.rows += a.item.rows
    else out.push({ ...a, rows: a.item.rows })
  }
  return out
}
