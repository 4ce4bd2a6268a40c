import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DIMS, rows, total } from '../attention.fixture.ts'
import { keptBy } from '../run.fixture.ts'

test('keeps both ends and as many others as the budget has places for', () => {
  for (const kept of keptBy('random', { n: 100, budget: 20 }).flat()) {
    assert.equal(kept.length, 20)
    assert.deepEqual(kept.slice(0, 4), rows(0, 4))
    assert.deepEqual(kept.slice(-4), rows(96, 100))
  }
})

test('another seed, layer or head keeps other rows; a larger budget keeps those of a smaller one', () => {
  const setting = { n: 100, budget: 20 }
  assert.notDeepEqual(keptBy('random', setting), keptBy('random', { ...setting, seed: 2 }))
  const lists = keptBy('random', setting).flat()
  assert.equal(new Set(lists.map(String)).size, DIMS.layers * DIMS.kvHeads)
  const larger = keptBy('random', { ...setting, budget: 40 }).flat()
  for (const [i, kept] of lists.entries()) for (const row of kept) assert.ok(larger[i]!.includes(row))
})

test('every row has the same chance', () => {
  const counts = new Array<number>(50).fill(0)
  const seeds = 600
  for (let seed = 1; seed <= seeds; seed++)
    for (const kept of keptBy('random?sinks=0&recent=1', {
      dims: { ...DIMS, heads: 2 },
      n: 50,
      budget: 11,
      seed,
    }).flat())
      for (const row of kept) counts[row]!++
  const draws = seeds * DIMS.layers * DIMS.kvHeads
  const p = 10 / 49
  // 4.5 standard deviations: one of 49 rows is beyond them in one run of 3,000.
  const most = 4.5 * Math.sqrt(draws * p * (1 - p))
  for (const [row, c] of counts.slice(0, 49).entries())
    assert.ok(Math.abs(c - draws * p) < most, `row ${row}: ${c} of ${draws}`)
})

test('by chance: layers and heads', () => {
  const lengths = keptBy('random?layers=random&heads=random', { n: 100, budget: 20 }).map((heads) =>
    heads.map((kept) => kept.length),
  )
  assert.equal(total(lengths.flat()), 20 * DIMS.layers * DIMS.kvHeads)
  assert.ok(new Set(lengths.flat()).size > 3, String(lengths))
})
