import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Scheduler } from '../contract/schedule.ts'
import { fcfs } from './fcfs.ts'
import { sarathiServe } from './sarathi-serve.ts'
import { type Simulation, type StepLoad, simulate } from './simulate.ts'
import { decode, ids, OPTIONS, prompt, state } from './views.fixture.ts'

const cost = ({ prefillRows, decodeRows }: StepLoad) => 1 + 0.1 * (prefillRows + decodeRows)
const MACHINE = { totalPages: 1000, pageTokens: 16, costMs: cost }

/** Four answers under way, then a long prompt every 100 ms. */
const STREAM = [
  ...[0, 1, 2, 3].map((id) => ({ id, arrivalMs: 0, prompt: 20, answer: 200 })),
  ...[4, 5, 6].map((id) => ({ id, arrivalMs: 100 * (id - 3), prompt: 1000, answer: 5 })),
]
/** Forty requests, more at once than there are seats. */
const CROWD = Array.from({ length: 40 }, (_, id) => ({
  id,
  arrivalMs: id * 2,
  prompt: 1 + ((id * 37) % 150),
  answer: 1 + ((id * 13) % 60),
}))

/** Running decodes that neither advanced nor were preempted, over all steps. */
const stalls = ({ steps }: Simulation) =>
  steps.reduce((n, { decoding, plan }) => {
    const moved = new Set([...plan.work.map((w) => w.id), ...plan.preempt])
    return n + decoding.filter((id) => !moved.has(id)).length
  }, 0)

const longestGap = ({ tokenMs }: Simulation, id: number) => {
  const times = tokenMs.get(ids(id)[0]!)!
  return Math.max(...times.slice(1).map((t, i) => t - times[i]!))
}

test('decodes, then unfinished prefills, then new ones, within the budget', () => {
  const running = [prompt(1, { rows: 50, computed: 10 }), decode(2), decode(3)]
  const waiting = [prompt(4, { rows: 12 }), prompt(5, { rows: 99 }), prompt(6)]
  const plan = sarathiServe.schedule(state({ running, waiting }), OPTIONS)
  assert.deepEqual(plan, {
    preempt: [],
    admit: ids(4, 5),
    work: [
      { id: 2, rows: 1 },
      { id: 3, rows: 1 },
      { id: 1, rows: 40 },
      { id: 4, rows: 12 },
      { id: 5, rows: 10 },
    ],
  })
})

test('more decodes than budget: all decodes run, and nothing else', () => {
  const running = [prompt(1), ...[2, 3, 4, 5].map((id) => decode(id))]
  const plan = sarathiServe.schedule(state({ running, waiting: [prompt(6)] }), { ...OPTIONS, tokenBudget: 3 })
  assert.deepEqual(
    plan.work.map((w) => w.id),
    ids(2, 3, 4, 5),
  )
  assert.deepEqual(plan.admit, [])
})

test('each sequence of a request counts as a row and as a seat', () => {
  const running = [decode(1, { samples: 5 })]
  const waiting = [prompt(2, { samples: 2 }), prompt(3, { samples: 2 })]
  const plan = sarathiServe.schedule(state({ running, waiting }), { ...OPTIONS, tokenBudget: 12 })
  assert.deepEqual(plan.admit, ids(2))
  assert.deepEqual(plan.work.at(-1), { id: 2, rows: 7 })
})

test('a request that does not fit holds back those behind it', () => {
  const waiting = [prompt(1, { rows: 100 }), prompt(2)]
  assert.deepEqual(sarathiServe.schedule(state({ waiting, freePages: 6, totalPages: 9 }), OPTIONS).admit, [])
})

test('pages are taken for the whole prompt, though only a chunk of it runs', () => {
  const waiting = [prompt(1, { rows: 60 }), prompt(2, { rows: 20 })]
  const plan = (freePages: number) => sarathiServe.schedule(state({ waiting, freePages }), OPTIONS)
  assert.deepEqual(plan(5).admit, ids(1))
  assert.deepEqual(plan(6).admit, ids(1, 2))
  assert.deepEqual(plan(6).work[1], { id: 2, rows: 4 })
})

test('the pages of a cached prefix are counted: they are among the free ones until it is admitted', () => {
  const waiting = [prompt(1, { rows: 60, computed: 48 })]
  const admits = (freePages: number) => sarathiServe.schedule(state({ waiting, freePages }), OPTIONS).admit.length
  assert.deepEqual([admits(3), admits(4)], [0, 1])
})

test('pages in other types count by their size', () => {
  // 60 rows are 4 pages, of half the size or twice as large.
  const admits = (bytes: number, freePages: number, rows = 60, counted = 64) => {
    const waiting = [prompt(1, { rows, pageSize: { bytes, counted } })]
    return sarathiServe.schedule(state({ waiting, freePages }), OPTIONS).admit.length
  }
  assert.deepEqual([admits(32, 1), admits(32, 2)], [0, 1])
  assert.deepEqual([admits(128, 7), admits(128, 8)], [0, 1])
  // f32 beside q8_0: 17 pages are 64, and not one more by rounding.
  assert.deepEqual([admits(128, 63, 17 * 16, 34), admits(128, 64, 17 * 16, 34)], [0, 1])
  const running = [decode(1, { pageSize: { bytes: 128, counted: 64 } }), decode(2, { ownPages: 3 })]
  assert.deepEqual(sarathiServe.schedule(state({ running, freePages: 1, short: [1] }), OPTIONS).preempt, ids(2))
  assert.deepEqual(sarathiServe.schedule(state({ running, freePages: 2, short: [1] }), OPTIONS).preempt, [])
})

test('victims come from the tail that was not looked at; nobody is admitted in that step', () => {
  const running = [
    prompt(1, { ownPages: 5 }),
    decode(2),
    decode(3),
    decode(4, { ownPages: 4 }),
    prompt(5, { ownPages: 1 }),
  ]
  const tight = { running, waiting: [prompt(6)], freePages: 0, short: [2, 3] }
  assert.deepEqual(sarathiServe.schedule(state(tight), OPTIONS), {
    preempt: ids(5, 4),
    admit: [],
    work: [
      { id: 2, rows: 1 },
      { id: 3, rows: 1 },
      { id: 1, rows: 10 },
    ],
  })
  // The last one gives way itself: what comes before it is in the plan already.
  const last = sarathiServe.schedule(state({ ...tight, running: running.slice(0, 2) }), OPTIONS)
  assert.deepEqual([last.preempt, last.work], [ids(2), [{ id: 1, rows: 10 }]])
})

test('a higher priority keeps its pages longer', () => {
  const running = [decode(1), decode(2, { priority: 1 })]
  assert.deepEqual(sarathiServe.schedule(state({ running, freePages: 0, short: [2] }), OPTIONS).preempt, ids(1))
})

test('an isolated prompt takes ceil(P / tau) steps', () => {
  for (const P of [1, 63, 64, 65, 128, 500]) {
    const requests = [{ id: 0, arrivalMs: 0, prompt: P, answer: 1 }]
    assert.equal(simulate(sarathiServe, requests, OPTIONS, MACHINE).steps.length, Math.ceil(P / 64), `${P}`)
  }
})

test('no decode ever waits; under fcfs they do, for as long as a prompt takes', () => {
  const run = (s: Scheduler) => simulate(s, STREAM, OPTIONS, MACHINE)
  const free = run(sarathiServe)
  assert.equal(stalls(free), 0)
  // The price of a full step: 1 + 0.1 * 64.
  for (const id of [0, 1, 2, 3]) assert.ok(longestGap(free, id) <= 7.4 + 1e-9)
  const stalled = run(fcfs)
  assert.ok(stalls(stalled) >= 3 * 4, `${stalls(stalled)}`)
  for (const id of [0, 1, 2, 3]) assert.ok(longestGap(stalled, id) >= 100)
})

test('a step has at most max(tau, decodes) rows, and first runs come in the order of arrival', () => {
  for (const tokenBudget of [4, 16, 64]) {
    const { steps } = simulate(sarathiServe, CROWD, { ...OPTIONS, tokenBudget }, MACHINE)
    const first: number[] = []
    for (const { load, plan } of steps) {
      assert.ok(load.prefillRows + load.decodeRows <= Math.max(tokenBudget, load.decodeRows))
      for (const { id } of plan.work) if (!first.includes(id)) first.push(id)
    }
    assert.deepEqual(
      first,
      CROWD.map((r) => r.id),
    )
  }
})

test('a pool that holds little more than the largest request: preemptions, no stalls, all end', () => {
  const run = simulate(sarathiServe, CROWD, { ...OPTIONS, watermark: 0.01 }, { ...MACHINE, totalPages: 16 })
  const preemptions = run.steps.reduce((n, s) => n + s.plan.preempt.length, 0)
  assert.ok(preemptions > 10, `${preemptions}`)
  assert.equal(stalls(run), 0)
  for (const r of CROWD) assert.equal(run.tokenMs.get(ids(r.id)[0]!)!.length, r.answer)
})
