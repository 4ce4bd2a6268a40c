/**
 * UNComp: entropy tells what is redundant. Where it falls from layer to layer, rows drop out of the prompt; heads whose queries
 * have little of it get a small cache.
 *
 * Paper    Xiong et al. 2024, arXiv 2410.03090.  Code  menik1126/UNComp, uncomp_utils.py, stage_division.py.  Spec  uncomp.md
 * Before   `kvasir calibrate uncomp MODEL` measures the truncated matrix entropy of the rotated queries (`parts/entropy.ts`)
 * Layers   a group g of 0 to Gm begins where E_l - E_(l-1) < eps H / 32; it computes the rows that its predecessor's last layer
 *          looks at most: sum over heads and the last w queries of P; and the last w:
 *          n_min + floor((n_max - n_min) / Gm) (Gm - g) rows, n_max the model's context, n_min = least n_max
 * Heads    the half with more votes gets `ratio` times the rows of the other half
 * Formula  s[j,h] = sum of P[i,j,h] over the last w queries i, mean over the group, max pool of width `kernel`, j < n - w
 * Keeps    per layer and KV head: its best rows by s, and the last w
 * Answer   the last w queries vote, those of the answer taking the places of the prompt's; from each head one row goes
 * Differs  - groups are of KV heads, votes means over their query heads; the authors repeat K and V for every query head
 *          - the first group computes all rows, and the last w are always among those that go on: with the authors the row
 *            that the answer begins with may be lost
 *          - one window w for all; with the authors 8 rows prune even where another window votes
 *          - a layer that computes fewer rows than the budget leaves the rest to the others, a head likewise; a prompt that
 *            the budget holds is not cut, where the authors halve it in the second half of the heads
 *          - the prompt's last w queries are seen as a sum: they leave one by one as their mean
 *          - more than two groups of heads lie on a line between ratio and 1
 *          Pruning is on as in the paper: it begins behind n_min rows, and rows that it drops are not computed at all, so the
 *          prompt is read in one go and not from stored prefixes. `pruning=false` is the division of the cache alone
 * Exact    if budget >= n and no group prunes
 */
import type { Observation } from '../../contract/observation.ts'
import type { OptionSpecs, OptionsOf, PolicyState, PromptAhead, StagePlan, StageState } from '../../contract/policy.ts'
import type { Range } from '../../contract/units.ts'
import { definePolicy } from '../define.ts'
import { calibrationOf } from '../parts/calibration.ts'
import { groupBudgets, headGroups } from '../parts/head-budgets.ts'
import { rowsByLayer, type Stage, someLayerGroups, stagesOf } from '../parts/layer-groups.ts'
import { randomOf } from '../parts/random.ts'
import { addVote, keepVotes, type RecentVotes, sumVotes } from '../parts/recent-votes.ts'
import { dropEvenly } from '../parts/scored.ts'
import { fitWindow, windowRows, windowScores } from '../parts/scorers.ts'
import { competing, type Ends, groupMean, layerMean, poolRows } from '../parts/scores.ts'
import { cachedRows, keepLayer, rowsOver } from '../parts/select.ts'
import { capTo } from '../parts/shares.ts'
import { oddKernel, poolOption, windowOption } from '../parts/window-options.ts'

const OPTIONS = {
  ...windowOption(8),
  ...poolOption(7, 'max'),
  groups: { kind: 'number', default: 2, min: 2, max: 8, whole: true, help: 'groups of KV heads, of the same size' },
  ratio: {
    kind: 'number',
    default: 2,
    min: 1,
    max: 100,
    help: 'rows of a head of the first group, to one of the last',
  },
  grouping: {
    kind: 'choice',
    default: 'entropy',
    choices: ['entropy', 'random', 'reversed'],
    help: 'which heads get more: those of high entropy; as a measure for that by chance, or those of low entropy',
  },
  pruning: { kind: 'flag', default: true, help: 'deeper groups of layers compute fewer rows of long prompts' },
  eps: {
    kind: 'number',
    default: -1,
    min: -100,
    max: -0.05,
    help: 'with pruning: fall of entropy that begins a group of layers, in nats per 32 query heads',
  },
  least: {
    kind: 'number',
    default: 0.375,
    min: 0,
    max: 1,
    help: "with pruning: rows that the last group computes, share of the model's context",
  },
} as const satisfies OptionSpecs
type Options = OptionsOf<typeof OPTIONS>

const NO_ENDS: Ends = { first: 0, last: 0 }
const endsOf = ({ window }: Options, { budget }: PolicyState): Ends => ({ first: 0, last: fitWindow(window, budget) })

/** Which layers compute how many rows of the prompt. */
function stagesAhead(prompt: PromptAhead, { pruning, eps, least, window }: Options): Stage[] {
  const { model, rows, contextLength } = prompt
  if (!pruning) return [{ first: 0, rows }]
  const { layerEntropies } = calibrationOf(prompt, 'uncomp')
  const groups = someLayerGroups(layerEntropies, (eps * model.heads) / 32)
  const nMin = Math.max(window, Math.floor(least * contextLength))
  return stagesOf(groups, rows, nMin, Math.max(nMin, contextLength))
}

/** The group of each KV head of a layer. */
function groupsOf(layer: number, state: PolicyState, { groups, grouping }: Options): number[] {
  const votes = calibrationOf(state, 'uncomp').headVotes[layer]!
  switch (grouping) {
    case 'entropy':
      return headGroups(votes, groups)
    case 'reversed':
      return headGroups(
        votes.map((v) => -v),
        groups,
      )
    case 'random':
      return headGroups(
        votes.map((_, kvHead) => randomOf(state.seed, layer, kvHead)),
        groups,
      )
    default:
      return grouping satisfies never
  }
}

/** What stays of layers that were just computed, and how their last queries voted; `[layer][kvHead]`, the first of them first. */
interface Selection {
  readonly rows: readonly (readonly Int32Array[])[]
  readonly votes: readonly (readonly RecentVotes[])[]
}

/** @param budgets rows per KV head, by layer of the model */
function select(
  seen: Observation,
  { from, to }: Range,
  budgets: readonly number[],
  state: PolicyState,
  o: Options,
): Selection {
  const ends = endsOf(o, state)
  const rows = cachedRows(state)
    .slice(from, to)
    .map((heads, i) => {
      const caps = heads.map((n) => competing(n, ends))
      const free = Math.max(0, budgets[from + i]! - ends.last)
      const counts = groupBudgets(groupsOf(from + i, state, o), o.ratio, free, ends.last, caps)
      return keepLayer(heads, ends, windowScores(seen, i, ends, o), counts)
    })
  const queries = windowRows(o.window, state)
  const votes = rows.map((heads, i) =>
    groupMean(seen.window![i]!, 'sum', NO_ENDS).map((sum, kvHead) => {
      const mean = sum.map((x) => x / queries)
      return keepVotes(new Array(queries).fill(mean), heads[kvHead]!)
    }),
  )
  return { rows, votes }
}

/** The rows that the last layer of a stage looks at most, and the last w. Indices into those that ran. */
function goOn(seen: Observation, count: number, { ran }: StageState, { window }: Options): Int32Array {
  const ends: Ends = { first: 0, last: Math.min(window, count) }
  const [score] = layerMean(seen.window!.at(-1)!, 'sum', ends)
  return keepLayer([ran.length], ends, [score!], [count - ends.last])[0]!
}

function afterStage(seen: Observation, state: StageState, o: Options): StagePlan {
  const { model, layers, prompt, budget } = state
  const computed = rowsByLayer(stagesAhead(prompt, o), model.layers)
  const budgets = capTo(new Array(model.layers).fill(budget), computed)
  const { rows, votes } = select(seen, layers, budgets, state, o)
  const before = (state.memory ?? []) as Selection['votes']
  const cached = cachedRows(state).slice(0, layers.from)
  const isWhole = budgets.every((b, l) => b === computed[l])
  return {
    rows: isWhole ? null : [...cached.map((heads) => heads.map(allRows)), ...rows],
    next: layers.to < model.layers ? goOn(seen, computed[layers.to]!, state, o) : null,
    memory: [...before, ...votes],
  }
}

const allRows = (n: number) => Int32Array.from({ length: n }, (_, j) => j)

export const uncomp = definePolicy({
  name: 'uncomp',
  family: 'eviction',
  summary:
    'entropy of the queries decides which heads keep more, and from which layers on rows of the prompt are left out',
  paper: {
    title: 'UNComp: Can Matrix Entropy Uncover Sparsity? -- A Compressor Design from an Uncertainty-Aware Perspective',
    year: 2024,
    arxiv: '2410.03090',
  },
  options: OPTIONS,
  check: oddKernel,
  calibration: () => 'uncomp',
  observes: ({ window }) => ({ window: { rows: window, statistics: ['sum'] }, decode: true }),
  stages(prompt, o) {
    const stages = stagesAhead(prompt, o)
    return stages.length > 1 ? stages.map(({ first }) => first) : null
  },
  afterStage,
  afterPrefill(seen, state, o) {
    const { layers } = state.model
    if (rowsOver(state, cachedRows(state)) <= 0) return { kind: 'keep-all' }
    const all = { from: 0, to: layers }
    const { rows, votes } = select(seen, all, new Array(layers).fill(state.budget), state, o)
    return { kind: 'keep', rows, memory: votes }
  },
  afterDecode(seen, state, o) {
    // While everything fits nobody has to look.
    if (!seen.decode && rowsOver(state, cachedRows(state)) <= 0) return { kind: 'keep-all' }
    const ends = endsOf(o, state)
    const before = (state.memory ?? []) as Selection['votes']
    const votes = seen.decode!.map((layer, l) =>
      groupMean(layer, 'sum', NO_ENDS).map((row, kvHead) => addVote(before[l]?.[kvHead] ?? [], row, o.window)),
    )
    const plan = dropEvenly(state, ends, (layer) =>
      poolRows(
        votes[layer]!.map((own, kvHead) => sumVotes(own, competing(seen.decode![layer]!.keys[kvHead]!, ends))),
        o.kernel,
        o.pool,
      ),
    )
    if (plan.kind === 'keep-all') return { ...plan, memory: votes }
    const memory = votes.map((heads, layer) => heads.map((own, kvHead) => keepVotes(own, plan.rows[layer]![kvHead]!)))
    return { ...plan, memory }
  },
})
