import assert from 'node:assert/strict'
import { test } from 'node:test'
import { pagesAtEnd, pagesHeld, sarathi } from './sarathi.ts'
import { type SimulatedRequest, type Simulation, simulate } from './simulate.ts'
import { decode, ids, OPTIONS, prompt, state } from './views.fixture.ts'

const MACHINE = { totalPages: 1000, pageTokens: 16, costMs: () => 1 }
const many = (count: number, prompt: number, answer: number): SimulatedRequest[] =>
  Array.from({ length: count }, (_, id) => ({ id, arrivalMs: 0, prompt, answer }))

/** Requests in a step that have more than a decode's row to do. */
const prefills = ({ plan, decoding }: Simulation['steps'][number]) =>
  plan.work.filter((w) => !decoding.includes(w.id)).length

test('one chunk, C - d rows, and a row of each decode', () => {
  const running = [decode(1), decode(2), prompt(3, { rows: 500, computed: 100 }), prompt(4)]
  assert.deepEqual(sarathi.schedule(state({ running }), OPTIONS).work, [
    { id: 3, rows: 62 },
    { id: 1, rows: 1 },
    { id: 2, rows: 1 },
  ])
})

test('a last, short chunk is not topped up; one row at least', () => {
  const short = [prompt(1, { computed: 7 }), prompt(2)]
  assert.deepEqual(sarathi.schedule(state({ running: short }), OPTIONS).work, [{ id: 1, rows: 3 }])
  const full = [decode(1), decode(2), decode(3), prompt(4)]
  const { work } = sarathi.schedule(state({ running: full }), { ...OPTIONS, tokenBudget: 2 })
  assert.equal(work.length, 4)
  assert.deepEqual(work[0], { id: 4, rows: 1 })
})

test('a prompt that was begun goes on, whatever comes in', () => {
  const running = [prompt(1, { rows: 99, computed: 64 }), prompt(2, { priority: 1 })]
  assert.deepEqual(sarathi.schedule(state({ running }), OPTIONS).work, [{ id: 1, rows: 35 }])
})

test('with room for one sequence nothing rides', () => {
  const running = [decode(1), prompt(2)]
  const { work } = sarathi.schedule(state({ running }), { ...OPTIONS, maxSequences: 1 })
  assert.deepEqual(work, [{ id: 2, rows: 10 }])
})

test('admission reserves prompt and longest answer, beside what the running requests may still take', () => {
  // Pages of 16: request 1 holds one and may end with 5, request 5 may need 3.
  const running = [decode(1, { maxTokens: 60 })]
  const waiting = [prompt(5, { rows: 20, maxTokens: 28 })]
  const admits = (freePages: number) => sarathi.schedule(state({ running, waiting, freePages }), OPTIONS).admit
  assert.deepEqual(admits(6), [])
  assert.deepEqual(admits(7), ids(5))
})

test('a reservation that nothing could grant does not keep a request out', () => {
  const waiting = [prompt(1, { maxTokens: 1e6 }), prompt(2)]
  assert.deepEqual(sarathi.schedule(state({ waiting }), OPTIONS).admit, ids(1))
})

test('pages of several sequences: the full pages of the prompt once, the rest for each', () => {
  const r = prompt(1, { rows: 40, maxTokens: 20, samples: 3 })
  assert.equal(pagesAtEnd(r, 16), 2 + 3 * 2)
  assert.equal(pagesHeld(r, 16), 3)
  assert.equal(pagesHeld(decode(1, { rows: 41, computed: 40, samples: 3 }), 16), 3)
  assert.equal(pagesHeld(decode(1, { rows: 42, computed: 41, generated: 2, samples: 3 }), 16), 5)
})

test('an isolated prompt takes ceil(P / C) steps', () => {
  for (const P of [1, 63, 64, 65, 128, 500]) {
    const { steps } = simulate(sarathi, many(1, P, 1), OPTIONS, MACHINE)
    assert.equal(steps.length, Math.ceil(P / 64), `${P}`)
  }
})

test('one prompt at a time, at most C rows, and never a preemption', () => {
  const requests = Array.from({ length: 40 }, (_, id) => ({
    id,
    arrivalMs: id * 3,
    prompt: 1 + ((id * 37) % 200),
    answer: 1 + ((id * 13) % 50),
  }))
  const { steps } = simulate(sarathi, requests, OPTIONS, { ...MACHINE, totalPages: 40 })
  let both = 0
  for (const step of steps) {
    const { prefillRows, decodeRows } = step.load
    assert.ok(prefills(step) <= 1)
    assert.ok(prefillRows + decodeRows <= Math.max(64, decodeRows + 1))
    assert.deepEqual(step.plan.preempt, [])
    if (prefillRows > 0 && decodeRows > 0) both++
  }
  assert.ok(both > 20, `${both} steps with riders`)
})

test('the balance P/D = (C - (B - 1)) / (B - 1): there all decodes ride and all seats are taken', () => {
  // The spec has C/(B - 1), for chunks of C rows; here C rows are chunk and riders.
  const B = 9
  const C = 64
  const options = { ...OPTIONS, tokenBudget: C, maxSequences: B }
  const P = 448
  const balanced = (P / (C - (B - 1))) * (B - 1)
  const run = (D: number) => {
    const { steps } = simulate(sarathi, many(64, P, D + 1), options, MACHINE)
    const chunks = steps.filter((s) => s.load.prefillRows > 0)
    const riders = chunks.reduce((n, s) => n + s.load.decodeRows, 0)
    return { riding: riders / (64 * D), seats: riders / (chunks.length * (B - 1)) }
  }
  const at = run(balanced)
  // The first prompts have nobody to carry, the last answers nothing to ride on: a batch of B of 64.
  assert.ok(at.riding > 0.85 && at.seats > 0.85, JSON.stringify(at))
  const below = run(balanced * 4)
  assert.ok(below.seats > 0.85 && below.riding < 0.35, JSON.stringify(below))
  const above = run(balanced / 4)
  assert.ok(above.riding > 0.9 && above.seats < 0.35, JSON.stringify(above))
})
