/**
 * CompressKV: the few heads of a layer that hold on to whole passages when a model copies from them vote for all of it.
 *
 * Paper    Lin et al. 2025, arXiv 2508.02401.  Code  TUDa-HWAI/CompressKV, compresskv/snapkv_utils.py.  Spec  compresskv.md
 * Before   `kvasir calibrate compresskv MODEL` ranks the query heads of each layer, and measures the error of eviction by layer
 * Formula  s[j] = sum over the last w queries i of P[i,j,h], pooled along the rows, mean over the first `voters` heads h of the layer
 *          layer l gets m + share_l (Lyr budget - Lyr m) rows, between m and 3 budgets;  m = w + 8
 * Keeps    per layer: the best rows by s, and the last w; the same rows in all KV heads
 * Answer   kept
 * Differs  m = w + 8 where the authors have 32, which small budgets do not hold. No layer gets more rows than there are: what
 *          it cannot use goes to others, since policies are compared at equal bytes; with the authors it is lost
 * Exact    if budget >= n
 */
import { layerOptions } from '../parts/allocation.ts'
import { calibrationOf } from '../parts/calibration.ts'
import { scored } from '../parts/scored.ts'
import { fitWindow } from '../parts/scorers.ts'
import { layerMean, poolRows } from '../parts/scores.ts'
import { oddKernel, poolOption, windowOption } from '../parts/window-options.ts'

/** The authors'; and ours for models that have few heads, of which four would be most. */
const VOTERS = 4
const FEW_VOTERS = 2

export const compresskv = scored({
  name: 'compresskv',
  summary: 'the heads that retrieve vote for all of a layer; layer budgets by measured error',
  paper: {
    title: 'CompressKV: Semantic Retrieval Heads Know What Tokens are Not Important Before Generation',
    year: 2025,
    arxiv: '2508.02401',
  },
  options: {
    ...windowOption(8),
    voters: {
      kind: 'number',
      default: 0,
      min: 0,
      max: 1024,
      whole: true,
      help: 'best heads of each layer that vote; 0: four, or two where a layer has eight or fewer',
    },
    ...poolOption(5, 'avg'),
    ...layerOptions('error'),
  },
  check: oddKernel,
  calibration: () => 'compresskv',
  observes: ({ window }) => ({ window: { rows: window, statistics: ['sum'] } }),
  protect: ({ window }, budget) => ({ first: 0, last: fitWindow(window, budget) }),
  score({ seen, layer, ends, state, options: { voters, kernel, pool } }) {
    const { heads: all } = state.model
    const most = voters || (all <= 8 ? FEW_VOTERS : VOTERS)
    const heads = calibrationOf(state, 'compresskv').heads[layer]!.slice(0, most)
    return poolRows(layerMean(seen.window![layer]!, 'sum', ends, heads), kernel, pool)
  },
})
