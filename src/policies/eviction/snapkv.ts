/**
 * SnapKV: a prompt's last queries vote for the rows worth keeping.
 *
 * Paper    Li et al. 2024, arXiv 2404.14469.  Code  FasterDecoding/SnapKV, snapkv_utils.py.  Spec  baselines.md, 6
 * Formula  s[j,h]  = sum of P[i,j,h] over the last w queries i, for the older rows j < n - w (query heads of a group averaged)
 *          s'[.,h] = s[.,h] pooled along the rows, width `kernel`, padding counted
 * Keeps    per layer and KV head: the best budget - w rows by s', and the last w
 * Answer   kept
 * Differs  window 16 instead of 32: our models have contexts of 8K. A window never takes more than half the budget
 * Exact    if budget >= n
 */
import { headOptions, layerOptions } from '../parts/allocation.ts'
import { scored } from '../parts/scored.ts'
import { fitWindow, windowScores } from '../parts/scorers.ts'
import { oddKernel, poolOption, windowOption } from '../parts/window-options.ts'

export const snapkv = scored({
  name: 'snapkv',
  summary: 'keeps the rows that the last queries of the prompt look at',
  paper: { title: 'SnapKV: LLM Knows What You are Looking for Before Generation', year: 2024, arxiv: '2404.14469' },
  options: { ...windowOption(16), ...poolOption(5, 'avg'), ...layerOptions(), ...headOptions() },
  check: oddKernel,
  observes: ({ window }) => ({ window: { rows: window, statistics: ['sum'] } }),
  protect: ({ window }, budget) => ({ first: 0, last: fitWindow(window, budget) }),
  score: ({ seen, layer, ends, options }) => windowScores(seen, layer, ends, options),
})
