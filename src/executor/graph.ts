/**
 * Builds the graph of one work item. What can change between runs of one graph (tokens, positions, cells, mask) is an
 * input; everything else is part of its shape, and a graph is run again while its shape holds.
 */
import type { UniformCache } from '../cache/uniform.ts'
import { Context } from '../ggml/context.ts'
import { Graph } from '../ggml/graph.ts'
import * as ops from '../ggml/ops/index.ts'
import type { Tensor } from '../ggml/tensor.ts'
import { type Attend, Build } from '../model/build.ts'
import { isWindowed } from '../model/config.ts'
import type { Model } from '../model/model.ts'
import { chooseLowering } from './lower/choose.ts'
import { TILE_ROWS } from './lower/flash.ts'
import type { LoweringName } from './lower/lowering.ts'

/** All that a graph's structure depends on. */
export interface GraphShape {
  readonly rows: number
  /** Cells that attention reads: [0, keys). */
  readonly keys: number
  readonly from: number
  readonly to: number
  readonly input: 'tokens' | 'embeddings' | 'hidden'
  /** Rows whose logits are wanted. */
  readonly logits: number
  readonly hidden: boolean
  /**
   * First cell, when the rows are stored in consecutive cells by a block copy; -1: scattered by index. Transposed values
   * of a whole chunk are copied as a block, since a scatter goes element by element.
   */
  readonly blockAt: number
  readonly lowering: LoweringName
}

export function sameShape(a: GraphShape, b: GraphShape): boolean {
  for (const key in a) if (a[key as keyof GraphShape] !== b[key as keyof GraphShape]) return false
  return true
}

/** Rows from which on transposed values are stored as a block, when their cells are consecutive. */
export const BLOCK_STORE_ROWS = TILE_ROWS

/** Upper bounds of what one layer, and everything around the layers, adds to a context. */
const TENSORS_PER_LAYER = 96
const TENSORS_AROUND = 64

/** Capacity of the graphs of a model with this many layers. */
export function graphNodes(layers: number): number {
  return layers * TENSORS_PER_LAYER + TENSORS_AROUND
}

export interface StepGraph {
  readonly shape: GraphShape
  readonly context: Context
  readonly graph: Graph
  /** i32 [T] for tokens, f32 [D, T] for rows. */
  readonly input: Tensor
  readonly positions: Tensor
  /** i32 [T] */
  readonly cells: Tensor
  /** i32 [d * Hkv * T]: element of each value in a transposed arena; null when not scattered. */
  readonly valueElements: Tensor | null
  /** f16 [n, T] */
  readonly mask: Tensor
  /** The same for windowed layers. */
  readonly windowMask: Tensor | null
  /** i32: rows whose logits are wanted; null when all are. */
  readonly outputRows: Tensor | null
  /** Room for one mask on the host, kept from run to run. */
  readonly maskBits: Uint16Array
  /** Room for the outputs on the host. */
  readonly results: { readonly logits: Float32Array; readonly hidden: Float32Array }
  readonly logits: Tensor | null
  readonly hidden: Tensor | null
}

export function buildGraph(model: Model, cache: UniformCache, shape: GraphShape): StepGraph {
  const { config, architecture } = model
  const { rows: T, keys: n, from, to } = shape
  const nodes = graphNodes(config.layers)
  const c = new Context({ tensors: nodes, graphNodes: 2 * nodes })
  try {
    const graph = new Graph(c)
    const scatter = cache.shape.valuesTransposed && shape.blockAt < 0
    const inputs = {
      input: (shape.input === 'tokens' ? c.tensor('i32', T) : c.tensor('f32', config.width, T)).asInput(),
      positions: c.tensor('i32', T).asInput(),
      cells: c.tensor('i32', T).asInput(),
      valueElements: scatter ? c.tensor('i32', config.headDim * config.kvHeads * T).asInput() : null,
      mask: c.tensor('f16', n, T).asInput(),
      windowMask: config.window ? c.tensor('f16', n, T).asInput() : null,
      outputRows: shape.logits > 0 && shape.logits < T ? c.tensor('i32', shape.logits).asInput() : null,
    }
    const lowering = chooseLowering(shape.lowering, T, cache.shape.valuesTransposed)
    const masks = {
      all: lowering.mask(c, inputs.mask, config.heads),
      window: inputs.windowMask && lowering.mask(c, inputs.windowMask, config.heads),
    }

    const attend: Attend = (layer, q, k, v, scale) => {
      graph.expand(storeKeys(c, cache.arena(layer, 'keys'), k, inputs.cells))
      graph.expand(storeValues(c, cache, layer, v, inputs.cells, inputs.valueElements, shape.blockAt))
      return lowering.attend(c, {
        q,
        keys: cache.keys(c, layer, n),
        values: cache.values(c, layer, n),
        valuesTransposed: cache.shape.valuesTransposed,
        mask: (isWindowed(config, layer) && masks.window) || masks.all,
        scale,
        softcap: config.attentionSoftcap,
      })
    }

    const weights = model.weights
    const outputRows = shape.hidden ? null : inputs.outputRows
    const b = new Build(c, config, inputs.positions, model.ropeFactors, outputRows, attend)
    let x = inputs.input
    if (shape.input === 'tokens') {
      x = ops.getRows(c, weights.global['tokenEmbeddings']!, x) //   f32 [D, T]
      if (architecture.embed) x = architecture.embed(b, x)
    }
    for (let layer = from; layer < to; layer++) {
      b.layer = layer
      x = architecture.block(b, x, weights.layers[layer]! as never)
    }

    // Without outputs only the stores were expanded: the last layer's attention and MLP would serve nobody.
    const hidden = shape.hidden ? x.asOutput() : null
    if (hidden) graph.expand(hidden)
    let logits: Tensor | null = null
    if (shape.logits > 0) {
      if (shape.hidden && inputs.outputRows) x = ops.getRows(c, x, inputs.outputRows)
      logits = b.linear(b.norm(x, weights.global['outputNorm']!), model.output, weights.global['outputBias'] ?? null)
      if (config.logitSoftcap) logits = b.softcap(logits, config.logitSoftcap)
      graph.expand(logits.asOutput()) //                              f32 [V, logits]
    }
    const results = {
      logits: new Float32Array(logits?.elements ?? 0),
      hidden: new Float32Array(hidden?.elements ?? 0),
    }
    return { shape, context: c, graph, ...inputs, maskBits: new Uint16Array(n * T), results, logits, hidden }
  } catch (error) {
    c.dispose()
    throw error
  }
}

/** k f32 [d, Hkv, T] into rows `cells` of [d, cells, Hkv]. */
function storeKeys(c: Context, arena: Tensor, k: Tensor, cells: Tensor): Tensor {
  return ops.setRows(c, arena, ops.permute(c, k, 0, 2, 1, 3), cells)
}

function storeValues(
  c: Context,
  cache: UniformCache,
  layer: number,
  v: Tensor,
  cells: Tensor,
  elements: Tensor | null,
  blockAt: number,
): Tensor {
  const arena = cache.arena(layer, 'values')
  if (!cache.shape.valuesTransposed) return storeKeys(c, arena, v, cells)
  if (elements) {
    const flat = ops.reshape(c, arena, 1, arena.elements)
    const dense = v.isContiguous ? v : ops.cont(c, v)
    return ops.setRows(c, flat, ops.reshape(c, dense, 1, v.elements), elements)
  }
  const [d, Hkv, T] = v.ne
  const block = ops.view(c, arena, [T, d, Hkv], [arena.nb[1], arena.nb[2]], blockAt * arena.nb[0])
  return ops.copy(c, ops.permute(c, v, 1, 2, 0, 3), block) //         [d, Hkv, T] -> [T, d, Hkv]
}
