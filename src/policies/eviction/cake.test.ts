import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  append,
  best,
  columnOf,
  DIMS,
  mean,
  observeDecode,
  poolAverage,
  rows,
  total,
  variance,
} from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { decodeStep, keptBy, prefill } from '../run.fixture.ts'

const group = DIMS.heads / DIMS.kvHeads
const [n, budget, w, gamma] = [60, 20, 6, 200]

/** Steps 3 to 5 of the spec, as they stand there. */
function preference(heads: readonly (readonly (readonly number[])[])[], tau1: number, tau2: number): number {
  const columns = heads.flatMap((p) => rows(0, n - w).map((j) => columnOf(p, j, w)))
  const Hs = -total(columns.flatMap((c) => c.map((x) => x * Math.log(x + 1e-10))))
  const Vt = total(columns.map(variance))
  return Hs ** (1 / tau1) * Vt ** (1 / tau2)
}

test('layer budgets follow the preferences, rows the indicator', () => {
  let shares = 0
  for (const [tau1, tau2] of [
    [1, 1],
    [1.6, 0.6],
  ] as const)
    for (let seed = 1; seed <= 5; seed++) {
      const { P, cache } = prefill(`cake?window=${w}&tau1=${tau1}&tau2=${tau2}`, { n, budget, seed })
      const prefs = P.map((heads) => preference(heads, tau1, tau2))
      const all = DIMS.layers * (budget - w)
      for (const [layer, heads] of P.entries()) {
        const b = cache[layer]![0]!.length - w
        const share = (prefs[layer]! / total(prefs)) * all
        // Where no layer is full, a share is cut to whole rows, and less than a row per layer is given out again.
        if (prefs.every((p) => (p / total(prefs)) * all <= n - w)) {
          assert.ok(Math.abs(b - share) <= 1, `${b} of ${share}`)
          shares++
        }
        for (let h = 0; h < DIMS.kvHeads; h++) {
          const ind = rows(0, n - w).map((j) =>
            mean(
              rows(h * group, (h + 1) * group).map((q) => {
                const c = columnOf(heads[q]!, j, w)
                return mean(c) + gamma * variance(c)
              }),
            ),
          )
          assert.deepEqual([...cache[layer]![h]!], [...best(poolAverage(ind, 5), b), ...rows(n - w, n)])
        }
      }
      assert.equal(total(cache.flat().map((p) => p.length)), budget * DIMS.layers * DIMS.kvHeads)
    }
  assert.ok(shares >= 15, `only ${shares} shares were compared`)
})

test('in the answer every head lets one row go, the one that the newest query looks at least', () => {
  const cake = choosePolicy(`cake?window=${w}`)
  let { cache } = prefill(cake.text, { n, budget })
  const lengths = cache.map((heads) => heads.map((p) => p.length))
  assert.ok(new Set(lengths.flat()).size > 1, 'layers differ')
  for (let step = 0; step < 10; step++) {
    const grown = append(cache, n + step)
    const seen = observeDecode(DIMS, grown, step)
    const next = decodeStep(cake, cache, { budget }, seen)
    assert.deepEqual(
      next.map((heads) => heads.map((p) => p.length)),
      lengths,
    )
    for (const [layer, { keys, statistics }] of seen.decode!.entries())
      for (let h = 0; h < DIMS.kvHeads; h++) {
        const stride = Math.max(...keys)
        const s = rows(0, keys[h]! - w).map((j) =>
          mean(rows(h * group, (h + 1) * group).map((q) => statistics.sum![q * stride + j]!)),
        )
        const want = [...best(poolAverage(s, 5), s.length - 1), ...rows(keys[h]! - w, keys[h]!)]
        assert.deepEqual(
          [...next[layer]![h]!],
          want.map((j) => grown[layer]![h]![j]!),
        )
      }
    cache = next
  }
})

test('goes as layer budgets with another scorer', () => {
  const setting = { n, budget }
  const lengths = (spec: string) => keptBy(spec, setting).map(([first]) => first!.length)
  assert.deepEqual(lengths(`snapkv?layers=cake&window=${w}`), lengths(`cake?window=${w}`))
  assert.equal(total(lengths('h2o?layers=cake')), budget * DIMS.layers)
})

test('a window of one row has no variance', () => {
  assert.throws(() => choosePolicy('cake?window=1'), /'window' must be a whole number from 2/)
  assert.throws(() => choosePolicy('snapkv?layers=cake&window=1'), /window must be 2 rows or more/)
})
