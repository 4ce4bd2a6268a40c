import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { RequestView } from '../contract/schedule.ts'
import { join, order, type ServedTokens, serve } from './order.ts'
import { sarathiServe } from './sarathi-serve.ts'
import { type SimulatedRequest, simulate } from './simulate.ts'
import { ids, OPTIONS, prompt } from './views.fixture.ts'

const NOBODY: ServedTokens = new Map()
const served = (o: Record<string, number>): ServedTokens => new Map(Object.entries(o))
const orderOf = (waiting: RequestView[], s = NOBODY, nowMs = 100) => order(waiting, s, nowMs).map((r) => r.id)
const of = (tenant: string, id: number, over: Partial<RequestView> = {}) => prompt(id, { tenant, ...over })

test('arrival, then id; priority before both', () => {
  const waiting = [prompt(3), prompt(1), prompt(2, { arrivalMs: 1 }), prompt(9, { priority: 1 })]
  assert.deepEqual(orderOf(waiting), ids(9, 1, 2, 3))
  assert.deepEqual(
    waiting.map((r) => r.id),
    ids(3, 1, 2, 9),
  )
})

test('a deadline counts when half of its time is over, and no more when it has passed', () => {
  const at = (nowMs: number) =>
    orderOf([prompt(1), prompt(2, { deadlineMs: 102 }), prompt(3, { deadlineMs: 63 })], NOBODY, nowMs)
  assert.deepEqual(at(32), ids(1, 2, 3))
  assert.deepEqual(at(33), ids(3, 1, 2))
  assert.deepEqual(at(52), ids(3, 2, 1))
  assert.deepEqual(at(64), ids(2, 1, 3))
  assert.deepEqual(at(103), ids(1, 2, 3))
})

test('a preempted answer goes before what has not begun, whatever its tenant got', () => {
  const waiting = [of('a', 1), of('b', 2, { deadlineMs: 101 }), of('c', 3, { generated: 4, rows: 14 })]
  assert.deepEqual(orderOf(waiting, served({ c: 1e6 })), ids(3, 2, 1))
  // Nor does its tenant pay for it again.
  assert.deepEqual(orderOf([of('c', 3, { generated: 4, rows: 14 }), of('c', 4), of('b', 5)]), ids(3, 4, 5))
})

test('tenants take turns by what they got; a prompt is paid for in the list', () => {
  const waiting = [of('a', 1), of('a', 2), of('a', 3), of('b', 4), of('b', 5)]
  assert.deepEqual(orderOf(waiting), ids(1, 4, 2, 5, 3))
  assert.deepEqual(orderOf(waiting, served({ a: 15 })), ids(4, 5, 1, 2, 3))
  // A long prompt of b costs nearly as much as three of a.
  const long = [of('b', 0, { rows: 29 }), of('a', 1), of('a', 2), of('a', 3), of('a', 4), of('b', 5)]
  assert.deepEqual(orderOf(long), ids(0, 1, 2, 3, 5, 4))
})

test('a cached prefix is not paid for', () => {
  const waiting = [of('a', 1, { rows: 30, computed: 29 }), of('a', 2), of('b', 3, { rows: 5 }), of('b', 4)]
  assert.deepEqual(orderOf(waiting), ids(1, 3, 2, 4))
})

test('served: a token of the answer counts twice', () => {
  const after = serve(serve(served({ a: 1 }), 'a', { input: 10 }), 'b', { output: 3 })
  assert.deepEqual([...after], [...served({ a: 11, b: 6 })])
})

test('a tenant that asked for nothing is lifted to the lowest that waits', () => {
  const before = served({ a: 50, b: 80, c: 2, d: 60 })
  assert.deepEqual(Object.fromEntries(join(before, 'c', ['a', 'b'], [])), { a: 50, b: 80, c: 50, d: 60 })
  assert.deepEqual(Object.fromEntries(join(before, 'd', ['a', 'b'], [])), { a: 50, b: 80, d: 60 })
  // Who waits keeps what it is owed; without a queue nobody is owed anything.
  assert.equal(join(before, 'a', ['a', 'b'], []), before)
  assert.equal(join(before, 'c', [], ['a', 'b']).get('c'), 80)
  assert.deepEqual([...join(before, 'b', [], [])], [['b', 0]])
})

// Two tenants on one machine ---------------------------------------------------------------------------------------------

const MACHINE = { totalPages: 1000, pageTokens: 16, costMs: () => 1 }
const SEATS = { ...OPTIONS, maxSequences: 4 }
const flood = (tenant: string, from: number, count: number, over: Partial<SimulatedRequest> = {}) =>
  Array.from({ length: count }, (_, i) => ({
    id: from + i,
    arrivalMs: 0,
    prompt: 32,
    answer: 20,
    tenant,
    ...over,
  }))
const ttft = (requests: SimulatedRequest[], id: number) => {
  const { tokenMs } = simulate(sarathiServe, requests, SEATS, MACHINE)
  return tokenMs.get(ids(id)[0]!)![0]! - requests.find((r) => r.id === id)!.arrivalMs
}

test('a flood of one tenant delays another by no more than the requests that run', () => {
  const late = { id: 999, arrivalMs: 30, prompt: 32, answer: 20 }
  const fair = ttft([...flood('a', 0, 100), { ...late, tenant: 'b' }], 999)
  const unfair = ttft([...flood('a', 0, 100), { ...late, tenant: 'a' }], 999)
  // A seat is free after at most one answer, and the prompt is shorter than the budget.
  assert.ok(fair <= 22, `${fair} ms`)
  assert.ok(unfair > 400, `${unfair} ms`)
})

test('while both wait, two tenants differ by no more than VTC allows', () => {
  // Theorem of VTC: 2 * max(wp * longest prompt, wq * tokens of a full batch).
  const bound = 2 * Math.max(48, 2 * 4 * (48 + 30))
  const difference = (tenants: readonly [string, string]) => {
    const small = flood(tenants[1], 1000, 60, { prompt: 48, answer: 5, arrivalMs: 1 })
    const requests = [...flood(tenants[0], 0, 60, { prompt: 16, answer: 30 }), ...small]
    const { steps } = simulate(sarathiServe, requests, SEATS, MACHINE)
    const got = [0, 0]
    let most = 0
    const left = [60, 60]
    for (const { plan, decoding } of steps) {
      for (const id of plan.admit) left[id < 1000 ? 0 : 1]!--
      if (Math.min(...left) === 0) break
      for (const { id, rows } of plan.work) got[id < 1000 ? 0 : 1]! += decoding.includes(id) ? 2 : rows
      most = Math.max(most, Math.abs(got[0]! - got[1]!))
    }
    return most
  }
  assert.ok(difference(['a', 'b']) <= bound, `${difference(['a', 'b'])} of ${bound}`)
  assert.ok(difference(['a', 'a']) > bound)
})

test('asking little saves up no credit', () => {
  // b asks for one answer at a time while a floods; then b floods too, and must not have the machine to itself.
  const trickle = Array.from({ length: 20 }, (_, i) => ({
    id: 2000 + i,
    arrivalMs: i * 40,
    prompt: 8,
    answer: 2,
    tenant: 'b',
  }))
  const requests = [...flood('a', 0, 400), ...trickle, ...flood('b', 3000, 100, { arrivalMs: 800 })]
  const { steps } = simulate(sarathiServe, requests, SEATS, MACHINE)
  const admitted = steps.filter((s) => s.startMs >= 800 && s.startMs < 1000).flatMap((s) => s.plan.admit)
  const share = admitted.filter((id) => id >= 2000).length / admitted.length
  assert.ok(share > 0.35 && share < 0.65, `${share}`)
})

test('a deadline brings a request forward in time, a priority at once', () => {
  const late = { id: 999, arrivalMs: 30, prompt: 32, answer: 20 }
  const plain = ttft([...flood('', 0, 100), late], 999)
  const urgent = ttft([...flood('', 0, 100), { ...late, deadlineMs: 230 }], 999)
  const first = ttft([...flood('', 0, 100), { ...late, priority: 1 }], 999)
  assert.ok(plain > 400 && urgent >= 100 && urgent <= 200 && first <= 22, `${plain} ${urgent} ${first}`)
})
