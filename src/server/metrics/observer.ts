/**
 * Everything that watches a server: metrics, spans and the log's line for each request. `app.ts` lets it see requests,
 * `server.ts` the engines.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { EngineApi } from '../../engine/api.ts'
import type { AnswerEvent, TokenMark } from '../answer.ts'
import { CLIENT_CLOSED } from '../errors.ts'
import type { Caller } from '../request.ts'
import type { RouteContext } from '../route.ts'
import { traceOf } from '../traceparent.ts'
import type { Tracing } from '../tracing.ts'
import { AnswerMeter, paramsOf } from './answer.ts'
import { followEngine } from './engine.ts'
import { makeFamilies } from './families.ts'
import { failureOf, type RequestRecord, sum } from './record.ts'
import { Scraper } from './scrape.ts'

/** Asked for by machines every few seconds: their lines in the log are for debugging. */
const PROBES = new Set(['/health', '/ready', '/version', '/metrics'])
/** Of a text that a client chose. */
const MOST_LOGGED = 256

interface Open {
  readonly startedMs: number
  readonly answers: AnswerMeter[]
  error: unknown
}

export interface ObserverOptions {
  readonly version: string
  readonly metricsCompat: 'vllm' | null
  /** Null: no spans. */
  readonly tracing: Tracing | null
}

export class Observer {
  readonly #families = makeFamilies()
  readonly #scraper: Scraper
  readonly #tracing: Tracing | null
  readonly #engines = new Map<string, EngineApi>()
  readonly #open = new WeakMap<FastifyRequest, Open>()

  constructor({ version, metricsCompat, tracing }: ObserverOptions) {
    this.#scraper = new Scraper(this.#families, version, metricsCompat === 'vllm')
    this.#tracing = tracing
  }

  /** Type of what {@link scrape} gives. */
  get contentType(): string {
    return this.#families.registry.contentType
  }

  scrape(): Promise<string> {
    return this.#scraper.text(this.#engines)
  }

  /** An engine was loaded; the function that it gives is called before the engine goes. */
  readonly onLoad = (model: string, engine: EngineApi): (() => void) => {
    const end = followEngine(this.#families, model, engine)
    this.#engines.set(model, engine)
    return () => {
      end()
      this.#engines.delete(model)
    }
  }

  /** Sees each request of an application. To be called before any other hook is added, so that refused ones are seen too. */
  watch(app: FastifyInstance, callerOf: (request: FastifyRequest) => Caller): void {
    app.addHook('onRequest', async (request, reply) => {
      const open: Open = { startedMs: performance.now(), answers: [], error: undefined }
      this.#open.set(request, open)
      // Comes for every answer, also of one that is streamed, or that breaks off.
      reply.raw.once('close', () => this.#ended(request, reply, open, callerOf(request)))
    })
    app.addHook('onError', async (request, _reply, error) => {
      const open = this.#open.get(request)
      if (open) open.error ??= error
    })
  }

  readonly track: RouteContext['track'] = (request, lease, events) => {
    const open = this.#open.get(request)!
    const meter = new AnswerMeter(this.#families, lease.id, open.startedMs, paramsOf(request.body))
    open.answers.push(meter)
    return measured(events, meter, (error) => {
      open.error ??= error
    })
  }

  #ended(request: FastifyRequest, reply: FastifyReply, open: Open, caller: Caller): void {
    const record: RequestRecord = {
      request,
      method: request.method,
      route: request.routeOptions.url ?? 'unmatched',
      startedMs: open.startedMs,
      endedMs: performance.now(),
      status: reply.raw.writableFinished ? reply.raw.statusCode : CLIENT_CLOSED,
      answers: open.answers,
      error: open.error,
    }
    const { method, route, status } = record
    this.#families.httpRequests.inc({ route, method, status })
    this.#families.httpDuration.observe({ route, method }, (record.endedMs - record.startedMs) / 1000)
    const traceId = this.#tracing?.report(record) ?? traceOf(request.headers)?.traceId
    request.log[PROBES.has(route) ? 'debug' : 'info'](lineOf(record, caller, traceId), 'request')
  }

  /** Sends what is left of the spans. */
  async close(): Promise<void> {
    this.#scraper[Symbol.dispose]()
    await this.#tracing?.close()
  }
}

async function* measured(
  events: AsyncIterable<AnswerEvent | TokenMark>,
  meter: AnswerMeter,
  onError: (error: unknown) => void,
): AsyncGenerator<AnswerEvent> {
  let failure: unknown
  try {
    for await (const event of events) {
      if (event.kind === 'token') meter.token(event.sample)
      else {
        if (event.kind === 'end') meter.end(event)
        yield event
      }
    }
  } catch (error) {
    failure = error
    onError(error)
    throw error
  } finally {
    meter.close(failure)
  }
}

/** What the log keeps of a request: never its texts, never a key. */
function lineOf(record: RequestRecord, caller: Caller, traceId: string | undefined): object {
  const { request, method, route, status, answers, startedMs, endedMs } = record
  const user = (request.body as { user?: unknown } | undefined)?.user
  const failure = failureOf(record)
  return {
    ...{ method, route, status, ms: rounded(endedMs - startedMs) },
    ...(answers.length ? tokensOf(answers) : {}),
    ...(caller.tenant ? { tenant: caller.tenant } : {}),
    ...(typeof user === 'string' ? { user: user.slice(0, MOST_LOGGED) } : {}),
    ...(traceId ? { trace_id: traceId } : {}),
    ...(failure ? { error: failure } : {}),
  }
}

function tokensOf(answers: readonly AnswerMeter[]): object {
  const first = answers.find((a) => a.firstTokenMs !== null)
  return {
    model: answers[0]!.model,
    prompt_tokens: sum(answers, (a) => a.timings?.prompt_tokens ?? 0),
    cached_tokens: sum(answers, (a) => a.timings?.cached_tokens ?? 0),
    generated_tokens: sum(answers, (a) => a.generated),
    ...(first ? { ttft_ms: rounded(first.firstTokenMs! - first.arrivedMs) } : {}),
    finish: answers.flatMap((a) => a.ends.map((e) => e.finish)),
  }
}

function rounded(ms: number): number {
  return Math.round(ms * 1000) / 1000
}
