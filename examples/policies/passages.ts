/**
 * Whole passages: what the prompt's last rows look at most is kept together with what stands around it.
 *
 * Formula  passage p = rows [size p, size (p + 1));  s[p] = sum over its rows, the last `window` queries and all heads of the
 *          attention probabilities
 * Keeps    per layer: the best passages by s, as many as the budget holds, and the last `window` rows; the same in all KV heads
 */
import { definePolicy, type ObservedLayer } from '../../src/index.ts'

export default definePolicy({
  name: 'passages',
  family: 'eviction',
  summary: 'whole passages that the last queries look at',
  paper: null,
  options: {
    size: { kind: 'number', default: 16, min: 1, max: 1024, whole: true, help: 'rows of a passage' },
    window: { kind: 'number', default: 16, min: 1, max: 512, whole: true, help: 'last queries that vote' },
  },
  observes: ({ window }) => ({ window: { rows: window, statistics: ['sum'] } }),

  afterPrefill({ window: layers }, { budget, model }, { size, window }) {
    const rows = layers!.map((layer) => {
      const n = layer.keys[0]!
      const recent = Math.min(window, budget)
      const scores = passageScores(layer, n - recent, size)
      const best = [...scores.keys()].sort((a, b) => scores[b]! - scores[a]!)
      const kept: number[] = []
      for (const p of best)
        for (let row = size * p; row < Math.min(size * (p + 1), n - recent); row++)
          if (kept.length < budget - recent) kept.push(row)
      for (let row = n - recent; row < n; row++) kept.push(row)
      return new Array(model.kvHeads).fill(Int32Array.from(kept).sort())
    })
    return { kind: 'keep', rows }
  },
})

/** Of the first `n` rows. `statistics.sum` is f32 [all rows, H], one query head behind the other. */
function passageScores({ keys, statistics }: ObservedLayer, n: number, size: number): Float64Array {
  const scores = new Float64Array(Math.ceil(n / size))
  for (const [i, sum] of statistics.sum!.entries()) {
    const row = i % keys[0]!
    if (row < n) scores[Math.floor(row / size)]! += sum
  }
  return scores
}
