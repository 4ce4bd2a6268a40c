/** Sends a workload when it is due, as much of it at once as may be, and keeps what became of each request. */
import { setTimeout as sleep } from 'node:timers/promises'
import { KvasirError } from '../../src/contract/errors.ts'
import type { Outcome } from './target.ts'
import { countTurns, type Session, type Turn } from './workload.ts'

/** Sends one turn; `history` holds the turns before with their answers. */
export type Send = (turn: Turn, history: readonly Said[]) => Promise<Outcome>

export interface Said {
  readonly turn: Turn
  readonly answer: string
}

export interface LoadOptions {
  /** When each session begins, in milliseconds from the start, ascending. */
  readonly arrivalsMs: ArrayLike<number>
  /** Null: no limit. */
  readonly maxConcurrency: number | null
  /** Wait as the server asks after a 429, and send again. */
  readonly retry429: boolean
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

export interface Result {
  readonly outcome: Outcome
  /** From when it was due until it was sent: the wait for a place under `maxConcurrency`, and the generator's own delay. */
  readonly queueMs: number
  /** How often it was answered with a 429, and with one that said when to come back. */
  readonly rejections: number
  readonly rejectionsWithRetryAfter: number
}

export interface LoadResult {
  /** In the order of the workload. */
  readonly results: readonly Result[]
  readonly durationMs: number
  /** The longest that a session began after its time: the generator was too slow then. */
  readonly lagMs: number
  /** Processor time of this process. */
  readonly cpuMs: number
}

/** How often a request is sent again at most, and after how long when the server does not say. */
const MOST_RETRIES = 100
const RETRY_MS = 1000

/** @throws KvasirError ABORTED when `signal` stopped it; requests that fail are results. */
export async function runLoad(sessions: readonly Session[], send: Send, options: LoadOptions): Promise<LoadResult> {
  const { arrivalsMs, signal, onProgress } = options
  const total = countTurns(sessions)
  let done = 0
  let lagMs = 0
  const places = new Places(options.maxConcurrency ?? Number.POSITIVE_INFINITY)
  const cpu = process.cpuUsage()
  const start = performance.now()

  const one = async (turn: Turn, history: readonly Said[], dueMs: number): Promise<Result> => {
    await places.take()
    try {
      const result = await sendPatiently(() => send(turn, history), options)
      return { ...result, queueMs: result.outcome.startMs - dueMs }
    } finally {
      places.give()
      onProgress?.(++done, total)
    }
  }
  const converse = async ({ turns }: Session): Promise<Result[]> => {
    const results: Result[] = []
    const history: Said[] = []
    for (const turn of turns) {
      if (results.at(-1)?.outcome.error) {
        results.push(notSent())
        onProgress?.(++done, total)
        continue
      }
      const result = await one(turn, history, performance.now())
      results.push(result)
      history.push({ turn, answer: result.outcome.text })
    }
    return results
  }

  const running: Promise<Result[]>[] = []
  for (const [i, session] of sessions.entries()) {
    const due = start + arrivalsMs[i]!
    if (due > performance.now()) await pause(due - performance.now(), signal)
    if (signal?.aborted) break
    lagMs = Math.max(lagMs, performance.now() - due)
    running.push(converse(session))
  }
  const results = (await Promise.all(running)).flat()
  if (signal?.aborted) throw new KvasirError('ABORTED', 'the run was stopped before its end')
  const { user, system } = process.cpuUsage(cpu)
  return { results, lagMs, durationMs: performance.now() - start, cpuMs: (user + system) / 1000 }
}

/** Times count from when it was first sent. */
async function sendPatiently(
  send: () => Promise<Outcome>,
  { retry429, signal }: LoadOptions,
): Promise<Omit<Result, 'queueMs'>> {
  const first = await send()
  let outcome = first
  let rejections = 0
  let rejectionsWithRetryAfter = 0
  while (outcome.status === 429) {
    rejections++
    if (outcome.retryAfterMs !== null) rejectionsWithRetryAfter++
    if (!retry429 || rejections > MOST_RETRIES) break
    await pause(outcome.retryAfterMs ?? RETRY_MS, signal)
    outcome = await send()
  }
  const lateMs = outcome.startMs - first.startMs
  const { ttftMs, latencyMs } = outcome
  return {
    ...{ rejections, rejectionsWithRetryAfter },
    outcome: { ...outcome, startMs: first.startMs, ttftMs: ttftMs + lateMs, latencyMs: latencyMs + lateMs },
  }
}

/** Ends at once when it is stopped: what is sent then fails by itself. */
async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  await sleep(ms, undefined, signal ? { signal } : {}).catch(() => {})
}

function notSent(): Result {
  const outcome: Outcome = {
    ...{ error: 'not sent: a turn before it failed', status: null, retryAfterMs: null, startMs: performance.now() },
    ...{ ttftMs: 0, latencyMs: 0, gapsMs: [], promptTokens: null, cachedTokens: null, outputTokens: null },
    ...{ pieces: 0, text: '' },
  }
  return { outcome, queueMs: 0, rejections: 0, rejectionsWithRetryAfter: 0 }
}

/** First come, first served. */
class Places {
  #free: number
  readonly #waiting: (() => void)[] = []

  constructor(places: number) {
    this.#free = places
  }

  async take(): Promise<void> {
    if (this.#free > 0) this.#free--
    else await new Promise<void>((resolve) => this.#waiting.push(resolve))
  }

  give(): void {
    const next = this.#waiting.shift()
    if (next) next()
    else this.#free++
  }
}
