/** Server-sent events: written as the client reads, ended when it goes. */
import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'

/** A comment goes out after so long without an event, so that proxies keep the connection, in milliseconds. */
const QUIET_MS = 15_000
/** Headers wait for the first event, so that a refusal has its own status; but no longer than this. */
const FIRST_MS = 400

export interface SseEvent {
  /** Name of the event, where the API names them. */
  readonly event?: string
  /** One line. */
  readonly data: string
}

/** Aborts when the client closes its connection before the answer is complete. */
export function clientGone(request: FastifyRequest, reply: FastifyReply): AbortSignal {
  const abort = new AbortController()
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) abort.abort(new Error('the client closed the connection'))
  })
  if (request.raw.socket.destroyed && !reply.raw.writableFinished)
    abort.abort(new Error('the client closed the connection'))
  return abort.signal
}

/**
 * Sends what `events` gives. An error before the first event is thrown; a later one becomes the event that `onError` makes.
 */
export async function sendEvents(
  reply: FastifyReply,
  events: AsyncGenerator<SseEvent>,
  onError: (error: unknown) => SseEvent | null,
): Promise<void> {
  const first = events.next()
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, FIRST_MS)
  })
  try {
    await Promise.race([first, late])
  } finally {
    clearTimeout(timer)
  }
  reply.hijack()
  const raw = reply.raw
  raw.writeHead(200, {
    ...definedHeaders(reply),
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache, no-transform',
    'x-accel-buffering': 'no',
  })
  raw.flushHeaders()
  const alive = setInterval(() => void (raw.writableNeedDrain || raw.write(': waiting\n\n')), QUIET_MS)
  try {
    for (let next = await first; !next.done; next = await events.next()) {
      alive.refresh()
      if (!(await write(raw, next.value))) return
    }
  } catch (error) {
    const last = onError(error)
    if (last) await write(raw, last)
  } finally {
    clearInterval(alive)
    await events.return(undefined).catch(() => {})
    raw.end()
  }
}

function definedHeaders(reply: FastifyReply): Record<string, string | number | string[]> {
  return Object.fromEntries(
    Object.entries(reply.getHeaders()).flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])),
  )
}

/** False when the client has gone. */
async function write(raw: ServerResponse, { event, data }: SseEvent): Promise<boolean> {
  if (raw.destroyed || raw.writableEnded) return false
  if (raw.write(`${event ? `event: ${event}\n` : ''}data: ${data}\n\n`)) return true
  const abort = new AbortController()
  try {
    const signal = abort.signal
    await Promise.race([once(raw, 'drain', { signal }), once(raw, 'close', { signal })])
  } catch {
    return false
  } finally {
    abort.abort()
  }
  return !raw.destroyed
}
