import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DIMS, total } from '../attention.fixture.ts'
import { keptBy } from '../run.fixture.ts'

const dims = { ...DIMS, layers: 5 }
const lengths = (spec: string, n: number, budget: number) =>
  keptBy(spec, { dims, n, budget }).map((heads) => heads.map((kept) => kept.length))

test('the budget falls in a straight line; each layer keeps what SnapKV would keep with its budget', () => {
  // q = 16, beta 4: least 4, most 28; slope 6.
  const setting = { dims, n: 80, budget: 20 }
  const kept = keptBy('pyramidkv?window=4&beta=4', setting)
  for (const [layer, q] of [28, 22, 16, 10, 4].entries())
    assert.deepEqual(kept[layer], keptBy('snapkv?window=4', { ...setting, budget: q + 4 })[layer])
})

test('beta = 1 is SnapKV, and so is a prompt shorter than two budgets', () => {
  const setting = { dims, n: 80, budget: 20 }
  assert.deepEqual(keptBy('pyramidkv?beta=1', setting), keptBy('snapkv', setting))
  const short = { dims, n: 31, budget: 20 }
  assert.deepEqual(keptBy('pyramidkv?window=4', short), keptBy('snapkv?window=4', short))
  assert.notDeepEqual(keptBy('pyramidkv?window=4', { ...short, n: 32 }), keptBy('snapkv?window=4', { ...short, n: 32 }))
})

test('no layer gets more rows than there are, and the total is the budget to the row', () => {
  for (const n of [33, 34, 40, 57, 80])
    for (const budget of [5, 17, 20, 23, 32])
      for (const beta of [2, 7, 20]) {
        const heads = lengths(`pyramidkv?window=4&beta=${beta}`, n, budget)
        assert.equal(total(heads.flat()), budget * dims.layers * dims.kvHeads, `n ${n}, budget ${budget}, beta ${beta}`)
        const perLayer = heads.map(([first]) => first!)
        assert.ok(
          perLayer.every((b, l) => b <= n && (l === 0 || b <= perLayer[l - 1]!)),
          String(perLayer),
        )
      }
})
