/**
 * Builds the graph of a step. What can change between runs of one graph (tokens, positions, cells, masks) is an input;
 * everything else is in the placed step's key, and a graph is run again while that holds.
 *
 * The rows of all items form one table. Linear layers run over all rows that are active in a layer; rows join and leave
 * where their item's layers begin and end. Attention runs item by item: `attention.ts`.
 */
import type { KvStore } from '../cache/store.ts'
import { Context } from '../ggml/context.ts'
import { Graph } from '../ggml/graph.ts'
import * as ops from '../ggml/ops/index.ts'
import type { Tensor } from '../ggml/tensor.ts'
import { type Attend, Build } from '../model/build.ts'
import type { Model } from '../model/model.ts'
import { type Active, AttentionBuilder, RangedInput, type StepAttention, sideBySide } from './attention.ts'
import { channelGroups } from './coded.ts'
import type { LoweringName } from './lower/lowering.ts'
import { TENSORS_PER_BLOCK } from './observe/build.ts'
import { observedBlocks } from './observe/wanted.ts'
import { type PlacedItem, type PlacedStep, ROW_TILE } from './place.ts'

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

export interface StepGraph extends StepAttention {
  readonly key: string
  readonly context: Context
  readonly graph: Graph
  /** i32 [all rows]; rows of items without tokens are 0. */
  readonly tokens: Tensor
  /** Rows that enter as they are, f32 [D, T]. */
  readonly rowInputs: readonly { readonly item: PlacedItem; readonly tensor: Tensor }[]
  /** i32 [all rows] */
  readonly positions: Tensor
  /** i32 [logits + normed]: rows of the last layer's table that go on to the outputs; null: all, as they stand. */
  readonly outputRows: Tensor | null
  readonly outputs: OutputPlaces
  readonly logits: Tensor | null
  /** f32 [D, rows]: behind the final norm. */
  readonly normed: Tensor | null
  /** Rows that were asked for, by the first row of their item. */
  readonly hidden: ReadonlyMap<number, Tensor>
  /** Room for outputs on the host. */
  readonly logitsRoom: Float32Array
  readonly normedRoom: Float32Array
}

/** Rows behind the last layer: those for logits, then those for states behind the final norm; each filled up. */
export interface OutputPlaces {
  readonly logits: number
  readonly normed: number
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
  readonly #c: Context
  readonly #model: Model
  readonly #step: PlacedStep
  readonly #graph: Graph
  readonly #attention: AttentionBuilder
  readonly #tokens: RangedInput
  readonly #positions: RangedInput
  readonly #rowInputs: { item: PlacedItem; tensor: Tensor }[] = []
  readonly #hidden = new Map<number, Tensor>()
  #active: readonly Active[] = []

  constructor(c: Context, model: Model, store: KvStore, step: PlacedStep, lowering: LoweringName) {
    this.#c = c
    this.#model = model
    this.#step = step
    this.#graph = new Graph(c)
    this.#tokens = new RangedInput(c, step.rows + step.padding)
    this.#positions = new RangedInput(c, step.rows + step.padding)
    this.#attention = new AttentionBuilder(c, this.#graph, model, store, step, lowering)
  }

  readonly #attend: Attend = (layer, q, k, v, scale) => this.#attention.attend(layer, q, k, v, scale, this.#active)

  build(): StepGraph {
    const last = this.#step.items.filter((p) => p.item.layers.to === this.#model.config.layers)
    const { outputs, inPlace } = this.#outputs(last)
    const count = outputs.logits + outputs.normed
    const outputRows = count > 0 && !inPlace ? this.#c.tensor('i32', count).asInput() : null
    // Where all rows of the last layer are wanted, those for the outputs are only taken out behind it.
    const wantsHidden = last.some((p) => p.item.outputs.hidden)
    const { x, b } = this.#layers(wantsHidden ? null : outputRows)

    // Without outputs only the stores were expanded: the last layer's attention and MLP would serve nobody.
    for (const rows of this.#hidden.values()) this.#graph.expand(rows)
    const rows = wantsHidden && outputRows ? ops.getRows(this.#c, x, outputRows) : x
    const { logits, normed } = count > 0 ? this.#bringOut(b, rows, outputs) : { logits: null, normed: null }
    return {
      ...this.#attention.finish(),
      key: this.#step.key,
      context: this.#c,
      graph: this.#graph,
      tokens: this.#tokens.tensor,
      rowInputs: this.#rowInputs,
      positions: this.#positions.tensor,
      outputRows,
      outputs,
      logits,
      normed,
      hidden: this.#hidden,
      logitsRoom: new Float32Array(logits?.elements ?? 0),
      normedRoom: new Float32Array(normed?.elements ?? 0),
    }
  }

  /** All layers. Gives the last one's rows, f32 [D, T], and what built it. @param outputRows see {@link Build} */
  #layers(outputRows: Tensor | null): { readonly x: Tensor; readonly b: Build } {
    const { config, architecture, weights, ropeFactors } = this.#model
    const ranges = this.#step.items.map((p) => p.item.layers)
    const from = Math.min(...ranges.map((r) => r.from))
    const to = Math.max(...ranges.map((r) => r.to))
    let x: Tensor | null = null
    let b: Build | null = null
    for (let layer = from; layer < to; layer++) {
      const active = this.#step.items.filter((p) => p.item.layers.from <= layer && layer < p.item.layers.to)
      if (!active.length) {
        // Between the layers of two items that do not meet.
        this.#active = []
        b = null
        continue
      }
      if (!b || active.length !== this.#active.length || active.some((p, i) => p !== this.#active[i]!.item)) {
        x = this.#enter(x, active, layer)
        b = new Build(this.#c, config, this.#positionsOf(active), ropeFactors, outputRows, this.#attend)
      }
      b.layer = layer
      x = architecture.block(b, x!, weights.layers[layer]! as never)
      this.#leave(x, layer)
    }
    return { x: x!, b: b! }
  }

  // outputs --------------------------------------------------------------------------------------------------------------

  /** How many rows go on behind the last layer, and whether they are all of its table, in its order. */
  #outputs(last: readonly PlacedItem[]): { readonly outputs: OutputPlaces; readonly inPlace: boolean } {
    const { padding } = this.#step
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

  /** Logits and states of rows f32 [D, logits + normed]. */
  #bringOut(b: Build, rows: Tensor, places: OutputPlaces): Pick<StepGraph, 'logits' | 'normed'> {
    const { config, output, weights } = this.#model
    const states = b.norm(rows, weights.global['outputNorm']!) //     f32 [D, logits + normed]
    const part = (from: number, count: number) =>
      count === places.logits + places.normed
        ? states
        : ops.view(this.#c, states, [states.ne[0], count], [states.nb[1]], from * states.nb[1])
    let logits: Tensor | null = null
    let normed: Tensor | null = null
    if (places.logits > 0) {
      logits = b.linear(part(0, places.logits), output, weights.global['outputBias'] ?? null)
      if (config.logitSoftcap) logits = b.softcap(logits, config.logitSoftcap)
      this.#graph.expand(logits.asOutput()) //                        f32 [V, logits]
    }
    if (places.normed > 0) {
      normed = ops.cont(this.#c, part(places.logits, places.normed)).asOutput()
      this.#graph.expand(normed) //                                   f32 [D, normed]
    }
    return { logits, normed }
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
        pieces.push(this.#embed(item.first, next === active.length ? end + this.#step.padding : end))
      } else if (item.item.layers.from === layer) {
        const tensor = this.#c.tensor('f32', this.#model.config.width, item.rows).asInput()
        this.#rowInputs.push({ item, tensor })
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
    return sideBySide(this.#c, pieces, 1)
  }

  #embed(from: number, to: number): Tensor {
    const rows = this.#tokens.range(from, to)
    const x = ops.getRows(this.#c, this.#model.weights.global['tokenEmbeddings']!, rows) // f32 [D, T]
    if (!this.#model.architecture.embed) return x
    const b = new Build(this.#c, this.#model.config, rows, null, null, this.#attend)
    return this.#model.architecture.embed(b, x)
  }

  /** Rows of an item in the table of the layer before. */
  #rowsOfItem(x: Tensor, item: PlacedItem): Tensor {
    const { at } = this.#active.find((a) => a.item === item)!
    return ops.cont(this.#c, ops.view(this.#c, x, [x.ne[0], item.rows], [x.nb[1]], at * x.nb[1]))
  }

  /** Brings out the rows of items that end behind this layer and want them. */
  #leave(x: Tensor, layer: number): void {
    for (const { item } of this.#active) {
      if (item.item.layers.to !== layer + 1 || !item.item.outputs.hidden) continue
      const whole = this.#active.length === 1
      this.#hidden.set(item.first, (whole ? x : this.#rowsOfItem(x, item)).asOutput())
    }
  }

  #positionsOf(active: readonly PlacedItem[]): Tensor {
    const pieces: Tensor[] = []
    let i = 0
    while (i < active.length) {
      let next = i + 1
      while (next < active.length && active[next]!.first === active[next - 1]!.first + active[next - 1]!.rows) next++
      const end = active[next - 1]!.first + active[next - 1]!.rows
      const to = next === active.length ? end + this.#step.padding : end
      pieces.push(this.#positions.range(active[i]!.first, to))
      i = next
    }
    return sideBySide(this.#c, pieces, 0)
  }
}
