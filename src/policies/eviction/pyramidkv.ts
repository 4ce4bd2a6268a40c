/**
 * PyramidKV: SnapKV's votes, with large budgets for the first layers, where attention is wide, and small ones for the last.
 *
 * Paper    Cai et al. 2024, arXiv 2406.02069.  Code  Zefan-Cai/KVCache-Factory, pyramidkv_utils.py.  Spec  baselines.md, 7
 * Formula  q = budget - w;  least = floor(q / beta);  most = 2q - least;  if most >= n - w: most = n - w, least = 2q - most
 *          layer l keeps the best most - l (most - least) / (Lyr - 1) rows by SnapKV's s', and the last w;  n < 2q: q rows
 * Differs  the line is rounded so that the layers' rows add up to Lyr * q; the authors round its slope down, which gives some
 *          rows more. Other options as in SnapKV here, also the window
 * Answer   kept
 * Exact    if budget >= n
 */
import { headOptions, layerOptions } from '../parts/allocation.ts'
import { scored } from '../parts/scored.ts'
import { fitWindow, windowScores } from '../parts/scorers.ts'
import { oddKernel, poolOption, windowOption } from '../parts/window-options.ts'

export const pyramidkv = scored({
  name: 'pyramidkv',
  summary: "SnapKV's votes, with budgets that fall from the first layer to the last",
  paper: {
    title: 'PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling',
    year: 2024,
    arxiv: '2406.02069',
  },
  options: { ...windowOption(16), ...poolOption(5, 'avg'), ...layerOptions('pyramid'), ...headOptions() },
  check: oddKernel,
  observes: ({ window }) => ({ window: { rows: window, statistics: ['sum'] } }),
  protect: ({ window }, budget) => ({ first: 0, last: fitWindow(window, budget) }),
  score: ({ seen, layer, ends, options }) => windowScores(seen, layer, ends, options),
})
