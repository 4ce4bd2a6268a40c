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
 * Differs  allocated once, when the prompt is complete: the same rows as the cascade's, which cuts layers while others are still
 *          computed; so the whole prompt is held for a moment. A prompt between budget and budget + w is cut by s at once; the
 *          authors cut it by one query of the answer. What truncation leaves over is given out, none is lost
 * Exact    if budget >= n
 */
import type { ObservedLayer } from '../../contract/observation.ts'
import { headOptions, layerOptions } from '../parts/allocation.ts'
import { scored } from '../parts/scored.ts'
import { fitWindow, lastQuery, windowRows } from '../parts/scorers.ts'
import { type Ends, groupMean, type LayerScores, poolRows } from '../parts/scores.ts'
import { oddKernel, poolOption, windowOption } from '../parts/window-options.ts'

/** s[j] = 1/w sum_i P[i,j] + gamma Var_i P[i,j], mean over the group. */
function indicator(layer: ObservedLayer, ends: Ends, window: number, gamma: number): LayerScores {
  const mean = groupMean(layer, 'sum', ends)
  const variance = groupMean(layer, 'variance', ends)
  return mean.map((one, kvHead) => one.map((sum, j) => sum / window + gamma * variance[kvHead]![j]!))
}

export const cake = scored({
  name: 'cake',
  summary: 'layer budgets from the spread and the shift of attention; rows by its mean and variance',
  paper: {
    title: 'CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences',
    year: 2025,
    arxiv: '2503.12491',
  },
  options: {
    ...windowOption(32, 2),
    gamma: { kind: 'number', default: 200, min: 0, max: 1e6, help: "weight of the variance; the paper's is 200" },
    ...poolOption(5, 'avg'),
    ...layerOptions('cake'),
    ...headOptions(),
  },
  check: oddKernel,
  observes: ({ window }) => ({ window: { rows: window, statistics: ['sum', 'variance'] }, decode: true }),
  protect: ({ window }, budget) => ({ first: 0, last: fitWindow(window, budget) }),
  score({ seen, layer, ends, state, options: { window, gamma, kernel, pool } }) {
    const s = indicator(seen.window![layer]!, ends, windowRows(window, state), gamma)
    return poolRows(s, kernel, pool)
  },
  scoreDecode: ({ seen, layer, ends, options: { kernel, pool } }) =>
    poolRows(groupMean(lastQuery(seen, layer), 'sum', ends), kernel, pool),
})
