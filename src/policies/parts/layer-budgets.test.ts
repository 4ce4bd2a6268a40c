import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { randoms, total } from '../attention.fixture.ts'
import { cakeBudgets, cakePreferences, errorBudgets, pyramidBudgets, shareBudgets } from './layer-budgets.ts'
import { topRows } from './select.ts'

describe('pyramid', () => {
  it('is within the rounding of the authors, whose layers can add up to more', () => {
    const layers = 8
    for (const [free, beta] of [
      [100, 20],
      [37, 5],
      [251, 20],
    ] as const) {
      const least = Math.floor(free / beta)
      const most = 2 * free - least
      const step = Math.floor((most - least) / (layers - 1))
      const ours = pyramidBudgets(layers, free, 4096, 4096 - 8, beta)
      assert.equal(total(ours), layers * free)
      for (const [l, b] of ours.entries()) assert.ok(Math.abs(b - (most - l * step)) <= l, `layer ${l}`)
    }
  })
  it('has no slope with one layer', () => assert.deepEqual(pyramidBudgets(1, 10, 4096, 4000, 20), [10]))
})

describe('cake', () => {
  it('prefers by ratios alone, on any scale', () => {
    const spreads = [
      { dispersion: 900, shift: 1e-5 },
      { dispersion: 300, shift: 4e-5 },
    ]
    const [a, b] = cakePreferences(spreads, 2, 0.5) as [number, number]
    assert.ok(Math.abs(a / b - (Math.sqrt(3) * (1 / 4) ** 2) / 1) < 1e-12)
  })
  it('has no preference where nothing moves', () => {
    const still = { dispersion: 900, shift: 0 }
    assert.deepEqual(cakePreferences([still, still], 1, 1), [1, 1])
    assert.deepEqual(cakePreferences([still, { dispersion: 9, shift: 1 }], 1, 1), [0, 1])
  })
  it('spreads evenly what a full layer cannot use', () => {
    // 80, 10, 10 of 100 rows, at most 50: 30 are left, 15 for each.
    assert.deepEqual(cakeBudgets([8, 1, 1], 100, 50), [50, 25, 25])
    // Truncation: 33 each, and one more for the first.
    assert.deepEqual(cakeBudgets([1, 1, 1], 100, 50), [34, 33, 33])
    // 66, 38, 5: 26 are left, the second is full as well with 13 of them, and the third gets the rest.
    assert.deepEqual(cakeBudgets([60, 35, 5], 110, 40), [40, 40, 30])
  })
  it('gives what the cascade gives, which cuts layers while others are still computed', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const next = randoms(seed)
      const [layers, n, all] = [6, 200, 300]
      const scores = Array.from({ length: layers }, () => Float64Array.from({ length: n }, next))
      const prefs = Array.from({ length: layers }, () => 1 + next())
      let kept: Int32Array[] = []
      for (let m = 0; m < layers; m++) {
        kept.push(Int32Array.from({ length: n }, (_, j) => j))
        const b = cakeBudgets(prefs.slice(0, m + 1), all, n)
        kept = kept.map((rows, l) =>
          topRows(
            Float64Array.from(rows, (j) => scores[l]![j]!),
            b[l]!,
          ).map((i) => rows[i]!),
        )
      }
      for (const [l, b] of cakeBudgets(prefs, all, n).entries()) {
        const once = topRows(scores[l]!, b)
        // Truncation moves single rows: a layer that once had one row less does not get it back.
        assert.ok(once.length - kept[l]!.length <= 1 && kept[l]!.length <= once.length)
        assert.ok(kept[l]!.every((j) => once.includes(j)))
      }
    }
  })
})

describe('error', () => {
  it('adds up exactly, between the bounds, larger shares never less', () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 0.001, max: 1, noNaN: true }), { minLength: 1, maxLength: 12 }),
        fc.integer({ min: 8, max: 500 }),
        (weights, mean) => {
          const shares = weights.map((w) => w / total(weights))
          const rows = errorBudgets(shares, mean * shares.length, 8, 3 * mean)
          assert.equal(total(rows), mean * shares.length)
          for (const [l, b] of rows.entries()) {
            assert.ok(b >= 8 && b <= 3 * mean && Number.isInteger(b))
            for (const [k, other] of rows.entries()) if (shares[l]! > shares[k]!) assert.ok(b >= other - 1)
          }
        },
      ),
    )
  })
  it('gives equal shares equal rows', () =>
    assert.deepEqual(errorBudgets([0.25, 0.25, 0.25, 0.25], 80, 8, 60), [20, 20, 20, 20]))
  it('goes on with the next layers where one is full', () => {
    // 5 + round(share * 75) is 73, 10, 8; the first is cut to 50, the 22 that are missing go to the others in turn.
    assert.deepEqual(errorBudgets([0.9, 0.06, 0.04], 90, 5, 50), [50, 21, 19])
  })
})

it('shares by weight add up, none above the cap', () => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: 0.001, max: 1, noNaN: true }), { minLength: 1, maxLength: 12 }),
      fc.integer({ min: 1, max: 100 }),
      (weights, free) => {
        const cap = 2 * free
        const rows = shareBudgets(weights, free * weights.length, cap)
        assert.equal(total(rows), free * weights.length)
        assert.ok(rows.every((b) => b >= 0 && b <= cap))
      },
    ),
  )
})
