import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fcfs } from './fcfs.ts'
import { decode, ids, OPTIONS, prompt, state } from './views.fixture.ts'

test('whole prompts first, in order, up to the budget; decodes wait', () => {
  const running = [decode(1), prompt(2, { rows: 40, computed: 10 })]
  const plan = fcfs.schedule(state({ running, waiting: [prompt(3, { rows: 30 }), prompt(4, { rows: 5 })] }), OPTIONS)
  // 30 + 30 + 5 > 64
  assert.deepEqual(plan, {
    preempt: [],
    admit: ids(3),
    work: [
      { id: 2, rows: 30 },
      { id: 3, rows: 30 },
    ],
  })
})

test('a prompt longer than the budget is not cut, and runs alone', () => {
  const { work } = fcfs.schedule(state({ waiting: [prompt(1, { rows: 999 }), prompt(2)] }), OPTIONS)
  assert.deepEqual(work, [{ id: 1, rows: 999 }])
})

test('decodes run when no prompt is left, or none can be admitted', () => {
  const running = [decode(1), decode(2)]
  const expected = [
    { id: 1, rows: 1 },
    { id: 2, rows: 1 },
  ]
  assert.deepEqual(fcfs.schedule(state({ running }), OPTIONS).work, expected)
  const waiting = [prompt(3, { rows: 200 }), prompt(4)]
  assert.deepEqual(fcfs.schedule(state({ running, waiting, freePages: 12 }), OPTIONS).work, expected)
})

test('without a page for a decode the last arrival gives way', () => {
  const running = [decode(1, { ownPages: 3 }), decode(3, { ownPages: 2 }), decode(2, { ownPages: 1 })]
  const plan = fcfs.schedule(state({ running, freePages: 0, short: [1, 2] }), OPTIONS)
  assert.deepEqual(plan.preempt, ids(3))
  assert.deepEqual(
    plan.work.map((w) => w.id),
    ids(1, 2),
  )
})

test('the watermark stays free for what runs, and is waived when nothing does', () => {
  const options = { ...OPTIONS, watermark: 0.1 }
  const waiting = [prompt(5, { rows: 160 })]
  const admits = (freePages: number, running = [decode(1)]) =>
    fcfs.schedule(state({ running, waiting, freePages, totalPages: 100 }), options).admit.length
  assert.equal(admits(19), 0)
  assert.equal(admits(20), 1)
  assert.equal(admits(10, []), 1)
  assert.equal(admits(9, []), 0)
})
