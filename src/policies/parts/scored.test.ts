import assert from 'node:assert/strict'
import { test } from 'node:test'
import { append, attention, DIMS, fullCache, kept, observe, rows, stateOf, total } from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { decodeStep } from '../run.fixture.ts'

test('in the answer a division that left places empty never goes beyond the budget', () => {
  const h2o = choosePolicy('h2o')
  // One head has a row less than its budget of 10.
  const cache = fullCache(DIMS, 10).map((heads, layer) => heads.map((p, h) => (layer + h ? p : p.subarray(1))))
  const next = decodeStep(h2o, cache, { budget: 10 })
  const lengths = next.flat().map((p) => p.length)
  assert.ok(total(lengths) <= 10 * lengths.length, String(lengths))
  assert.deepEqual(lengths, [9, 10, 10, 10, 10, 10])
})

test('a cache whose heads have different rows can be cut again', () => {
  const { definition, options } = choosePolicy('h2o')
  const cache = append(
    fullCache(DIMS, 30).map((heads, layer) => heads.map((p, h) => p.subarray(2 * layer + h))),
    30,
  )
  const columns = cache.map((positions) => {
    const keys = positions.map((p) => p.length)
    const n = Math.max(...keys)
    return { keys, positions, statistics: { sum: Float32Array.from({ length: n * DIMS.heads }, (_, i) => i % n) } }
  })
  const plan = definition.afterPrefill({ columns }, stateOf(DIMS, cache, 8), options)
  assert.ok(plan.kind === 'keep')
  // Sums grow with the row: the newest rows are also the best.
  for (const [layer, heads] of plan.rows.entries())
    for (const [h, list] of heads.entries())
      assert.deepEqual([...list], rows(cache[layer]![h]!.length - 8, cache[layer]![h]!.length))
})

test('with layers=error no layer gets more than three budgets', () => {
  const dims = { ...DIMS, layers: 6 }
  const [n, budget] = [160, 40]
  const { definition, options } = choosePolicy('compresskv')
  const heads = rows(0, dims.layers).map(() => rows(0, dims.heads))
  const layerShares = [0.9, 0.02, 0.02, 0.02, 0.02, 0.02]
  const cache = fullCache(dims, n)
  const state = stateOf(dims, cache, budget, { calibration: { policy: 'compresskv', heads, layerShares } })
  const plan = definition.afterPrefill(
    observe(attention(dims, n, 1), dims, definition.observes(options)),
    state,
    options,
  )
  assert.ok(plan.kind === 'keep')
  const lengths = kept(plan.rows).map(([first]) => first!.length)
  // m = 16: 16 + round(0.9 * 144) = 146 is cut to 120, 16 + round(0.02 * 144) = 19; of the 25 that are missing each gets 5.
  assert.deepEqual(lengths, [120, 24, 24, 24, 24, 24])
})
