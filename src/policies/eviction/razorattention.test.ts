import assert from 'node:assert/strict'
import { describe, it, test } from 'node:test'
import fc from 'fast-check'
import type { RazorAttentionCalibration } from '../../contract/calibration.ts'
import type { CompressionPlan, Merge } from '../../contract/policy.ts'
import { append, DIMS, fullCache, mean, randoms, rows, stateOf, total } from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { answerStep, type Held, keptBy, prefill, stateFor } from '../run.fixture.ts'

type Keep = Extract<CompressionPlan, { kind: 'keep' }>

/** Six KV heads. In the made-up calibration the first ones induce, the last ones echo. */
const SIX = { layers: 3, heads: 6, kvHeads: 2, headDim: 8 }

function planFor(spec: string, n: number, budget: number, dims = SIX, calibration?: RazorAttentionCalibration): Keep {
  const chosen = choosePolicy(spec)
  const state = stateFor(chosen, { cache: fullCache(dims, n) }, { dims, budget })
  const plan = chosen.definition.afterPrefill({}, calibration ? { ...state, calibration } : state, chosen.options)
  assert.equal(plan.kind, 'keep')
  return plan as Keep
}

/** Heads that keep all n rows: layer * Hkv + kvHead. */
const retrieving = (plan: Keep, n: number): number[] =>
  plan.rows.flat().flatMap((list, head) => (list.length === n ? [head] : []))

/** Of one head, float64. `mass` is how often a row counts. */
interface Row {
  readonly key: readonly number[]
  readonly value: readonly number[]
  readonly mass: number
}

function rowsByChance(n: number, seed: number, dim = 8): Row[] {
  const next = randoms(seed)
  const vector = () => Array.from({ length: dim }, () => 2 * next() - 1)
  return Array.from({ length: n }, () => ({ key: vector(), value: vector(), mass: 1 }))
}

const weighted = (vectors: readonly (readonly number[])[], weights: readonly number[]): number[] =>
  vectors[0]!.map((_, c) => total(vectors.map((v, i) => v[c]! * weights[i]!)))

/** The plan for one head, on keys and values. */
function carry(head: readonly Row[], kept: Int32Array, merges: readonly Merge[]): Row[] {
  const after = [...head]
  for (const { into, from, weights, mass } of merges) {
    const sources = Array.from(from, (row) => head[row]!)
    const sum = (of: (row: Row) => readonly number[]) => weighted(sources.map(of), [...weights])
    after[into] = { key: sum((r) => r.key), value: sum((r) => r.value), mass }
  }
  return Array.from(kept, (row) => after[row]!)
}

/** softmax(q.k / sqrt(d) + ln mass) v */
function attend(query: readonly number[], head: readonly Row[]): number[] {
  const scores = head.map(
    ({ key, mass }) => total(key.map((k, c) => k * query[c]!)) / Math.sqrt(query.length) + Math.log(mass),
  )
  const e = scores.map((s) => Math.exp(s - Math.max(...scores)))
  return weighted(
    head.map((r) => r.value),
    e.map((x) => x / total(e)),
  )
}

const distance = (a: readonly number[], b: readonly number[]): number =>
  Math.max(...a.map((x, i) => Math.abs(x - b[i]!)))

describe('who retrieves', () => {
  it('the best by induction and by echo keep everything; the others share what is left', () => {
    // One of six by induction, one by echo: 6 * 40 - 2 * 60 rows are left for four heads.
    const plan = planFor('razorattention', 60, 40)
    assert.deepEqual(retrieving(plan, 60), [0, 5])
    for (const head of [1, 2, 3, 4])
      assert.deepEqual([...plan.rows.flat()[head]!], [...rows(0, 5), ...rows(60 - 25, 60)])
    assert.deepEqual(retrieving(planFor('razorattention?inductionRatio=0.5', 60, 50), 60), [0, 1, 2, 5])
    assert.deepEqual(retrieving(planFor('razorattention?echoRatio=0', 60, 40), 60), [0])
    assert.deepEqual(retrieving(planFor('razorattention?echoRatio=0&inductionRatio=0', 60, 40), 60), [])
  })

  it('with all heads chosen, as many as the budget allows, induction and echo in turns', () => {
    const all = 'razorattention?inductionRatio=1&echoRatio=1'
    // 13 rows at least for each other head: 6 * 30 - 6 * 13 = 102 pay for two times 60 - 13.
    assert.deepEqual(retrieving(planFor(all, 60, 30), 60), [0, 5])
    assert.deepEqual(retrieving(planFor(all, 60, 45), 60), [0, 1, 4, 5])
    assert.deepEqual(retrieving(planFor(all, 60, 13), 60), [])
  })

  it('never more heads, and never fewer, than leave 8 recent rows to the others', () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 100 }), fc.integer({ min: 1, max: 99 }), (n, budget) => {
        fc.pre(budget < n)
        const plan = planFor('razorattention?inductionRatio=1', n, budget)
        const M = retrieving(plan, n).length
        const spare = (m: number) => 6 * budget - m * n - (6 - m) * (4 + 1 + 8)
        assert.ok(M === 0 || spare(M) >= 0, `${M} heads`)
        assert.ok(spare(M + 1) < 0, `${M} heads`)
        const kept = total(plan.rows.flat().map((list) => list.length))
        assert.ok(kept <= 6 * budget && kept > 6 * budget - (6 - M), `${kept} rows`)
      }),
    )
  })

  it('heads with equal scores: the first, not all of them', () => {
    const equal = Array.from({ length: 3 }, () => [1, 1])
    const calibration = { policy: 'razorattention', echo: equal, induction: equal } as const
    assert.deepEqual(retrieving(planFor('razorattention?inductionRatio=0.34', 60, 40, SIX, calibration), 60), [0, 1])
  })

  it('for comparison as many others: the worst, or by chance', () => {
    assert.deepEqual(retrieving(planFor('razorattention?heads=reversed', 60, 40), 60), [4, 5])
    const { definition, options } = choosePolicy('razorattention?heads=random')
    const seeds = rows(1, 41).map((seed) => {
      const state = stateFor(
        { ...choosePolicy('razorattention') },
        { cache: fullCache(SIX, 60) },
        { dims: SIX, budget: 40 },
      )
      return retrieving(definition.afterPrefill({}, { ...state, seed }, options) as Keep, 60)
    })
    assert.ok(seeds.every((heads) => heads.length === 2))
    assert.equal(new Set(seeds.flat()).size, 6)
  })

  it('without a calibration of this model it says how to make one', () => {
    const { definition, options } = choosePolicy('razorattention')
    assert.equal(definition.calibration!(options), 'razorattention')
    const state = stateOf(DIMS, fullCache(DIMS, 60), 20)
    assert.throws(() => definition.afterPrefill({}, state, options), {
      code: 'INVALID_ARGUMENT',
      message: /kvasir calibrate razorattention MODEL/,
    })
  })
})

test('a tiny budget: the newest row, then the mean, then sinks, then recent rows', () => {
  const one = (budget: number) => keptBy('razorattention', { dims: SIX, n: 30, budget })[0]![0]
  assert.deepEqual(one(1), [29])
  assert.deepEqual(one(2), [0, 29])
  assert.deepEqual(one(4), [0, 1, 2, 29])
  assert.deepEqual(one(8), [0, 1, 2, 3, 4, 27, 28, 29])
})

describe('the mean row', () => {
  const [n, budget, head] = [60, 20, 1] as const
  const squeezed = (spec: string, all: readonly Row[]) => {
    const plan = planFor(spec, n, budget)
    return carry(all, plan.rows.flat()[head]!, plan.merges?.flat()[head] ?? [])
  }
  const query = rowsByChance(1, 99)[0]!.key

  it('counts as many times as it stands for: of equal rows nothing is lost', () => {
    const all = rowsByChance(n, 3)
    const same = all.map((row, j) => (j < 4 || j >= n - 8 ? row : all[10]!))
    const exact = attend(query, same)
    assert.ok(distance(attend(query, squeezed('razorattention', same)), exact) < 1e-5)
    for (const other of ['plain', 'none'])
      assert.ok(distance(attend(query, squeezed(`razorattention?compensation=${other}`, same)), exact) > 1e-2, other)
  })

  it("is the formula's, in long hand", () => {
    for (let seed = 1; seed <= 10; seed++) {
      const all = rowsByChance(n, seed)
      const { rows: lists, merges } = planFor('razorattention', n, budget)
      const L = lists.flat()[head]!.length - 5
      const Nd = n - L - 4
      assert.equal(merges!.flat()[head]![0]!.mass, Nd)
      const middle = all.slice(4, n - L)
      const meanOf = (of: (row: Row) => readonly number[]) => query.map((_, c) => mean(middle.map((r) => of(r)[c]!)))
      const exp = (key: readonly number[]) => Math.exp(total(key.map((k, c) => k * query[c]!)) / Math.sqrt(8))
      const plain = [...all.slice(0, 4), ...all.slice(n - L)]
      const [k, v] = [meanOf((r) => r.key), meanOf((r) => r.value)]
      const below = Nd * exp(k) + total(plain.map((r) => exp(r.key)))
      const out = query.map((_, c) => (Nd * exp(k) * v[c]! + total(plain.map((r) => exp(r.key) * r.value[c]!))) / below)
      assert.ok(distance(attend(query, squeezed('razorattention', all)), out) < 1e-5)
    }
  })

  it('heads that retrieve have none', () => {
    const { merges } = planFor('razorattention', 60, 40)
    assert.deepEqual(
      merges!.flat().map((list) => list.length),
      [0, 1, 1, 1, 1, 0],
    )
    assert.equal(planFor('razorattention?compensation=none', 60, 40).merges, undefined)
  })
})

describe('in the answer', () => {
  /** All heads of {@link SIX} on keys and values, behind a prompt of 60 rows and some of the answer. */
  function answer(spec: string, steps: number) {
    const chosen = choosePolicy(spec)
    const setting = { dims: SIX, budget: 40 }
    const text = rowsByChance(60 + steps, 7)
    let held: Held = { cache: fullCache(SIX, 60) }
    let heads: Row[][] = held.cache.flat().map(() => text.slice(0, 60))
    const lengths: number[] = []
    for (let step = 0; step <= steps; step++) {
      if (step > 0) {
        held = { ...held, cache: append(held.cache, 59 + step) }
        heads = heads.map((head) => [...head, text[59 + step]!])
      }
      const state = stateFor(chosen, held, setting)
      const before = structuredClone(held.memory)
      const plan = step
        ? chosen.definition.afterDecode!({}, state, chosen.options)
        : chosen.definition.afterPrefill({}, state, chosen.options)
      assert.deepEqual(held.memory, before, 'a memory never changes')
      if (plan.kind === 'keep') {
        heads = heads.map((head, i) => carry(head, plan.rows.flat()[i]!, plan.merges?.flat()[i] ?? []))
        const lists = plan.rows
        const cache = held.cache.map((l, layer) => l.map((p, h) => lists[layer]![h]!.map((row) => p[row]!)))
        held = { cache, memory: plan.memory }
      }
      lengths.push(heads[1]!.length)
    }
    return { text, heads, lengths, cache: held.cache }
  }

  it('folds the oldest recent rows when there are more than L + fold; heads that retrieve keep all', () => {
    const { heads, lengths, cache } = answer('razorattention?fold=8', 20)
    // L = 25 behind four sinks and the mean: 30 to 38 rows.
    assert.deepEqual(lengths, [...rows(30, 39), ...rows(31, 39), ...rows(31, 35)])
    assert.deepEqual(
      heads.map((head) => head.length),
      [80, 34, 34, 34, 34, 80],
    )
    assert.deepEqual([...cache[0]![1]!], [...rows(0, 5), ...rows(51, 80)])
  })

  it('in steps it is the mean of all that went', () => {
    for (const fold of [1, 8]) {
      const { text, heads } = answer(`razorattention?fold=${fold}`, 64)
      const [, folded] = heads
      const gone = text.slice(4, text.length - (folded!.length - 5))
      const { key, value, mass } = folded![4]!
      assert.equal(mass, gone.length)
      for (const [is, of] of [
        [key, gone.map((r) => r.key)],
        [value, gone.map((r) => r.value)],
      ] as const)
        assert.ok(distance(is, weighted(of, new Array<number>(mass).fill(1 / mass))) < 1e-5)
    }
    assert.equal(answer('razorattention?fold=8&compensation=plain', 64).heads[1]![4]!.mass, 1)
  })

  it('without a mean the oldest are dropped', () => {
    const { lengths, cache } = answer('razorattention?fold=8&compensation=none', 9)
    assert.deepEqual(lengths, [...rows(30, 39), 31])
    assert.deepEqual([...cache[0]![1]!], [...rows(0, 4), ...rows(42, 69)])
  })

  it('fold=0 keeps it, as the authors do', () => {
    assert.deepEqual(answer('razorattention?fold=0', 100).lengths, rows(30, 131))
    assert.deepEqual(answer('razorattention', 65).lengths, [...rows(30, 95), 31])
  })

  it('a prompt that fits is divided when the answer no longer does', () => {
    const setting = { dims: SIX, budget: 40 }
    let held: Held = prefill('razorattention', { ...setting, n: 38 })
    const most = () => Math.max(...held.cache.flat().map((p) => p.length))
    for (const position of [38, 39]) {
      held = answerStep(choosePolicy('razorattention'), held, setting)
      assert.deepEqual([most(), held.memory], [position + 1, undefined])
    }
    held = answerStep(choosePolicy('razorattention'), held, setting)
    assert.deepEqual(
      held.cache.flat().map((p) => p.length),
      [41, 39, 39, 39, 39, 41],
    )
  })
})
