import assert from 'node:assert/strict'
import { test } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import type { Scheduler } from '../contract/schedule.ts'
import { fcfs } from './fcfs.ts'
import { type StepLoad, simulate } from './simulate.ts'
import { ids, OPTIONS } from './views.fixture.ts'

const MACHINE = { totalPages: 10, pageTokens: 4, costMs: (l: StepLoad) => l.prefillRows + 10 * l.decodeRows }
const scheduler = (schedule: Scheduler['schedule']): Scheduler => ({ name: 'test', summary: '', paper: null, schedule })

test('times, rows and pages of two requests, by hand', () => {
  const requests = [
    { id: 1, arrivalMs: 5, prompt: 6, answer: 3 },
    { id: 2, arrivalMs: 12, prompt: 4, answer: 1 },
  ]
  const { steps, tokenMs, endMs } = simulate(fcfs, requests, OPTIONS, MACHINE)
  // 5: prompt 1, 6 ms. 11: a decode, 10 ms, in which 2 arrives. 21: prompt 2, 4 ms. 25: the last decode.
  assert.deepEqual(tokenMs.get(ids(1)[0]!), [11, 21, 35])
  assert.deepEqual(tokenMs.get(ids(2)[0]!), [25])
  assert.equal(endMs, 35)
  assert.deepEqual(
    steps.map((s) => s.freePages),
    [8, 8, 7, 8],
  )
  // 1 + ... + 6, the 7th row sees 7 keys.
  assert.deepEqual(
    steps.map((s) => s.load.attended),
    [21, 7, 10, 8],
  )
})

test('a preempted request keeps its tokens and is recomputed', () => {
  // Both grow to 5 pages of the 8.
  const requests = [1, 2].map((id) => ({ id, arrivalMs: 0, prompt: 8, answer: 12 }))
  const { steps, tokenMs } = simulate(fcfs, requests, OPTIONS, { ...MACHINE, totalPages: 8 })
  const preempted = steps.find((s) => s.plan.preempt.length > 0)!
  assert.deepEqual(preempted.plan.preempt, ids(2))
  // 8 + 8 rows at first; then the prompt of 2 with the 9 tokens it had.
  assert.equal(
    steps.reduce((n, s) => n + s.load.prefillRows, 0),
    16 + 17,
  )
  assert.equal(tokenMs.get(ids(2)[0]!)!.length, 12)
})

test('requests that cannot fit, plans that cannot be carried out, schedulers that do nothing', () => {
  const one = [{ id: 1, arrivalMs: 0, prompt: 8, answer: 4 }]
  const code = (c: string, text: RegExp) => (e: unknown) =>
    e instanceof KvasirError && e.code === c && text.test(e.message)
  assert.throws(() => simulate(fcfs, one, OPTIONS, { ...MACHINE, totalPages: 2 }), code('INVALID_ARGUMENT', /8 \+ 4/))
  const lazy = scheduler(() => ({ preempt: [], admit: [], work: [] }))
  assert.throws(() => simulate(lazy, one, OPTIONS, MACHINE), code('CAPACITY', /1 requests wait for ever/))
  const rash = scheduler((s) => ({ preempt: [], admit: [], work: [{ id: s.waiting[0]!.id, rows: 8 }] }))
  assert.throws(() => simulate(rash, one, OPTIONS, MACHINE), code('INVALID_ARGUMENT', /is not admitted/))
})
