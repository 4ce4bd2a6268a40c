import assert from 'node:assert/strict'
import { test } from 'node:test'
import { prepacking, prepackingPadded } from './prepacking.ts'
import { simulate } from './simulate.ts'
import { decode, ids, OPTIONS, prompt, state } from './views.fixture.ts'

const LENGTHS = [7, 4, 8, 2, 5, 4]
const WAITING = LENGTHS.map((rows, id) => prompt(id, { rows }))

test('the first prompt runs in the bin that it was packed into', () => {
  const plan = prepacking.schedule(state({ waiting: WAITING }), { ...OPTIONS, tokenBudget: 1 })
  assert.deepEqual(plan, { preempt: [], admit: ids(0), work: [{ id: 0, rows: 7 }] })
  const next = prepacking.schedule(state({ waiting: WAITING.slice(1) }), { ...OPTIONS, tokenBudget: 1 })
  assert.deepEqual(next.admit, ids(1, 5))
})

test('bins hold as many rows as the budget, if that is more than the longest prompt', () => {
  const plan = prepacking.schedule(state({ waiting: WAITING }), { ...OPTIONS, tokenBudget: 16 })
  assert.deepEqual(plan.work, [
    { id: 0, rows: 7 },
    { id: 2, rows: 8 },
  ])
  const all = prepacking.schedule(state({ waiting: WAITING }), OPTIONS)
  assert.deepEqual(all.admit, ids(0, 1, 2, 3, 4, 5))
})

test('only what is not cached is packed', () => {
  const waiting = [prompt(1, { rows: 40, computed: 32 }), prompt(2, { rows: 8 })]
  const { work } = prepacking.schedule(state({ waiting }), { ...OPTIONS, tokenBudget: 16 })
  assert.deepEqual(work, [
    { id: 1, rows: 8 },
    { id: 2, rows: 8 },
  ])
})

test('the padded baseline runs all prompts at once, each as long as the longest', () => {
  const { work } = prepackingPadded.schedule(state({ waiting: WAITING, running: [decode(9)] }), OPTIONS)
  assert.deepEqual(
    work.map((w) => w.rows),
    LENGTHS,
  )
  for (const w of work) assert.equal(w.rows + w.padding!, 8)
})

test('decodes are an ordinary batch when no prompt is left', () => {
  for (const scheduler of [prepacking, prepackingPadded]) {
    const { work } = scheduler.schedule(state({ running: [decode(1), decode(2)] }), OPTIONS)
    assert.deepEqual(work, [
      { id: 1, rows: 1 },
      { id: 2, rows: 1 },
    ])
  }
})

test('the rows computed are k * max(l) padded and sum(l) packed, in the steps of the packing', () => {
  const requests = LENGTHS.map((n, id) => ({ id, arrivalMs: 0, prompt: n, answer: 1 }))
  const options = { ...OPTIONS, tokenBudget: 8 }
  const run = (scheduler: typeof prepacking) => {
    const { steps } = simulate(scheduler, requests, options, { totalPages: 99, pageTokens: 4, costMs: () => 1 })
    return [steps.length, steps.reduce((n, s) => n + s.load.prefillRows + s.load.paddingRows, 0)]
  }
  assert.deepEqual(run(prepacking), [4, 30])
  assert.deepEqual(run(prepackingPadded), [1, 48])
})
