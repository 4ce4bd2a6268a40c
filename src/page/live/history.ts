/**
 * From events to what is drawn: steps, times, and a timeline for each request. Pure: a history and events make the next
 * history. All of it is bounded.
 */
import type { LiveEvent } from '../../server/live-messages.ts'

export interface Step {
  readonly atMs: number
  readonly prefillRows: number
  readonly decodeRows: number
  readonly ms: number
}

export interface Point {
  readonly atMs: number
  readonly ms: number
}

export type Phase = 'queue' | 'prefill' | 'decode'

export interface Span {
  readonly phase: Phase
  readonly fromMs: number
  /** Null: it goes on. */
  readonly toMs: number | null
}

export interface Timeline {
  readonly id: number
  readonly task: 'generate' | 'embed'
  readonly promptTokens: number
  readonly cachedTokens: number | null
  readonly generatedTokens: number
  readonly spans: readonly Span[]
  /** Why it ended; null: it has not. */
  readonly reason: string | null
}

export interface History {
  readonly steps: readonly Step[]
  /** Time to first token, by when it came. */
  readonly ttft: readonly Point[]
  /** Time between tokens of the streams that decode, by step. */
  readonly gaps: readonly Point[]
  /** By id, oldest first. */
  readonly timelines: ReadonlyMap<number, Timeline>
  /** When some stream last got a token. */
  readonly lastTokenMs: number | null
  readonly dropped: number
}

export const MOST_STEPS = 120
const MOST_GAPS = 3000
const MOST_TTFTS = 200
const MOST_TIMELINES = 64

export const NO_HISTORY: History = {
  ...{ steps: [], ttft: [], gaps: [], timelines: new Map(), lastTokenMs: null, dropped: 0 },
}

export function advance(history: History, events: readonly LiveEvent[], dropped = 0): History {
  const steps = [...history.steps]
  const ttft = [...history.ttft]
  const gaps = [...history.gaps]
  const timelines = new Map(history.timelines)
  // Tokens of events that were dropped would count as one long gap.
  let last = dropped > 0 ? null : history.lastTokenMs
  for (const event of events) {
    const { atMs } = event
    switch (event.kind) {
      case 'step-end':
        steps.push({ atMs, prefillRows: event.prefillRows, decodeRows: event.decodeRows, ms: event.ms })
        // Every stream that decodes is in every step that has decode rows, so its last token is the last one of all.
        if (event.decodeRows > 0) {
          if (last !== null) gaps.push({ atMs, ms: atMs - last })
          last = atMs
        }
        break
      case 'request-first-token':
        ttft.push({ atMs, ms: event.ttftMs })
        last = atMs
        break
    }
    if ('request' in event) follow(timelines, event)
  }
  return {
    steps: steps.slice(-MOST_STEPS),
    ttft: ttft.slice(-MOST_TTFTS),
    gaps: gaps.slice(-MOST_GAPS),
    timelines: new Map([...timelines].slice(-MOST_TIMELINES)),
    lastTokenMs: last,
    dropped: history.dropped + dropped,
  }
}

type OfRequest = Extract<LiveEvent, { readonly request: number }>

function follow(timelines: Map<number, Timeline>, event: OfRequest): void {
  const { request: id, atMs } = event
  const known = timelines.get(id)
  switch (event.kind) {
    case 'request-arrive':
      timelines.set(id, {
        ...{ id, task: event.task, promptTokens: event.promptTokens, cachedTokens: null, generatedTokens: 0 },
        ...{ spans: [{ phase: 'queue', fromMs: atMs, toMs: null }], reason: null },
      })
      break
    case 'request-fork': {
      const from = timelines.get(event.from)
      if (from) timelines.set(id, { ...from, id, spans: [{ phase: 'decode', fromMs: atMs, toMs: null }] })
      break
    }
    case 'request-admit':
      if (known) timelines.set(id, { ...turned(known, 'prefill', atMs), cachedTokens: event.cachedTokens })
      break
    case 'request-first-token':
      if (known) timelines.set(id, turned(known, 'decode', atMs))
      break
    case 'request-preempt':
      if (known) timelines.set(id, turned(known, 'queue', atMs))
      break
    case 'request-end':
      if (known)
        timelines.set(id, {
          ...{ ...known, spans: closed(known.spans, atMs), reason: event.reason },
          generatedTokens: event.generatedTokens,
        })
      break
  }
}

function turned(timeline: Timeline, phase: Phase, atMs: number): Timeline {
  return { ...timeline, spans: [...closed(timeline.spans, atMs), { phase, fromMs: atMs, toMs: null }] }
}

function closed(spans: readonly Span[], atMs: number): Span[] {
  return spans.map((span) => (span.toMs === null ? { ...span, toMs: atMs } : span))
}
