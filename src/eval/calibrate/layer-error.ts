/**
 * CompressKV, step B: how much each layer's output changes when its cache is cut down to what the policy keeps.
 *
 * Paper    Lin et al. 2025, arXiv 2508.02401.  Code  TUDa-HWAI/CompressKV, pred_get_importance_score.py.  Spec  compresskv.md, B
 * Formula  e_l = sum over the steps of an answer of |o_c - o| / (|o| + 1e-5), where o = W_o attention over all rows, o_c = W_o
 *          attention over those that the policy keeps of the prompt at 32 rows per layer, and the answer's. All rows stay and
 *          lead the model; o_c is only computed beside.
 */
import type { CompressKvCalibration } from '../../contract/calibration.ts'
import type { ObservedLayer } from '../../contract/observation.ts'
import type { Runner } from '../../ggml/backend.ts'
import { Context } from '../../ggml/context.ts'
import { Graph } from '../../ggml/graph.ts'
import * as ops from '../../ggml/ops/index.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import type { ModelConfig } from '../../model/config.ts'
import { choosePolicy } from '../../policies/index.ts'
import { argmax } from './measurement.ts'
import type { Subject } from './subject.ts'

/** The authors': rows per layer. */
const BUDGET = 32
const WINDOW = 8
const EPSILON = 1e-5

/** Error of each layer over an answer of at most `steps` tokens, f64 [Lyr]; at least the first is computed. */
export async function layerErrors(
  subject: Subject,
  tokens: Int32Array,
  heads: readonly (readonly number[])[],
  steps: number,
  signal?: AbortSignal,
): Promise<Float64Array> {
  const { config, tokenizer } = subject.model
  using text = subject.begin(signal)
  await text.skim(tokens.subarray(0, -WINDOW))
  let { logits, layers } = await text.look(tokens.subarray(-WINDOW))
  const kept = keptRows(layers, tokens.length, config, heads)
  /** Of each row of the answer: P by layer, f32 [n, H]. */
  const looks: Float32Array[][] = []
  while (looks.length < steps) {
    const token = argmax(logits)
    if (looks.length > 0 && tokenizer.isEndOfGeneration(token)) break
    ;({ logits, layers } = await text.look(Int32Array.of(token)))
    looks.push(layers.map((l) => l.statistics.sum!.slice()))
  }
  return Float64Array.from(kept, (rows, layer) => {
    const values = text.values(layer, 0, text.length)
    const outputs = looks.flatMap((look) => attendTwice(look[layer]!, values, rows, tokens.length, config))
    return relativeErrors(project(subject.runner, subject.model.weights.layers[layer]!['o']!, outputs), config.width)
  })
}

/** Rows of the prompt that the policy keeps, by layer and KV head. */
function keptRows(
  window: readonly ObservedLayer[],
  rows: number,
  { layers, heads: H, kvHeads, headDim }: ModelConfig,
  heads: readonly (readonly number[])[],
): readonly (readonly Int32Array[])[] {
  const all = Int32Array.from({ length: rows }, (_, i) => i)
  const calibration: CompressKvCalibration = {
    policy: 'compresskv',
    heads,
    layerShares: heads.map(() => 1 / layers),
  }
  const { definition, options } = choosePolicy({
    name: 'compresskv',
    layers: 'uniform',
    window: WINDOW,
  })
  const model = { layers, heads: H, kvHeads, headDim }
  const state = { model, seen: rows, positions: () => all, budget: BUDGET, seed: 0, calibration }
  const plan = definition.afterPrefill({ window }, state, options)
  return plan.kind === 'keep' ? plan.rows : heads.map(() => Array.from({ length: kvHeads }, () => all))
}

/**
 * What one row of the answer reads in a layer: over all rows, and over the kept rows of the prompt and the answer's.
 * @param p f32 [n, H]
 * @param values f32 [d, at least n, Hkv]
 * @param kept by KV head
 * @returns f32 [d * H], twice
 */
export function attendTwice(
  p: Float32Array,
  values: Float32Array,
  kept: readonly Int32Array[],
  promptRows: number,
  { heads: H, headDim: d }: Pick<ModelConfig, 'heads' | 'headDim'>,
): [all: Float32Array, cut: Float32Array] {
  const n = p.length / H
  const all = new Float32Array(d * H)
  const cut = new Float32Array(d * H)
  const everyRow = Int32Array.from({ length: n }, (_, j) => j)
  for (let h = 0; h < H; h++) {
    const kvHead = Math.floor((h * kept.length) / H)
    const own = p.subarray(h * n, (h + 1) * n)
    const v = values.subarray((kvHead * values.length) / kept.length, ((kvHead + 1) * values.length) / kept.length)
    const some = Int32Array.of(...kept[kvHead]!, ...everyRow.subarray(promptRows))
    all.set(weightedMean(v, own, everyRow, d), h * d)
    cut.set(weightedMean(v, own, some, d), h * d)
  }
  return [all, cut]
}

/** Softmax over some of the rows is their share of the softmax over all, made to add up to 1. f64 [d] */
function weightedMean(v: Float32Array, p: Float32Array, rows: Int32Array, d: number): Float64Array {
  const sum = new Float64Array(d)
  let mass = 0
  for (const j of rows) {
    const weight = p[j]!
    // Rows that a layer's window does not reach.
    if (weight === 0) continue
    mass += weight
    for (let e = 0; e < d; e++) sum[e]! += weight * v[j * d + e]!
  }
  return mass > 0 ? sum.map((x) => x / mass) : sum
}

/** Sum over pairs of columns o, o_c of |o_c - o| / (|o| + 1e-5). @param projected f32 [D, 2 steps] */
export function relativeErrors(projected: Float32Array, D: number): number {
  let sum = 0
  for (let at = 0; at < projected.length; at += 2 * D) {
    const full = projected.subarray(at, at + D)
    const off = projected.subarray(at + D, at + 2 * D).map((x, i) => x - full[i]!)
    sum += norm(off) / (norm(full) + EPSILON)
  }
  return sum
}

const norm = (x: Float32Array) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0))

/** W_o [d * H, D] times each of n columns, f32 [D, n], in the arithmetic of the model. */
function project(runner: Runner, weight: Tensor, columns: readonly Float32Array[]): Float32Array {
  const c = new Context({ tensors: 2, graphNodes: 4 })
  try {
    const x = c.tensor('f32', weight.ne[0], columns.length).asInput()
    const y = ops.mulMat(c, weight, x).asOutput()
    const graph = new Graph(c)
    graph.expand(y)
    runner.allocate(graph)
    x.set(Float32Array.from(columns.flatMap((column) => [...column])))
    runner.run(graph)
    return y.floats()
  } finally {
    c.dispose()
  }
}
