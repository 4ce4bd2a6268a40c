/**
 * Ada-KV: heads that attend to few rows give places to heads that attend to many.
 *
 * Paper    Feng et al. 2024, arXiv 2407.11550.  Code  FFY0/AdaKV, snapkv_utils.py.  Spec  baselines.md, 8
 * Formula  s' as in SnapKV;  z_h = s'_h * (sum of the q largest of s'_h) / (sum of s'_h),  q = budget - w
 *          c_h = how many of the Hkv * q largest z of the layer are head h's;  b_h = (1 - floor) c_h + floor * q
 * Keeps    per KV head: the best b_h rows by s', and the last w. `layers=pyramid` makes it Ada-PyramidKV
 * Differs  b_h are rounded together: they add up to Hkv * q. The window is as in SnapKV here, 16 instead of 32
 * Answer   kept
 * Exact    if budget >= n
 */
import { headOptions, layerOptions } from '../parts/allocation.ts'
import { scored } from '../parts/scored.ts'
import { fitWindow, windowScores } from '../parts/scorers.ts'
import { oddKernel, poolOption, windowOption } from '../parts/window-options.ts'

export const adaKv = scored({
  name: 'ada-kv',
  summary: "SnapKV's votes, with the heads of a layer competing for its places",
  paper: {
    title: 'Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference',
    year: 2024,
    arxiv: '2407.11550',
  },
  options: { ...windowOption(16), ...poolOption(7, 'max'), ...layerOptions(), ...headOptions('ada') },
  check: oddKernel,
  observes: ({ window }) => ({ window: { rows: window, statistics: ['sum'] } }),
  protect: ({ window }, budget) => ({ first: 0, last: fitWindow(window, budget) }),
  score: ({ seen, layer, ends, options }) => windowScores(seen, layer, ends, options),
})
