import assert from 'node:assert/strict'
import { describe, it, test } from 'node:test'
import fc from 'fast-check'
import type { Calibration, ModelDims } from '../../contract/policy.ts'
import {
  append,
  attention,
  best,
  type Cache,
  carryOut,
  columnOf,
  DIMS,
  fullCache,
  mean,
  observe,
  observeDecode,
  poolMax,
  rows,
  stateOf,
  total,
} from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { headGroups } from '../parts/head-budgets.ts'
import { prefillInStages } from '../stages.fixture.ts'

const [n, budget, w, kernel] = [60, 24, 4, 3]
const group = DIMS.heads / DIMS.kvHeads
const SPEC = `uncomp?window=${w}&kernel=${kernel}`

/** Entropy falls by 1 at layers 1 and 2; the head that is high changes from layer to layer. */
function calibrationFor({ layers, kvHeads }: ModelDims): Calibration {
  return {
    policy: 'uncomp',
    layerEntropies: rows(0, layers).map((l) => 70 - Math.min(l, 2)),
    headVotes: rows(0, layers).map((l) => rows(0, kvHeads).map((h) => ((h + l) % kvHeads) / kvHeads)),
  }
}

interface Prompt {
  readonly dims?: ModelDims
  readonly n?: number
  readonly budget?: number
  readonly seed?: number
}

/** The cache behind a prompt that is read as a whole, and what is remembered of it. */
function prefillWhole(spec: string, { dims = DIMS, n: length = n, budget: b = budget, seed = 1 }: Prompt = {}) {
  const { definition, options } = choosePolicy(spec)
  const P = attention(dims, length, seed)
  const cache = fullCache(dims, length)
  const state = stateOf(dims, cache, b, { seed, calibration: calibrationFor(dims) })
  const plan = definition.afterPrefill(observe(P, dims, definition.observes(options)), state, options)
  return { P, cache: carryOut(cache, plan), memory: plan.memory }
}

const lengths = (cache: Cache) => cache.map((heads) => heads.map((p) => p.length))

describe('a prompt that is read as a whole', () => {
  it('keeps what the formula says, in float64: 4/3 and 2/3 of the budget by votes', () => {
    for (let seed = 1; seed <= 5; seed++) {
      const { P, cache } = prefillWhole(SPEC, { seed })
      for (const [layer, heads] of P.entries())
        for (let h = 0; h < DIMS.kvHeads; h++) {
          const s = rows(0, n - w).map((j) =>
            mean(rows(h * group, (h + 1) * group).map((q) => total(columnOf(heads[q]!, j, w)))),
          )
          // Votes are 0 and 1/2: head 1 is high in even layers, head 0 in odd ones.
          const most = (h + layer) % 2 === 1 ? 32 : 16
          assert.deepEqual([...cache[layer]![h]!], [...best(poolMax(s, kernel), most - w), ...rows(n - w, n)])
        }
    }
  })

  it('gives what a large head cannot use to the small one', () => {
    const { cache } = prefillWhole(SPEC, { n: 28 })
    assert.deepEqual(lengths(cache), [
      [20, 28],
      [28, 20],
      [20, 28],
    ])
  })

  it('takes the other half for the ablation, or chance, at the same bytes', () => {
    const plain = lengths(prefillWhole(SPEC).cache)
    const reversed = lengths(prefillWhole(`${SPEC}&grouping=reversed`).cache)
    assert.deepEqual(
      reversed,
      plain.map((heads) => heads.toReversed()),
    )
    const byChance = rows(1, 9).map((seed) => lengths(prefillWhole(`${SPEC}&grouping=random`, { seed }).cache))
    assert.ok(new Set(byChance.map(String)).size > 4, 'another seed, other groups')
    for (const layers of byChance) for (const heads of layers) assert.deepEqual(heads.toSorted(), [16, 32])
  })

  it('more groups lie on a line, as far as there are heads', () => {
    const dims = { layers: 1, heads: 5, kvHeads: 5, headDim: 8 }
    // Votes are 0, 1/5, ... 4/5; weights 2, 7/4, 3/2, 5/4, 1 from the last head on, mean 3/2.
    const { cache } = prefillWhole(`${SPEC}&groups=8`, { dims })
    assert.deepEqual(lengths(cache), [[16, 20, 24, 28, 32]])
    assert.deepEqual(headGroups([0.1, 0.9, 0.5, 0.7], 2), [1, 0, 1, 0])
    assert.deepEqual(headGroups([0.5, 0.5, 0.5], 2), [0, 0, 1], 'an odd head is in the first group')
  })

  it('has no groups with one KV head', () => {
    const { cache } = prefillWhole(SPEC, { dims: { ...DIMS, kvHeads: 1 } })
    assert.deepEqual(lengths(cache), [[24], [24], [24]])
  })
})

describe('a prompt that is read in stages', () => {
  const calibration = calibrationFor(DIMS)
  // Three groups: 60, 45 and 30 rows.
  const setting = { n, budget, contextLength: 60, calibration }
  const spec = `${SPEC}&least=0.5`

  it('goes on with the rows that the last layer of each stage looks at most, and the newest', () => {
    for (let seed = 1; seed <= 5; seed++) {
      const { stages } = prefillInStages(spec, { ...setting, seed })
      assert.deepEqual(
        stages.map(({ ran }) => ran.length),
        [60, 45, 30],
      )
      for (const [k, { ran, seen }] of stages.slice(0, -1).entries()) {
        const length = ran.length
        const { sum } = seen.window!.at(-1)!.statistics
        const s = rows(0, length - w).map((j) => total(rows(0, DIMS.heads).map((q) => sum![q * length + j]!)))
        const want = [...best(s, stages[k + 1]!.ran.length - w), ...rows(length - w, length)]
        assert.deepEqual(
          [...stages[k + 1]!.ran],
          want.map((j) => ran[j]),
        )
      }
    }
  })

  it('keeps in each layer what the formula says of the rows that it computed', () => {
    const { stages, cache } = prefillInStages(spec, setting)
    for (const { layers, ran, seen } of stages) {
      const length = ran.length
      const { sum } = seen.window![0]!.statistics
      for (let h = 0; h < DIMS.kvHeads; h++) {
        const s = rows(0, length - w).map((j) =>
          mean(rows(h * group, (h + 1) * group).map((q) => sum![q * length + j]!)),
        )
        // The third layer computes 30 rows: its large head has 30 of 32, and the small one 18 of 16.
        const most = Math.min(length, (h + layers.from) % 2 === 1 ? 32 : 16 + Math.max(0, 32 - length))
        const want = [...best(poolMax(s, kernel), most - w), ...rows(length - w, length)]
        assert.deepEqual(
          [...cache[layers.from]![h]!],
          want.map((j) => ran[j]),
        )
      }
    }
  })

  it('holds the budget exactly, or all that was computed: what deep layers do not have goes to others', () => {
    const settings = fc.record({
      layers: fc.integer({ min: 1, max: 5 }),
      kvHeads: fc.integer({ min: 1, max: 3 }),
      length: fc.integer({ min: 1, max: 40 }),
      budget: fc.integer({ min: 1, max: 44 }),
      least: fc.integer({ min: 0, max: 9 }),
      groups: fc.integer({ min: 2, max: 4 }),
      seed: fc.integer({ min: 1, max: 1000 }),
    })
    let cuts = 0
    fc.assert(
      fc.property(settings, ({ layers, kvHeads, length, budget, least, groups, seed }) => {
        const dims = { layers, kvHeads, heads: 2 * kvHeads, headDim: 8 }
        const more = { dims, n: length, budget, seed, calibration: calibrationFor(dims), contextLength: 40 }
        const { stages, cache } = prefillInStages(`${SPEC}&least=${least / 10}&groups=${groups}`, more)
        if (!stages.length) return
        const computed = total(stages.map(({ layers: { from, to }, ran }) => (to - from) * ran.length))
        assert.equal(total(lengths(cache).flat()), kvHeads * Math.min(budget * layers, computed))
        for (const { layers: passed, ran, cache: then } of stages) {
          if (budget * layers < computed) cuts++
          for (const positions of then.slice(0, passed.to).flat()) assert.equal(positions.at(-1), length - 1)
          assert.ok(ran.length >= Math.min(w, length))
        }
      }),
      { numRuns: 150 },
    )
    assert.ok(cuts > 50, `only ${cuts} stages were cut`)
  })

  it('is read as a whole if no group prunes; cut by pruning alone where the budget holds it', () => {
    assert.deepEqual(prefillInStages(spec, { ...setting, n: 30 }).stages, [])
    assert.deepEqual(prefillInStages(`${spec}&pruning=false`, setting).stages, [])
    assert.deepEqual(prefillInStages(`${spec}&least=1`.replace('&least=0.5', ''), setting).stages, [])
    const { stages, cache } = prefillInStages(spec, { ...setting, budget: 60 })
    for (const { layers, ran } of stages) for (const p of cache[layers.from]!) assert.deepEqual(p, ran)
  })

  it('one layer is one group', () => {
    const dims = { ...DIMS, layers: 1 }
    assert.deepEqual(prefillInStages(spec, { ...setting, dims, calibration: calibrationFor(dims) }).stages, [])
  })

  it('needs its calibration', () => {
    const { calibration: _, ...without } = setting
    assert.throws(() => prefillInStages(spec, without), /kvasir calibrate uncomp MODEL/)
  })
})

/** R of one head as the spec has it: w rows over all cached columns, 0 where a query came before a column. */
class Reference {
  R: number[][]
  constructor(R: number[][]) {
    this.R = R
  }
  /** A row and a column more, the oldest row goes. @returns what stays */
  step(newest: readonly number[]): number[] {
    const R = [...this.R.map((row) => [...row, 0]), [...newest]].slice(-w)
    const older = newest.length - w
    const s = rows(0, older).map((j) => total(R.map((row) => row[j]!)))
    const kept = [...best(poolMax(s, kernel), older - 1), ...rows(older, newest.length)]
    this.R = R.map((row) => kept.map((j) => row[j]!))
    return kept
  }
}

describe('in the answer', () => {
  const chosen = choosePolicy(SPEC)

  /** The answer's step at this cache; what was observed. */
  function step(cache: Cache, memory: unknown, position: number) {
    const grown = append(cache, position)
    const seen = observeDecode(DIMS, grown, position)
    const state = stateOf(DIMS, grown, budget, memory === undefined ? {} : { memory })
    const before = structuredClone(memory)
    const plan = chosen.definition.afterDecode!({ decode: seen.decode! }, state, chosen.options)
    assert.deepEqual(memory, before, 'a memory never changes')
    return { plan, grown, cache: carryOut(grown, plan), memory: plan.memory, seen: seen.decode! }
  }

  /** What the newest query gave each row of a head, mean over the group. */
  function newestRow(seen: ReturnType<typeof step>['seen'], layer: number, h: number): number[] {
    const { keys, statistics } = seen[layer]!
    const stride = Math.max(...keys)
    return rows(0, keys[h]!).map((j) =>
      mean(rows(h * group, (h + 1) * group).map((q) => statistics.sum![q * stride + j]!)),
    )
  }

  it('one row leaves each head, the one that the last w queries look at least', () => {
    const { P, cache: first, memory: begin } = prefillWhole(SPEC)
    const references = first.map((heads, layer) =>
      heads.map((positions, h) => {
        // Of the prompt's queries the mean is known.
        const row = [...positions].map((j) =>
          mean(rows(h * group, (h + 1) * group).map((q) => mean(columnOf(P[layer]![q]!, j, w)))),
        )
        return new Reference(rows(0, w).map(() => row))
      }),
    )
    let [cache, memory]: [Cache, unknown] = [first, begin]
    for (let t = 0; t < 3 * w; t++) {
      const next = step(cache, memory, n + t)
      assert.deepEqual(lengths(next.cache), lengths(first))
      for (const [layer, heads] of next.cache.entries())
        for (const [h, positions] of heads.entries()) {
          const want = references[layer]![h]!.step(newestRow(next.seen, layer, h))
          const grown = next.grown[layer]![h]!
          assert.deepEqual(
            [...positions],
            want.map((j) => grown[j]!),
            `row ${t}, layer ${layer}, head ${h}`,
          )
          assert.deepEqual(
            [...positions.slice(-w)],
            rows(0, w).map((i) => grown.at(i - w)!),
          )
        }
      ;[cache, memory] = [next.cache, next.memory]
    }
  })

  it('goes on from a prompt that was read in stages', () => {
    const setting = { n, budget, contextLength: 60, calibration: calibrationFor(DIMS) }
    const begin = prefillInStages(`${SPEC}&least=0.5`, setting)
    let [cache, memory] = [begin.cache, begin.memory]
    for (let t = 0; t < 6; t++) {
      const next = step(cache, memory, n + t)
      assert.deepEqual(lengths(next.cache), lengths(begin.cache))
      ;[cache, memory] = [next.cache, next.memory]
    }
  })

  it('looks on while everything fits, so that the first row to go has w judges', () => {
    let [cache, memory]: [Cache, unknown] = [fullCache(DIMS, budget - w + 1), undefined]
    const votes: number[][] = []
    for (let t = 0; t < w - 1; t++) {
      const next = step(cache, memory, budget - w + 1 + t)
      assert.equal(next.plan.kind, 'keep-all')
      votes.push(newestRow(next.seen, 0, 0))
      ;[cache, memory] = [next.cache, next.memory]
    }
    const { cache: cut, seen } = step(cache, memory, budget)
    const reference = new Reference(votes.map((row) => rows(0, budget).map((j) => row[j] ?? 0)))
    assert.deepEqual([...cut[0]![0]!], reference.step(newestRow(seen, 0, 0)))
  })
})

test('entropy says nothing without a calibration', () => {
  const { definition, options } = choosePolicy(SPEC)
  const seen = observe(attention(DIMS, n, 1), DIMS, definition.observes(options))
  assert.throws(
    () => definition.afterPrefill(seen, stateOf(DIMS, fullCache(DIMS, n), budget), options),
    /calibrate uncomp/,
  )
})
