import assert from 'node:assert/strict'
import { test } from 'node:test'
import { best, columnOf, DIMS, mean, poolMax, rows, total } from '../attention.fixture.ts'
import { keptBy, prefill } from '../run.fixture.ts'

const group = DIMS.heads / DIMS.kvHeads
const [n, budget, w] = [60, 20, 4]
const q = budget - w

test('heads get what the formula says, within the rounding, and keep their best', () => {
  let moved = 0
  for (const floor of [0, 0.2, 0.5])
    for (let seed = 1; seed <= 5; seed++) {
      const { P, cache } = prefill(`ada-kv?window=${w}&floor=${floor}`, { n, budget, seed })
      for (const [layer, heads] of P.entries()) {
        const s = rows(0, DIMS.kvHeads).map((h) =>
          poolMax(
            rows(0, n - w).map((j) =>
              mean(rows(h * group, (h + 1) * group).map((i) => total(columnOf(heads[i]!, j, w)))),
            ),
            7,
          ),
        )
        const z = s.flatMap((one) => {
          const top = best(one, q).map((j) => one[j]!)
          return one.map((x) => (x * total(top)) / total(one))
        })
        const winners = best(z, DIMS.kvHeads * q)
        for (const [h, one] of s.entries()) {
          const c = winners.filter((j) => Math.floor(j / (n - w)) === h).length
          const positions = [...cache[layer]![h]!]
          const b = positions.length - w
          assert.ok(Math.abs(b - ((1 - floor) * c + floor * q)) < 1, `${b} of ${c}`)
          assert.deepEqual(positions, [...best(one, b), ...rows(n - w, n)])
          if (b !== q) moved++
        }
        assert.equal(total(cache[layer]!.map((p) => p.length)), DIMS.kvHeads * budget)
      }
    }
  assert.ok(moved > 20, `only ${moved} heads differ from uniform budgets`)
})

test('floor = 1 is SnapKV, and so is a single KV head', () => {
  const setting = { n, budget }
  assert.deepEqual(keptBy('ada-kv?floor=1', setting), keptBy('snapkv?kernel=7&pool=max', setting))
  const one = { ...setting, dims: { ...DIMS, kvHeads: 1 } }
  assert.deepEqual(keptBy('ada-kv', one), keptBy('snapkv?kernel=7&pool=max', one))
})

test('goes with other scorers and with layer budgets', () => {
  assert.deepEqual(keptBy('snapkv?kernel=7&pool=max&heads=ada', { n, budget }), keptBy('ada-kv', { n, budget }))
  const pyramid = keptBy('ada-kv?layers=pyramid&window=4', { n, budget }).map((heads) =>
    total(heads.map((k) => k.length)),
  )
  const uniform = keptBy('pyramidkv?window=4', { n, budget }).map((heads) => total(heads.map((k) => k.length)))
  assert.deepEqual(pyramid, uniform)
  const h2o = keptBy('h2o?heads=ada', { n, budget }).map((heads) => heads.map((k) => k.length))
  assert.ok(h2o.some(([a, b]) => a !== b) && h2o.every(([a, b]) => a! + b! === 2 * budget), String(h2o))
})
