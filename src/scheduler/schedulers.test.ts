/** The suite that every scheduler has to pass, and the table of their names. */
import assert from 'node:assert/strict'
import { describe, it, test } from 'node:test'
import fc from 'fast-check'
import { KvasirError } from '../contract/errors.ts'
import type { RequestView, SchedulerOptions, ScheduleState } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'
import { pagesToAdmit } from './admission.ts'
import { checkPlan } from './check.ts'
import { DEFAULT_SCHEDULER, SCHEDULERS, schedulerNamed } from './index.ts'
import { type SimulatedRequest, simulate } from './simulate.ts'
import { decode, prompt } from './views.fixture.ts'

const anyRequest = fc.record({
  rows: fc.integer({ min: 1, max: 60 }),
  computed: fc.nat(59),
  generated: fc.nat(5),
  maxTokens: fc.integer({ min: 6, max: 40 }),
  samples: fc.constantFrom(1, 1, 1, 2, 3),
  ownPages: fc.nat(6),
  pageSize: fc.constantFrom({ bytes: 1, counted: 1 }, { bytes: 128, counted: 34 }, { bytes: 18, counted: 64 }),
  priority: fc.constantFrom(0, 0, 1),
  arrivalMs: fc.nat(20),
  decodes: fc.boolean(),
  short: fc.boolean(),
})

/** States that need not have come about by the scheduler's own doing. */
const anyState = fc
  .record({
    running: fc.array(anyRequest, { maxLength: 8 }),
    waiting: fc.array(anyRequest, { maxLength: 8 }),
    freePages: fc.nat(20),
    usedPages: fc.nat(40),
    pageTokens: fc.constantFrom(1, 4, 16),
  })
  .map(({ running, waiting, freePages, usedPages, pageTokens }): ScheduleState => {
    const short = new Set<number>()
    const view = (a: (typeof running)[number], id: number, decodes: boolean): RequestView => {
      const { decodes: _, short: isShort, ...facts } = a
      if (!decodes) return prompt(id, { ...facts, computed: Math.min(a.computed, a.rows - 1) })
      if (isShort) short.add(id)
      const generated = Math.max(1, a.generated)
      return decode(id, { ...facts, generated, rows: a.rows + generated, computed: a.rows + generated - 1 })
    }
    return {
      nowMs: 1000,
      running: running.map((a, i) => view(a, i, a.decodes)),
      waiting: waiting.map((a, i) => view(a, 100 + i, false)),
      freePages,
      totalPages: freePages + usedPages,
      pageTokens,
      needsPage: (id) => short.has(id),
    }
  })

const anyOptions: fc.Arbitrary<SchedulerOptions> = fc.record({
  tokenBudget: fc.integer({ min: 1, max: 64 }),
  maxSequences: fc.integer({ min: 1, max: 10 }),
  watermark: fc.constantFrom(0, 0.01, 0.2),
})

const anyTrace: fc.Arbitrary<SimulatedRequest[]> = fc
  .array(
    fc.record({
      arrivalMs: fc.nat(60),
      prompt: fc.integer({ min: 1, max: 50 }),
      answer: fc.integer({ min: 1, max: 14 }),
      spare: fc.constantFrom(0, 0, 50),
      tenant: fc.constantFrom('a', 'b'),
      priority: fc.constantFrom(0, 0, 1),
    }),
    { minLength: 1, maxLength: 12 },
  )
  .map((all) => all.map(({ spare, ...r }, id) => ({ ...r, id, maxTokens: r.answer + spare })))

const canRun = (s: ScheduleState, o: SchedulerOptions) => {
  if (s.running.length > 0) return true
  const head = s.waiting[0]
  return head !== undefined && head.samples <= o.maxSequences && pagesToAdmit(head, s.pageTokens) <= s.freePages
}

for (const [name, scheduler] of Object.entries(SCHEDULERS))
  describe(name, () => {
    it('makes plans that can be carried out', () => {
      const check = (s: ScheduleState, o: SchedulerOptions) => checkPlan(s, o, scheduler.schedule(s, o))
      fc.assert(fc.property(anyState, anyOptions, check), { numRuns: 1000 })
    })

    it('answers the same state with the same plan, and leaves the state as it was', () => {
      fc.assert(
        fc.property(anyState, anyOptions, (s, o) => {
          const before = structuredClone({ running: s.running, waiting: s.waiting })
          assert.deepEqual(scheduler.schedule(s, o), scheduler.schedule(copyOf(s), o))
          assert.deepEqual({ running: s.running, waiting: s.waiting }, before)
        }),
      )
    })

    it('does something whenever something could run', () => {
      fc.assert(
        fc.property(anyState, anyOptions, (s, o) => {
          const { work, preempt } = scheduler.schedule(s, o)
          if (canRun(s, o)) assert.ok(work.length + preempt.length > 0)
        }),
      )
    })

    it('admits in the order of waiting', () => {
      fc.assert(
        fc.property(anyState, anyOptions, (s, o) => {
          const { admit } = scheduler.schedule(s, o)
          const places = admit.map((id) => s.waiting.findIndex((r) => r.id === id))
          assert.deepEqual(
            places,
            places.toSorted((a, b) => a - b),
          )
          // Only packing may pass over a request, and never over the first.
          if (name === 'prepacking') assert.ok(places.length === 0 || places[0] === 0 || s.running.length > 0)
          else
            assert.deepEqual(
              places,
              places.map((_, i) => i),
            )
        }),
      )
    })

    it('brings every request to its end, in a small pool too', () => {
      let preemptions = 0
      fc.assert(
        fc.property(anyTrace, anyOptions, fc.integer({ min: 16, max: 28 }), (trace, options, totalPages) => {
          const machine = { totalPages, pageTokens: 4, costMs: () => 1 }
          const { steps, tokenMs } = simulate(scheduler, trace, options, machine)
          for (const r of trace) assert.equal(tokenMs.get(r.id as RequestId)!.length, r.answer)
          for (const step of steps) assert.ok(step.freePages >= 0)
          for (const { plan } of steps) preemptions += plan.preempt.length
        }),
        { numRuns: 200 },
      )
      if (name === 'sarathi') assert.equal(preemptions, 0)
      else assert.ok(preemptions > 0, 'no pool was too small')
    })
  })

const copyOf = (s: ScheduleState): ScheduleState => {
  const { needsPage, ...data } = s
  return { ...structuredClone(data), needsPage }
}

test('schedulers are found by name; the nearest is suggested', () => {
  for (const [name, scheduler] of Object.entries(SCHEDULERS)) {
    assert.equal(scheduler.name, name)
    assert.equal(schedulerNamed(name), scheduler)
  }
  assert.equal(schedulerNamed().name, DEFAULT_SCHEDULER)
  const message = (name: string) => {
    try {
      schedulerNamed(name)
    } catch (e) {
      assert.ok(e instanceof KvasirError && e.code === 'INVALID_ARGUMENT')
      return e.message
    }
    throw new Error(`'${name}' was found`)
  }
  assert.match(message('sarathi-server'), /Did you mean 'sarathi-serve'\?/)
  assert.match(message('constructor'), /There are sarathi-serve, sarathi, fcfs/)
})
