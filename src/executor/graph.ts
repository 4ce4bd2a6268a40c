/**
 * Builds the graph of a step. What can change between runs of one graph (tokens, positions, cells, masks) is an input;
 * everything else is in the placed step's key, and a graph is run again while that holds.
 *
 * The rows of all items form one table. Linear layers run over all rows that are active in a layer; rows join and leave
 * where their item's layers begin and end. Attention runs item by item.
 */
import { PAGE_CELLS } from '../cache/arena.ts'
import type { CodeArena, KeysOrValues } from '../cache/code-arena.ts'
import type { KvStore } from '../cache/store.ts'
import { Context } from '../ggml/context.ts'
import { Graph } from '../ggml/graph.ts'
import * as ops from '../ggml/ops/index.ts'
import type { Tensor } from '../ggml/tensor.ts'
import { type Attend, Build } from '../model/build.ts'
import { isWindowed, ropeOf } from '../model/config.ts'
import type { Model } from '../model/model.ts'
import { type CodedInput, channelGroups, codedInput, type ExtrasShape, readCodes } from './coded.ts'
import { chooseLowering } from './lower/choose.ts'
import { plainKeys } from './lower/flash.ts'
import type { KvPart, Lowering, LoweringName, PlainPart } from './lower/lowering.ts'
import { Observer, TENSORS_PER_BLOCK } from './observe/build.ts'
import { ObservationReader } from './observe/read.ts'
import { OBSERVED_ROWS, observedBlocks } from './observe/wanted.ts'
import { type GatherPart, type Load, type PlacedItem, type PlacedStep, partCells, ROW_TILE } from './place.ts'

/** Upper bounds of what a layer, an item in a layer, and everything around the layers add to a context. */
const TENSORS_PER_LAYER = 64
const TENSORS_PER_ITEM = 84
const TENSORS_AROUND = 64

/** Capacity of the graph of a step, without observations. */
export function graphNodes(layers: number, items: number): number {
  return layers * (TENSORS_PER_LAYER + items * TENSORS_PER_ITEM) + TENSORS_AROUND + 16 * items
}

/** What a part in codes, or scaled row by row, adds, in the layers that it is read in, and what each group of channels adds to that. */
const TENSORS_PER_SPECIAL_PART = 96
const TENSORS_PER_GROUP = 80

function specialNodes(step: PlacedStep, store: KvStore): number {
  const special = step.items.flatMap((p) =>
    p.loads.flatMap((l) => l.parts.filter((x) => x.kind === 'gather' && (x.codes || x.layer !== undefined))),
  )
  const groups = special.reduce((sum, { arena }) => sum + channelGroups(store.arenas[arena]!), 0)
  return TENSORS_PER_SPECIAL_PART * special.length + TENSORS_PER_GROUP * groups
}

/** What the observations of a step add to that. */
function observationNodes(layers: number, step: PlacedStep): number {
  const blocks = step.items.reduce((sum, p) => sum + observedBlocks(p.item.outputs.observe), 0)
  return layers * blocks * TENSORS_PER_BLOCK + 1
}

/** Indices of a part that is gathered. */
export interface GatherInput {
  readonly item: PlacedItem
  readonly load: Load
  /** Index of the part in the load. */
  readonly part: number
  /** i32 [n, Hkv]: cells whose keys (and row-major values) are read. */
  readonly rows: Tensor
  /** i32 [n / 32 * d * Hkv]: pieces of 32 cells of a transposed arena; null when values are row-major. */
  readonly pieces: Tensor | null
}

/** By how much keys of a part are rotated, i32 [n * Hkv]: one row of a rotation for each key. */
export interface ShiftInput {
  readonly item: PlacedItem
  readonly load: Load
  /** Index of the part in the load. */
  readonly part: number
  readonly tensor: Tensor
}

/** By what keys and values of a part are multiplied, f32 [n * Hkv] each. */
export interface RowScaleInput {
  readonly item: PlacedItem
  readonly load: Load
  /** Index of the part in the load. */
  readonly part: number
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

/** Where keys and values are scattered to. */
export interface ScatterInput {
  readonly item: PlacedItem
  /** Layer of a ragged table; else -1: all. */
  readonly layer: number
}

export interface StepGraph {
  readonly key: string
  readonly context: Context
  readonly graph: Graph
  /** i32 [all rows]; rows of items without tokens are 0. */
  readonly tokens: Tensor
  /** Rows that enter as they are, f32 [D, T]. */
  readonly rowInputs: readonly { readonly item: PlacedItem; readonly tensor: Tensor }[]
  /** i32 [all rows] */
  readonly positions: Tensor
  /** i32 [all rows]: cell in the arena, of uniform items. */
  readonly cells: Tensor
  /** i32 [d * Hkv * rows that are scattered]: element of each value in a transposed arena. */
  readonly elements: Tensor | null
  /** Per layer of ragged items: i32 [T, Hkv] and, transposed, i32 [d * Hkv * T]. */
  readonly raggedStores: readonly {
    readonly item: PlacedItem
    readonly layer: number
    readonly rows: Tensor
    readonly elements: Tensor | null
  }[]
  readonly gathers: readonly GatherInput[]
  readonly shifts: readonly ShiftInput[]
  readonly coded: readonly CodedInput[]
  readonly rowScales: readonly RowScaleInput[]
  readonly masks: readonly MaskInput[]
  /** i32 [logits + normed]: rows of the last layer's table that go on to the outputs; null: all, as they stand. */
  readonly outputRows: Tensor | null
  readonly outputs: OutputPlaces
  readonly logits: Tensor | null
  /** f32 [D, rows]: behind the final norm. */
  readonly normed: Tensor | null
  /** Rows that were asked for, by the first row of their item. */
  readonly hidden: ReadonlyMap<number, Tensor>
  /** Rotated queries that were asked for, f32 [d, H, T], by the first row of their item, layer after layer. */
  readonly queries: ReadonlyMap<number, readonly Tensor[]>
  /** Rotations of quantised rows, f32 [n, n], by their size. */
  readonly rotations: ReadonlyMap<number, Tensor>
  /** f32, all 1, for observations; null: not used. */
  readonly ones: Tensor | null
  readonly observations: ObservationReader
  /** Room for outputs on the host. */
  readonly logitsRoom: Float32Array
  readonly normedRoom: Float32Array
}

/** Rows behind the last layer: those for logits, then those for states behind the final norm; each filled up. */
export interface OutputPlaces {
  readonly logits: number
  readonly normed: number
}

/** Rows that lie side by side in the table of the active rows. */
interface Active {
  readonly item: PlacedItem
  readonly at: number
}

export function buildGraph(model: Model, store: KvStore, step: PlacedStep, lowering: LoweringName): StepGraph {
  const { layers } = model.config
  const nodes = graphNodes(layers, step.items.length) + observationNodes(layers, step) + specialNodes(step, store)
  const c = new Context({ tensors: nodes, graphNodes: 2 * nodes })
  try {
    return new Builder(c, model, store, step, lowering).build()
  } catch (error) {
    c.dispose()
    throw error
  }
}

class Builder {
  readonly c: Context
  readonly model: Model
  readonly store: KvStore
  readonly step: PlacedStep
  readonly lowering: LoweringName
  readonly graph: Graph
  readonly tokens: Tensor
  readonly positions: Tensor
  readonly cells: Tensor
  readonly elements: Tensor | null
  readonly rotations: ReadonlyMap<number, Tensor>
  readonly rowInputs: { item: PlacedItem; tensor: Tensor }[] = []
  readonly raggedStores: { item: PlacedItem; layer: number; rows: Tensor; elements: Tensor | null }[] = []
  readonly gathers: GatherInput[] = []
  readonly shifts: ShiftInput[] = []
  readonly coded: CodedInput[] = []
  readonly rowScales: RowScaleInput[] = []
  readonly masks: (MaskInput & { readonly lowered: Tensor })[] = []
  readonly hidden = new Map<number, Tensor>()
  readonly queries = new Map<number, Tensor[]>()
  readonly observer: Observer
  /** Views of inputs, by range: made once for all layers. */
  readonly #views = new Map<string, Tensor>()
  #active: readonly Active[] = []

  constructor(c: Context, model: Model, store: KvStore, step: PlacedStep, lowering: LoweringName) {
    this.c = c
    this.model = model
    this.store = store
    this.step = step
    this.lowering = lowering
    this.graph = new Graph(c)
    const T = step.rows + step.padding
    this.tokens = c.tensor('i32', T).asInput()
    this.positions = c.tensor('i32', T).asInput()
    this.cells = c.tensor('i32', T).asInput()
    const scattered = this.#scattered.reduce((sum, p) => sum + p.rows, 0)
    this.elements = scattered ? c.tensor('i32', this.#perRow * scattered).asInput() : null
    const sizes = new Set(step.items.flatMap(({ rotation: { keys, values } }) => [keys, values]).filter(Boolean))
    this.rotations = new Map([...sizes].map((size) => [size, c.tensor('f32', size, size).asInput()]))
    const observes = step.items.some((p) => p.item.outputs.observe) && model.device.kind === 'cpu'
    const ones = observes ? c.tensor('f32', 1, OBSERVED_ROWS, model.config.heads).asInput() : null
    this.observer = new Observer(c, this.graph, ones)
  }

  /** Uniform items whose transposed values are stored by index: they come first in their arena. */
  get #scattered(): PlacedItem[] {
    return this.step.items.filter((p) => p.stored && !p.ragged && !p.pieces && this.#transposed(p.arena))
  }

  get #perRow(): number {
    return this.model.config.headDim * this.model.config.kvHeads
  }

  #transposed(arena: number): boolean {
    return this.store.rowArena(arena).shape.valuesTransposed
  }

  build(): StepGraph {
    const { c, model, step } = this
    const { config, architecture, weights } = model
    const layers = (p: PlacedItem) => p.item.layers
    const from = Math.min(...step.items.map((p) => layers(p).from))
    const to = Math.max(...step.items.map((p) => layers(p).to))
    const last = step.items.filter((p) => layers(p).to === config.layers)
    const wantsHidden = last.some((p) => p.item.outputs.hidden)
    const { outputs, inPlace } = this.#outputs(last)
    const outputCount = outputs.logits + outputs.normed
    const outputRows = outputCount > 0 && !inPlace ? c.tensor('i32', outputCount).asInput() : null

    let x: Tensor | null = null
    let b: Build | null = null
    for (let layer = from; layer < to; layer++) {
      const active = step.items.filter((p) => layers(p).from <= layer && layer < layers(p).to)
      if (!active.length) {
        // Between the layers of two items that do not meet.
        this.#active = []
        b = null
        continue
      }
      if (!b || active.length !== this.#active.length || active.some((p, i) => p !== this.#active[i]!.item)) {
        x = this.#enter(x, active, layer)
        b = new Build(
          c,
          config,
          this.#positionsOf(active),
          model.ropeFactors,
          wantsHidden ? null : outputRows,
          this.#attend,
        )
      }
      b.layer = layer
      x = architecture.block(b, x!, weights.layers[layer]! as never)
      this.#leave(x, layer)
    }

    // Without outputs only the stores were expanded: the last layer's attention and MLP would serve nobody.
    for (const rows of this.hidden.values()) this.graph.expand(rows)
    let logits: Tensor | null = null
    let normed: Tensor | null = null
    if (outputCount > 0) {
      if (wantsHidden && outputRows) x = ops.getRows(c, x!, outputRows)
      const states = b!.norm(x!, weights.global['outputNorm']!) //    f32 [D, logits + normed]
      const part = (from: number, rows: number) =>
        rows === outputCount ? states : ops.view(c, states, [states.ne[0], rows], [states.nb[1]], from * states.nb[1])
      if (outputs.logits > 0) {
        logits = b!.linear(part(0, outputs.logits), model.output, weights.global['outputBias'] ?? null)
        if (config.logitSoftcap) logits = b!.softcap(logits, config.logitSoftcap)
        this.graph.expand(logits.asOutput()) //                       f32 [V, logits]
      }
      if (outputs.normed > 0) {
        normed = ops.cont(c, part(outputs.logits, outputs.normed)).asOutput()
        this.graph.expand(normed) //                                  f32 [D, normed]
      }
    }
    return {
      key: step.key,
      context: c,
      graph: this.graph,
      tokens: this.tokens,
      rowInputs: this.rowInputs,
      positions: this.positions,
      cells: this.cells,
      elements: this.elements,
      raggedStores: this.raggedStores,
      gathers: this.gathers,
      shifts: this.shifts,
      coded: this.coded,
      rowScales: this.rowScales,
      masks: this.masks,
      outputRows,
      outputs,
      logits,
      normed,
      hidden: this.hidden,
      queries: this.queries,
      rotations: this.rotations,
      ones: this.observer.ones,
      observations: new ObservationReader(this.observer.layers),
      logitsRoom: new Float32Array(logits?.elements ?? 0),
      normedRoom: new Float32Array(normed?.elements ?? 0),
    }
  }

  /** How many rows go on behind the last layer, and whether they are all of its table, in its order. */
  #outputs(last: readonly PlacedItem[]): { readonly outputs: OutputPlaces; readonly inPlace: boolean } {
    const { padding } = this.step
    const logits = last.reduce((sum, p) => sum + p.item.outputs.logits.length, 0)
    const normed = last.reduce((sum, p) => sum + (p.item.outputs.normed?.length ?? 0), 0)
    const all = last.reduce((sum, p) => sum + p.rows, 0)
    // As many as fill a tile: the output matrix is the largest of all.
    const filled = (rows: number) => (padding && rows > 1 ? Math.ceil(rows / ROW_TILE) * ROW_TILE : rows)
    return {
      outputs: { logits: filled(logits), normed: filled(normed) },
      inPlace: (logits === all && normed === 0) || (normed === all && logits === 0),
    }
  }

  // rows -----------------------------------------------------------------------------------------------------------------

  /** The table of a layer's rows, f32 [D, T]: those that stay from the layer before, and those that join. */
  #enter(x: Tensor | null, active: readonly PlacedItem[], layer: number): Tensor {
    const pieces: Tensor[] = []
    let i = 0
    while (i < active.length) {
      const item = active[i]!
      const tokens = item.item.layers.from === layer && item.item.input.kind === 'tokens'
      let next = i + 1
      if (tokens) {
        // Neighbours that enter as tokens are looked up together.
        const joins = (p: PlacedItem | undefined, before: PlacedItem) =>
          p?.item.layers.from === layer && p.item.input.kind === 'tokens' && p.first === before.first + before.rows
        while (joins(active[next], active[next - 1]!)) next++
        const end = active[next - 1]!.first + active[next - 1]!.rows
        pieces.push(this.#embed(item.first, next === active.length ? end + this.step.padding : end))
      } else if (item.item.layers.from === layer) {
        const tensor = this.c.tensor('f32', this.model.config.width, item.rows).asInput()
        this.rowInputs.push({ item, tensor })
        pieces.push(tensor)
      } else pieces.push(this.#rowsOfItem(x!, item))
      i = next
    }
    let at = 0
    this.#active = active.map((item) => {
      const a = { item, at }
      at += item.rows
      return a
    })
    return this.#join(pieces, 1)
  }

  #embed(from: number, to: number): Tensor {
    const rows = this.#inputView('tokens', this.tokens, from, to)
    const x = ops.getRows(this.c, this.model.weights.global['tokenEmbeddings']!, rows) // f32 [D, T]
    if (!this.model.architecture.embed) return x
    const b = new Build(this.c, this.model.config, rows, null, null, this.#attend)
    return this.model.architecture.embed(b, x)
  }

  /** Rows of an item in the table of the layer before. */
  #rowsOfItem(x: Tensor, item: PlacedItem): Tensor {
    const { at } = this.#active.find((a) => a.item === item)!
    return ops.cont(this.c, ops.view(this.c, x, [x.ne[0], item.rows], [x.nb[1]], at * x.nb[1]))
  }

  /** Brings out the rows of items that end behind this layer and want them. */
  #leave(x: Tensor, layer: number): void {
    for (const { item } of this.#active) {
      if (item.item.layers.to !== layer + 1 || !item.item.outputs.hidden) continue
      const whole = this.#active.length === 1
      this.hidden.set(item.first, (whole ? x : this.#rowsOfItem(x, item)).asOutput())
    }
  }

  #positionsOf(active: readonly PlacedItem[]): Tensor {
    const pieces: Tensor[] = []
    let i = 0
    while (i < active.length) {
      let next = i + 1
      while (next < active.length && active[next]!.first === active[next - 1]!.first + active[next - 1]!.rows) next++
      const end = active[next - 1]!.first + active[next - 1]!.rows
      const to = next === active.length ? end + this.step.padding : end
      pieces.push(this.#inputView('positions', this.positions, active[i]!.first, to))
      i = next
    }
    return this.#join(pieces, 0)
  }

  /** Elements [from, to) of an input, as it is or as a view. */
  #inputView(name: string, input: Tensor, from: number, to: number): Tensor {
    if (from === 0 && to === input.ne[0]) return input
    const key = `${name} ${from} ${to}`
    const known = this.#views.get(key)
    if (known) return known
    const made = ops.view(this.c, input, [to - from], [], from * input.nb[0])
    this.#views.set(key, made)
    return made
  }

  /** Puts tensors side by side, in pairs: each byte is copied log(n) times. */
  #join(pieces: readonly Tensor[], dim: 0 | 1): Tensor {
    let level = [...pieces]
    while (level.length > 1) {
      const next: Tensor[] = []
      for (let i = 0; i < level.length; i += 2)
        next.push(i + 1 < level.length ? ops.concat(this.c, level[i]!, level[i + 1]!, dim) : level[i]!)
      level = next
    }
    return level[0]!
  }

  // attention ------------------------------------------------------------------------------------------------------------

  readonly #attend: Attend = (layer, q, k, v, scale) => {
    const active = this.#active
    this.#storeUniform(layer, k, v)
    for (const a of active) if (a.item.ragged && a.item.stored) this.#storeRagged(layer, a, k, v)
    const outs = active.map(({ item, at }) => {
      const load = item.loads[item.ragged ? layer - item.item.layers.from : 0]!
      const parts = load.parts.map((_, i) => {
        const part = this.#part(item, load, i, layer)
        return load.parts[i]!.shifted ? this.#shiftedPart(part, item, load, i, layer) : part
      })
      // The fused op would first turn and join several parts, row by row.
      const apart = parts.length > 1 || parts[0]!.valuesTransposed
      const group = this.model.config.heads / this.model.config.kvHeads
      const lowered = chooseLowering(this.lowering, item.rows, group, apart)
      const mask = this.#mask(item, load, isWindowed(this.model.config, layer), lowered)
      const own = item.rows === q.ne[2] ? q : rowsOf3(this.c, q, at, item.rows)
      if (item.item.outputs.queries) this.#keepQueries(item, own)
      const { keys, values } = item.rotation
      const { attentionSoftcap: softcap } = this.model.config
      const inputs = { q: this.#rotated(own, keys), parts, scale, softcap }
      const { out, probabilities } = lowered.attend(this.c, { ...inputs, mask: mask.lowered })
      if (item.item.outputs.observe) this.observer.observe({ ...inputs, mask: mask.tensor, item, load, probabilities })
      return this.#rotated(out, values)
    })
    // Rows of padding attend to nothing; any finite numbers will do in their place.
    const { rows, padding } = this.step
    if (padding) outs.push(ops.cont(this.c, rowsOf3(this.c, q, rows, padding), q.ne[0] * q.ne[1], padding))
    return this.#join(outs, 1)
  }

  /** Numbers of heads, f32 [d, ...] or [d * H, T], rotated `size` by `size`; 0: as they are. */
  #rotated(x: Tensor, size: number): Tensor {
    if (size === 0) return x
    const matrix = this.rotations.get(size)!
    const vectors = ops.reshape(this.c, x.isContiguous ? x : ops.cont(this.c, x), size, x.elements / size)
    return ops.reshape(this.c, ops.hadamard(this.c, matrix, vectors), ...x.ne)
  }

  /** Brings out the queries q f32 [d, H, T] of an item in one layer. */
  #keepQueries(item: PlacedItem, q: Tensor): void {
    const kept = ops.cont(this.c, q).asOutput()
    this.graph.expand(kept)
    this.queries.set(item.first, [...(this.queries.get(item.first) ?? []), kept])
  }

  /** Stores the keys of neighbours in one arena by one op, and the values likewise or piece by piece. */
  #storeUniform(layer: number, k: Tensor, v: Tensor): void {
    const uniform = this.#active.filter((a) => !a.item.ragged && a.item.stored)
    const kind = ({ item: { arena, rotation } }: Active) => `${arena} ${rotation.keys} ${rotation.values}`
    for (const group of neighbours(uniform, kind)) {
      const { item, at } = group[0]!
      const rows = group.reduce((sum, a) => sum + a.item.rows, 0)
      const arena = this.store.rowArena(item.arena)
      const cells = this.#inputView('cells', this.cells, item.first, item.first + rows)
      const own = (t: Tensor, rotation: number) => this.#ownRows(t, at, rows, rotation)
      const { keys, values } = item.rotation
      this.graph.expand(this.#storeRows(arena.keys(layer), own(k, keys), cells))
      if (!arena.shape.valuesTransposed) this.graph.expand(this.#storeRows(arena.values(layer), own(v, values), cells))
    }
    const transposed = uniform.filter((a) => this.#transposed(a.item.arena))
    for (const a of transposed) if (a.item.pieces) this.#storePieces(layer, a, v)
    for (const group of neighbours(
      transposed.filter((a) => !a.item.pieces),
      (a) => String(a.item.arena),
    )) {
      const { item, at } = group[0]!
      const rows = group.reduce((sum, a) => sum + a.item.rows, 0)
      const scatteredBefore = this.#scattered.filter((p) => p.first < item.first).reduce((sum, p) => sum + p.rows, 0)
      const from = scatteredBefore * this.#perRow
      const elements = this.#inputView('elements', this.elements!, from, from + rows * this.#perRow)
      const own = rows === v.ne[2] ? v : rowsOf3(this.c, v, at, rows)
      this.graph.expand(this.#storeElements(this.store.rowArena(item.arena).values(layer), own, elements))
    }
  }

  /** Rows of keys or values [d, Hkv, T] as they are stored. */
  #ownRows(t: Tensor, at: number, rows: number, rotation: number): Tensor {
    return this.#rotated(rows === t.ne[2] ? t : rowsOf3(this.c, t, at, rows), rotation)
  }

  #storeRagged(layer: number, { item, at }: Active, k: Tensor, v: Tensor): void {
    const arena = this.store.rowArena(item.arena)
    const { kvHeads } = this.model.config
    const rows = this.c.tensor('i32', item.rows, kvHeads).asInput()
    const elements = arena.shape.valuesTransposed ? this.c.tensor('i32', this.#perRow * item.rows).asInput() : null
    this.raggedStores.push({ item, layer, rows, elements })
    const keys = this.#ownRows(k, at, item.rows, item.rotation.keys)
    const values = this.#ownRows(v, at, item.rows, item.rotation.values)
    this.graph.expand(this.#storeRows(arena.keys(layer), keys, rows))
    if (elements) this.graph.expand(this.#storeElements(arena.values(layer), values, elements))
    else this.graph.expand(this.#storeRows(arena.values(layer), values, rows))
  }

  /** k f32 [d, Hkv, T] into rows `cells` of [d, cells, Hkv]. */
  #storeRows(arena: Tensor, k: Tensor, cells: Tensor): Tensor {
    return ops.setRows(this.c, arena, ops.permute(this.c, k, 0, 2, 1, 3), cells)
  }

  /** v f32 [d, Hkv, T] into single elements of [cells, d, Hkv]. */
  #storeElements(arena: Tensor, v: Tensor, elements: Tensor): Tensor {
    const flat = ops.reshape(this.c, arena, 1, arena.elements)
    const dense = v.isContiguous ? v : ops.cont(this.c, v)
    return ops.setRows(this.c, flat, ops.reshape(this.c, dense, 1, v.elements), elements)
  }

  /** Rows of v f32 [d, Hkv, T] into consecutive cells of [cells, d, Hkv], as blocks. */
  #storePieces(layer: number, { item, at }: Active, v: Tensor): void {
    const arena = this.store.rowArena(item.arena).values(layer)
    const [d, Hkv] = v.ne
    for (const { row, rows, cell } of item.pieces!) {
      const block = ops.view(this.c, arena, [rows, d, Hkv], [arena.nb[1], arena.nb[2]], cell * arena.nb[0])
      const own = rows === v.ne[2] ? v : rowsOf3(this.c, v, at + row, rows)
      this.graph.expand(ops.copy(this.c, ops.permute(this.c, own, 1, 2, 0, 3), block)) // [d, Hkv, T] -> [T, d, Hkv]
    }
  }

  #part(item: PlacedItem, load: Load, index: number, layer: number): KvPart {
    const part = load.parts[index]!
    if (part.kind === 'view') {
      const arena = this.store.rowArena(part.arena)
      return {
        keys: arena.keyRun(this.c, layer, part.from, part.to),
        values: arena.valueRun(this.c, layer, part.from, part.to),
        valuesTransposed: arena.shape.valuesTransposed,
      }
    }
    if (part.codes) return this.#codedPart(item, load, index, layer, part.codes)
    // Layers only share rows that are numbers.
    const rows = this.#gathered(item, load, index, part.layer ?? layer)
    return part.layer === undefined ? rows : this.#scaled(rows, item, load, index)
  }

  #codedPart(
    item: PlacedItem,
    load: Load,
    part: number,
    layer: number,
    shapes: Readonly<Record<KeysOrValues, ExtrasShape>>,
  ): KvPart {
    const { arena: index } = load.parts[part]!
    const arena = this.store.arenas[index] as CodeArena
    const { headDim: d, kvHeads: heads } = this.model.config
    const size = { pages: partCells(load.parts[part]!) / PAGE_CELLS, d, heads }
    const input = codedInput(this.c, { item, load, part, layer }, shapes, size)
    this.coded.push(input)
    return readCodes(this.c, arena, input)
  }

  /** Each row's key and value times numbers of its own. */
  #scaled({ keys: k, values: v, valuesTransposed }: PlainPart, item: PlacedItem, load: Load, part: number): KvPart {
    const n = partCells(load.parts[part]!)
    const { kvHeads } = this.model.config
    const keys = this.c.tensor('f32', 1, n, kvHeads).asInput()
    const values = this.c.tensor('f32', n * kvHeads).asInput()
    this.rowScales.push({ item, load, part, keys, values })
    const shape = valuesTransposed ? ([n, 1, kvHeads] as const) : ([1, n, kvHeads] as const)
    return {
      keys: ops.mul(this.c, k, keys),
      values: ops.mul(this.c, v, ops.reshape(this.c, values, ...shape)),
      valuesTransposed,
    }
  }

  /** Rows of layer `layer` by index. */
  #gathered(item: PlacedItem, load: Load, index: number, layer: number): PlainPart {
    const part = load.parts[index]! as GatherPart
    const arena = this.store.rowArena(part.arena)
    const { valuesTransposed } = arena.shape
    const { rows, pieces } = this.#gather(item, load, index)
    const keys = ops.getRows(this.c, arena.keys(layer), rows) //                          f32 [d, n, Hkv]
    if (!pieces) return { keys, values: ops.getRows(this.c, arena.values(layer), rows), valuesTransposed }
    const { headDim, kvHeads } = this.model.config
    const all = arena.values(layer)
    const inPieces = ops.reshape(this.c, all, PAGE_CELLS, all.elements / PAGE_CELLS)
    const values = ops.getRows(this.c, inPieces, pieces) //                               f32 [32, n / 32 * d * Hkv]
    return { keys, values: ops.reshape(this.c, values, part.cells, headDim, kvHeads), valuesTransposed }
  }

  #shiftedPart(part: KvPart, item: PlacedItem, load: Load, index: number, layer: number): KvPart {
    const { keys: _, keysTransposed, keyScale, keyBase, ...values } = part
    const keys = this.#shifted(plainKeys(this.c, part), item, load, index, layer)
    return { ...values, keys }
  }

  /** Keys [d, n, Hkv] rotated from their rows' positions on to their places in the cache. */
  #shifted(keys: Tensor, item: PlacedItem, load: Load, part: number, layer: number): Tensor {
    const [d, n, Hkv] = keys.ne
    let input = this.shifts.find((s) => s.load === load && s.part === part)
    if (!input) {
      input = { item, load, part, tensor: this.c.tensor('i32', n * Hkv).asInput() }
      this.shifts.push(input)
    }
    const floats = keys.type === 'f32' && keys.isContiguous ? keys : ops.cast(this.c, keys, 'f32')
    const { keys: rotation } = item.rotation
    const rows = ops.reshape(this.c, this.#rotated(floats, rotation), d, 1, n * Hkv)
    const { config, ropeFactors } = this.model
    const turned = ops.rope(this.c, rows, input.tensor, ropeFactors, turnOf(ropeOf(config, layer)))
    return ops.reshape(this.c, this.#rotated(turned, rotation), d, n, Hkv)
  }

  #gather(item: PlacedItem, load: Load, part: number): GatherInput {
    const known = this.gathers.find((g) => g.load === load && g.part === part)
    if (known) return known
    const { arena, cells } = load.parts[part]! as GatherPart
    const { headDim, kvHeads } = this.model.config
    const made: GatherInput = {
      item,
      load,
      part,
      rows: this.c.tensor('i32', cells, kvHeads).asInput(),
      pieces: this.#transposed(arena) ? this.c.tensor('i32', (cells / PAGE_CELLS) * headDim * kvHeads).asInput() : null,
    }
    this.gathers.push(made)
    return made
  }

  #mask(item: PlacedItem, load: Load, window: boolean, lowering: Lowering): MaskInput & { readonly lowered: Tensor } {
    const known = this.masks.find((m) => m.load === load && m.window === window)
    if (known) return known
    const { heads } = this.model.config
    const sizes = item.ragged ? [load.cells, item.rows, heads] : [load.cells, item.rows]
    const tensor = this.c.tensor('f16', ...sizes).asInput()
    const lowered = lowering.mask(this.c, tensor, heads)
    const made = { item, load, window, tensor, bits: new Uint16Array(tensor.elements), lowered }
    this.masks.push(made)
    return made
  }
}

/** A rotation on top of one that has been: YaRN's scale has been applied, and must not be again. */
function turnOf(rope: ops.RopeOptions): ops.RopeOptions {
  const scale = rope.extFactor ? 1 + 0.1 * Math.log(1 / rope.frequencyScale) : 1
  return { ...rope, attentionFactor: 1 / scale }
}

/** Rows [at, at + rows) of [d, heads, T]. */
function rowsOf3(c: Context, t: Tensor, at: number, rows: number): Tensor {
  return ops.view(c, t, [t.ne[0], t.ne[1], rows], [t.nb[1], t.nb[2]], at * t.nb[2])
}

/** Splits a list into stretches whose rows follow each other in both tables, and that agree in `kind`. */
function neighbours(list: readonly Active[], kind: (a: Active) => string): Active[][] {
  const out: Active[][] = []
  for (const a of list) {
    const group = out.at(-1)
    const before = group?.at(-1)
    const follows =
      before !== undefined &&
      kind(before) === kind(a) &&
      a.at === before.at + before.item.rows &&
      a.item.first === before.item.first + before.item.rows
    if (follows) group!.push(a)
    else out.push([a])
  }
  return out
}
