/**
 * RazorAttention: a few heads fetch from anywhere, and keep everything; the others look at the first rows and at near ones, and
 * one row stands for all that they drop.
 *
 * Paper    Tang et al. 2024, arXiv 2407.15891.  Code  MindSpore golden-stick, razor_attention.py.  Spec  razorattention.md
 * Before   `kvasir calibrate razorattention MODEL` measures, on a repeated random text, how much each KV head looks at earlier
 *          copies of a token (echo), and at what followed them (induction)
 * Keeps    KV heads in the top `inductionRatio` by induction, with the top `echoRatio` by echo, over all layers: all rows.
 *          Each other head: `sinks` rows, the last L, and the mean of the Nd others, keys as they are cached, rotated
 * Formula  the mean row k^, v^ counts Nd times: softmax over s q.k_j, and s q.k^ + ln Nd (compensation=plain: without ln Nd)
 * Answer   L + `fold` recent rows in the other heads; beyond that the oldest `fold` go into the mean:
 *          k^ <- (Nd k^ + sum k_j) / (Nd + fold), the same for v^, Nd <- Nd + fold. Heads that retrieve keep the answer, all do
 *          with fold=0, which is the authors' way
 * Differs  the budget decides L, the same in all other heads, where the paper has max(4000, n / 5). Where it does not hold sinks,
 *          mean and 8 recent rows there, fewer heads retrieve: the best by induction and by echo, in turns. Chosen by indices:
 *          of heads with equal scores the first; the authors' unites them wrongly. The mean is rounded to the cache's type at
 *          each fold, where the spec asks for f32
 * Exact    if budget >= n
 */
import type { CompressionPlan, Merge, OptionsOf, PolicyState } from '../../contract/policy.ts'
import { definePolicy } from '../define.ts'
import { calibrationOf } from '../parts/calibration.ts'
import { randomOf } from '../parts/random.ts'
import { cachedRows, rowsOver } from '../parts/select.ts'

/** Fewest recent rows of a head that does not retrieve, as long as fewer could retrieve instead. */
const RECENT = 8

const options = {
  inductionRatio: {
    kind: 'number',
    default: 0.14,
    min: 0,
    max: 1,
    help: 'share of all KV heads that retrieve by induction, one or more; 0: none. Try 0.25 with few heads',
  },
  echoRatio: { kind: 'number', default: 0.01, min: 0, max: 1, help: 'the same by echo' },
  sinks: { kind: 'number', default: 4, min: 0, max: 4096, whole: true, help: 'first rows that always stay' },
  compensation: {
    kind: 'choice',
    default: 'weighted',
    choices: ['weighted', 'plain', 'none'],
    help: 'the row in place of dropped ones counts as many as they were, or once, or there is none',
  },
  fold: {
    kind: 'number',
    default: 64,
    min: 0,
    max: 4096,
    whole: true,
    help: 'rows of the answer that are folded into it at a time; 0: none, all of the answer stays',
  },
  heads: {
    kind: 'choice',
    default: 'calibrated',
    choices: ['calibrated', 'random', 'reversed'],
    help: 'which heads retrieve: as measured, or for comparison as many by chance, or the worst',
  },
} as const
type Options = OptionsOf<typeof options>

/** Numbers of rows are the same in all heads that do not retrieve. */
interface Memory {
  /** `[layer][kvHead]` */
  readonly retrieves: readonly (readonly boolean[])[]
  readonly sinks: number
  /** L: recent rows after a fold. */
  readonly local: number
  /** Whether a mean stands behind the sinks. */
  readonly hasMean: boolean
  /** Nd: rows that the one behind the sinks stands for; itself at first. */
  readonly mass: number
}

const range = (from: number, to: number): Int32Array => Int32Array.from({ length: to - from }, (_, i) => from + i)

/** Indices of scores, the largest first, of equal ones the first. */
const byScore = (scores: readonly number[]): number[] =>
  scores.map((_, i) => i).sort((a, b) => scores[b]! - scores[a]! || a - b)

/** KV heads that would keep everything if the budget allowed: layer * Hkv + kvHead, the best first. */
function retrievalHeads(state: PolicyState, o: Options): number[] {
  const { echo, induction } = calibrationOf(state, 'razorattention')
  const top = (scores: readonly number[], ratio: number) =>
    ratio === 0 ? [] : byScore(scores).slice(0, Math.max(1, Math.round(ratio * scores.length)))
  const scores = induction.flat()
  const byEcho = top(echo.flat(), o.echoRatio)
  const byInduction = top(scores, o.inductionRatio)
  const inTurns = scores.flatMap((_, i) => [...byInduction.slice(i, i + 1), ...byEcho.slice(i, i + 1)])
  const best = [...new Set(inTurns)]
  switch (o.heads) {
    case 'calibrated':
      return best
    case 'random':
      return byScore(scores.map((_, head) => randomOf(state.seed, head))).slice(0, best.length)
    case 'reversed':
      return byScore(scores.map((s) => -s)).slice(0, best.length)
    default:
      return o.heads satisfies never
  }
}

/** Who keeps what of n rows, more than the budget. */
function divide(n: number, state: PolicyState, o: Options): Memory {
  const { model, budget } = state
  const all = model.layers * model.kvHeads
  // The newest row comes first in a tiny budget, then the mean, then the sinks.
  const hasMean = o.compensation !== 'none' && budget > 1
  const sinks = Math.min(o.sinks, budget - (hasMean ? 2 : 1))
  const ends = sinks + (hasMean ? 1 : 0)
  const least = ends + RECENT
  const affordable = budget > least ? Math.floor((all * (budget - least)) / (n - least)) : 0
  const chosen = new Set(retrievalHeads(state, o).slice(0, affordable))
  const retrieves = Array.from({ length: model.layers }, (_, layer) =>
    Array.from({ length: model.kvHeads }, (_, kvHead) => chosen.has(layer * model.kvHeads + kvHead)),
  )
  const local = Math.floor((all * budget - chosen.size * n) / (all - chosen.size)) - ends
  return { retrieves, sinks, local, hasMean, mass: 1 }
}

/** Rows of each head that does not retrieve. There is one: all rows in all heads are more than the budget. */
function squeezedRows(state: PolicyState, { retrieves }: Memory): number {
  const layer = retrieves.findIndex((heads) => heads.includes(false))
  return state.positions(layer, retrieves[layer]!.indexOf(false)).length
}

/** In heads that do not retrieve, rows from the one behind the sinks to before `end` become one, or are dropped. */
function squeeze(state: PolicyState, before: Memory, end: number, { compensation }: Options): CompressionPlan {
  const { sinks, hasMean, mass: held } = before
  const n = squeezedRows(state, before)
  const ends = hasMean ? sinks + 1 : sinks
  const kept = Int32Array.from({ length: ends + n - end }, (_, j) => (j < ends ? j : end + j - ends))
  const mass = held + end - (sinks + 1)
  const from = range(sinks, end)
  const mean: Merge = {
    into: sinks,
    from,
    weights: Float32Array.from(from, (_, i) => (i === 0 ? held : 1) / mass),
    mass: compensation === 'weighted' ? mass : 1,
  }
  const each = <T>(squeezed: T, retrieving: (layer: number, kvHead: number) => T): T[][] =>
    before.retrieves.map((heads, layer) => heads.map((yes, kvHead) => (yes ? retrieving(layer, kvHead) : squeezed)))
  return {
    kind: 'keep',
    rows: each(kept, (layer, kvHead) => range(0, state.positions(layer, kvHead).length)),
    ...(hasMean ? { merges: each<readonly Merge[]>([mean], () => []) } : {}),
    memory: { ...before, mass } satisfies Memory,
  }
}

/** For the first time: until then all heads have the same rows. */
function compress(state: PolicyState, o: Options): CompressionPlan {
  const rows = cachedRows(state)
  if (rowsOver(state, rows) <= 0) return { kind: 'keep-all' }
  const n = rows[0]![0]!
  const memory = divide(n, state, o)
  return squeeze(state, memory, n - memory.local, o)
}

/** Folds the oldest recent rows, `fold` at a time, where there are more than L + `fold`. */
function fold(state: PolicyState, memory: Memory, o: Options): CompressionPlan {
  const ends = memory.hasMean ? memory.sinks + 1 : memory.sinks
  const recent = squeezedRows(state, memory) - ends
  const folds = Math.floor((recent - memory.local - 1) / o.fold)
  return folds > 0 ? squeeze(state, memory, ends + folds * o.fold, o) : { kind: 'keep-all' }
}

export const razorattention = definePolicy({
  name: 'razorattention',
  family: 'eviction',
  summary: 'heads that retrieve keep everything, the others sinks, the newest rows, and a mean of what they drop',
  paper: {
    title: 'RazorAttention: Efficient KV Cache Compression Through Retrieval Heads',
    year: 2024,
    arxiv: '2407.15891',
  },
  options,
  calibration: () => 'razorattention',
  observes: () => ({}),
  afterPrefill: (_, state, o) => compress(state, o),
  afterDecode(_, state, o) {
    if (o.fold === 0) return { kind: 'keep-all' }
    return state.memory ? fold(state, state.memory as Memory, o) : compress(state, o)
  },
})
