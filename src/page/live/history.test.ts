/** Timelines, gaps and bounds of the live view's history. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { RequestId } from '../../contract/units.ts'
import type { LiveEvent } from '../../server/live-messages.ts'
import { advance, MOST_STEPS, NO_HISTORY } from './history.ts'

type Unlogged<E> = E extends unknown ? Omit<E, 'id' | 'atMs'> : never
const request = 7 as RequestId
const at = (atMs: number, event: Unlogged<LiveEvent>): LiveEvent => ({ ...event, id: atMs, atMs }) as LiveEvent
const step = (atMs: number, prefillRows: number, decodeRows: number) =>
  at(atMs, { kind: 'step-end', prefillRows, decodeRows, sequences: 1, ms: 2, computeMs: 1 })
const admit = (atMs: number) =>
  at(atMs, {
    ...{ kind: 'request-admit', request, cachedTokens: 32, loadedTokens: { device: 32, host: 0, disk: 0 } },
  })

const ONE_REQUEST: readonly LiveEvent[] = [
  at(100, { kind: 'request-arrive', request, tenant: '', task: 'generate', promptTokens: 40 }),
  admit(110),
  step(130, 8, 0),
  at(131, { kind: 'request-first-token', request, ttftMs: 31 }),
  step(135, 0, 1),
  step(141, 0, 1),
  at(142, { kind: 'request-end', request, reason: 'stop', promptTokens: 40, generatedTokens: 3, ms: 42 }),
]

describe('the history of the live view', () => {
  it('gives a request its phases, end to end', () => {
    const timeline = advance(NO_HISTORY, ONE_REQUEST).timelines.get(request)!
    assert.deepEqual(timeline.spans, [
      { phase: 'queue', fromMs: 100, toMs: 110 },
      { phase: 'prefill', fromMs: 110, toMs: 131 },
      { phase: 'decode', fromMs: 131, toMs: 142 },
    ])
    assert.equal(timeline.reason, 'stop')
    assert.equal(timeline.cachedTokens, 32)
    assert.equal(timeline.generatedTokens, 3)
  })

  it('is the same for events that come one by one', () => {
    const oneByOne = ONE_REQUEST.reduce((history, event) => advance(history, [event]), NO_HISTORY)
    assert.deepEqual(oneByOne, advance(NO_HISTORY, ONE_REQUEST))
  })

  it('measures between tokens, not over idle time', () => {
    const later = ONE_REQUEST.map((e) => ({ ...e, atMs: e.atMs + 60_000 }))
    const { gaps, ttft } = advance(advance(NO_HISTORY, ONE_REQUEST), later)
    assert.deepEqual(
      gaps.map((g) => g.ms),
      [4, 6, 4, 6],
    )
    assert.deepEqual(
      ttft.map((t) => t.ms),
      [31, 31],
    )
  })

  it('does not take dropped events for a gap', () => {
    const before = advance(NO_HISTORY, ONE_REQUEST.slice(0, 5))
    const after = advance(before, [step(900, 0, 1), step(904, 0, 1)], 80)
    assert.deepEqual(
      after.gaps.map((g) => g.ms),
      [4, 4],
    )
    assert.equal(after.dropped, 80)
  })

  it('puts a preempted request back into the queue', () => {
    const preempt = at(140, { kind: 'request-preempt', request, rows: 40 })
    const timeline = advance(NO_HISTORY, [...ONE_REQUEST.slice(0, 5), preempt, admit(150)]).timelines.get(request)!
    assert.deepEqual(
      timeline.spans.map((s) => s.phase),
      ['queue', 'prefill', 'decode', 'queue', 'prefill'],
    )
  })

  it('is bounded', () => {
    const steps = Array.from({ length: 5000 }, (_, i) => step(i, 0, 1))
    const arrivals = Array.from(
      { length: 500 },
      (_, i) => ({ ...ONE_REQUEST[0]!, request: i as RequestId }) as LiveEvent,
    )
    const { timelines, gaps, ...rest } = advance(NO_HISTORY, [...steps, ...arrivals])
    assert.equal(rest.steps.length, MOST_STEPS)
    assert.equal(rest.steps.at(-1)!.atMs, 4999)
    assert.equal(gaps.length, 3000)
    assert.deepEqual([...timelines.keys()].at(-1), 499)
    assert.equal(timelines.size, 64)
  })
})
