import assert from 'node:assert/strict'
import { describe, it, test } from 'node:test'
import fc from 'fast-check'
import { type Cache, fullCache, mean, rows, total } from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { answerStep, type Held, keptBy, prefill, stateFor } from '../run.fixture.ts'

const dimsOf = (layers: number, kvHeads = 1) => ({ layers, heads: kvHeads, kvHeads, headDim: 8 })

/** A text that is read row by row. */
function stream(spec: string, layers: number, budget: number, length: number, each?: (cache: Cache) => void): Held {
  const chosen = choosePolicy(spec)
  let held: Held = { cache: fullCache(dimsOf(layers), 1) }
  for (let seen = 2; seen <= length; seen++) {
    held = answerStep(chosen, held, { dims: dimsOf(layers), budget })
    each?.(held.cache)
  }
  return held
}

const layersOf = (cache: Cache): number[][] => cache.map(([head]) => [...head!])
const union = (cache: Cache): number => new Set(layersOf(cache).flat()).size
const everywhere = (cache: Cache): number => {
  const [first, ...others] = layersOf(cache).map((l) => new Set(l))
  return [...first!].filter((row) => others.every((l) => l.has(row))).length
}

describe("the spec's simulations, 1024 rows one by one", () => {
  const CASES = [
    { layers: 32, options: 'span=16', budget: 256, lengths: [256, 256], union: 368, all: 144, compactions: 768 },
    {
      layers: 32,
      options: 'span=8&overlap=4',
      budget: 256,
      lengths: [254, 258],
      union: 628,
      all: 168,
      compactions: 154,
    },
    { layers: 8, options: 'span=4', budget: 64, lengths: [64, 64], union: 92, all: 36, compactions: 960 },
    { layers: 8, options: 'span=2', budget: 64, lengths: [63, 65], union: 205, all: 17, compactions: 320 },
    { layers: 8, options: 'span=4&overlap=2', budget: 64, lengths: [64, 64], union: 101, all: 27, compactions: 960 },
  ]
  for (const { layers, options, budget, lengths, union: survivors, all, compactions } of CASES)
    it(`${layers} layers, ${options}, ${budget} rows`, () => {
      const seen: number[] = []
      const { cache } = stream(`lacache?${options}`, layers, budget, 1024, ([layer]) => seen.push(layer![0]!.length))
      assert.deepEqual([union(cache), everywhere(cache)], [survivors, all])
      // A row came, and there are no more than before: some went.
      assert.equal(seen.filter((n, i) => n <= (seen[i - 1] ?? 0)).length, compactions)
      const settled = seen.slice(-768)
      assert.deepEqual([Math.min(...settled), Math.max(...settled)], lengths)
      assert.ok(Math.abs(mean(settled) - budget) < 0.01, String(mean(settled)))
    })
})

describe("the spec's prompts, read as a whole", () => {
  it('32 layers, half of 1024 rows: each lives on somewhere', () => {
    const { cache } = prefill('lacache?span=14&sinks=64', { dims: dimsOf(32), n: 1024, budget: 512 })
    assert.deepEqual([new Set(cache.map(([l]) => l!.length)), union(cache)], [new Set([512]), 1024])
  })

  it('8 layers, a quarter of 512 rows: starts over with stretched ladders', () => {
    const { cache } = prefill('lacache?sinks=16', { dims: dimsOf(8), n: 512, budget: 128 })
    assert.deepEqual([new Set(cache.map(([l]) => l!.length)), union(cache)], [new Set([126]), 408])
  })
})

test('a ladder by hand: 4 layers, span 2, twelve rows in the room of eleven', () => {
  // B = 2, A = 1, R = 1: of rows 4 and 5 layers keep one by turns.
  assert.deepEqual(
    keptBy('lacache?span=2', { dims: dimsOf(4), n: 12, budget: 11 }).map(([l]) => l!.filter((row) => row < 8)),
    [
      [0, 1, 2, 3, 4, 6, 7],
      [0, 1, 2, 3, 5, 6, 7],
      [0, 1, 2, 3, 4, 6, 7],
      [0, 1, 2, 3, 5, 6, 7],
    ],
  )
  const lost = (pattern: string) =>
    keptBy(`lacache?span=2&pattern=${pattern}`, { dims: dimsOf(4), n: 12, budget: 11 }).map(
      ([l]) => rows(0, 12).find((row) => !l!.includes(row))!,
    )
  assert.deepEqual(lost('modulo'), [5, 4, 5, 4])
  assert.deepEqual(lost('contiguous'), [5, 5, 4, 4])
  assert.deepEqual(lost('strided'), [5, 5, 5, 5])
})

const shape = fc
  .record({
    layers: fc.integer({ min: 2, max: 12 }),
    span: fc.integer({ min: 1, max: 6 }),
    overlap: fc.integer({ min: 0, max: 5 }),
    sinks: fc.integer({ min: 0, max: 9 }),
    more: fc.integer({ min: 0, max: 40 }),
    n: fc.integer({ min: 1, max: 700 }),
    pattern: fc.constantFrom('modulo', 'contiguous', 'strided'),
  })
  .filter(({ layers, span, overlap }) => overlap < span && span <= layers / 2)

test('whatever the sizes: layers of equal length, in order, with sinks and the newest rows, no more than C', () => {
  fc.assert(
    fc.property(shape, ({ layers, span, overlap, sinks, more, n, pattern }) => {
      const B = 1 + Math.ceil((layers - span) / (span - overlap))
      const R = B - Math.ceil(span / (span - overlap))
      const budget = sinks + layers + B + more
      const C = budget + Math.floor(R / 2)
      const spec = `lacache?span=${span}&overlap=${overlap}&sinks=${sinks}&pattern=${pattern}`
      let held: Held = prefill(spec, { dims: dimsOf(layers), n, budget })
      for (let step = 0; step <= 12; step++) {
        const lists = layersOf(held.cache)
        for (const list of lists) {
          assert.equal(list.length, lists[0]!.length)
          assert.ok(list.length <= C && list.length <= n + step)
          assert.ok(
            list.every((row, j) => row >= 0 && row < n + step && (j === 0 || row > list[j - 1]!)),
            String(list),
          )
          assert.deepEqual(list.slice(0, sinks), rows(0, Math.min(sinks, n + step)))
          const recent = Math.min(layers - R + 1, n + step)
          assert.deepEqual(list.slice(-recent), rows(n + step - recent, n + step))
        }
        held = answerStep(choosePolicy(spec), held, { dims: dimsOf(layers), budget })
      }
    }),
    { numRuns: 300 },
  )
})

test('goes on for 100,000 rows, in constant room', () => {
  const most = { rows: 0 }
  stream('lacache?span=2', 4, 24, 100_000, ([layer]) => {
    most.rows = Math.max(most.rows, layer![0]!.length)
  })
  assert.equal(most.rows, 24)
})

test('rows stand side by side unless asked otherwise; then it has no end', () => {
  const planOf = (spec: string) => {
    const chosen = choosePolicy(spec)
    const setting = { dims: dimsOf(4), n: 40, budget: 20 }
    const held = { cache: fullCache(setting.dims, 40) }
    const plan = chosen.definition.afterPrefill({}, stateFor(chosen, held, setting), chosen.options)
    return [plan.kind === 'keep' && plan.placement, chosen.definition.isEndless!(chosen.options)]
  }
  assert.deepEqual(planOf('lacache'), ['slots', true])
  assert.deepEqual(planOf('lacache?positions=kept'), [undefined, false])
})

test('a streamed prompt never takes more than the budget and a chunk, and row by row it is what an answer would be', () => {
  const setting = { dims: dimsOf(8), n: 300, budget: 40 }
  const held: number[] = []
  prefill('lacache?prefill=stream', setting, ([layer]) => held.push(layer![0]!.length))
  assert.equal(held.length, 30)
  assert.equal(Math.max(...held), 50)
  const oneByOne = prefill('lacache?prefill=stream&chunk=1', setting)
  assert.deepEqual(oneByOne.cache, stream('lacache', 8, 40, 300).cache)
  assert.notDeepEqual(prefill('lacache', setting).cache, oneByOne.cache)
})

test('all heads of a layer keep the same rows', () => {
  for (const [first, ...others] of prefill('lacache', { dims: dimsOf(4, 3), n: 60, budget: 24 }).cache)
    for (const head of others) assert.deepEqual(head, first)
})

test('says before the prompt is computed what it cannot do, and what to change', () => {
  const ask = (spec: string, layers: number, budget: number) => {
    const { definition, options } = choosePolicy(spec)
    return definition.chunkRows!({ model: dimsOf(layers), rows: 100, budget, contextLength: 1000 }, options)
  }
  const wrong: readonly [string, number, number, RegExp][] = [
    ['lacache?span=8', 8, 64, /span 8 .* every row\. Take a span of at most 4/],
    ['lacache?span=5&overlap=2', 8, 64, /span of at most 4, or less overlap/],
    ['lacache?overlap=4', 8, 64, /'overlap' 4 must be less than 'span', which is 4 in a model of 8 layers/],
    ['lacache', 1, 64, /2 layers or more/],
    ['lacache', 8, 13, /budget of 13 rows is too small: 4 sinks, the last 8 rows and a ladder of 2 take 14\. Raise/],
  ]
  for (const [spec, layers, budget, message] of wrong)
    assert.throws(() => ask(spec, layers, budget), { code: 'INVALID_ARGUMENT', message })
  assert.equal(ask('lacache', 8, 14), null)
  assert.throws(() => choosePolicy('lacache?span=4&overlap=4'), /'overlap' 4 must be less than 'span' 4/)
  assert.equal(total(keptBy('lacache', { dims: dimsOf(8), n: 100, budget: 14 }).map(([l]) => l!.length)), 8 * 14)
})
