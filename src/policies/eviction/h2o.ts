/**
 * H2O: a few rows collect most of the attention; they stay, and so do the newest.
 *
 * Paper    Zhang et al. 2023, arXiv 2306.14048.  Code  FMInference/H2O, utils_real_drop/modify_llama.py.  Spec  baselines.md, 4
 * Formula  c[j,h] = sum over all queries i so far of P[i,j,h] (query heads of a group averaged)
 * Keeps    per layer and KV head: the last R rows and the M others with the largest c; M = heavy * budget, M + R = budget.
 *          After the prompt, then after each row of the answer, which adds its own P to c
 * Differs  sums are per KV head, so that GQA still saves memory; the authors repeat keys and values for each query head
 * Exact    if budget >= n
 */
import { headOptions, layerOptions } from '../parts/allocation.ts'
import { type Scoring, scored } from '../parts/scored.ts'
import { columnScores } from '../parts/scorers.ts'

const score = ({ seen, layer, ends }: Scoring<unknown>) => columnScores(seen, layer, ends)

export const h2o = scored({
  name: 'h2o',
  summary: 'keeps the rows that all queries so far looked at most, and the newest',
  paper: {
    title: 'H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models',
    year: 2023,
    arxiv: '2306.14048',
  },
  options: {
    heavy: { kind: 'number', default: 0.5, min: 0, max: 1, help: 'share of the budget for rows with large sums' },
    ...layerOptions(),
    ...headOptions(),
  },
  observes: () => ({ columns: true }),
  protect: ({ heavy }, budget) => ({ first: 0, last: budget - Math.floor(heavy * budget) }),
  score,
  scoreDecode: score,
})
