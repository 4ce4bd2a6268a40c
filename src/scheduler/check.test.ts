import assert from 'node:assert/strict'
import { test } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import type { RowsPlan, StepPlan } from '../contract/schedule.ts'
import { checkPlan } from './check.ts'
import { decode, ids, OPTIONS, prompt, state } from './views.fixture.ts'

const work = (...items: [id: number, rows: number, padding?: number][]): RowsPlan[] =>
  items.map(([id, rows, padding = 0]) => ({ id: ids(id)[0]!, rows, padding }))
const plan = (p: Partial<StepPlan>): StepPlan => ({ preempt: [], admit: [], work: [], ...p })

/** 1 and 2 decode, 3 has 4 rows to go, 8 and 9 wait and need a page each; one page is free. */
const STATE = state({
  running: [decode(1), decode(2, { samples: 2 }), prompt(3, { computed: 6 })],
  waiting: [prompt(8), prompt(9)],
  freePages: 1,
  short: [1],
})

const check = (p: Partial<StepPlan>, s = STATE, options = OPTIONS) => checkPlan(s, options, plan(p))
const refuses = (text: RegExp, ...args: Parameters<typeof check>) =>
  assert.throws(
    () => check(...args),
    (e) => e instanceof KvasirError && e.code === 'INVALID_ARGUMENT' && text.test(e.message),
  )

test('plans that can be carried out pass', () => {
  check({})
  check({ work: work([1, 1], [2, 1], [3, 4, 7]) })
  check({ admit: ids(8), work: work([2, 1], [3, 1], [8, 10]) })
  check({ preempt: ids(2), admit: ids(8), work: work([1, 1], [8, 3]) })
})

test('requests: known, once, in the right list', () => {
  refuses(/works on request 7, which is not known/, { work: work([7, 1]) })
  refuses(/works on request 8, which waits and is not admitted/, { work: work([8, 1]) })
  refuses(/preempts request 8, which is not running/, { preempt: ids(8) })
  refuses(/preempts request 1 twice/, { preempt: ids(1, 1) })
  refuses(/admits request 3, which is not waiting/, { admit: ids(3) })
  refuses(/admits request 8 twice/, { admit: ids(8, 8) })
  refuses(/works on request 3 twice/, { work: work([3, 1], [3, 1]) })
  refuses(/preempts request 3 and works on it/, { preempt: ids(3), work: work([3, 1]) })
})

test('rows and padding', () => {
  refuses(/runs 5 rows of request 3, a prefill: 1 to 4/, { work: work([3, 5]) })
  refuses(/runs 11 rows of request 8/, { admit: ids(8), work: work([8, 11]) })
  for (const rows of [0, -1, 1.5, Number.NaN]) refuses(/rows of request 3/, { work: work([3, rows]) })
  refuses(/runs 2 rows of request 2, a decode: 1 to 1/, { work: work([2, 2]) })
  refuses(/pads request 3 by -1 rows/, { work: work([3, 1, -1]) })
})

test('pages and sequences', () => {
  refuses(/needs 2 pages, 0 of them for decodes; 1 are free/, { admit: ids(8, 9) })
  refuses(/needs 2 pages, 1 of them for decodes/, { admit: ids(8), work: work([1, 1]) })
  refuses(/needs 2 pages, 2 of them for decodes/, { work: work([2, 1]) }, { ...STATE, needsPage: (id) => id === 2 })
  refuses(/admits up to 5 sequences, 4 may run/, { admit: ids(8) }, STATE, { ...OPTIONS, maxSequences: 4 })
  // Too many run already; that is not this plan's doing.
  check({ work: work([1, 1]) }, STATE, { ...OPTIONS, maxSequences: 1 })
})
