/**
 * ZipCache: rows that matter in 4 bits, the others in 2. What matters is found from a tenth of the queries, and by what a row gets
 * from those that may see it: plain sums favour early rows.
 *
 * Paper    He et al. 2024, arXiv 2405.14256.  Code  ThisisBillhe/ZipCache, compress_class.py.  Spec  zipcache.md
 * Formula  probes p: the last `recent` of the prompt's queries, at least one, and `random` of them besides, by chance
 *          s[j,h] = sum over the probes of P[p,j,h] / number of probes p >= j (query heads of a group averaged)
 *          keys: a group is one channel of all rows of a tier. Values: divided by f[c] = sqrt(max |v[c]|), then a group is one row
 * Keeps    all rows, in whole blocks of 32. Those with the smallest s, 1 - `salient` of them, in `lo` bits, the others in `hi`. With
 *          lo=0 the lower tier is dropped: s as a score for eviction
 * Answer   its rows wait as they were computed; of `buffer` of them those with the largest s among themselves become `hi`. Probes
 *          are the last `recent` of these steps, and each other one with a chance of `random`. What is stored is never touched again
 * Differs  both tiers are whole blocks of 32: `lo` is (1 - salient) of all blocks so far, rounded down, `hi` the rest. The prompt's
 *          last n mod 32 rows wait with the answer's. A buffer of 96 rows, theirs is 100. Scales are fixed by the first rows of a
 *          tier, and later ones are clamped to them, where the authors compress the whole cache again. f is found for each tier
 *          apart. Rows of values are those of one head; those of the authors glue heads together. With scores=repo as their code
 *          has it: divided by n - j, as if all queries were probes, which favours the newest rows
 * Exact    if n is less than 32, and n and the answer together less than `buffer`
 */
import type { Codes, RowFormat } from '../../contract/format.ts'
import type { Observation, ObservationNeeds } from '../../contract/observation.ts'
import type { CompressionPlan, ModelDims, OptionsOf, PolicyState } from '../../contract/policy.ts'
import { definePolicy } from '../define.ts'
import { allRows, blockProblem, everywhere, storePlan, wholeBlocks, without } from '../parts/blocks.ts'
import { randomOf } from '../parts/random.ts'
import { columnScores, randomScores } from '../parts/scorers.ts'
import type { LayerScores } from '../parts/scores.ts'
import { shareOf, splitRows } from '../parts/tiers.ts'
import { addVotes, allQueries, averageVotes, type Votes } from '../parts/votes.ts'

const options = {
  salient: { kind: 'number', default: 0.6, min: 0, max: 1, help: 'share of the rows in the upper tier' },
  hi: {
    kind: 'choice',
    default: '4',
    choices: ['16', '4'],
    help: 'bits of the upper tier; 16: as they were computed',
  },
  lo: { kind: 'choice', default: '2', choices: ['4', '2', '0'], help: 'bits of the lower tier; 0: it is dropped' },
  recent: {
    kind: 'number',
    default: 0.05,
    min: 0,
    max: 1,
    help: 'share of the queries that are probes, the last ones',
  },
  random: { kind: 'number', default: 0.05, min: 0, max: 1, help: 'share of the queries that are probes, by chance' },
  scores: {
    kind: 'choice',
    default: 'normalised',
    choices: ['normalised', 'repo', 'accumulated', 'random'],
    help: "who is salient: the paper's way, the authors' code's, sums over all queries as with H2O, chance",
  },
  buffer: {
    kind: 'number',
    default: 96,
    min: 32,
    max: 65536,
    whole: true,
    help: 'rows of the answer that are stored together, a multiple of 32',
  },
} as const
type Options = OptionsOf<typeof options>

/** Of {@link formats}; null: no rows are stored so. */
const lowerFormat = ({ lo }: Options): number | null => (lo === '0' ? null : 0)
const upperFormat = ({ hi, lo }: Options): number | null => (hi === '16' ? null : lo === '0' ? 0 : 1)

interface Memory {
  /** Rows whose tier was decided: the oldest of every head. */
  readonly settled: number
  /** Of these, how many were dropped. */
  readonly dropped: number
  /** Of the probes since then, on the rows behind; null: there were none. */
  readonly votes: Votes | null
}
const START: Memory = { settled: 0, dropped: 0, votes: null }

/** Whether queries are looked at one by one. */
const isProbed = ({ scores }: Options): boolean => scores === 'normalised' || scores === 'repo'

function formats({ headDim }: ModelDims, { hi, lo }: Options): RowFormat[] {
  const codes = (bits: Codes['bits']): RowFormat => ({
    kind: 'codes',
    keys: { bits, groups: { by: 'tier' } },
    values: { bits, groups: { by: 'token', size: headDim }, evened: true },
  })
  return [...(lo === '0' ? [] : [codes(lo === '2' ? 2 : 4)]), ...(hi === '16' ? [] : [codes(4)])]
}

/** s of the rows behind those whose tier was decided, by KV head. */
function saliency(
  seen: Observation,
  state: PolicyState,
  layer: number,
  { settled, dropped, votes }: Memory,
  { scores }: Options,
): LayerScores {
  const first = settled - dropped
  const behind = { first, last: 0 }
  switch (scores) {
    case 'normalised':
      return averageVotes(votes!.sums[layer]!, state, layer, first, votes!.queries)
    case 'repo':
      return averageVotes(votes!.sums[layer]!, state, layer, first, allQueries(state))
    case 'accumulated':
      return columnScores(seen, layer, behind)
    case 'random':
      return randomScores(state, layer, behind)
    default:
      return scores satisfies never
  }
}

/** How many of the oldest `rows` of a head are of the lower tier. */
const lowerOf = (rows: number, { salient }: Options): number => wholeBlocks(shareOf(1 - salient, rows))

/** The next `count` rows get their tier, in all heads. */
function settle(count: number, seen: Observation, state: PolicyState, before: Memory, o: Options): CompressionPlan {
  const { settled, dropped } = before
  const lower = lowerOf(settled + count, o) - lowerOf(settled, o)
  const halves = Array.from({ length: state.model.layers }, (_, layer) =>
    saliency(seen, state, layer, before, o).map((one) => splitRows(one.subarray(0, count), count - lower)),
  )
  const rows = (of: 'best' | 'others') =>
    everywhere(state.model, (layer, kvHead) => halves[layer]![kvHead]![of].map((j) => settled - dropped + j))
  const to = (format: number | null, of: 'best' | 'others') => (format === null ? [] : [{ format, rows: rows(of) }])
  const stored = [...to(lowerFormat(o), 'others'), ...to(upperFormat(o), 'best')]
  const isDropped = lowerFormat(o) === null
  const memory: Memory = { settled: settled + count, dropped: dropped + (isDropped ? lower : 0), votes: null }
  const plan = storePlan(state, stored, memory)
  if (!isDropped || lower === 0) return plan
  return { kind: 'keep', rows: without(allRows(state), rows('others')), ...(stored.length ? { stored } : {}), memory }
}

/** Whether a row of the answer, the last of `waiting` without a tier, is a probe. */
function isProbe(waiting: number, { seed, seen }: PolicyState, { recent, random, buffer }: Options): boolean {
  const last = Math.max(1, Math.round(recent * buffer))
  return waiting > buffer - last || randomOf(seed, seen) < random
}

export const zipcache = definePolicy({
  name: 'zipcache',
  family: 'quantization',
  summary: 'keeps all rows, those that some of the queries look at in 4 bits, the others in 2',
  paper: {
    title: 'ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token Identification',
    year: 2024,
    arxiv: '2405.14256',
  },
  options,
  takesBudget: false,
  check({ hi, lo, recent, random, buffer }) {
    if (hi === '4' && lo === '4') return "with 'hi' 4 and 'lo' 4 there is one tier: say that with 'salient' 1"
    if (recent + random > 1) return `'recent' and 'random' are shares of the same queries, and more than 1 together`
    return blockProblem('buffer', buffer)
  },
  observes(o): ObservationNeeds {
    if (o.scores === 'accumulated') return { columns: true }
    if (!isProbed(o)) return {}
    return { window: { rows: 1, statistics: ['sum'], share: o.recent, random: o.random }, decode: true }
  },
  formats,
  afterPrefill(seen, state, o) {
    const count = wholeBlocks(state.positions(0, 0).length)
    if (count === 0) return { kind: 'keep-all' }
    const votes = isProbed(o) ? addVotes(null, seen.window!, seen.windowRows!, 0) : null
    return settle(count, seen, state, { ...START, votes }, o)
  },
  afterDecode(seen, state, o) {
    const { settled, dropped, votes } = (state.memory as Memory | undefined) ?? START
    const waiting = state.positions(0, 0).length - (settled - dropped)
    const isNew = isProbed(o) && isProbe(waiting, state, o)
    const memory: Memory = isNew
      ? { settled, dropped, votes: addVotes(votes, seen.decode!, Int32Array.of(state.seen - 1), settled - dropped) }
      : { settled, dropped, votes }
    if (waiting >= o.buffer) return settle(o.buffer, seen, state, memory, o)
    return isNew ? { kind: 'keep-all', memory } : { kind: 'keep-all' }
  },
})
