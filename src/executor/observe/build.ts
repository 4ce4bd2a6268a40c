/**
 * Observations as nodes of a step's graph: the attention probabilities of an item's wanted rows, reduced over those rows.
 * They stand beside the attention itself and change none of its numbers; where the lowering makes the probabilities anyway
 * they are read from there, else they are computed again from the same keys.
 */
import type { Statistic } from '../../contract/observation.ts'
import type { Context } from '../../ggml/context.ts'
import type { Graph } from '../../ggml/graph.ts'
import * as ops from '../../ggml/ops/index.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import type { ScoreInputs } from '../lower/probabilities.ts'
import { maskForRows, probabilities } from '../lower/probabilities.ts'
import type { Load, PlacedItem } from '../place.ts'
import { OBSERVED_ROWS, STATISTICS } from './wanted.ts'

/** What is added to p before its logarithm, so that 0 has one. */
const ENTROPY_EPSILON = 1e-10

/** Upper bound of the tensors that one block of rows adds in one layer. */
export const TENSORS_PER_BLOCK = 40

/** One layer of one item. */
export interface ObservedTensors {
  readonly item: PlacedItem
  readonly load: Load
  /** f32 [n, 1, H], n the cells of the load. */
  readonly statistics: Readonly<Partial<Record<Statistic, Tensor>>>
}

/** One item's attention in one layer; `mask` is the graph's input, f16 [n, T] or [n, T, H]. */
export interface Seen extends ScoreInputs {
  readonly item: PlacedItem
  readonly load: Load
  /** f32 [n, T, H], if the lowering made them. */
  readonly probabilities: Tensor | null
}

export class Observer {
  /** By item, layer after layer. */
  readonly layers: ObservedTensors[] = []
  /** f32 [1, rows, H]; null where it is not used. See {@link sumOverRows}. */
  readonly ones: Tensor | null
  readonly #c: Context
  readonly #graph: Graph
  /** Rows of masks, made once for all layers that share one. */
  readonly #masks = new Map<Tensor, Map<number, Tensor>>()

  /** @param ones f32 [1, {@link OBSERVED_ROWS}, H], set to 1, or null: see {@link sumOverRows} */
  constructor(c: Context, graph: Graph, ones: Tensor | null) {
    this.#c = c
    this.#graph = graph
    this.ones = ones
  }

  /** Adds an item's observation in one layer to the graph. Its keys must be stored by then. */
  observe(a: Seen): void {
    const { rows, statistics } = a.item.item.outputs.observe!
    const sums: Partial<Record<Statistic, Tensor>> = {}
    for (let from = rows.from; from < rows.to; from += OBSERVED_ROWS) {
      const p = this.#block(a, from, Math.min(from + OBSERVED_ROWS, rows.to))
      const block = reduce(this.#c, p, statistics, this.ones)
      // One block after the other, so that the next can have the memory of this one.
      for (const s of STATISTICS) {
        if (!block[s]) continue
        sums[s] = sums[s] ? ops.add(this.#c, sums[s], block[s]) : block[s]
        this.#graph.expand(sums[s])
      }
    }
    for (const sum of Object.values(sums)) sum.asOutput()
    this.layers.push({ item: a.item, load: a.load, statistics: sums })
  }

  /** Probabilities of rows [from, to), f32 [n, rows, H]. */
  #block(a: Seen, from: number, to: number): Tensor {
    if (a.probabilities) return ops.slice(this.#c, a.probabilities, 1, from, to)
    const q = ops.slice(this.#c, a.q, 2, from, to)
    return probabilities(this.#c, { ...a, q, mask: this.#maskRows(a.mask, from, to, q.ne[1]) })
  }

  /** An item has one range of rows, so where a block begins says where it ends. */
  #maskRows(mask: Tensor, from: number, to: number, heads: number): Tensor {
    const known = this.#masks.get(mask) ?? new Map<number, Tensor>()
    this.#masks.set(mask, known)
    const found = known.get(from)
    if (found) return found
    const rows = ops.slice(this.#c, mask, 1, from, to)
    const made = maskForRows(this.#c, rows.isContiguous ? rows : ops.cont(this.#c, rows), heads)
    known.set(from, made)
    return made
  }
}

/** Of probabilities f32 [n, w, H], what is wanted of sum, variance and entropy over the w rows: f32 [n, 1, H] each. */
export function reduce(
  c: Context,
  p: Tensor,
  wanted: readonly Statistic[],
  ones: Tensor | null,
): Partial<Record<Statistic, Tensor>> {
  const w = p.ne[1]
  const out: Partial<Record<Statistic, Tensor>> = {}
  const wants = (s: Statistic) => wanted.includes(s)
  const sum = wants('sum') || wants('variance') ? sumOverRows(c, p, ones) : null
  if (wants('sum')) out.sum = sum!
  if (wants('variance')) {
    // The mean goes first: mean of squares minus square of mean would be all rounding for p around 1e-4.
    const off = ops.sub(c, p, ops.scale(c, sum!, 1 / w)) //                           f32 [n, w, H]
    out.variance = ops.scale(c, sumOverRows(c, ops.mul(c, off, off), ones), 1 / (w - 1))
  }
  if (wants('entropy')) {
    const dense = p.isContiguous ? p : ops.cont(c, p)
    const log = ops.log(c, ops.scale(c, dense, 1, ENTROPY_EPSILON)) //                f32 [n, w, H]
    out.entropy = ops.scale(c, sumOverRows(c, ops.mul(c, log, dense), ones), -1)
  }
  return out
}

/**
 * f32 [n, w, H] -> [n, 1, H]. As an outer product with ones it reads each row once, where it lies. Not on a GPU, where matrix
 * products may round their operands to TF32: there rows are turned into columns first.
 */
function sumOverRows(c: Context, x: Tensor, ones: Tensor | null): Tensor {
  const [n, w, H] = x.ne
  if (ones) return ops.outProd(c, x, w === ones.ne[1] ? ones : ops.slice(c, ones, 1, 0, w))
  if (w === 1) return ops.cont(c, x)
  return ops.reshape(c, ops.sumRows(c, ops.cont(c, ops.transpose(c, x))), n, 1, H)
}
