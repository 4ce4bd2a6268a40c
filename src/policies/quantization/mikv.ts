/**
 * MiKV: an eviction policy says which rows matter; those that it would drop stay, in few bits.
 *
 * Paper    Yang et al. 2024, arXiv 2402.18096.  Code  none by the authors.  Spec  mikv.md
 * Formula  upper tier: U = floor(ratio * tokens so far) rows per layer and KV head, at least 2: the newest floor(U / 2), and of the
 *          older ones those with the largest S;  lower tier: all others
 *          S[j,h] = sum over all queries i so far of P[i,j,h] (H2O's; query heads of a group averaged)
 *          codes of a row in groups of d / 2 channels, of all d where d <= 64
 *          keys in codes are k * b, queries then q / b:  b[c] = sqrt(max |q[c]| / max |k[c]|), 1e-4 to 1e4, 1 where either is 0;
 *          found once, when the prompt is complete
 * Keeps    all rows; with lo=0 the lower tier is dropped, which is H2O
 * Answer   a new row is of the upper tier. What it has too many goes down for good: the rows with the smallest S that are not among
 *          the newest
 * Differs  rows go down in blocks of 32, so that the upper tier holds up to 31 rows more; with lo=0 one by one. max |q| is over the
 *          last `window` queries of the prompt, not over all. 3 bits are not offered, they fit no type of ggml. hi=8 is q8_0:
 *          symmetric, groups of 32, no b. The store moves a row once, so with hi=8 and hi=4 rows of the upper tier that are stored
 *          in that format stay in it; the newest floor(U / 2) wait as they were computed, the others join it in blocks of 32, best
 *          first, and compete from then on with nobody. scores and perQuery are ours: `window` are sums over the last queries of
 *          the prompt and all of the answer, `random` is chance
 * Exact    with ratio=1 and hi=16, or while fewer than 32 rows are beyond the upper tier and it is of 16 bits
 */
import { KvasirError } from '../../contract/errors.ts'
import type { Codes, RowFormat } from '../../contract/format.ts'
import type { Observation, ObservationNeeds } from '../../contract/observation.ts'
import type { CompressionPlan, ModelDims, OptionsOf, PolicyState, StoredRows } from '../../contract/policy.ts'
import { definePolicy } from '../define.ts'
import { AS_COMPUTED, allRows, everywhere, rowsStored, storePlan, wholeBlocks, without } from '../parts/blocks.ts'
import { columnScores, randomScores } from '../parts/scorers.ts'
import type { LayerScores } from '../parts/scores.ts'
import { shareOf, splitRows } from '../parts/tiers.ts'
import { addVotes, allQueries, averageVotes, keptVotes, type Votes } from '../parts/votes.ts'

const options = {
  ratio: { kind: 'number', default: 0.2, min: 0, max: 1, help: 'share of the rows that is of the upper tier' },
  hi: {
    kind: 'choice',
    default: '16',
    choices: ['16', '8', '4'],
    help: 'bits of the upper tier; 16: as they were computed',
  },
  lo: { kind: 'choice', default: '2', choices: ['4', '2', '0'], help: 'bits of the lower tier; 0: it is dropped' },
  balancer: { kind: 'flag', default: true, help: 'keys in codes take part of their large channels to the queries' },
  scores: {
    kind: 'choice',
    default: 'h2o',
    choices: ['h2o', 'window', 'random'],
    help: 'who votes on the upper tier: all queries so far, the last ones of the prompt and the answer, chance',
  },
  perQuery: {
    kind: 'flag',
    default: false,
    help: 'scores are divided by how many of the queries could see the row: early rows win less often',
  },
  window: {
    kind: 'number',
    default: 64,
    min: 1,
    max: 1024,
    whole: true,
    help: 'last queries of the prompt that the balancer is made of, and that vote with scores=window',
  },
} as const
type Options = OptionsOf<typeof options>

/** b of each channel, f32 [d], `[layer][kvHead]`. */
type Balance = readonly (readonly Float32Array[])[]

interface Memory {
  /** Null: no keys in codes, or no balancer. */
  readonly balance: Balance | null
  /** With scores=window, over all rows of the cache. */
  readonly votes: Votes | null
}

const ALL = { first: 0, last: 0 }

// formats -------------------------------------------------------------------------------------------------------------

/** Of {@link formats}; null: no rows are stored so. */
const lowerFormat = ({ lo }: Options): number | null => (lo === '0' ? null : 0)
const upperFormat = ({ hi, lo }: Options): number | null => (hi === '16' ? null : lo === '0' ? 0 : 1)

function formats(model: ModelDims, { hi, lo }: Options): RowFormat[] {
  return [
    ...(lo === '0' ? [] : [codes(model, lo === '2' ? 2 : 4)]),
    ...(hi === '16' ? [] : [hi === '8' ? bytes(model) : codes(model, 4)]),
  ]
}

function codes({ headDim: d }: ModelDims, bits: Codes['bits']): RowFormat {
  const one: Codes = { bits, groups: { by: 'token', size: d <= 64 ? d : d / 2 } }
  return { kind: 'codes', keys: one, values: one }
}

/** @throws KvasirError INVALID_ARGUMENT for a head size that the type cannot hold */
function bytes({ headDim }: ModelDims): RowFormat {
  if (headDim % 32 !== 0)
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `mikv: hi=8 stores rows as q8_0, which takes head sizes that are multiples of 32, and the model's is ${headDim}. Take hi=16 or hi=4`,
      { headDim },
    )
  return { kind: 'types', keys: 'q8_0', values: 'q8_0' }
}

// balancer ------------------------------------------------------------------------------------------------------------

const needsBalance = ({ balancer, hi, lo }: Options): boolean => balancer && (lo !== '0' || hi === '4')

function balanceOf(seen: Observation, { model }: PolicyState): Balance {
  const { heads, kvHeads, headDim } = model
  const group = heads / kvHeads
  return everywhere(model, (layer, kvHead) => {
    const q = new Float32Array(headDim)
    // Query heads of a group lie side by side: f32 [d, H, rows].
    const queries = seen.queries![layer]!
    for (let at = kvHead * group * headDim; at < queries.length; at += heads * headDim)
      raise(q, queries.subarray(at, at + group * headDim))
    const k = new Float32Array(headDim)
    raise(k, seen.rows!(layer, kvHead).keys)
    return q.map((most, c) => (most === 0 || k[c] === 0 ? 1 : Math.min(1e4, Math.max(1e-4, Math.sqrt(most / k[c]!)))))
  })
}

/** most[c] = max(most[c], |x[c, .]|). @param x f32 [d, .] */
function raise(most: Float32Array, x: Float32Array): void {
  const d = most.length
  for (let at = 0; at < x.length; at++) most[at % d] = Math.max(most[at % d]!, Math.abs(x[at]!))
}

// tiers ---------------------------------------------------------------------------------------------------------------

/** Rows of one head, the same numbers in all. */
interface Tiers {
  /** Newest rows that nobody moves. */
  readonly recent: number
  /** Rows that go to the lower tier. */
  readonly down: number
  /** Rows of the upper tier that go to its format. */
  readonly stored: number
}

function tiersOf(state: PolicyState, o: Options): Tiers {
  const count = (format: number | null) => (format === null ? 0 : rowsStored(format + 1, state, 0, 0).length)
  const most = o.ratio === 0 ? 0 : Math.min(state.seen, Math.max(2, shareOf(o.ratio, state.seen)))
  const recent = Math.floor(most / 2)
  const lower = lowerFormat(o)
  const over = Math.max(0, state.positions(0, 0).length - count(lower) - most)
  const down = lower === null ? over : wholeBlocks(over)
  const upper = upperFormat(o)
  const movable = rowsStored(AS_COMPUTED, state, 0, 0).length - recent - down
  const stored = upper === null ? 0 : wholeBlocks(Math.min(movable, most - recent - count(upper)))
  return { recent, down, stored }
}

/** S of every row, by KV head. */
function scoresOf(seen: Observation, state: PolicyState, layer: number, o: Options, votes: Votes | null): LayerScores {
  switch (o.scores) {
    case 'h2o': {
      const sums = columnScores(seen, layer, ALL)
      return o.perQuery ? averageVotes(sums, state, layer, 0, allQueries(state)) : sums
    }
    case 'window': {
      const { sums, queries } = votes!
      return o.perQuery ? averageVotes(sums[layer]!, state, layer, 0, queries) : sums[layer]!
    }
    case 'random':
      return randomScores(state, layer, ALL)
    default:
      return o.scores satisfies never
  }
}

/** Who goes where in one head. */
interface Moves {
  readonly down: Int32Array
  readonly stored: Int32Array
}

function movesOf(state: PolicyState, layer: number, kvHead: number, scores: Float64Array, tiers: Tiers): Moves {
  const before = state.positions(layer, kvHead).length - tiers.recent
  const movable = rowsStored(AS_COMPUTED, state, layer, kvHead).filter((j) => j < before)
  const worth = Float64Array.from(movable, (j) => scores[j]!)
  const rowsAt = (indices: Int32Array) => indices.map((i) => movable[i]!)
  return {
    down: rowsAt(splitRows(worth, movable.length - tiers.down).others),
    stored: rowsAt(splitRows(worth, tiers.stored).best),
  }
}

function move(seen: Observation, state: PolicyState, o: Options, memory: Memory): CompressionPlan {
  const tiers = tiersOf(state, o)
  if (tiers.down === 0 && tiers.stored === 0) return { kind: 'keep-all', memory }
  const scores = Array.from({ length: state.model.layers }, (_, l) => scoresOf(seen, state, l, o, memory.votes))
  const moves = everywhere(state.model, (l, h) => movesOf(state, l, h, scores[l]![h]!, tiers))
  const rows = (to: keyof Moves) => moves.map((heads) => heads.map((m) => m[to]))
  const upper = upperFormat(o)
  const raised =
    upper === null || tiers.stored === 0
      ? []
      : [storedRows(state, upper, rows('stored'), o.hi === '8' ? null : memory.balance)]
  const lower = lowerFormat(o)
  return lower === null
    ? drop(state, rows('down'), raised, memory)
    : storePlan(state, [storedRows(state, lower, rows('down'), memory.balance), ...raised], memory)
}

/** The format's first rows bring what keys are multiplied by. */
function storedRows(
  state: PolicyState,
  format: number,
  rows: readonly (readonly Int32Array[])[],
  balance: Balance | null,
): StoredRows {
  const isFirst = rowsStored(format + 1, state, 0, 0).length === 0
  return { format, rows, ...(balance && isFirst ? { balance } : {}) }
}

/** The rows of the lower tier are not kept at all. */
function drop(
  state: PolicyState,
  rows: readonly (readonly Int32Array[])[],
  raised: readonly StoredRows[],
  { balance, votes }: Memory,
): CompressionPlan {
  const kept = without(allRows(state), rows)
  const memory: Memory = { balance, votes: votes && keptVotes(votes, kept) }
  return { kind: 'keep', rows: kept, ...(raised.length > 0 ? { stored: raised } : {}), memory }
}

export const mikv = definePolicy({
  name: 'mikv',
  family: 'quantization',
  summary: 'keeps rows that matter as they are, and those that an eviction policy would drop in 2 or 4 bits',
  paper: {
    title: 'No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision Quantization',
    year: 2024,
    arxiv: '2402.18096',
  },
  options,
  takesBudget: false,
  check({ ratio, hi, lo }) {
    if (lo === '0' && ratio === 0) return "with 'lo' 0 and 'ratio' 0 no row would stay: raise one of them"
    if (hi === '4' && lo === '4') return "with 'hi' 4 and 'lo' 4 there is one tier: say that with 'ratio' 0 and 'hi' 16"
    return null
  },
  observes(o): ObservationNeeds {
    const votes = o.scores === 'window'
    const balances = needsBalance(o)
    return {
      ...(votes || balances
        ? { window: { rows: o.window, statistics: votes ? ['sum'] : [], ...(balances ? { queries: true } : {}) } }
        : {}),
      ...(balances ? { rows: true } : {}),
      ...(o.scores === 'h2o' ? { columns: true } : {}),
      ...(votes ? { decode: true } : {}),
    }
  },
  formats,
  afterPrefill(seen, state, o) {
    const memory: Memory = {
      balance: needsBalance(o) ? balanceOf(seen, state) : null,
      votes: o.scores === 'window' ? addVotes(null, seen.window!, seen.windowRows!, 0) : null,
    }
    return move(seen, state, o, memory)
  },
  afterDecode(seen, state, o) {
    const { balance, votes } = state.memory as Memory
    if (o.scores !== 'window') return move(seen, state, o, { balance, votes })
    return move(seen, state, o, { balance, votes: addVotes(votes, seen.decode!, Int32Array.of(state.seen - 1), 0) })
  },
})
