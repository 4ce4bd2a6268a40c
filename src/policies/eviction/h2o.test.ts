import assert from 'node:assert/strict'
import { test } from 'node:test'
import { append, best, columnOf, DIMS, mean, randoms, rows, total } from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { decodeStep, keptBy, prefill } from '../run.fixture.ts'

const group = DIMS.heads / DIMS.kvHeads

test('keeps the largest column sums and the newest rows', () => {
  for (const heavy of [0.25, 0.5, 0.8])
    for (let seed = 1; seed <= 5; seed++) {
      const [n, budget] = [50, 13]
      const M = Math.floor(heavy * budget)
      const { P, cache } = prefill(`h2o?heavy=${heavy}`, { n, budget, seed })
      for (const [layer, heads] of P.entries())
        for (let h = 0; h < DIMS.kvHeads; h++) {
          const c = rows(0, n - (budget - M)).map((j) =>
            mean(rows(h * group, (h + 1) * group).map((q) => total(columnOf(heads[q]!, j, n)))),
          )
          assert.deepEqual([...cache[layer]![h]!], [...best(c, M), ...rows(n - (budget - M), n)])
        }
    }
})

test('without heavy hitters it is the window, in the answer too', () => {
  const [h2o, window] = [choosePolicy('h2o?heavy=0'), choosePolicy('window')]
  let a = prefill(h2o.text, { n: 50, budget: 12 }).cache
  let b = prefill(window.text, { n: 50, budget: 12 }).cache
  for (let step = 0; step < 10; step++) {
    assert.deepEqual(a, b)
    a = decodeStep(h2o, a, { budget: 12 })
    b = decodeStep(window, b, { budget: 12 })
  }
})

test('sums go on in the answer: against the reference loop of one head', () => {
  const dims = { layers: 1, heads: 1, kvHeads: 1, headDim: 8 }
  const [n, budget] = [30, 10]
  const h2o = choosePolicy('h2o')
  const next = randoms(9)
  let { P, cache } = prefill('h2o', { dims, n, budget })
  let sums = new Map([...cache[0]![0]!].map((j) => [j, total(columnOf(P[0]![0]!, j, n))]))
  for (let step = 0; step < 25; step++) {
    const position = n + step
    const grown = append(cache, position)
    const row = [...grown[0]![0]!].map(() => next())
    for (const [j, p] of [...grown[0]![0]!].entries()) sums.set(p, (sums.get(p) ?? 0) + row[j]!)
    const list = [...sums]
    const heavy = best(
      list.slice(0, list.length - 5).map(([, c]) => c),
      5,
    ).map((j) => list[j]![0])
    const want = [...heavy, ...list.slice(-5).map(([p]) => p)]
    const layer = {
      keys: [list.length],
      positions: [grown[0]![0]!],
      statistics: { sum: Float32Array.from(list, ([, c]) => c) },
    }
    cache = decodeStep(h2o, cache, { dims, budget }, { columns: [layer] })
    assert.deepEqual([...cache[0]![0]!], want)
    sums = new Map(list.filter(([p]) => want.includes(p)))
  }
})

test('a head never gives up its newest row, even if all places are for heavy hitters', () => {
  for (const kept of keptBy('h2o?heavy=1', { n: 50, budget: 12 }).flat()) {
    assert.equal(kept.length, 12)
    assert.equal(kept.at(-1), 49)
  }
})
