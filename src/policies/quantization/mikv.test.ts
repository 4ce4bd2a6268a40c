import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Observation } from '../../contract/observation.ts'
import type { CompressionPlan, ModelDims } from '../../contract/policy.ts'
import {
  type Attention,
  append,
  attention,
  best,
  columnOf,
  DIMS,
  fullCache,
  mean,
  observe,
  observeDecode,
  randoms,
  rows,
  total,
} from '../attention.fixture.ts'
import { choosePolicy } from '../index.ts'
import { answerPlan, answerStep, type Held, heldAfter, prefill, rowsStoredIn, stateFor } from '../run.fixture.ts'

const group = DIMS.heads / DIMS.kvHeads
/** hi=8 needs whole blocks of q8_0. */
const WIDE: ModelDims = { ...DIMS, headDim: 32 }

const blocks = (count: number) => 32 * Math.floor(count / 32)
/** Rows of the upper tier, and how many of them are the newest. */
function upperOf(seen: number, ratio: number): [number, number] {
  const upper = ratio === 0 ? 0 : Math.max(2, Math.floor(ratio * seen + 1e-9))
  return [upper, Math.floor(upper / 2)]
}

/** What rows got from the last w queries, in float64, query heads of a group averaged. */
const sumsOf = (P: Attention, layer: number, kvHead: number, n: number, w = n): number[] =>
  rows(0, n).map((j) =>
    mean(rows(kvHead * group, (kvHead + 1) * group).map((h) => total(columnOf(P[layer]![h]!, j, w)))),
  )

/** Of rows with these scores, the `count` worst. */
const worst = (list: readonly number[], scores: readonly number[], count: number): number[] => {
  const top = best(
    list.map((j) => scores[j]!),
    list.length - count,
  )
  return list.filter((_, i) => !top.includes(i))
}

const eachHead = (f: (layer: number, kvHead: number) => void) => {
  for (const layer of rows(0, DIMS.layers)) for (const kvHead of rows(0, DIMS.kvHeads)) f(layer, kvHead)
}

test('of the prompt those that H2O would drop go down, in whole blocks', () => {
  for (const [n, ratio] of [
    [200, 0.2],
    [150, 0.5],
    [97, 0.05],
    [100, 0],
  ] as const)
    for (const seed of [1, 2, 3]) {
      const held = prefill(`mikv?ratio=${ratio}`, { n, budget: n, seed })
      const [upper, recent] = upperOf(n, ratio)
      eachHead((layer, kvHead) => {
        const want = worst(rows(0, n - recent), sumsOf(held.P, layer, kvHead, n), blocks(n - upper))
        assert.deepEqual(rowsStoredIn(held, 1, layer, kvHead), want, `seed ${seed}, layer ${layer}, head ${kvHead}`)
      })
    }
})

test('sums by how many queries saw a row, sums of the last ones, and chance', () => {
  const [n, seed] = [160, 4]
  const [upper, recent] = upperOf(n, 0.2)
  const scores: Record<string, (P: Attention, layer: number, kvHead: number) => number[]> = {
    'perQuery=true': (P, l, h) => sumsOf(P, l, h, n).map((s, j) => s / (n - j)),
    'scores=window&window=20': (P, l, h) => sumsOf(P, l, h, n, 20),
    'scores=window&window=20&perQuery=true': (P, l, h) => sumsOf(P, l, h, n, 20).map((s, j) => s / Math.min(20, n - j)),
  }
  for (const [option, of] of Object.entries(scores)) {
    const held = prefill(`mikv?${option}`, { n, budget: n, seed })
    eachHead((layer, kvHead) => {
      const want = worst(rows(0, n - recent), of(held.P, layer, kvHead), blocks(n - upper))
      assert.deepEqual(rowsStoredIn(held, 1, layer, kvHead), want, option)
    })
  }
  const byChance = (seed: number) => rowsStoredIn(prefill('mikv?scores=random', { n, budget: n, seed }), 1, 1, 1)
  assert.deepEqual(byChance(4), byChance(4))
  assert.notDeepEqual(byChance(4), byChance(5))
})

test('with ratio 1 and 16 bits nothing is stored, nor dropped', () => {
  for (const lo of ['2', '0']) {
    const mikv = choosePolicy(`mikv?ratio=1&lo=${lo}`)
    let held: Held = prefill(mikv.text, { n: 100, budget: 100 })
    for (let step = 1; step <= 80; step++) held = answerStep(mikv, held, { budget: 100 })
    eachHead((layer, kvHead) => assert.deepEqual(rowsStoredIn(held, 0, layer, kvHead), rows(0, 180)))
  }
})

test('without a lower tier it keeps what H2O keeps in as many rows', () => {
  for (const n of [100, 137])
    for (const ratio of [0.1, 0.3, 0.5]) {
      const [upper, recent] = upperOf(n, ratio)
      const heavy = (upper - recent) / upper
      const mikv = prefill(`mikv?lo=0&ratio=${ratio}`, { n, budget: n, seed: 7 })
      const h2o = prefill(`h2o?heavy=${heavy}`, { n, budget: upper, seed: 7 })
      assert.deepEqual(mikv.cache, h2o.cache)
    }
})

test('in the answer it drops as a loop over one head does, in a cache that grows with the text', () => {
  const dims = { layers: 1, heads: 1, kvHeads: 1, headDim: 8 }
  const [n, ratio] = [60, 0.3]
  for (const [scores, w] of [
    ['h2o', n],
    ['window', 20],
  ] as const) {
    const mikv = choosePolicy(`mikv?lo=0&ratio=${ratio}&balancer=false&scores=${scores}&window=20`)
    const next = randoms(11)
    const prompt = prefill(mikv.text, { dims, n, budget: n })
    let held: Held = prompt
    let want = [...held.cache[0]![0]!]
    const sums = new Map(want.map((p) => [p, total(columnOf(prompt.P[0]![0]!, p, w))]))
    for (let seen = n + 1; seen <= n + 60; seen++) {
      want.push(seen - 1)
      const now = want.map(() => next())
      for (const [i, p] of want.entries()) sums.set(p, (sums.get(p) ?? 0) + now[i]!)
      const layer = (sum: number[]) => [
        { keys: [want.length], positions: [Int32Array.from(want)], statistics: { sum: Float32Array.from(sum) } },
      ]
      const observed = { decode: layer(now), columns: layer(want.map((p) => sums.get(p)!)) }
      held = answerStep(mikv, held, { dims, budget: n }, observed)
      const [upper, recent] = upperOf(seen, ratio)
      const older = want.slice(0, want.length - recent)
      const heavy = best(
        older.map((p) => sums.get(p)!),
        upper - recent,
      ).map((i) => older[i]!)
      want = [...heavy, ...want.slice(want.length - recent)]
      assert.deepEqual([...held.cache[0]![0]!], want, `${scores}, ${seen} rows`)
      assert.equal(want.length, upper)
    }
  }
})

test('in the answer rows go down in blocks, the worst that are not among the newest', () => {
  const n = 150
  const mikv = choosePolicy('mikv')
  let held: Held = prefill('mikv', { n, budget: n })
  let moved = 0
  for (let seen = n + 1; seen <= n + 130; seen++) {
    const before = held
    const grown = append(before.cache, seen - 1)
    const observed = observeDecode(DIMS, grown, seen)
    held = answerStep(mikv, held, { budget: n }, observed)
    const [upper, recent] = upperOf(seen, 0.2)
    eachHead((layer, kvHead) => {
      const was = rowsStoredIn(before, 1, layer, kvHead)
      const is = rowsStoredIn(held, 1, layer, kvHead)
      assert.ok(seen - is.length >= upper && seen - is.length < upper + 32, `${seen - is.length} rows are up`)
      const down = is.filter((j) => !was.includes(j))
      if (down.length === 0) return
      moved++
      const { sum } = observed.columns![layer]!.statistics
      const scores = rows(0, seen).map((j) =>
        mean(rows(kvHead * group, (kvHead + 1) * group).map((h) => sum![h * seen + j]!)),
      )
      const movable = rows(0, seen - recent).filter((j) => !was.includes(j))
      assert.deepEqual(down, worst(movable, scores, 32))
    })
  }
  assert.ok(moved >= 3 * DIMS.layers * DIMS.kvHeads, `${moved} moves`)
})

test("votes of the window go on with the answer's queries", () => {
  const n = 40
  const mikv = choosePolicy('mikv?scores=window&window=10&ratio=0.1&balancer=false')
  const prompt = prefill(mikv.text, { n, budget: n })
  const sums = new Map<string, number[]>()
  eachHead((l, h) => sums.set(`${l},${h}`, sumsOf(prompt.P, l, h, n, 10)))
  let held: Held = prompt
  let moved = false
  for (let seen = n + 1; !moved; seen++) {
    const before = held
    const grown = append(before.cache, seen - 1)
    const observed = observeDecode(DIMS, grown, seen)
    held = answerStep(mikv, held, { budget: n }, observed)
    eachHead((l, h) => {
      const now = rows(0, seen).map((j) =>
        mean(rows(h * group, (h + 1) * group).map((q) => observed.decode![l]!.statistics.sum![q * seen + j]!)),
      )
      sums.set(
        `${l},${h}`,
        now.map((p, j) => p + (sums.get(`${l},${h}`)![j] ?? 0)),
      )
      const was = rowsStoredIn(before, 1, l, h)
      const down = rowsStoredIn(held, 1, l, h).filter((j) => !was.includes(j))
      if (down.length === 0) return
      moved = true
      const [, recent] = upperOf(seen, 0.1)
      const movable = rows(0, seen - recent).filter((j) => !was.includes(j))
      assert.deepEqual(down, worst(movable, sums.get(`${l},${h}`)!, 32))
    })
  }
})

test('an upper tier of fewer bits: the best join it and stay, the newest wait as they were computed', () => {
  const n = 300
  for (const [spec, format] of [
    ['mikv?ratio=0.5&hi=8', 2],
    ['mikv?ratio=0.5&hi=4', 2],
    ['mikv?ratio=0.5&hi=8&lo=0', 1],
  ] as const) {
    const mikv = choosePolicy(spec)
    const prompt = prefill(spec, { dims: WIDE, n, budget: n })
    const [upper, recent] = upperOf(n, 0.5)
    eachHead((layer, kvHead) => {
      const scores = sumsOf(prompt.P, layer, kvHead, n).slice(0, n - recent)
      const stored = rowsStoredIn(prompt, format, layer, kvHead).map((j) => prompt.cache[layer]![kvHead]![j]!)
      assert.deepEqual(stored, best(scores, blocks(upper - recent)))
    })
    let held: Held = prompt
    for (let seen = n + 1; seen <= n + 200; seen++) {
      held = answerStep(mikv, held, { dims: WIDE, budget: n })
      const [upper, recent] = upperOf(seen, 0.5)
      const stored = rowsStoredIn(held, format, 0, 0)
      const exact = rowsStoredIn(held, 0, 0, 0)
      // What the upper tier has too many waits to go down, what it lacks in its format waits for a block.
      const over = stored.length + exact.length - upper
      assert.ok(over >= 0 && over < (format === 2 ? 32 : 1), `${over} too many`)
      const free = upper - recent - stored.length
      assert.ok(free >= 0 && free < 32, `${stored.length} of ${upper} rows are in the format`)
      const cached = held.cache[0]![0]!.length
      assert.deepEqual(exact.slice(-recent), rows(cached - recent, cached))
    }
  }
})

test('two rows are up at least, and a newest one always', () => {
  const held = prefill('mikv?ratio=0.001&lo=0', { n: 50, budget: 50 })
  eachHead((layer, kvHead) => {
    assert.equal(held.cache[layer]![kvHead]!.length, 2)
    assert.equal(held.cache[layer]![kvHead]![1], 49)
  })
})

/** What the prompt's plan says, and what it was told. */
function planOf(spec: string, dims: ModelDims, n: number, more: Partial<Observation> = {}) {
  const chosen = choosePolicy(spec)
  const { definition, options } = chosen
  const seen = { ...observe(attention(dims, n, 3), dims, definition.observes(options)), ...more }
  const held: Held = { cache: fullCache(dims, n) }
  const plan = definition.afterPrefill(seen, stateFor(chosen, held, { dims, budget: n }), options)
  return { chosen, seen, plan, held: heldAfter(chosen, held, plan, dims) }
}

const balanceIn = (plan: CompressionPlan, stored: number) =>
  plan.kind === 'keep' ? plan.stored?.find(({ format }) => format === stored)?.balance : undefined

const most = (x: Float32Array, d: number, c: number): number =>
  Math.max(
    ...Array.from(
      x.filter((_, i) => i % d === c),
      Math.abs,
    ),
  )

/** f32 against f64. */
const close = (a: number, b: number) => assert.ok(Math.abs(a - b) <= 1e-6 * Math.abs(b), `${a} is not ${b}`)

/** To whose group the i-th number of queries belongs, f32 [d, H, rows]. */
const kvHeadOf = (i: number) => Math.floor((Math.floor(i / DIMS.headDim) % DIMS.heads) / group)

test('the balancer gives both sides the same largest number in every channel', () => {
  const { plan, seen } = planOf('mikv?window=30', DIMS, 120)
  const d = DIMS.headDim
  eachHead((layer, kvHead) => {
    const b = balanceIn(plan, 0)![layer]![kvHead]!
    const q = seen.queries![layer]!.filter((_, i) => kvHeadOf(i) === kvHead)
    assert.equal(q.length, d * group * 30)
    const { keys } = seen.rows!(layer, kvHead)
    for (const c of rows(0, d)) {
      close(b[c]!, Math.sqrt(most(q, d, c) / most(keys, d, c)))
      close(most(q, d, c) / b[c]!, most(keys, d, c) * b[c]!)
    }
  })
})

test('channels without a number are left alone, others not moved without bounds', () => {
  const [d, n] = [DIMS.headDim, 64]
  const channels = (values: readonly number[], count: number) =>
    Float32Array.from({ length: d * count }, (_, i) => values[i % d]!)
  const { plan } = planOf('mikv?window=8', DIMS, n, {
    queries: new Array(DIMS.layers).fill(channels([0, 1, -4, 1e-12, 1e12, 1, 1, 1], DIMS.heads * 8)),
    rows: () => ({ keys: channels([1, 0, 1, 1, 1, -9, 1, 1], n), values: channels([1, 1, 1, 1, 1, 1, 1, 1], n) }),
  })
  const want = [1, 1, 2, 1e-4, 1e4, 1 / 3, 1, 1]
  for (const [c, b] of balanceIn(plan, 0)![0]![0]!.entries()) close(b, want[c]!)
})

test('balance comes with the first rows of each format of codes, and with none after them', () => {
  const given: string[] = []
  for (const spec of [
    'mikv?ratio=0.5',
    'mikv?ratio=0.5&hi=4',
    'mikv?ratio=0.5&hi=8',
    'mikv?ratio=0.5&balancer=false',
  ]) {
    const { chosen, plan, held } = planOf(spec, WIDE, 140)
    const formats = rows(0, 2).filter((format) => balanceIn(plan, format))
    given.push(`${spec} ${formats}`)
    let after = held
    for (let step = 0; step < 80; step++) {
      const { grown, plan: next } = answerPlan(chosen, after, { dims: WIDE, budget: 140 })
      assert.deepEqual([balanceIn(next, 0), balanceIn(next, 1)], [undefined, undefined])
      after = heldAfter(chosen, grown, next, WIDE)
    }
    const [before, now] = [held, after].map((h) => rowsStoredIn(h, 1, 0, 0).length) as [number, number]
    assert.ok(now > before, `${now} rows are down, ${before} were`)
  }
  assert.deepEqual(given, [
    'mikv?ratio=0.5 0',
    'mikv?ratio=0.5&hi=4 0,1',
    'mikv?ratio=0.5&hi=8 0',
    'mikv?ratio=0.5&balancer=false ',
  ])
})

test('where the prompt stores nothing, the answer balances with what the prompt told', () => {
  const { chosen, held, seen, plan } = planOf('mikv', DIMS, 20)
  assert.equal(plan.kind, 'keep-all')
  let after = held
  while (rowsStoredIn(after, 1, 0, 0).length === 0) {
    const { grown, plan: next } = answerPlan(chosen, after, { budget: 20 })
    after = heldAfter(chosen, grown, next, DIMS)
    const b = balanceIn(next, 0)
    assert.equal(b !== undefined, rowsStoredIn(after, 1, 0, 0).length > 0)
    if (!b) continue
    const { keys } = seen.rows!(0, 1)
    const q = seen.queries![0]!.filter((_, i) => kvHeadOf(i) === 1)
    close(b[0]![1]![3]!, Math.sqrt(most(q, 8, 3) / most(keys, 8, 3)))
  }
})

test('asks only for what it needs', () => {
  const needs = (spec: string) => {
    const { definition, options } = choosePolicy(spec)
    return definition.observes(options)
  }
  const window = { rows: 64, statistics: [], queries: true }
  assert.deepEqual(needs('mikv'), { window, rows: true, columns: true })
  assert.deepEqual(needs('mikv?balancer=false'), { columns: true })
  assert.deepEqual(needs('mikv?lo=0'), { columns: true })
  assert.deepEqual(needs('mikv?lo=0&hi=4'), { window, rows: true, columns: true })
  assert.deepEqual(needs('mikv?scores=random&lo=0'), {})
  assert.deepEqual(needs('mikv?scores=window&balancer=false'), {
    window: { rows: 64, statistics: ['sum'] },
    decode: true,
  })
})

test('formats, and options that contradict each other', () => {
  const of = (spec: string, headDim: number) => {
    const { definition, options } = choosePolicy(spec)
    return definition.formats!({ ...DIMS, headDim }, options)
  }
  const codes = (bits: number, size: number) => {
    const one = { bits, groups: { by: 'token', size } }
    return { kind: 'codes', keys: one, values: one }
  }
  const bytes = { kind: 'types', keys: 'q8_0', values: 'q8_0' }
  assert.deepEqual(of('mikv', 64), [codes(2, 64)])
  assert.deepEqual(of('mikv', 128), [codes(2, 64)])
  assert.deepEqual(of('mikv?lo=4', 32), [codes(4, 32)])
  assert.deepEqual(of('mikv?hi=4', 128), [codes(2, 64), codes(4, 64)])
  assert.deepEqual(of('mikv?hi=8&lo=0', 64), [bytes])
  assert.deepEqual(of('mikv?lo=0', 64), [])
  assert.throws(() => of('mikv?hi=8', 80), /hi=8 stores rows as q8_0.* the model's is 80\. Take hi=16 or hi=4/)
  assert.throws(() => choosePolicy('mikv?lo=3'), /'lo' must be one of 4, 2, 0/)
  assert.throws(() => choosePolicy('mikv?lo=0&ratio=0'), /no row would stay/)
  assert.throws(() => choosePolicy('mikv?lo=4&hi=4'), /there is one tier/)
  assert.equal(choosePolicy('mikv').definition.takesBudget, false)
})
