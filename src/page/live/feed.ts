/** Follows `GET /live` while somebody looks: not when the tab is hidden, nor when the view is paused. */
import { batch, effect, signal } from '@preact/signals'
import type { LiveKind, LiveMessages } from '../../server/live-messages.ts'
import { apiKey, call, Failure, model, models, version } from '../server.ts'
import { eventsOf } from '../sse.ts'
import { advance, type History, NO_HISTORY } from './history.ts'

/** Waits before another try, the last one for all further tries, in milliseconds. */
const RETRY_MS = [500, 1000, 2000, 5000]

export interface Rates {
  readonly promptPerSecond: number
  readonly generatedPerSecond: number
}

export const connection = signal<'connecting' | 'live' | 'lost' | 'paused' | 'locked'>('connecting')
export const paused = signal(false)
export const status = signal<LiveMessages['status'] | null>(null)
/** `receivedMs` of the page's own clock: pages age while they lie. */
export const cache = signal<(LiveMessages['cache'] & { readonly receivedMs: number }) | null>(null)
export const history = signal<History>(NO_HISTORY)
export const rates = signal<Rates>({ promptPerSecond: 0, generatedPerSecond: 0 })

const visible = signal(!document.hidden)

/** Begins to follow; the function it gives ends it. */
export function follow(): () => void {
  const onVisibility = () => (visible.value = !document.hidden)
  document.addEventListener('visibilitychange', onVisibility)
  const end = effect(() => {
    const wanted = { model: model.value, key: apiKey.value }
    if (paused.value || !visible.value) {
      connection.value = 'paused'
      return
    }
    const abort = new AbortController()
    void keepConnected(wanted.model, abort.signal)
    return () => abort.abort()
  })
  return () => {
    document.removeEventListener('visibilitychange', onVisibility)
    end()
  }
}

async function keepConnected(name: string, signal: AbortSignal): Promise<void> {
  for (let tries = 0; !signal.aborted; tries++) {
    connection.value = tries === 0 ? 'connecting' : 'lost'
    try {
      const response = await call(`/live${name ? `?model=${encodeURIComponent(name)}` : ''}`, { signal })
      forget()
      for await (const { event, data } of eventsOf(response)) {
        if (signal.aborted) return
        connection.value = 'live'
        tries = 0
        batch(() => take[event as LiveKind]?.(JSON.parse(data) as never))
      }
    } catch (error) {
      if (signal.aborted) return
      if (error instanceof Failure && error.info.status === 401) {
        connection.value = 'locked'
        return
      }
    }
    if (signal.aborted) return
    connection.value = 'lost'
    await sleep(RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]!, signal)
  }
}

/** What was seen before says nothing of the time that was missed. */
function forget(): void {
  batch(() => {
    status.value = null
    cache.value = null
    history.value = NO_HISTORY
  })
}

const take: { readonly [K in LiveKind]: (message: LiveMessages[K]) => void } = {
  hello(message) {
    models.value = message.models
    version.value = message.version
  },
  status(message) {
    rates.value = ratesOf(status.value, message)
    status.value = message
  },
  cache(message) {
    cache.value = { ...message, receivedMs: performance.now() }
  },
  events({ events, dropped }) {
    history.value = advance(history.value, events, dropped)
  },
}

function ratesOf(before: LiveMessages['status'] | null, now: LiveMessages['status']): Rates {
  const seconds = before ? (now.nowMs - before.nowMs) / 1000 : 0
  if (!before || seconds <= 0) return { promptPerSecond: 0, generatedPerSecond: 0 }
  const per = (of: (s: LiveMessages['status']) => number) => Math.max(0, of(now) - of(before)) / seconds
  return {
    // What was cached was not computed.
    promptPerSecond: per(({ status: { totals } }) => totals.promptTokens - totals.cachedTokens),
    generatedPerSecond: per(({ status: { totals } }) => totals.generatedTokens),
  }
}

function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
    signal.addEventListener('abort', () => resolve(), { once: true })
  })
}
