import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, it, test } from 'node:test'
import fc from 'fast-check'
import type { HeadRows, Observation } from '../../contract/observation.ts'
import { type CompressionPlan, type ModelDims, type PolicyState, SHARED } from '../../contract/policy.ts'
import { LocalEngine } from '../../engine/local.ts'
import { mean, randoms, rows, total } from '../attention.fixture.ts'
import { definePolicy, registerPolicy } from '../index.ts'
import { readOptions } from '../options.ts'
import { type AdjacentCosines, adjacentCosines } from '../parts/directions.ts'
import { minicache } from './minicache.ts'

type Given = Parameters<typeof readOptions<typeof minicache.options>>[1]
const optionsOf = (given: Given = {}) => readOptions(minicache, given)

/** Two pairs from layer 3 on, and one left over: 5 to 9 layers have S = floor(Lyr / 2). */
const MODEL: ModelDims = { layers: 7, heads: 4, kvHeads: 2, headDim: 8 }

/** Keys and values of all rows that will ever be, `[layer][kvHead]`, f32 [d, n]. */
type Rows = readonly (readonly HeadRows[])[]

function byChance({ layers, kvHeads, headDim }: ModelDims, n: number, seed: number): Rows {
  const next = randoms(seed)
  // Each row of each layer lies more or less off what all layers have in common.
  const common = () => Float32Array.from({ length: headDim * n }, () => 2 * next() - 1)
  const off = (x: Float32Array) => {
    const far = Array.from({ length: n }, () => 2 * next() ** 3)
    return x.map((v, at) => v + far[Math.floor(at / headDim)]! * (2 * next() - 1))
  }
  const heads = Array.from({ length: kvHeads }, () => ({ keys: common(), values: common() }))
  return Array.from({ length: layers }, () => heads.map((h) => ({ keys: off(h.keys), values: off(h.values) })))
}

const mapRows = (all: Rows, f: (x: Float32Array, layer: number, head: number) => Float32Array): Rows =>
  all.map((heads, l) => heads.map(({ keys, values }, h) => ({ keys: f(keys, l, h), values: f(values, l, h) })))

/** A policy at work on one sequence, as the engine runs it: rows come, plans are checked and carried out. */
class Sequence {
  readonly all: Rows
  readonly #model: ModelDims
  readonly #o: ReturnType<typeof optionsOf>
  readonly #seed: number
  n = 0
  memory: unknown
  /** `[layer][kvHead]`, of all rows that will ever be. */
  readonly formats: Uint8Array[][]
  /** Layers that were shared, as `lower,upper`. */
  readonly pairs = new Set<string>()
  /** Heads of layers that the last plan read. */
  reads = 0

  constructor(all: Rows, given: Given = {}, model: ModelDims = MODEL, seed = 1) {
    this.all = all
    this.#model = model
    this.#o = optionsOf(given)
    this.#seed = seed
    const most = all[0]![0]!.keys.length / model.headDim
    this.formats = all.map((heads) => heads.map(() => new Uint8Array(most)))
  }

  prefill(n: number): CompressionPlan {
    this.n = n
    return this.#plan('afterPrefill')
  }

  answer(): CompressionPlan {
    this.n++
    return this.#plan('afterDecode')
  }

  /** Rows of a head that are shared. */
  shared(layer: number, head: number): number[] {
    return rows(0, this.n).filter((row) => this.formats[layer]![head]![row] === SHARED)
  }

  #plan(when: 'afterPrefill' | 'afterDecode'): CompressionPlan {
    const positions = Int32Array.from({ length: this.n }, (_, i) => i)
    const state: PolicyState = {
      ...{ model: this.#model, seen: this.n, budget: this.n, seed: this.#seed, positions: () => positions },
      formats: (l, h) => this.formats[l]![h]!.subarray(0, this.n),
      ...(this.memory === undefined ? {} : { memory: this.memory }),
    }
    const until = this.n * this.#model.headDim
    this.reads = 0
    const seen: Observation = {
      rows: (l, h) => {
        this.reads++
        const { keys, values } = this.all[l]![h]!
        return { keys: keys.slice(0, until), values: values.slice(0, until) }
      },
    }
    const before = structuredClone(this.memory)
    const plan = minicache[when]!(seen, state, this.#o)
    assert.deepEqual(this.memory, before, 'a memory never changes')
    assert.deepEqual(minicache[when]!(seen, state, this.#o), plan, 'same input, same plan')
    this.reads /= 2
    this.#carryOut(plan)
    return plan
  }

  #carryOut(plan: CompressionPlan): void {
    if ('memory' in plan) this.memory = plan.memory
    if (plan.kind === 'keep-all') return
    for (const list of plan.rows.flat()) assert.deepEqual([...list], rows(0, this.n), 'nothing is dropped')
    assert.equal(new Set(plan.rows.flat()).size, 1, 'one list for all')
    assert.notEqual(plan.shared!.length, 0)
    for (const { lower, upper, lowerRows, upperRows, t } of plan.shared!) {
      assert.ok(lower < upper, `layers ${lower} and ${upper}`)
      assert.equal(t, this.#o.t)
      this.pairs.add(`${lower},${upper}`)
      assert.deepEqual([lowerRows.length, upperRows.length], [this.#model.kvHeads, this.#model.kvHeads])
      assert.deepEqual(lowerRows, upperRows, 'the same rows in both layers')
      for (const [layer, lists] of [
        [lower, lowerRows],
        [upper, upperRows],
      ] as const)
        for (const [h, list] of lists.entries()) {
          assert.equal(list.length % 32, 0, 'whole blocks')
          for (const [k, row] of list.entries()) {
            assert.ok(row < this.n && row > (k === 0 ? 0 : list[k - 1]!), `ascending, not the first: ${list}`)
            assert.notEqual(this.formats[layer]![h]![row], SHARED, `row ${row} is shared twice`)
            this.formats[layer]![h]![row] = SHARED
          }
        }
    }
  }
}

/** O / pi of one row, by the definition. */
function distance(a: Float32Array, b: Float32Array, row: number, d: number): number {
  const [x, y] = [a, b].map((m) => [...m.subarray(row * d, row * d + d)]) as [number[], number[]]
  const dot = (u: number[], v: number[]) => total(u.map((ui, i) => ui * v[i]!))
  return Math.acos(Math.max(-1, Math.min(1, dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y))))) / Math.PI
}

/** Which of rows 1 to n - 1 the formula retains; `limit` at most, the most extreme first. The long way round. */
function formula(d: readonly number[], retain: string, gamma: number, limit: number): number[] {
  const [least, most] = [Math.min(...d.slice(1)), Math.max(...d.slice(1))]
  const isIn = (x: number) =>
    retain === 'distinct'
      ? x > most - (most - least) * gamma
      : retain === 'printed' && x < least + (most - least) * gamma
  return rows(1, d.length)
    .filter((row) => isIn(d[row]!))
    .sort((a, b) => (retain === 'distinct' ? d[b]! - d[a]! : d[a]! - d[b]!))
    .slice(0, limit)
}

describe('which layers', () => {
  const pairsOf = (given: Given, all: Rows, model = MODEL, seed = 1) => {
    const s = new Sequence(all, given, model, seed)
    s.prefill(40)
    return [...s.pairs]
  }
  const deep = (layers: number): ModelDims => ({ ...MODEL, layers })
  const adjacent = (layers: number, given: Given = {}) => pairsOf(given, byChance(deep(layers), 40, 1), deep(layers))

  it('neighbours from the middle on; an odd last one stays alone', () => {
    assert.deepEqual(adjacent(8), ['4,5', '6,7'])
    assert.deepEqual(adjacent(7), ['3,4', '5,6'])
    assert.deepEqual(adjacent(6), ['3,4'])
    assert.deepEqual(adjacent(8, { start: 0 }), ['0,1', '2,3', '4,5', '6,7'])
    assert.deepEqual(adjacent(8, { start: 0.75 }), ['6,7'])
  })

  it('none: the cache stays what it is, and nothing is read', () => {
    for (const [layers, start] of [
      [8, 1],
      [1, 0],
      [2, 0.5],
    ] as const)
      for (const pairs of ['adjacent', 'similar', 'lower', 'random']) {
        const s = new Sequence(byChance(deep(layers), 150, 1), { start, pairs }, deep(layers))
        assert.equal(s.prefill(100).kind, 'keep-all')
        assert.equal(s.reads, 0)
        for (let step = 0; step < 40; step++) assert.equal(s.answer().kind, 'keep-all')
      }
  })

  it('for comparison as many of the first layers', () => {
    assert.deepEqual(adjacent(8, { pairs: 'lower' }), ['0,1', '2,3'])
  })

  it('for comparison as many by chance: each layer once, another choice by another seed', () => {
    const all = byChance(deep(8), 40, 1)
    const seeds = rows(1, 21).map((seed) => pairsOf({ pairs: 'random' }, all, deep(8), seed))
    for (const pairs of seeds) assert.equal(new Set(pairs.flatMap((p) => p.split(','))).size, 4)
    assert.ok(new Set(seeds.map(String)).size > 10, String(seeds))
    assert.deepEqual(pairsOf({ pairs: 'random' }, all, deep(8), 3), seeds[2])
  })

  it('similar: as many of the most alike, wherever they are; all find room', () => {
    const all = byChance(deep(8), 40, 1)
    const copy = (list: readonly (readonly [from: number, to: number])[]) =>
      all.map((heads, l) => all[list.find(([, to]) => to === l)?.[0] ?? -1] ?? heads)
    const similar = (rowsOf: Rows, start = 0.5) => pairsOf({ pairs: 'similar', start }, rowsOf, deep(8))
    assert.deepEqual(
      similar(
        copy([
          [1, 2],
          [4, 5],
        ]),
      ),
      ['1,2', '4,5'],
    )
    // With all layers in pairs there is one way only, however alike others are.
    assert.deepEqual(similar(copy([[1, 2]]), 0), ['0,1', '2,3', '4,5', '6,7'])
    // Three pairs of eight layers: 1, 2 leave layer 0 alone.
    assert.equal(similar(copy([[1, 2]]), 0.25)[0], '1,2')
    // Of three alike in a row two are a pair.
    const three = similar(
      copy([
        [3, 4],
        [3, 5],
      ]),
    )
    assert.deepEqual([three.includes('3,4'), three.includes('4,5')], [true, false])
  })
})

describe('which rows', () => {
  const [n, lower, upper] = [150, 3, 4] as const
  const d = MODEL.headDim
  const all = byChance(MODEL, n, 5)
  const distances = (head: number) => {
    const [a, b] = [all[lower]![head]!, all[upper]![head]!]
    const of = (name: 'keys' | 'values') => rows(0, n).map((row) => distance(a[name], b[name], row, d))
    return { keys: of('keys'), values: of('values') }
  }
  const unshared = (given: Given, head: number) => {
    const s = new Sequence(all, given)
    s.prefill(n)
    const shared = new Set(s.shared(lower, head))
    return rows(0, n).filter((row) => !shared.has(row))
  }

  it("retained are the formula's, of keys or values, and what is over of the others, most distinct first", () => {
    for (const retain of ['distinct', 'printed', 'none'])
      for (const gamma of [0, 0.05, 0.4])
        for (const cap of [0, 0.05, 1])
          for (const head of [0, 1]) {
            const { keys, values } = distances(head)
            const limit = Math.floor(cap * n)
            const retained = new Set([...formula(keys, retain, gamma, limit), ...formula(values, retain, gamma, limit)])
            const place = (list: number[], row: number) => {
              const [least, ...rest] = list.slice(1).toSorted((a, b) => a - b) as [number, ...number[]]
              return (list[row]! - least) / (rest.at(-1)! - least)
            }
            const open = rows(1, n)
              .filter((row) => !retained.has(row))
              .sort((a, b) => {
                const [pa, pb] = [a, b].map((row) => Math.max(place(keys, row), place(values, row)))
                return pb! - pa!
              })
            const over = open.slice(0, open.length % 32)
            const want = [0, ...retained, ...over].sort((a, b) => a - b)
            assert.deepEqual(unshared({ retain, gamma, cap }, head), want, `${retain} ${gamma} ${cap} ${head}`)
          }
  })

  it('distinct and printed retain the two ends', () => {
    const { keys } = distances(0)
    const meanOf = (retain: string) => mean(formula(keys, retain, 0.3, n).map((row) => keys[row]!))
    assert.ok(meanOf('distinct') > meanOf('printed') + 0.1, `${meanOf('distinct')} ${meanOf('printed')}`)
    assert.notDeepEqual(
      unshared({ retain: 'distinct', gamma: 0.4, cap: 1 }, 0),
      unshared({ retain: 'printed', gamma: 0.4, cap: 1 }, 0),
    )
  })

  it('gamma = 1 without a cap retains all, also where all are alike, in the answer too', () => {
    const same = all.map((heads, l) => (l === 4 || l === 6 ? all[l - 1]! : heads))
    for (const rowsOf of [all, same]) {
      const s = new Sequence(rowsOf, { gamma: 1, cap: 1 })
      assert.equal(s.prefill(50).kind, 'keep-all')
      while (s.n < n) assert.equal(s.answer().kind, 'keep-all')
    }
  })

  it('a rotation of both layers changes nothing', () => {
    const rotated = mapRows(all, (x) => {
      const out = x.slice()
      for (let at = 0; at < x.length; at += 2) {
        const theta = Math.floor(at / d) * 10 ** -((at % d) / 2)
        out[at] = x[at]! * Math.cos(theta) - x[at + 1]! * Math.sin(theta)
        out[at + 1] = x[at]! * Math.sin(theta) + x[at + 1]! * Math.cos(theta)
      }
      return out
    })
    const [plain, turned] = [new Sequence(all), new Sequence(rotated)]
    plain.prefill(n)
    turned.prefill(n)
    assert.deepEqual(turned.formats, plain.formats)
  })

  it('neither do lengths', () => {
    const next = randoms(6)
    const scales = rows(0, n).map(() => 2 ** Math.floor(8 * next() - 4))
    const [plain, scaled] = [all, mapRows(all, (x) => x.map((v, at) => v * scales[Math.floor(at / d)]!))].map((r) => {
      const s = new Sequence(r)
      s.prefill(n)
      return s.formats
    })
    assert.deepEqual(scaled, plain)
  })

  it('a block and the first row are the least', () => {
    for (const size of [1, 2, 31, 32]) {
      const s = new Sequence(all)
      assert.deepEqual(s.prefill(size), { kind: 'keep-all' })
      assert.equal(s.reads, 0)
    }
    const s = new Sequence(all, { retain: 'none' })
    assert.equal(s.prefill(33).kind, 'keep')
    assert.deepEqual(s.shared(lower, 0), rows(1, 33))
  })

  it('the first row is no part of the range', () => {
    // Opposite in the upper layer: the most distinct by far.
    const opposite = mapRows(all, (x, l) =>
      l === upper ? x.map((v, at) => (at < d ? -all[lower]![0]!.keys[at]! : v)) : x,
    )
    const [s, other] = [new Sequence(all), new Sequence(opposite)]
    s.prefill(n)
    other.prefill(n)
    assert.deepEqual(other.formats, s.formats)
  })
})

describe('in the answer', () => {
  it('without retention blocks of 32 are shared as they fill up, and nothing is read between', () => {
    const s = new Sequence(byChance(MODEL, 200, 3), { retain: 'none' })
    s.prefill(60) // 59 beside the first: 32 are shared, 27 wait
    assert.equal(s.shared(3, 0).length, 32)
    const at: number[] = []
    while (s.n < 200) {
      if (s.answer().kind === 'keep') at.push(s.n)
      // Two layers of two pairs and two heads.
      assert.equal(s.reads, at.at(-1) === s.n ? 8 : 0)
    }
    assert.deepEqual(at, [65, 97, 129, 161, 193])
    for (const layer of [3, 4, 5, 6]) assert.equal(s.shared(layer, 1).length, 32 + 5 * 32)
    assert.deepEqual(s.shared(2, 0), [])
  })

  it('a longer buffer waits longer', () => {
    const s = new Sequence(byChance(MODEL, 200, 3), { retain: 'none', buffer: 64 })
    s.prefill(60)
    const at: number[] = []
    while (s.n < 200) if (s.answer().kind === 'keep') at.push(s.n)
    assert.deepEqual(at, [97, 161])
    assert.throws(() => optionsOf({ buffer: 48 }), /'buffer' 48 must be a multiple of 32/)
  })

  it('heads are due each in its time, and only they are read', () => {
    const s = new Sequence(byChance(MODEL, 400, 8), { gamma: 0.5, cap: 0.5 })
    s.prefill(100)
    const reads = new Set<number>()
    while (s.n < 400) {
      s.answer()
      reads.add(s.reads)
    }
    assert.ok(reads.has(0) && reads.has(2), String([...reads]))
  })

  it('a short prompt is measured when there are rows enough', () => {
    const s = new Sequence(byChance(MODEL, 60, 4), { retain: 'none' })
    s.prefill(10)
    while (s.n < 32) assert.deepEqual(s.answer(), { kind: 'keep-all' })
    assert.equal(s.answer().kind, 'keep')
    assert.deepEqual(s.shared(5, 1), rows(1, 33))
  })

  it('thresholds are those of the prompt', () => {
    const { headDim: d } = MODEL
    const [first, total] = [33 + 64, 33 + 64 + 64] as const
    // 33 + 64 rows at one angle or the other, then half of the rows further apart than any before, half in between.
    const theta = (row: number) => (row < first ? (row % 2 ? 0.2 : 0.6) : row % 2 ? 1.2 : 0.4)
    const all: Rows = Array.from({ length: 2 }, (_, l) => {
      const x = Float32Array.from({ length: d * total }, (_, at) => {
        const angle = l * theta(Math.floor(at / d))
        return at % d === 0 ? Math.cos(angle) : at % d === 1 ? Math.sin(angle) : 0
      })
      return [{ keys: x, values: x }]
    })
    const model = { layers: 2, heads: 1, kvHeads: 1, headDim: d }
    const s = new Sequence(all, { start: 0, cap: 1 }, model)
    // Of 96 rows beside the first 48 are retained: those at 0.6. Of 48 others 32 are shared.
    s.prefill(first)
    const before = s.shared(0, 0)
    assert.equal(before.length, 32)
    for (const row of before) assert.equal(theta(row), 0.2, `row ${row}`)
    while (s.n < total) s.answer()
    const shared = s.shared(0, 0).filter((row) => row >= first)
    assert.notEqual(shared.length, 0)
    for (const row of shared) assert.equal(theta(row), 0.4, `row ${row}`)
  })
})

test('whatever the options: rows wait for less than a buffer, and what is retained keeps to the cap', () => {
  const setting = fc.record({
    layers: fc.integer({ min: 1, max: 6 }),
    kvHeads: fc.integer({ min: 1, max: 3 }),
    n: fc.integer({ min: 1, max: 150 }),
    steps: fc.integer({ min: 0, max: 90 }),
    seed: fc.integer({ min: 1, max: 999 }),
  })
  const given = fc.record({
    start: fc.constantFrom(0, 0.3, 0.5, 1),
    gamma: fc.constantFrom(0, 0.05, 0.5, 1),
    retain: fc.constantFrom('distinct', 'printed', 'none'),
    cap: fc.constantFrom(0, 0.05, 0.3),
    pairs: fc.constantFrom('adjacent', 'similar', 'lower', 'random'),
    buffer: fc.constantFrom(32, 64),
  })
  fc.assert(
    fc.property(setting, given, ({ layers, kvHeads, n, steps, seed }, o) => {
      const model = { layers, heads: kvHeads, kvHeads, headDim: 4 }
      const s = new Sequence(byChance(model, n + steps, seed), o, model, seed)
      s.prefill(n)
      for (let step = 0; step < steps; step++) s.answer()
      const count = Math.floor((layers - Math.floor(o.start * layers)) / 2)
      assert.ok(s.pairs.size <= count, `${s.pairs.size} pairs`)
      for (const pair of s.pairs)
        for (const layer of pair.split(',').map(Number))
          for (let h = 0; h < kvHeads; h++) {
            const retained = 2 * Math.floor(o.cap * s.n)
            const shared = s.shared(layer, h).length
            assert.ok(s.n - 1 - shared < retained + o.buffer, `${shared} of ${s.n} rows`)
          }
      if (s.n < 33) assert.equal(s.pairs.size, 0)
      if (s.n - 1 - 2 * Math.floor(o.cap * s.n) >= o.buffer) assert.equal(s.pairs.size, count)
    }),
    { numRuns: 60 },
  )
})

test('neighbouring layers of the house model are not alike, as the page of the policy says', async () => {
  await using engine = await LocalEngine.load('house', { contextLength: 2048, threads: 1 })
  let cosines: AdjacentCosines | undefined
  registerPolicy(
    definePolicy({
      ...{ name: 'measures-layers', family: 'merging', summary: '', paper: null, options: {}, takesBudget: false },
      observes: () => ({ rows: true }),
      afterPrefill(seen, { model }) {
        cosines = adjacentCosines(seen.rows!, model)
        return { kind: 'keep-all' }
      },
    }),
  )
  const prompt = readFileSync(new URL('../../../README.md', import.meta.url), 'utf8').slice(0, 2500)
  for await (const _ of engine.generate({ prompt, policy: 'measures-layers', maxTokens: 1 }));
  for (const [what, means] of Object.entries(cosines!))
    for (const [l, mean] of means.entries())
      assert.ok(Math.abs(mean) < 0.15, `${what} of layers ${l} and ${l + 1}: mean cosine ${mean}`)
})
