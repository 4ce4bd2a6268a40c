import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  type Attention,
  append,
  best,
  columnOf,
  DIMS,
  fullCache,
  mean,
  observe,
  observeDecode,
  rows,
  total,
  uniformAttention,
} from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { answerStep, type Held, heldAfter, prefill, rowsStoredIn, stateFor } from '../run.fixture.ts'

const LOWER = 1
const UPPER = 2
const group = DIMS.heads / DIMS.kvHeads

interface Memory {
  readonly settled: number
  readonly votes: { readonly queries: Int32Array } | null
}
const memoryOf = ({ memory }: Held) => memory as Memory

const eachHead = (f: (layer: number, kvHead: number) => void) => {
  for (const layer of rows(0, DIMS.layers)) for (const kvHead of rows(0, DIMS.kvHeads)) f(layer, kvHead)
}

const groupMeanOf = (kvHead: number, of: (head: number) => number): number =>
  mean(rows(kvHead * group, (kvHead + 1) * group).map(of))

/** What row j got from some queries, in float64, query heads of a group averaged. */
const gotFrom = (P: Attention, layer: number, kvHead: number, j: number, queries: readonly number[]): number =>
  groupMeanOf(kvHead, (h) => total(queries.map((i) => P[layer]![h]![i]![j] ?? 0)))

/** Which queries the fixture lets a policy see. */
const probesOf = (spec: string, n: number): number[] => {
  const { definition, options } = choosePolicy(spec)
  return [...observe(uniformAttention(DIMS, n), DIMS, definition.observes(options)).windowRows!]
}

/** Of whole blocks, how many rows are of the lower tier. */
const lowerOf = (count: number, salient = 0.6) => 32 * Math.floor(((1 - salient) * count) / 32 + 1e-9)

/** The tiers of the first `count` rows by their scores. */
function tiersBy(scores: readonly number[], lower: number): { readonly upper: number[]; readonly lower: number[] } {
  const upper = best(scores, scores.length - lower)
  return { upper, lower: rows(0, scores.length).filter((j) => !upper.includes(j)) }
}

test('of the prompt the rows that probes give least, of those that may see them, get fewer bits', () => {
  for (const spec of ['zipcache', 'zipcache?recent=0.2&random=0', 'zipcache?recent=0&random=0.3'])
    for (const n of [200, 97, 40]) {
      const held = prefill(spec, { n, budget: n, seed: 3 })
      const probes = probesOf(spec, n)
      assert.equal(probes.at(-1), n - 1)
      const count = 32 * Math.floor(n / 32)
      eachHead((layer, kvHead) => {
        const scores = rows(0, count).map(
          (j) => gotFrom(held.P, layer, kvHead, j, probes) / probes.filter((p) => p >= j).length,
        )
        const want = tiersBy(scores, lowerOf(count))
        assert.deepEqual(rowsStoredIn(held, LOWER, layer, kvHead), want.lower)
        assert.deepEqual(rowsStoredIn(held, UPPER, layer, kvHead), want.upper)
        assert.deepEqual(rowsStoredIn(held, 0, layer, kvHead), rows(count, n))
      })
    }
})

test('a twentieth of the queries are the last, another by chance, and one at least', () => {
  const { definition, options } = choosePolicy('zipcache')
  assert.deepEqual(definition.observes(options), {
    window: { rows: 1, statistics: ['sum'], share: 0.05, random: 0.05 },
    decode: true,
  })
  assert.equal(probesOf('zipcache', 200).length, 20)
  assert.deepEqual(probesOf('zipcache', 15), [14])
})

test('with all queries as probes: means over what the full attention gives, or sums, by option', () => {
  const n = 128
  const all = 'zipcache?recent=1&random=0'
  const of = (spec: string, score: (got: number, j: number) => number) => {
    const held = prefill(spec, { n, budget: n, seed: 8 })
    eachHead((layer, kvHead) => {
      const scores = rows(0, n).map((j) =>
        score(
          groupMeanOf(kvHead, (h) => total(columnOf(held.P[layer]![h]!, j, n))),
          j,
        ),
      )
      assert.deepEqual(rowsStoredIn(held, LOWER, layer, kvHead), tiersBy(scores, lowerOf(n)).lower, spec)
    })
  }
  of(all, (got, j) => got / (n - j))
  of(`${all}&scores=repo`, (got, j) => got / (n - j))
  of('zipcache?scores=accumulated', (got) => got)
})

test("the authors' code divides probes by all queries", () => {
  const n = 160
  const spec = 'zipcache?scores=repo'
  const held = prefill(spec, { n, budget: n, seed: 5 })
  const probes = probesOf(spec, n)
  eachHead((layer, kvHead) => {
    const scores = rows(0, n).map((j) => gotFrom(held.P, layer, kvHead, j, probes) / (n - j))
    assert.deepEqual(rowsStoredIn(held, LOWER, layer, kvHead), tiersBy(scores, lowerOf(n)).lower)
  })
})

test('chance is the same for the same seed, and another for another; it and sums need no probes', () => {
  const lower = (seed: number) =>
    rowsStoredIn(prefill('zipcache?scores=random', { n: 160, budget: 160, seed }), 1, 0, 1)
  assert.deepEqual(lower(1), lower(1))
  assert.notDeepEqual(lower(1), lower(2))
  const needs = (scores: string) => {
    const { definition, options } = choosePolicy(`zipcache?scores=${scores}`)
    return definition.observes(options)
  }
  assert.deepEqual([needs('random'), needs('accumulated')], [{}, { columns: true }])
})

test('of even attention old rows are salient: those that may see them are shorter', () => {
  const chosen = choosePolicy('zipcache?recent=1&random=0')
  const { definition, options } = chosen
  const held: Held = { cache: fullCache(DIMS, 160) }
  const seen = observe(uniformAttention(DIMS, 160), DIMS, definition.observes(options))
  const plan = definition.afterPrefill(seen, stateFor(chosen, held, { budget: 160 }), options)
  eachHead((l, h) => assert.deepEqual(rowsStoredIn(heldAfter(chosen, held, plan, DIMS), UPPER, l, h), rows(0, 96)))
})

test('one tier alone, and an upper tier that stays as it was computed', () => {
  const n = 130
  const stored = (spec: string, format: number) => rowsStoredIn(prefill(spec, { n, budget: n }), format, 1, 0)
  assert.deepEqual([stored('zipcache?salient=1', UPPER), stored('zipcache?salient=1', LOWER)], [rows(0, 128), []])
  assert.deepEqual([stored('zipcache?salient=0', UPPER), stored('zipcache?salient=0', LOWER)], [[], rows(0, 128)])
  assert.deepEqual(stored('zipcache?hi=16', LOWER), stored('zipcache', LOWER))
  assert.equal(stored('zipcache?hi=16', 0).length, n - lowerOf(128))

  const none = choosePolicy('zipcache?hi=16&salient=1')
  let held: Held = prefill(none.text, { n, budget: n })
  for (let step = 0; step < 120; step++) held = answerStep(none, held, { budget: n })
  assert.deepEqual(rowsStoredIn(held, 0, 0, 0), rows(0, n + 120))
})

test('in the answer each full buffer gets its tiers, from the probes since the last one', () => {
  const n = 100
  for (const [spec, hi] of [
    ['zipcache', '4'],
    ['zipcache?hi=16', '16'],
    ['zipcache?scores=repo', '4'],
    ['zipcache?scores=accumulated', '4'],
  ] as const) {
    const chosen = choosePolicy(spec)
    const { scores } = chosen.options
    let held: Held = prefill(spec, { n, budget: n })
    assert.equal(memoryOf(held).settled, 96)
    /** Of each row of the answer what it gave, `[layer][head]`. */
    const given = new Map<number, (layer: number, head: number, j: number) => number>()
    let folds = 0
    for (let seen = n + 1; seen <= n + 92 + 2 * 96; seen++) {
      const before = memoryOf(held)
      const observed = observeDecode(DIMS, append(held.cache, seen - 1), seen)
      given.set(seen - 1, (l, h, j) => observed.decode![l]!.statistics.sum![h * seen + j] ?? 0)
      const formats = held.formats!
      held = answerStep(chosen, held, { budget: n }, observed)
      const { settled, votes } = memoryOf(held)
      assert.ok(seen - settled < 96, `${seen - settled} rows wait`)
      if (settled === before.settled) {
        assert.deepEqual(
          held.formats!.map((heads) => heads.map((list) => list.slice(0, -1))),
          formats,
        )
        continue
      }
      folds++
      assert.deepEqual([settled, votes], [before.settled + 96, null])
      assert.equal(settled, seen)
      // The row that filled the buffer is a probe itself.
      const queries = [...(before.votes?.queries ?? []), seen - 1]
      if (scores !== 'accumulated') assert.deepEqual(queries.slice(-5), rows(seen - 5, seen))
      eachHead((l, h) => {
        const own = rows(before.settled, settled).map((j) => {
          if (scores === 'accumulated')
            return groupMeanOf(h, (head) => observed.columns![l]!.statistics.sum![head * seen + j]!)
          const got = groupMeanOf(h, (head) =>
            total(queries.filter((p) => p >= j).map((p) => given.get(p)!(l, head, j))),
          )
          return got / (scores === 'repo' ? seen - j : queries.filter((p) => p >= j).length)
        })
        const want = tiersBy(own, lowerOf(settled) - lowerOf(before.settled))
        const at = (list: readonly number[]) => list.map((j) => j + before.settled)
        const since = (format: number) => rowsStoredIn(held, format, l, h).filter((j) => j >= before.settled)
        assert.deepEqual(since(LOWER), at(want.lower), spec)
        assert.deepEqual(since(hi === '16' ? 0 : UPPER), at(want.upper))
      })
    }
    assert.equal(folds, 3)
  }
})

test('over a long answer the lower tier has its share, and a twentieth of the earlier steps are probes', () => {
  const dims = { layers: 1, heads: 1, kvHeads: 1, headDim: 8 }
  const chosen = choosePolicy('zipcache')
  let held: Held = prefill('zipcache', { dims, n: 10, budget: 10, seed: 2 })
  let early = 0
  for (let seen = 11; seen <= 20 * 96; seen++) {
    const { settled, votes } = memoryOf(held) ?? { settled: 0, votes: null }
    held = answerStep(chosen, held, { dims, budget: 10, seed: 2 })
    const isProbe = memoryOf(held)?.votes?.queries.length !== votes?.queries.length
    if (seen - settled <= 91 && isProbe) early++
  }
  assert.equal(rowsStoredIn(held, LOWER, 0, 0).length, 20 * 96 * 0.4)
  assert.equal(rowsStoredIn(held, UPPER, 0, 0).length, 20 * 96 * 0.6)
  // 1810 steps with a chance of 0.05 each: 90.5, and 9.3 more or less.
  assert.ok(early > 60 && early < 121, `${early} probes`)
})

test('formats, and options that contradict each other', () => {
  const of = (spec: string) => {
    const { definition, options } = choosePolicy(spec)
    return definition.formats!({ ...DIMS, headDim: 64 }, options)
  }
  const codes = (bits: number) => ({
    kind: 'codes',
    keys: { bits, groups: { by: 'tier' } },
    values: { bits, groups: { by: 'token', size: 64 }, evened: true },
  })
  assert.deepEqual(of('zipcache'), [codes(2), codes(4)])
  assert.deepEqual(of('zipcache?hi=16&lo=4'), [codes(4)])
  assert.throws(() => choosePolicy('zipcache?lo=4'), /there is one tier/)
  assert.throws(() => choosePolicy('zipcache?buffer=100'), /zipcache: 'buffer' must be a multiple of 32.* got 100/)
  assert.throws(() => choosePolicy('zipcache?recent=0.7&random=0.5'), /more than 1 together/)
  assert.equal(choosePolicy('zipcache').definition.takesBudget, false)
})

test('with lo=0 the lower tier goes, prompt and answer: the score is one for eviction', () => {
  const spec = 'zipcache?lo=0&hi=16'
  const [n, salient] = [160, 0.6]
  const kept = prefill(spec, { n, budget: n, seed: 3 })
  const tiers = prefill('zipcache', { n, budget: n, seed: 3 })
  eachHead((layer, kvHead) => {
    const upper = rowsStoredIn(tiers, UPPER, layer, kvHead)
    assert.equal(upper.length, n - lowerOf(n, salient))
    assert.deepEqual([...kept.cache[layer]![kvHead]!], upper, `layer ${layer}, head ${kvHead}`)
  })
  const stored = prefill('zipcache?lo=0', { n, budget: n, seed: 3 })
  eachHead((layer, kvHead) => {
    assert.deepEqual([...stored.cache[layer]![kvHead]!], [...kept.cache[layer]![kvHead]!])
    assert.equal(rowsStoredIn(stored, 1, layer, kvHead).length, n - lowerOf(n, salient))
  })
  const chosen = choosePolicy(spec)
  let long: Held = kept
  for (let step = 0; step < 96; step++) long = answerStep(chosen, long, { budget: n, seed: 3 })
  eachHead((layer, kvHead) => {
    const positions = [...long.cache[layer]![kvHead]!]
    assert.equal(positions.length, n + 96 - lowerOf(n + 96, salient), 'the running share')
    assert.deepEqual(positions.slice(0, n - lowerOf(n, salient)), [...kept.cache[layer]![kvHead]!], 'what stayed stays')
  })
})
