/**
 * KVMerger: keys of neighbouring rows are often nearly parallel; runs of them become one row each.
 *
 * Paper    Wang et al. 2024, arXiv 2407.08454.  Code  none found.  Spec  kvmerger.md
 * Formula  a_j = sum over all queries i so far of P[i,j,h] (query heads of a group averaged);  c_j = cos(k_j, k_j-1)
 *          of a set S of neighbours, p the row with the largest a:  g_j = exp(-|k_p - k_j|^2 / 2 sigma^2), w_j = g_j / sum of g
 *          k = sum w_j k_j,  v = sum w_j v_j, which counts |S| times: ln |S| is added to its scores
 * Sets     per layer and KV head, of rows at consecutive positions, `cap` at most. Alone stay the first rows, the last
 *          `recent` n, and the `heavy` n others with the largest a
 * Keeps    budget rows: the n - budget pairs of neighbours with the largest c are joined. Where there are too few of them, pairs
 *          with heavy rows are joined too; then the sets with the smallest sum of a are dropped
 * Answer   kept, until the cache is max(64, budget / 10) rows longer than the last pass left it; then another pass over all rows
 *          that no pass has merged yet
 * Differs  the paper joins every pair with c > 0.75 (budgetMode=eps, which meets no budget) and multiplies v by |S|
 *          (valueMode=paper): of equal rows that is |S| times their value. Its sigma is defined by itself; here it is the mean of
 *          |k_p - k_j| over the others, by sqrt 2, or a fixed one. It has 8% and 17% recent rows, 2% and 12% heavy ones at budgets
 *          of 35% and 50% of the rows; here they lie on the line through both, and below 35% shrink with the budget. Caps, pinned
 *          first rows, dropping and passes in the answer are ours
 * Exact    if budget >= n
 */
import type { Observation } from '../../contract/observation.ts'
import type { CompressionPlan, Merge, OptionsOf, PolicyState } from '../../contract/policy.ts'
import type { Range } from '../../contract/units.ts'
import { definePolicy } from '../define.ts'
import { randomOf } from '../parts/random.ts'
import { columnScores } from '../parts/scorers.ts'
import { cachedRows, rowsOver, topRows } from '../parts/select.ts'

/** Budgets, as shares of all rows, for which the paper says how many rows to protect; and those shares. */
const BUDGETS = [0.35, 0.5] as const
const RECENT = [0.08, 0.17] as const
const HEAVY = [0.02, 0.12] as const

const options = {
  recent: {
    kind: 'number',
    default: -1,
    min: -1,
    max: 1,
    help: 'share of all rows that stay alone because they are new, half the budget at most; below 0: by the budget',
  },
  heavy: {
    kind: 'number',
    default: -1,
    min: -1,
    max: 1,
    help: 'the same for rows that queries looked at most',
  },
  sinks: { kind: 'number', default: 4, min: 0, max: 4096, whole: true, help: 'first rows that always stay alone' },
  budgetMode: {
    kind: 'choice',
    default: 'exact',
    choices: ['exact', 'eps'],
    help: 'join as many pairs as the budget asks for, or all that are more alike than eps, whatever that leaves',
  },
  eps: {
    kind: 'number',
    default: 0.75,
    min: -1,
    max: 1,
    help: 'with budgetMode=eps: cosine above which keys are joined',
  },
  sigma: {
    kind: 'number',
    default: 0,
    min: 0,
    max: 1e6,
    help: 'distance of keys at which weights fall; 0: by the mean distance in each set. The paper: 5',
  },
  valueMode: {
    kind: 'choice',
    default: 'logbias',
    choices: ['logbias', 'paper', 'mean'],
    help: 'a merged row counts as many as it stands for, or once with its value as many times as large, or once',
  },
  pivot: {
    kind: 'choice',
    default: 'attention',
    choices: ['attention', 'random', 'last'],
    help: 'which row of a set the weights are centred on: the most attended, or for comparison by chance, or the newest',
  },
  cap: { kind: 'number', default: 8, min: 2, max: 65536, whole: true, help: 'most rows that become one' },
} as const
type Options = OptionsOf<typeof options>

interface Memory {
  /** Tokens seen at the last pass. */
  readonly seen: number
  /** Positions of rows that stand for several, ascending, `[layer][kvHead]`. */
  readonly merged: readonly (readonly Int32Array[])[]
}

/** What may become of a row. */
const FREE = 0
/** Joined when nothing else is left. */
const IS_HEAVY = 1
/** Not joined again, but dropped when nothing else is left. */
const IS_MERGED = 2
const PINNED = 3

interface Head {
  readonly layer: number
  readonly kvHead: number
  /** Of its n rows, ascending. */
  readonly positions: Int32Array
  /** f32 [d, n] */
  readonly keys: Float32Array
  readonly attention: Float64Array
  /** Positions of rows that stand for several. */
  readonly merged: ReadonlySet<number>
  /** One of the above for each row. */
  readonly standing: Uint8Array
}

/** Rows that stay alone. */
interface Protected {
  readonly sinks: number
  readonly recent: number
  readonly heavy: number
}

/** On the line through the paper's two points; below the lower one, in proportion to the budget. */
function shareAt(budget: number, [low, high]: readonly [number, number]): number {
  const [from, to] = BUDGETS
  return budget < from ? (low * budget) / from : low + ((high - low) * (budget - from)) / (to - from)
}

/** At least the newest row, and room for others. */
function protectedRows({ budget, seen }: PolicyState, o: Options): Protected {
  const rows = (given: number, paper: readonly [number, number]) =>
    Math.floor((given < 0 ? shareAt(budget / seen, paper) : given) * seen + 1e-9)
  const sinks = Math.min(o.sinks, budget - 1)
  const mostRecent = Math.min(Math.floor(budget / 2), budget - sinks)
  return { sinks, recent: Math.max(1, Math.min(rows(o.recent, RECENT), mostRecent)), heavy: rows(o.heavy, HEAVY) }
}

function standingOf(
  positions: Int32Array,
  attention: Float64Array,
  merged: ReadonlySet<number>,
  { sinks, recent, heavy }: Protected,
): Uint8Array {
  const n = positions.length
  const standing = new Uint8Array(n)
  for (let j = 0; j < n; j++) if (merged.has(positions[j]!)) standing[j] = IS_MERGED
  standing.fill(PINNED, 0, sinks).fill(PINNED, Math.max(0, n - recent))
  const free = Int32Array.from(positions.keys()).filter((j) => standing[j] === FREE)
  const scores = Float64Array.from(free, (j) => attention[j]!)
  for (const k of topRows(scores, heavy)) standing[free[k]!] = IS_HEAVY
  return standing
}

function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!
  return sum
}

function distance(a: Float32Array, b: Float32Array): number {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += (a[i]! - b[i]!) ** 2
  return Math.sqrt(sum)
}

function keyOf({ keys, positions }: Head, row: number): Float32Array {
  const d = keys.length / positions.length
  return keys.subarray(row * d, (row + 1) * d)
}

/** c_j = cos(k_j, k_j-1) for each row j that could join the one before it, f64 [n]; NaN for others. */
function similarities(head: Head): Float64Array {
  const { positions, standing } = head
  const c = new Float64Array(positions.length).fill(Number.NaN)
  for (let j = 1; j < c.length; j++) {
    if (standing[j]! > IS_HEAVY || standing[j - 1]! > IS_HEAVY || positions[j] !== positions[j - 1]! + 1) continue
    const [older, key] = [keyOf(head, j - 1), keyOf(head, j)]
    const norms = Math.sqrt(dot(older, older) * dot(key, key))
    c[j] = norms > 0 ? Math.min(1, dot(older, key) / norms) : 0
  }
  return c
}

/** Rows j to be joined to the one before, in this order: the newer of those that are equally alike first. */
function pairsOf(head: Head, { budgetMode, eps }: Options): number[] {
  const c = similarities(head)
  const heavy = (j: number) => Math.max(head.standing[j]!, head.standing[j - 1]!)
  const newestFirst = [...c.keys()].reverse().filter((j) => !Number.isNaN(c[j]!))
  switch (budgetMode) {
    case 'exact':
      return newestFirst.sort((a, b) => heavy(a) - heavy(b) || c[b]! - c[a]!)
    case 'eps':
      return newestFirst.filter((j) => heavy(j) === FREE && c[j]! > eps)
    default:
      return budgetMode satisfies never
  }
}

/**
 * All n rows as sets of neighbours, in order; most are of one row.
 * @param pairs rows that join the one before, as long as the set does not grow beyond `cap`
 * @param most how many of them
 */
function join(n: number, pairs: readonly number[], most: number, cap: number): Range[] {
  // Of each set its first row knows its last, and its last its first.
  const first = Int32Array.from({ length: n }, (_, j) => j)
  const last = first.slice()
  let joined = 0
  for (const j of pairs) {
    if (joined >= most) break
    const [from, to] = [first[j - 1]!, last[j]!]
    if (to - from >= cap) continue
    last[from] = to
    first[to] = from
    joined++
  }
  const sets: Range[] = []
  for (let from = 0; from < n; from = last[from]! + 1) sets.push({ from, to: last[from]! + 1 })
  return sets
}

/** The sets that got the most attention, as many as the budget holds. Those of pinned rows stay anyway. */
function dropLeast(sets: readonly Range[], { attention, standing }: Head, budget: number): readonly Range[] {
  const over = sets.length - budget
  if (over <= 0) return sets
  const isPinned = ({ from }: Range) => standing[from] === PINNED
  const competing = sets.filter((set) => !isPinned(set))
  const worth = Float64Array.from(competing, ({ from, to }) => attention.subarray(from, to).reduce((a, b) => a + b, 0))
  const stay = new Set(Array.from(topRows(worth, competing.length - over), (k) => competing[k]!))
  return sets.filter((set) => isPinned(set) || stay.has(set))
}

/** The row whose key is the centre of its set; of equal ones the newest. */
function pivotOf({ from, to }: Range, head: Head, seed: number, { pivot }: Options): number {
  const rank = (j: number): number => {
    switch (pivot) {
      case 'attention':
        return head.attention[j]!
      case 'random':
        return randomOf(seed, head.layer, head.kvHead, head.positions[j]!)
      case 'last':
        return j
      default:
        return pivot satisfies never
    }
  }
  let best = from
  for (let j = from + 1; j < to; j++) if (rank(j) >= rank(best)) best = j
  return best
}

/** w_j, f32 [|S|]. @param distances |k_p - k_j| of each row of the set */
function gaussianWeights(distances: Float64Array, sigma: number): Float32Array {
  const sum = distances.reduce((a, b) => a + b, 0)
  const width = sigma > 0 ? sigma * Math.SQRT2 : sum / (distances.length - 1)
  const g = distances.map((x) => (x === 0 ? 1 : Math.exp(-((x / width) ** 2))))
  const all = g.reduce((a, b) => a + b, 0)
  return Float32Array.from(g, (x) => x / all)
}

function mergeOf(set: Range, head: Head, seed: number, o: Options): Merge {
  const into = pivotOf(set, head, seed, o)
  const from = Int32Array.from({ length: set.to - set.from }, (_, i) => set.from + i)
  const centre = keyOf(head, into)
  const distances = Float64Array.from(from, (j) => distance(keyOf(head, j), centre))
  const weights = gaussianWeights(distances, o.sigma)
  const size = from.length
  return {
    ...{ into, from, weights, mass: o.valueMode === 'logbias' ? size : 1 },
    ...(o.valueMode === 'paper' ? { valueWeights: weights.map((w) => w * size) } : {}),
  }
}

interface HeadPlan {
  readonly rows: Int32Array
  readonly merges: readonly Merge[]
  /** Positions of rows that stand for several from now on. */
  readonly merged: Int32Array
}

function planHead(head: Head, { budget, seed }: PolicyState, o: Options): HeadPlan {
  const { positions } = head
  const n = positions.length
  const isExact = o.budgetMode === 'exact'
  const joined = join(n, pairsOf(head, o), isExact ? n - budget : n, o.cap)
  const sets = isExact ? dropLeast(joined, head, budget) : joined
  const merges = sets.filter(({ from, to }) => to - from > 1).map((set) => mergeOf(set, head, seed, o))
  const pivots = new Map(merges.map((merge) => [merge.from[0]!, merge.into]))
  const rows = Int32Array.from(sets, ({ from }) => pivots.get(from) ?? from)
  const isPivot = new Set(pivots.values())
  const merged = rows.filter((j) => isPivot.has(j) || head.merged.has(positions[j]!)).map((j) => positions[j]!)
  return { rows, merges, merged }
}

/** Every head once. */
function pass(seen: Observation, state: PolicyState, o: Options): CompressionPlan {
  const cached = cachedRows(state)
  if (rowsOver(state, cached) <= 0) return { kind: 'keep-all' }
  const before = (state.memory as Memory | undefined)?.merged
  const alone = protectedRows(state, o)
  const plans = cached.map((heads, layer) => {
    const scores = columnScores(seen, layer, { first: 0, last: 0 })
    return heads.map((_, kvHead) => {
      const positions = state.positions(layer, kvHead)
      const attention = scores[kvHead]!
      const merged = new Set(before?.[layer]?.[kvHead])
      const standing = standingOf(positions, attention, merged, alone)
      const { keys } = seen.rows!(layer, kvHead)
      return planHead({ layer, kvHead, positions, keys, attention, merged, standing }, state, o)
    })
  })
  const each = <T>(of: (plan: HeadPlan) => T): T[][] => plans.map((heads) => heads.map(of))
  const memory: Memory = { seen: state.seen, merged: each((p) => p.merged) }
  const isSame = plans.every((heads, layer) => heads.every((p, h) => p.rows.length === cached[layer]![h]))
  if (isSame) return { kind: 'keep-all', memory }
  return { kind: 'keep', rows: each((p) => p.rows), merges: each((p) => p.merges), memory }
}

export const kvmerger = definePolicy({
  name: 'kvmerger',
  family: 'merging',
  summary: 'neighbouring rows with similar keys become one; the newest and the most attended stay alone',
  paper: {
    title: 'Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks',
    year: 2024,
    arxiv: '2407.08454',
  },
  options,
  observes: () => ({ columns: true, rows: true }),
  afterPrefill: pass,
  afterDecode(seen, state, o) {
    const grown = state.seen - ((state.memory as Memory | undefined)?.seen ?? state.budget)
    return grown > Math.max(64, 0.1 * state.budget) ? pass(seen, state, o) : { kind: 'keep-all' }
  },
})
