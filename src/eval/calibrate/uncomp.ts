/**
 * UNComp's entropies: how many directions the queries of a head really use.
 *
 * Paper    Xiong et al. 2024, arXiv 2410.03090.  Code  menik1126/UNComp, run_longbench.py.  Spec  uncomp.md, offline 1 and 2
 * Formula  H of a query head = truncated matrix entropy of its rotated queries over a text, k = d / 4 (ours; the authors: 32 of 128)
 *          layer: sum over its query heads, mean over the texts
 *          KV head: mean over its query heads; it gets a vote from each text in which it is in the upper half of its layer
 * Differs  votes of KV heads, not of query heads; texts of the tasks' kinds instead of Wikipedia's: they come with the package
 */
import { truncatedEntropy } from '../../policies/parts/entropy.ts'
import { TASKS } from '../tasks/index.ts'
import { checkWhole, type Measurement } from './measurement.ts'
import { taskText } from './texts.ts'

export interface UncompSettings {
  /** Tokens of each text: entropies of rotated queries depend on it. */
  readonly length: number
  /** Texts. */
  readonly samples: number
  readonly seed: number
}

/** The authors'. */
const LENGTH = 4096
/** Ours; the authors have 100. On the house model 50 give the same groups. */
const SAMPLES = 20

export const uncomp: Measurement<UncompSettings> = {
  policy: 'uncomp',
  unit: 'texts',

  complete({ length, samples = SAMPLES, seed = 0 }, { contextLength }) {
    const settings = { length: length ?? Math.min(LENGTH, Math.floor(contextLength / 2)), samples, seed }
    checkWhole('length', settings.length, 128, contextLength)
    checkWhole('samples', samples, 1, 10_000)
    return settings
  },

  rows: ({ length }) => length,

  async measure(subject, { length, samples, seed }, { signal, onProgress }) {
    const { layers, heads: H, kvHeads, headDim: d } = subject.model.config
    const texts = TASKS.filter((t) => t.family === 'house')
    const sums = new Float64Array(layers)
    const votes = Array.from({ length: layers }, () => new Float64Array(kvHeads))
    for (let i = 0; i < samples; i++) {
      const tokens = taskText(subject.model.tokenizer, texts[i % texts.length]!, seed * samples + i, length)
      using text = subject.begin(signal)
      await text.readByLayer(tokens, (layer, queries) => {
        const entropies = headEntropies(queries, d, H)
        sums[layer]! += entropies.reduce((a, b) => a + b, 0)
        for (const kvHead of upperHalf(groupMeans(entropies, kvHeads))) votes[layer]![kvHead]! += 1
      })
      onProgress?.(i + 1, samples)
    }
    return {
      policy: 'uncomp',
      layerEntropies: [...sums.map((sum) => sum / samples)],
      headVotes: votes.map((layer) => [...layer.map((n) => n / samples)]),
    }
  },
}

/** @param queries f32 [d, H, T] @returns nats, [H] */
export function headEntropies(queries: Float32Array, d: number, H: number): number[] {
  const T = queries.length / (d * H)
  const own = new Float32Array(d * T)
  return Array.from({ length: H }, (_, h) => {
    for (let t = 0; t < T; t++) own.set(queries.subarray((t * H + h) * d, (t * H + h + 1) * d), t * d)
    return truncatedEntropy(own, d, Math.ceil(d / 4))
  })
}

/** [H] -> [Hkv] */
export function groupMeans(list: readonly number[], kvHeads: number): number[] {
  const G = list.length / kvHeads
  return Array.from({ length: kvHeads }, (_, h) => list.slice(h * G, (h + 1) * G).reduce((a, b) => a + b, 0) / G)
}

/** Indices of the larger half; of an odd number the middle one is not in it. */
export function upperHalf(list: readonly number[]): number[] {
  return [...list.keys()].sort((a, b) => list[b]! - list[a]! || a - b).slice(0, Math.floor(list.length / 2))
}
