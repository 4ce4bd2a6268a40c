/**
 * TOVA: a transformer as an RNN with a bounded number of states: whoever the newest query looks at least goes.
 *
 * Paper    Oren et al. 2024, arXiv 2401.06104.  Code  schwartz-lab-NLP/TOVA, tova_cache.py.  Spec  baselines.md, 5
 * Formula  s[j] = mean over ALL query heads h of P[last,j,h]: one set of rows for the layer, the same in all KV heads
 * Keeps    the `budget` rows with the largest s, after the prompt and after each row of the answer
 * Differs  the newest row always stays (as in kvpress); with the authors it competes like any other
 * Exact    if budget >= n
 */
import { layerOptions } from '../parts/allocation.ts'
import { scored } from '../parts/scored.ts'
import { lastQuery } from '../parts/scorers.ts'
import { layerMean } from '../parts/scores.ts'

const { layers, beta } = layerOptions()

export const tova = scored({
  name: 'tova',
  summary: 'keeps the rows that the newest query looks at, one set for each layer',
  paper: { title: 'Transformers are Multi-State RNNs', year: 2024, arxiv: '2401.06104' },
  // CAKE compares queries, and here there is one.
  options: { layers: { ...layers, choices: ['uniform', 'pyramid', 'error', 'random'] }, beta },
  observes: () => ({ window: { rows: 1, statistics: ['sum'] }, decode: true }),
  protect: () => ({ first: 0, last: 1 }),
  score: ({ seen, layer, ends }) => layerMean(seen.window![layer]!, 'sum', ends),
  scoreDecode: ({ seen, layer, ends }) => layerMean(lastQuery(seen, layer), 'sum', ends),
})
