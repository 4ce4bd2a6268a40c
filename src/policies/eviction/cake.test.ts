import assert from 'node:assert/strict'
import { describe, it, test } from 'node:test'
import fc from 'fast-check'
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
import { prefillInStages } from '../stages.fixture.ts'

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
  for (const window of [1, 65]) {
    assert.throws(() => choosePolicy(`snapkv?layers=cake&window=${window}`), /window must be 2 to 64 rows/)
    assert.throws(() => choosePolicy(`cake?window=${window}`), /'window' must be a whole number from 2 to 64/)
  }
})

describe('cascade', () => {
  const dims = { ...DIMS, layers: 6 }
  const spec = `cake?window=${w}&prefill=cascade&tau1=1.6&tau2=0.6`
  const lengths = (cache: readonly (readonly Int32Array[])[]) => cache.map(([first]) => first!.length)

  it('ends with the rows of the one-shot allocation, but for what truncation moves', () => {
    let same = 0
    for (let seed = 1; seed <= 12; seed++) {
      const { cache } = prefillInStages(spec, { dims, n, budget, seed })
      const whole = keptBy(`cake?window=${w}&tau1=1.6&tau2=0.6`, { dims, n, budget, seed })
      assert.equal(total(lengths(cache)), dims.layers * budget)
      for (const [l, heads] of cache.entries())
        for (const [h, positions] of heads.entries()) {
          const one = whole[l]![h]!
          assert.ok(Math.abs(positions.length - one.length) <= 1, `${positions.length} of ${one.length}`)
          const [few, many] = positions.length < one.length ? [[...positions], one] : [one, [...positions]]
          assert.ok(few.every((p) => many.includes(p)))
          if (few.length === many.length) same++
        }
    }
    assert.ok(same >= 100, `only ${same} of 144 sets are the same`)
  })

  it('layers only shrink, and never is more held than the budget and one layer', () => {
    for (let seed = 1; seed <= 5; seed++) {
      const { stages } = prefillInStages(spec, { dims, n, budget, seed })
      assert.deepEqual(
        stages.map(({ layers }) => [layers.from, layers.to]),
        rows(0, dims.layers).map((l) => [l, l + 1]),
      )
      let before: number[] = []
      for (const { layers, ran, heldRows, cache } of stages) {
        assert.equal(ran.length, n)
        const most = dims.layers * (budget - w) + dims.layers * w + n
        assert.ok(heldRows <= most * dims.kvHeads, `${heldRows} rows`)
        const now = lengths(cache).slice(0, layers.to)
        for (const [l, b] of before.entries()) assert.ok(now[l]! <= b && now[l]! >= w)
        assert.ok(total(now) <= dims.layers * budget)
        for (const heads of cache.slice(0, layers.to))
          for (const positions of heads) assert.deepEqual([...positions.slice(-w)], rows(n - w, n))
        before = now
      }
    }
  })

  it('holds the budget to the row, also where a layer cannot take back what truncation moves to it', () => {
    const settings = fc.record({
      layers: fc.integer({ min: 1, max: 8 }),
      kvHeads: fc.integer({ min: 1, max: 3 }),
      length: fc.integer({ min: 2, max: 40 }),
      budget: fc.integer({ min: 1, max: 39 }),
      tau2: fc.constantFrom(0.3, 1, 2),
      seed: fc.integer({ min: 1, max: 1000 }),
    })
    fc.assert(
      fc.property(settings, ({ layers, kvHeads, length, budget, tau2, seed }) => {
        fc.pre(budget < length)
        const some = { layers, kvHeads, heads: kvHeads, headDim: 8 }
        const { cache } = prefillInStages(`cake?window=${w}&prefill=cascade&tau2=${tau2}`, {
          dims: some,
          n: length,
          budget,
          seed,
        })
        assert.equal(total(lengths(cache)), layers * budget)
      }),
      { numRuns: 100 },
    )
  })

  it('remembers nothing behind the last layer, and reads what fits as a whole', () => {
    assert.equal(prefillInStages(spec, { dims, n, budget }).memory, null)
    assert.deepEqual(prefillInStages(spec, { dims, n, budget: n }).stages, [])
    assert.deepEqual(prefillInStages(`cake?window=${w}`, { dims, n, budget }).stages, [])
  })

  it('divides by preferences alone', () => {
    for (const other of ['layers=uniform', 'heads=ada'])
      assert.throws(() => choosePolicy(`cake?prefill=cascade&${other}`), /leave layers at cake and heads at uniform/)
  })
})

test('a layer is sure of `least` rows before its window, in both ways', () => {
  const setting = { n, budget, seed: 3 }
  const plain = keptBy(`cake?window=${w}&tau2=0.1`, setting).map(([first]) => first!.length - w)
  assert.ok(Math.min(...plain) < 8, `tau2 makes budgets far apart: ${plain}`)
  for (const lengths of [
    keptBy(`cake?window=${w}&tau2=0.1&least=8`, setting).map(([first]) => first!.length - w),
    prefillInStages(`cake?window=${w}&tau2=0.1&least=8&prefill=cascade`, setting).cache.map(([p]) => p!.length - w),
  ]) {
    assert.ok(Math.min(...lengths) >= 8, String(lengths))
    assert.equal(total(lengths), DIMS.layers * (budget - w))
  }
})
