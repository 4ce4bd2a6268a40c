/**
 * Random: rows kept by chance. Below it no method is worth its cost.
 *
 * Spec     baselines.md, 10
 * Keeps    per layer and KV head: the first 4 rows, the last 4, and budget - 8 others, drawn without replacement
 * Chance   a row's draw is a hash of seed, layer, head and position: the same seed gives the same rows, and a larger budget
 *          keeps all that a smaller one keeps
 * Answer   kept
 * Exact    if budget >= n
 */
import { headOptions, layerOptions } from '../parts/allocation.ts'
import { scored } from '../parts/scored.ts'
import { fitWindow, randomScores } from '../parts/scorers.ts'

export const random = scored({
  name: 'random',
  summary: 'keeps rows by chance, besides the first and the last few: the floor for all others',
  paper: null,
  options: {
    sinks: { kind: 'number', default: 4, min: 0, max: 4096, whole: true, help: 'first rows that always stay' },
    recent: { kind: 'number', default: 4, min: 0, max: 4096, whole: true, help: 'last rows that always stay' },
    ...layerOptions(),
    ...headOptions(),
  },
  observes: () => ({}),
  protect: ({ sinks, recent }, budget) => ({
    first: Math.min(sinks, Math.floor(budget / 2)),
    last: fitWindow(recent, budget),
  }),
  score: ({ layer, ends, state }) => randomScores(state, layer, ends),
})
