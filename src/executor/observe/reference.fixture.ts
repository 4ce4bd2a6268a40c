/**
 * Attention of gemma2 rows in float64: queries from the hidden rows that enter each layer, keys from the store as they are
 * there, and everything between them by hand.
 */
import { rotate, rotationOf } from '../../cache/rotation.ts'
import { readRows } from '../../cache/rows.ts'
import type { ObservedLayer, Statistic } from '../../contract/observation.ts'
import type { WorkItem } from '../../contract/work-item.ts'
import type { Runner } from '../../ggml/backend.ts'
import { toFloats } from '../../ggml/numbers.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import { rowBytes } from '../../ggml/types.ts'
import { isWindowed, ropeOf } from '../../model/config.ts'
import type { Model } from '../../model/model.ts'
import type { Executor } from '../run.ts'

/** P by layer, query head and row of the item, along the keys of the head. */
export interface Reference {
  readonly ragged: boolean
  readonly positions: readonly (readonly Int32Array[])[]
  readonly p: readonly (readonly (readonly Float64Array[])[])[]
}

/** The item's rows must have room in the store; they are computed once for each layer. */
export async function referenceOf(executor: Executor, runner: Runner, work: WorkItem): Promise<Reference> {
  const { model, store } = executor
  const { config } = model
  const { heads: H, kvHeads, headDim: d } = config
  const sequence = store.sequence(work.sequence)
  const positions: Int32Array[][] = []
  const p: Float64Array[][][] = []
  const hidden = async (to: number) => {
    const outputs = { logits: [], hidden: true }
    return (await executor.run({ items: [{ ...work, layers: { from: 0, to }, outputs }] })).items[0]!.hidden!.slice()
  }
  // The last layer's keys are there when it ran, too.
  await hidden(config.layers)
  for (let layer = 0; layer < config.layers; layer++) {
    const queries = queriesOf(model, layer, layer === 0 ? embedded(model, work) : await hidden(layer), work.positions)
    const columns = Array.from({ length: kvHeads }, (_, h) => sequence.column(layer, h, kvHeads))
    const cells = columns.map((c) => [...c.byPosition])
    positions.push(columns.map((c, h) => Int32Array.from(cells[h]!, (cell) => c.positions[cell]!)))
    p.push(
      Array.from({ length: H }, (_, head) => {
        const h = Math.floor(head / (H / kvHeads))
        const { keys } = readRows(runner, store, sequence, layer, h, cells[h]!)
        const { keys: rotation } = rotationOf(store.rowArena(sequence.arena).shape)
        if (rotation) rotate(keys, rotation)
        const window = isWindowed(config, layer) ? config.window!.size : Number.POSITIVE_INFINITY
        return queries.map((q, i) => {
          const own = work.positions[i]!
          const scores = Float64Array.from(positions[layer]![h]!, (position, j) => {
            if (position > own || position <= own - window) return Number.NEGATIVE_INFINITY
            let score = 0
            for (let e = 0; e < d; e++) score += q[head * d + e]! * keys[j * d + e]!
            const cap = config.attentionSoftcap
            return cap * Math.tanh((score * config.attentionScale) / cap)
          })
          return softmax(scores)
        })
      }),
    )
  }
  return { ragged: sequence.layout === 'ragged', positions, p }
}

/** What an item is to see by the reference. */
export function attentionOf({ ragged, positions, p }: Reference, work: WorkItem): ObservedLayer[] {
  const { rows, statistics } = work.outputs.observe!
  return p.map((heads, layer) => {
    const keys = positions[layer]!.map((list) => list.length)
    const n = Math.max(...keys)
    const reduced = (statistic: Statistic) => {
      const out = new Float32Array(n * heads.length)
      for (const [h, byRow] of heads.entries())
        for (let j = 0; j < byRow[0]!.length; j++)
          out[h * n + j] = REDUCE[statistic](byRow.slice(rows.from, rows.to).map((row) => row[j]!))
      return out
    }
    return {
      keys,
      positions: ragged ? positions[layer]! : positions[layer]!.slice(0, 1),
      statistics: Object.fromEntries(statistics.map((s) => [s, reduced(s)])),
    }
  })
}

const total = (list: readonly number[]) => list.reduce((a, x) => a + x, 0)

const REDUCE: Record<Statistic, (p: readonly number[]) => number> = {
  sum: total,
  variance: (p) => total(p.map((x) => (x - total(p) / p.length) ** 2)) / (p.length - 1),
  entropy: (p) => total(p.map((x) => -x * Math.log(x + 1e-10))),
}

function softmax(scores: Float64Array): Float64Array {
  const most = Math.max(...scores)
  const e = scores.map((s) => Math.exp(s - most))
  const sum = e.reduce((a, x) => a + x, 0)
  return e.map((x) => x / sum)
}

function numbersOf(t: Tensor): Float32Array {
  return toFloats(t.type, t.get(new Uint8Array(rowBytes(t.type, t.ne[0]) * t.ne[1])), t.elements)
}

function embedded(model: Model, work: WorkItem): Float32Array {
  const { width } = model.config
  const table = numbersOf(model.weights.global['tokenEmbeddings']!)
  if (work.input.kind !== 'tokens') throw new Error('tokens only')
  const out = new Float32Array(work.input.tokens.length * width)
  for (const [i, token] of work.input.tokens.entries())
    for (let e = 0; e < width; e++) out[i * width + e] = table[token * width + e]! * Math.sqrt(width)
  return out
}

/** Rotated queries of rows that enter a layer, [d * H] each. */
function queriesOf(model: Model, layer: number, x: Float32Array, positions: ArrayLike<number>): Float64Array[] {
  const { config } = model
  const { width: D, heads: H, headDim: d, normEpsilon } = config
  const weights = model.weights.layers[layer]! as Readonly<Record<string, Tensor | undefined>>
  const norm = numbersOf(weights['attnNorm']!)
  // Where projections are stacked, those of the queries come first.
  const matrix = numbersOf((weights['qkv'] ?? weights['q'])!)
  const { base } = ropeOf(config, layer)
  return Array.from({ length: positions.length }, (_, t) => {
    const row = x.subarray(t * D, (t + 1) * D)
    const scale = 1 / Math.sqrt(row.reduce((a, v) => a + v * v, 0) / D + normEpsilon)
    const q = Float64Array.from({ length: d * H }, (_, i) => {
      let sum = 0
      for (let e = 0; e < D; e++) sum += matrix[i * D + e]! * row[e]! * scale * norm[e]!
      return sum
    })
    for (let h = 0; h < H; h++)
      for (let e = 0; e < d / 2; e++) {
        const angle = positions[t]! * base ** ((-2 * e) / d)
        const [a, b] = [q[h * d + e]!, q[h * d + e + d / 2]!]
        q[h * d + e] = a * Math.cos(angle) - b * Math.sin(angle)
        q[h * d + e + d / 2] = a * Math.sin(angle) + b * Math.cos(angle)
      }
    return q
  })
}
