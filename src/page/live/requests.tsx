/** Requests that wait, run, or have just ended: how long each spent in the queue, in its prompt and in its answer. */
import type { RequestStatus } from '../../engine/api.ts'
import * as format from '../format.ts'
import { history, status } from './feed.ts'
import type { Phase, Span, Timeline } from './history.ts'

/** Rows that are shown. */
const MOST_ROWS = 14
/** Shortest time that the axis covers, in milliseconds. */
const SHORTEST_AXIS = 2000
const PHASES: Readonly<Record<RequestStatus['phase'], Phase>> = {
  waiting: 'queue',
  prefill: 'prefill',
  decode: 'decode',
}

export function Requests() {
  const seen = status.value
  const nowMs = Math.max(seen?.nowMs ?? 0, history.value.steps.at(-1)?.atMs ?? 0)
  const rows = rowsOf(history.value.timelines, seen?.status.requests ?? [], nowMs)
  const shown = rows.slice(0, MOST_ROWS)
  const fromMs = Math.min(nowMs - SHORTEST_AXIS, ...shown.map((r) => r.spans[0]!.fromMs))
  return (
    <section class="panel" aria-labelledby="requests-title">
      <h2 id="requests-title">
        Requests{' '}
        <span class="note">
          {seen ? `${seen.status.running} running, ${seen.status.waiting} waiting` : ''}
          {rows.length > MOST_ROWS ? `, ${rows.length - MOST_ROWS} more` : ''}
        </span>
      </h2>
      <ul class="legend" aria-label="Legend">
        <li>
          <i class="key queue" /> queue
        </li>
        <li>
          <i class="key prefill" /> prefill
        </li>
        <li>
          <i class="key decode" /> decode
        </li>
        <li class="note">the last {format.seconds(nowMs - fromMs)}</li>
      </ul>
      {shown.length === 0 ? <p class="facts">none yet</p> : null}
      <ul class="timelines">
        {shown.map((row) => (
          <Row key={row.id} row={row} fromMs={fromMs} nowMs={nowMs} />
        ))}
      </ul>
    </section>
  )
}

function Row({ row, fromMs, nowMs }: { readonly row: Timeline; readonly fromMs: number; readonly nowMs: number }) {
  const place = (atMs: number) => (100 * (atMs - fromMs)) / (nowMs - fromMs)
  return (
    <li class={row.reason === null ? '' : 'ended'}>
      <span class="id">{row.id}</span>
      <div class="bar" aria-hidden="true">
        {row.spans.map((span) => (
          <i
            key={span.fromMs}
            class={span.phase}
            style={{
              left: `${place(span.fromMs)}%`,
              width: `max(2px, ${place(Math.min(nowMs, span.toMs ?? nowMs)) - place(span.fromMs)}%)`,
            }}
          />
        ))}
      </div>
      <span class="number">
        <span class="unseen">
          {`${row.spans.map((s) => `${s.phase} ${format.ms((s.toMs ?? nowMs) - s.fromMs)}`).join(', ')}; tokens`}
        </span>
        {` ${format.count(row.promptTokens)} → ${format.count(row.generatedTokens)}`}
      </span>
    </li>
  )
}

/** What runs and waits first, as the engine tells it; then what has ended, the newest first. */
function rowsOf(
  timelines: ReadonlyMap<number, Timeline>,
  requests: readonly RequestStatus[],
  nowMs: number,
): readonly Timeline[] {
  const open = new Map([...timelines].filter(([, t]) => t.reason === null))
  for (const request of requests) {
    const known = timelines.get(request.id)
    if (known?.reason) continue
    const base = known ?? begunBefore(request, nowMs)
    open.set(request.id, { ...base, generatedTokens: Math.max(base.generatedTokens, request.generated) })
  }
  const ended = [...timelines.values()].filter((t) => t.reason !== null).reverse()
  return [...[...open.values()].sort((a, b) => a.id - b.id), ...ended]
}

/** Its phases so far were not seen: it is shown in the one that it is in. */
function begunBefore({ id, phase, promptTokens, generated, ageMs }: RequestStatus, nowMs: number): Timeline {
  const span: Span = { phase: PHASES[phase], fromMs: nowMs - ageMs, toMs: null }
  return {
    ...{
      id,
      task: 'generate',
      promptTokens,
      cachedTokens: null,
      generatedTokens: generated,
      spans: [span],
      reason: null,
    },
  }
}
