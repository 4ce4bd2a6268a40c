/**
 * CAKE: layers get budgets by how wide and how restless their attention is; rows that attention moves to and from stay.
 *
 * Paper    Qin et al. 2025, arXiv 2503.12491.  Code  antgroup/cakekv, cake_cache.py, utils.py.  Spec  cake.md
 * Formula  over the last w queries i, for the older rows j < n - w:
 *          Hs = -sum over h, i, j of P ln P;  Vt = sum over h, j of Var_i P;  Pref = Hs^(1/tau1) Vt^(1/tau2)
 *          layer l gets Pref_l / sum of Pref * Lyr (budget - w) rows
 *          s[j,h] = mean_i P + gamma Var_i P (query heads of a group averaged), average pool of width `kernel`
 * Keeps    per layer and KV head: its best rows by s, and the last w
 * Answer   from each head the row that the newest query looks at least (pooled; group mean) goes, the last w stay
 * Cascade  prefill=cascade: behind each layer m the shares are taken among layers 0 to m, and layers that have more are cut. At
 *          any time at most Lyr budget + n rows per KV head are held, n of them by the layer at work
 * Differs  allocated once by default, when the prompt is complete: the same rows, but for one a layer that truncation may move, and
 *          prompts may begin with stored prefixes; but the whole prompt is held for a moment. A prompt between budget and
 *          budget + w is cut by s at once; the authors cut it by one query of the answer. What truncation leaves over is given
 *          out, none is lost; in the cascade to layers that still have it. `least` is ours
 * Exact    if budget >= n
 */
import { MOST_COMPARED_ROWS, type Observation, type ObservedLayer } from '../../contract/observation.ts'
import type { OptionSpecs, OptionsOf, StagePlan, StageState } from '../../contract/policy.ts'
import { definePolicy } from '../define.ts'
import { headOptions, layerOptions } from '../parts/allocation.ts'
import { cakeBudgets, cakePreferences, type Spread, spreadOf } from '../parts/layer-budgets.ts'
import { type Scoring, scored } from '../parts/scored.ts'
import { fitWindow, lastQuery, windowRows } from '../parts/scorers.ts'
import { type Ends, groupMean, type LayerScores, poolRows } from '../parts/scores.ts'
import { keepLayer } from '../parts/select.ts'
import { capTo } from '../parts/shares.ts'
import { oddKernel, poolOption, windowOption } from '../parts/window-options.ts'

const OPTIONS = {
  ...windowOption(32, 2, MOST_COMPARED_ROWS),
  gamma: { kind: 'number', default: 200, min: 0, max: 1e6, help: "weight of the variance; the paper's is 200" },
  ...poolOption(5, 'avg'),
  prefill: {
    kind: 'choice',
    default: 'whole',
    choices: ['whole', 'cascade'],
    help: 'cut all layers when the prompt is complete, or after each layer those that it has passed',
  },
  ...layerOptions('cake'),
  least: {
    kind: 'number',
    default: 0,
    min: 0,
    max: 1024,
    whole: true,
    help: 'with layers=cake: rows before the window that each layer is sure of; try 8 where small models break',
  },
  ...headOptions(),
} as const satisfies OptionSpecs
type Options = OptionsOf<typeof OPTIONS>

/** s[j] = 1/w sum_i P[i,j] + gamma Var_i P[i,j], mean over the group. */
function indicator(layer: ObservedLayer, ends: Ends, window: number, gamma: number): LayerScores {
  const mean = groupMean(layer, 'sum', ends)
  const variance = groupMean(layer, 'variance', ends)
  return mean.map((one, kvHead) => one.map((sum, j) => sum / window + gamma * variance[kvHead]![j]!))
}

function score({ seen, layer, ends, state, options }: Scoring<Options>): LayerScores {
  const { window, gamma, kernel, pool } = options
  return poolRows(indicator(seen.window![layer]!, ends, windowRows(window, state), gamma), kernel, pool)
}

const whole = scored({
  name: 'cake',
  summary: 'layer budgets from the spread and the shift of attention; rows by its mean and variance',
  paper: {
    title: 'CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences',
    year: 2025,
    arxiv: '2503.12491',
  },
  options: OPTIONS,
  check(o) {
    const isPaper = o.layers === 'cake' && o.heads === 'uniform'
    if (o.prefill === 'cascade' && !isPaper)
      return 'prefill=cascade divides as the paper does: leave layers at cake and heads at uniform, or prefill at whole'
    return oddKernel(o)
  },
  observes: ({ window }) => ({ window: { rows: window, statistics: ['sum', 'variance'] }, decode: true }),
  protect: ({ window }, budget) => ({ first: 0, last: fitWindow(window, budget) }),
  score,
  scoreDecode: ({ seen, layer, ends, options: { kernel, pool } }) =>
    poolRows(groupMean(lastQuery(seen, layer), 'sum', ends), kernel, pool),
})

/** Of the layers that the prompt has passed. */
interface Passed {
  readonly spreads: readonly Spread[]
  /** s of the rows that are still there, `[layer]`. */
  readonly scores: readonly LayerScores[]
}

/** A layer was computed in full: its share is taken from those before it. A layer never grows again. */
function cascade(seen: Observation, state: StageState, options: Options): StagePlan {
  const { model, budget, layers, ran } = state
  const { window, tau1, tau2, least } = options
  const ends = { first: 0, last: fitWindow(window, budget) }
  const before = (state.memory ?? { spreads: [], scores: [] }) as Passed
  const spreads = [...before.spreads, spreadOf(seen.window![0]!, window)]
  const scores = [...before.scores, score({ seen, layer: 0, ends, state, options })]

  const preferences = cakePreferences(spreads, tau1, tau2)
  const asked = cakeBudgets(preferences, model.layers * (budget - ends.last), ran.length - ends.last, least)
  // A row that truncation moved to a layer that was cut already goes to one that has it: the total stays exact.
  const b = capTo(
    asked,
    scores.map(([one]) => one!.length),
  )
  const rows = scores.map((heads, layer) =>
    keepLayer(
      heads.map((one) => one.length + ends.last),
      ends,
      heads,
      heads.map(() => b[layer]!),
    ),
  )
  const left = scores.map((heads, layer) =>
    heads.map((one, kvHead) => Float64Array.from(rows[layer]![kvHead]!.subarray(0, b[layer]), (j) => one[j]!)),
  )
  // Nobody asks for the scores again behind the last layer.
  const memory: Passed | null = layers.to < model.layers ? { spreads, scores: left } : null
  return { rows, next: null, memory }
}

export const cake = definePolicy({
  ...whole,
  stages: ({ model, rows, budget }, { prefill }) =>
    prefill === 'cascade' && rows > budget ? Array.from({ length: model.layers }, (_, layer) => layer) : null,
  afterStage: cascade,
})
