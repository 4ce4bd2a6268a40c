import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  attention,
  best,
  columnOf,
  DIMS,
  fullCache,
  mean,
  observe,
  poolAverage,
  rows,
  stateOf,
  total,
} from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { keptBy, prefill } from '../run.fixture.ts'

const [n, budget, w] = [90, 24, 8]

test('the best heads vote for all of a layer', () => {
  for (let seed = 1; seed <= 5; seed++) {
    const { P, cache } = prefill('compresskv?voters=2', { n, budget, seed })
    for (const [layer, heads] of P.entries()) {
      // The calibration puts the last heads first.
      const voters = heads.slice(-2)
      const s = rows(0, n - w).map((j) => mean(voters.map((p) => total(columnOf(p, j, w)))))
      const b = cache[layer]![0]!.length - w
      for (const positions of cache[layer]!)
        assert.deepEqual([...positions], [...best(poolAverage(s, 5), b), ...rows(n - w, n)])
    }
  }
})

test('layers get their share of the error beyond a minimum', () => {
  // T = 72, m = 16: 24 rows to share, 4 : 8 : 12.
  assert.deepEqual(
    keptBy('compresskv', { n, budget }).map((heads) => heads.map((kept) => kept.length)),
    [
      [20, 20],
      [24, 24],
      [28, 28],
    ],
  )
})

test('with all heads and one KV head it is SnapKV', () => {
  const setting = { dims: { ...DIMS, kvHeads: 1 }, n, budget }
  assert.deepEqual(keptBy('compresskv?layers=uniform&voters=4', setting), keptBy('snapkv?window=8', setting))
})

test('without a calibration of this model it says how to make one', () => {
  const { definition, options } = choosePolicy('compresskv')
  assert.equal(definition.calibration?.(options), 'compresskv')
  const seen = observe(attention(DIMS, n, 1), DIMS, definition.observes(options))
  const run = (calibration?: { policy: 'compresskv'; heads: number[][]; layerShares: number[] }) =>
    definition.afterPrefill(
      seen,
      stateOf(DIMS, fullCache(DIMS, n), budget, calibration ? { calibration } : {}),
      options,
    )
  assert.throws(() => run(), /kvasir calibrate compresskv MODEL/)
  const heads = [[0], [0], [DIMS.heads]]
  assert.throws(() => run({ policy: 'compresskv', heads, layerShares: [0, 0, 1] }), /not one of this model/)
})

test('its layer budgets go with another scorer, which then needs the calibration', () => {
  const { definition, options } = choosePolicy('snapkv?layers=error')
  assert.equal(definition.calibration?.(options), 'compresskv')
  assert.equal(choosePolicy('snapkv').definition.calibration?.(choosePolicy('snapkv').options), null)
  const lengths = keptBy('snapkv?layers=error&window=8', { n, budget }).map(([first]) => first!.length)
  assert.deepEqual(lengths, [20, 24, 28])
})
