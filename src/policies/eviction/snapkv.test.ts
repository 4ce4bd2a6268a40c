import assert from 'node:assert/strict'
import { test } from 'node:test'
import { best, columnOf, DIMS, mean, poolAverage, poolMax, rows, total } from '../attention.fixture.ts'
import { keptBy, prefill } from '../run.fixture.ts'

const group = DIMS.heads / DIMS.kvHeads

test('keeps what the formula says, in float64', () => {
  for (const [kernel, pool, poolRows] of [
    [5, 'avg', poolAverage],
    [7, 'max', poolMax],
    [1, 'avg', poolAverage],
  ] as const)
    for (let seed = 1; seed <= 5; seed++) {
      const [n, budget, w] = [60, 20, 6]
      const { P, cache } = prefill(`snapkv?window=${w}&kernel=${kernel}&pool=${pool}`, { n, budget, seed })
      for (const [layer, heads] of P.entries())
        for (let h = 0; h < DIMS.kvHeads; h++) {
          const s = rows(0, n - w).map((j) =>
            mean(rows(h * group, (h + 1) * group).map((q) => total(columnOf(heads[q]!, j, w)) / w)),
          )
          const want = [...best(poolRows(s, kernel), budget - w), ...rows(n - w, n)]
          assert.deepEqual([...cache[layer]![h]!], want, `seed ${seed}, layer ${layer}, head ${h}`)
        }
    }
})

test('a window takes half of a tiny budget at most, and the newest row always stays', () => {
  for (const budget of [1, 2, 3, 8]) {
    const [[kept]] = keptBy('snapkv?window=16', { n: 60, budget }) as [[number[]]]
    const window = Math.max(1, Math.floor(budget / 2))
    assert.equal(kept.length, budget)
    assert.deepEqual(kept.slice(-window), rows(60 - window, 60))
  }
})

test('the window does not bleed into the rows before it', () => {
  // Padding counts as zeros: the rows just before the window get less than the same rows with the window's scores would.
  const setting = { n: 40, budget: 12, seed: 3 }
  const { P, cache } = prefill('snapkv?window=4&kernel=5', setting)
  const s = rows(0, 36).map((j) => mean(rows(0, group).map((q) => total(columnOf(P[0]![q]!, j, 4)))))
  assert.deepEqual([...cache[0]![0]!], [...best(poolAverage(s, 5), 8), 36, 37, 38, 39])
})

test('every layer and head keeps the budget', () => {
  for (const budget of [2, 17, 59])
    for (const kept of keptBy('snapkv', { n: 60, budget }).flat()) assert.equal(kept.length, budget)
})
