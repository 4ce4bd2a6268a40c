/**
 * Window: the newest rows. Without the first ones (sinks) a model breaks as soon as it loses them: that is what this shows.
 *
 * Spec     baselines.md, 2
 * Keeps    the last `budget` rows, after the prompt and after each row of the answer; positions stay what they were
 * Prompt   computed in full, then cut
 * Exact    if budget >= n
 */
import { definePolicy } from '../define.ts'
import { keepEnds } from '../parts/select.ts'

export const window = definePolicy({
  name: 'window',
  family: 'eviction',
  summary: 'keeps the newest rows and nothing else',
  paper: null,
  options: {},
  observes: () => ({}),
  afterPrefill: (_, state) => keepEnds(state, 0),
  afterDecode: (_, state) => keepEnds(state, 0),
})
