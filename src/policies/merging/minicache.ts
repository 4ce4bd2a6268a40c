/**
 * MiniCache: in the deeper half of a model the keys, and the values, of a token point in much the same direction in neighbouring
 * layers. Two layers keep one direction for both, and a length each; the few tokens whose directions disagree stay as they are.
 *
 * Paper    Liu et al. 2024, arXiv 2405.14366.  Code  none of the authors'.  Spec  minicache.md
 * Pairs    of layers (S, S + 1), (S + 2, S + 3), ... with S = start * Lyr; an odd last layer stays alone
 * Formula  O_i the angle between row i's vectors xa, xb in the lower and the upper layer, d_i = O_i / pi
 *          e = slerp(xa / |xa|, xb / |xb|, t);   xa ~ |xa| e, xb ~ |xb| e
 * Retained d_i > d_max - gamma (d_max - d_min), over the rows of a pair and KV head, at most cap * n, the largest first
 * Answer   rows wait until `buffer` of them can be shared; d_min and d_max are those of the first plan
 * Differs  a row is shared for keys and values together, or not at all: it is retained if its keys say so or its values do. `cap` is
 *          for each of the two. As printed the rule retains what is most alike, against the text: retain=printed, then the smallest
 *          first. gamma=1 retains all. Row 0, of huge length, is always retained, and no part of the range. Rows are shared by 32s
 *          in each head, where the authors share each row of the answer in its step: what is over waits, the most distinct rows
 * Engine   refuses layers that rotate with different bases. With the same base angles do not see the rotation
 * Exact    if gamma = 1 and cap = 1, or no layers are paired
 */
import { BLOCK_ROWS } from '../../contract/format.ts'
import type { HeadRows, Observation } from '../../contract/observation.ts'
import {
  type CompressionPlan,
  type ModelDims,
  type OptionsOf,
  type PolicyState,
  SHARED,
  type SharedRows,
} from '../../contract/policy.ts'
import { definePolicy } from '../define.ts'
import { adjacentCosines, angles } from '../parts/directions.ts'
import { randomOf } from '../parts/random.ts'
import { topRows } from '../parts/select.ts'

const options = {
  start: { kind: 'number', default: 0.5, min: 0, max: 1, help: 'share of the depth from which on layers are paired' },
  t: {
    kind: 'number',
    default: 0.6,
    min: 0,
    max: 1,
    help: 'where the direction lies: 0 in the lower layer, 1 in the upper',
  },
  gamma: {
    kind: 'number',
    default: 0.05,
    min: 0,
    max: 1,
    help: 'share of the range of angles that is retained; 1: all',
  },
  retain: {
    kind: 'choice',
    default: 'distinct',
    choices: ['distinct', 'printed', 'none'],
    help: 'which rows stay unshared: the least alike, the most alike (as the formula is printed), none',
  },
  cap: {
    kind: 'number',
    default: 0.05,
    min: 0,
    max: 1,
    help: 'most rows retained, for keys and values each; 1: no limit',
  },
  pairs: {
    kind: 'choice',
    default: 'adjacent',
    choices: ['adjacent', 'similar', 'lower', 'random'],
    help: 'as many pairs: from `start` on, the most alike as measured; for comparison the first layers, any by chance',
  },
  buffer: {
    kind: 'number',
    default: BLOCK_ROWS,
    min: BLOCK_ROWS,
    max: 4096,
    whole: true,
    help: 'rows of the answer that wait to be shared, a multiple of 32',
  },
} as const
type Options = OptionsOf<typeof options>

type Pair = readonly [lower: number, upper: number]

/** Of the keys of one head in a pair of layers, or of its values. */
interface Part {
  /** d_min and d_max, as of the first plan. */
  readonly least: number
  readonly most: number
  /** Rows that stay unshared for its sake: indices, which stay what they are since nothing is dropped. */
  readonly retained: readonly number[]
}

/** Of one head in a pair of layers. */
interface Head {
  readonly keys: Part
  readonly values: Part
  /** Rows in the cache when `buffer` of them wait. */
  readonly due: number
}

interface Memory {
  readonly pairs: readonly Pair[]
  /** `[pair][kvHead]` */
  readonly heads: readonly (readonly Head[])[]
  /** The earliest of all heads. */
  readonly due: number
}

/** d_i of some rows. */
interface Distances {
  readonly keys: Float64Array
  readonly values: Float64Array
}

// which layers -----------------------------------------------------------------------------------------------------------

function pairsOf(seen: Observation, { model, seed }: PolicyState, o: Options): Pair[] {
  const first = Math.floor(o.start * model.layers)
  const count = Math.floor((model.layers - first) / 2)
  if (count === 0) return []
  switch (o.pairs) {
    case 'adjacent':
      return neighbours(first, count)
    case 'similar': {
      const { keys, values } = adjacentCosines(seen.rows!, model)
      const alike = keys.map((k, l) => k + values[l]!)
      return mostAlike(alike, model.layers, count)
    }
    case 'lower':
      return neighbours(0, count)
    case 'random':
      return byChance(model.layers, count, seed)
    default:
      return o.pairs satisfies never
  }
}

const neighbours = (first: number, count: number): Pair[] =>
  Array.from({ length: count }, (_, i) => [first + 2 * i, first + 2 * i + 1])

/** Neighbours, the most alike first, as long as those that are left make enough pairs. @param alike of layers l and l + 1 */
function mostAlike(alike: readonly number[], layers: number, count: number): Pair[] {
  let taken = new Array<boolean>(layers).fill(false)
  const pairs: Pair[] = []
  for (const l of alike.map((_, l) => l).sort((a, b) => alike[b]! - alike[a]! || a - b)) {
    if (pairs.length === count) break
    if (taken[l] || taken[l + 1]) continue
    const then = taken.with(l, true).with(l + 1, true)
    if (pairs.length + 1 + room(then) < count) continue
    taken = then
    pairs.push([l, l + 1])
  }
  return byLower(pairs)
}

/** Pairs of neighbours that are left. */
function room(taken: readonly boolean[]): number {
  let pairs = 0
  let free = 0
  for (const isTaken of taken) {
    free = isTaken ? 0 : free + 1
    if (free % 2 === 0 && free > 0) pairs++
  }
  return pairs
}

/** Any two layers. */
function byChance(layers: number, count: number, seed: number): Pair[] {
  const place = Array.from({ length: layers }, (_, layer) => randomOf(seed, layer))
  const order = place.map((_, layer) => layer).sort((a, b) => place[a]! - place[b]!)
  const pairs = Array.from({ length: count }, (_, i) => order.slice(2 * i, 2 * i + 2).sort((a, b) => a - b))
  return byLower(pairs.map(([lower, upper]): Pair => [lower!, upper!]))
}

const byLower = (pairs: readonly Pair[]): Pair[] => [...pairs].sort(([a], [b]) => a - b)

// which rows of a head ---------------------------------------------------------------------------------------------------

function distancesOf(lower: HeadRows, upper: HeadRows, d: number, rows: Int32Array): Distances {
  const apart = (a: Float32Array, b: Float32Array) => angles(a, b, d, rows).map((angle) => angle / Math.PI)
  return { keys: apart(lower.keys, upper.keys), values: apart(lower.values, upper.values) }
}

const firstPart = (d: Float64Array): Part => ({
  least: d.reduce((a, b) => Math.min(a, b)),
  most: d.reduce((a, b) => Math.max(a, b)),
  retained: [],
})

/** The part with what it retains of rows that wait, `most` of all rows together. */
function retaining(part: Part, rows: Int32Array, d: Float64Array, most: number, { retain, gamma }: Options): Part {
  if (retain === 'none') return part
  const [sign, top] = retain === 'distinct' ? [1, part.most] : [-1, -part.least]
  // Strictly beyond: with gamma = 1 a row would be left.
  const bound = gamma === 1 ? Number.NEGATIVE_INFINITY : top - gamma * (part.most - part.least)
  const scores = d.map((x) => sign * x)
  const beyond = scores.reduce((count, s) => (s > bound ? count + 1 : count), 0)
  const added = topRows(scores, Math.min(beyond, most - part.retained.length))
  return { ...part, retained: [...part.retained, ...Array.from(added, (i) => rows[i]!)] }
}

/** How far up in the ranges of keys and values, whichever is further: 0 to 1 in the first plan. */
function distinctness(i: number, d: Distances, { keys, values }: Omit<Head, 'due'>): number {
  const place = (x: number, { least, most }: Part) => (most > least ? (x - least) / (most - least) : 0)
  return Math.max(place(d.keys[i]!, keys), place(d.values[i]!, values))
}

/**
 * What becomes of rows that wait.
 * @param head before; null: these are its first
 * @param n rows in the cache
 */
function decide(
  rows: Int32Array,
  d: Distances,
  head: Head | null,
  n: number,
  o: Options,
): { readonly head: Head; readonly shared: Int32Array } {
  const most = Math.floor(o.cap * n)
  const parts = {
    keys: retaining(head?.keys ?? firstPart(d.keys), rows, d.keys, most, o),
    values: retaining(head?.values ?? firstPart(d.values), rows, d.values, most, o),
  }
  const retained = new Set([...parts.keys.retained, ...parts.values.retained])
  const open = Array.from(rows.keys()).filter((i) => !retained.has(rows[i]!))
  const alike = Float64Array.from(open, (i) => -distinctness(i, d, parts))
  const waiting = open.length % BLOCK_ROWS
  const shared = topRows(alike, open.length - waiting).map((k) => rows[open[k]!]!)
  return { head: { ...parts, due: n + o.buffer - waiting }, shared }
}

const range = (n: number): Int32Array => Int32Array.from({ length: n }, (_, i) => i)

/** Of one layer, rows that are neither shared nor retained. */
function waitingRows(n: number, formats: Uint8Array | undefined, head: Head | null): Int32Array {
  const retained = new Set(head ? [...head.keys.retained, ...head.values.retained] : [])
  return range(n).filter((row) => row > 0 && formats?.[row] !== SHARED && !retained.has(row))
}

// the plan ---------------------------------------------------------------------------------------------------------------

/** Shares the rows of each head that are due; all of the first plan. */
function share(seen: Observation, state: PolicyState, memory: Memory | null, o: Options): CompressionPlan {
  const { model, seen: n } = state
  const pairs = memory?.pairs ?? pairsOf(seen, state, o)
  const none = new Int32Array(0)
  const decisions = pairs.map(([lower, upper], p) =>
    Array.from({ length: model.kvHeads }, (_, kvHead) => {
      const head = memory ? memory.heads[p]![kvHead]! : null
      if (head && n < head.due) return { head, shared: none }
      const rows = waitingRows(n, state.formats?.(lower, kvHead), head)
      const d = distancesOf(seen.rows!(lower, kvHead), seen.rows!(upper, kvHead), model.headDim, rows)
      return decide(rows, d, head, n, o)
    }),
  )
  const heads = decisions.map((list) => list.map(({ head }) => head))
  const due = Math.min(...heads.flat().map((head) => head.due))
  const after: Memory = { pairs, heads, due }
  const shared = pairs.flatMap(([lower, upper], p): SharedRows[] => {
    const rows = decisions[p]!.map((decision) => decision.shared)
    return rows.some((list) => list.length) ? [{ lower, upper, lowerRows: rows, upperRows: rows, t: o.t }] : []
  })
  return shared.length ? { ...keepRows(n, model), shared, memory: after } : { kind: 'keep-all', memory: after }
}

function keepRows(n: number, { layers, kvHeads }: ModelDims): { kind: 'keep'; rows: Int32Array[][] } {
  const heads = new Array<Int32Array>(kvHeads).fill(range(n))
  return { kind: 'keep', rows: new Array<Int32Array[]>(layers).fill(heads) }
}

/** Once a block can be filled besides row 0, and then whenever rows are due. */
function plan(seen: Observation, state: PolicyState, o: Options): CompressionPlan {
  const memory = (state.memory as Memory | undefined) ?? null
  const due = memory ? memory.due : BLOCK_ROWS + 1
  return state.seen < due ? { kind: 'keep-all' } : share(seen, state, memory, o)
}

export const minicache = definePolicy({
  name: 'minicache',
  family: 'merging',
  summary: 'neighbouring layers of the deeper half share the directions of keys and values',
  paper: {
    title: 'MiniCache: KV Cache Compression in Depth Dimension for Large Language Models',
    year: 2024,
    arxiv: '2405.14366',
  },
  options,
  takesBudget: false,
  check: ({ buffer }) =>
    buffer % BLOCK_ROWS === 0 ? null : `'buffer' ${buffer} must be a multiple of ${BLOCK_ROWS}, the rows of a block`,
  observes: () => ({ rows: true }),
  afterPrefill: (seen, state, o) => plan(seen, state, o),
  afterDecode: (seen, state, o) => plan(seen, state, o),
})
