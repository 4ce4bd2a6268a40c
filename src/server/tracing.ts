/**
 * OpenTelemetry spans: one for each request, and in it one for each stretch of its way through the engine. They are made when
 * the request is over, from what was measured, and sent in batches over OTLP/HTTP. The SDK is loaded only where an endpoint
 * is set.
 */
import type { Attributes, Context, Span } from '@opentelemetry/api'
import { KvasirError } from '../contract/errors.ts'
import { CLIENT_CLOSED } from './errors.ts'
import type { AnswerMeter } from './metrics/answer.ts'
import { failureOf, type RequestRecord, sum } from './metrics/record.ts'
import { traceOf } from './traceparent.ts'

/** A receiver that does not answer does not hold up the end of a server for longer, in milliseconds. */
const CLOSE_MS = 5_000

export interface Tracing {
  /** Makes the spans of a request that is over; the id of its trace. */
  report(record: RequestRecord): string
  /** Sends what is left. */
  close(): Promise<void>
}

/**
 * @param endpoint base URL of an OTLP/HTTP receiver, to which `/v1/traces` is added, as for `OTEL_EXPORTER_OTLP_ENDPOINT`
 * @throws KvasirError INVALID_ARGUMENT for an endpoint that is no URL
 */
export async function openTracing(endpoint: string, version: string): Promise<Tracing> {
  const url = tracesUrl(endpoint)
  const [api, sdk, { OTLPTraceExporter }, { defaultResource, resourceFromAttributes }] = await Promise.all([
    import('@opentelemetry/api'),
    import('@opentelemetry/sdk-trace-base'),
    import('@opentelemetry/exporter-trace-otlp-http'),
    import('@opentelemetry/resources'),
  ])
  const provider = new sdk.BasicTracerProvider({
    resource: defaultResource().merge(
      resourceFromAttributes({
        'service.name': process.env['OTEL_SERVICE_NAME'] ?? 'kvasir',
        'service.version': version,
      }),
    ),
    spanProcessors: [new sdk.BatchSpanProcessor(new OTLPTraceExporter({ url }))],
  })
  const tracer = provider.getTracer('kvasir', version)

  const contextOf = ({ request }: RequestRecord): Context => {
    const parent = traceOf(request.headers)
    if (!parent) return api.ROOT_CONTEXT
    const { traceId, spanId, sampled, state } = parent
    return api.trace.setSpanContext(api.ROOT_CONTEXT, {
      ...{ traceId, spanId, traceFlags: sampled ? api.TraceFlags.SAMPLED : api.TraceFlags.NONE, isRemote: true },
      ...(state === null ? {} : { traceState: api.createTraceState(state) }),
    })
  }
  const setStatus = (span: Span, record: RequestRecord) => {
    const failure = failureOf(record)
    if (failure === null) return
    span.setAttribute('error.type', failure)
    // A refusal is the client's mistake, not this server's; by convention the span's status stays unset.
    const refused = record.status >= 400 && record.status < CLIENT_CLOSED
    if (!refused) span.setStatus({ code: api.SpanStatusCode.ERROR, message: failure })
  }

  return {
    report(record) {
      const { method, route, startedMs, endedMs, answers } = record
      const parent = contextOf(record)
      const name = route === 'unmatched' ? method : `${method} ${route}`
      const span = tracer.startSpan(
        name,
        { kind: api.SpanKind.SERVER, startTime: epoch(startedMs), attributes: attributesOf(record) },
        parent,
      )
      const inside = api.trace.setSpan(parent, span)
      for (const answer of answers)
        for (const { name: part, fromMs, toMs, attributes } of stretches(answer))
          tracer.startSpan(part, { startTime: epoch(fromMs), attributes }, inside).end(epoch(toMs))
      setStatus(span, record)
      span.end(epoch(endedMs))
      return span.spanContext().traceId
    },
    async close() {
      const late = new Promise<void>((resolve) => setTimeout(resolve, CLOSE_MS).unref())
      await Promise.race([provider.shutdown().catch(() => {}), late])
    },
  }
}

function tracesUrl(endpoint: string): string {
  if (!URL.canParse(endpoint) || !/^https?:/i.test(endpoint))
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `otlpEndpoint is "${endpoint}"; it must be the base URL of an OTLP/HTTP receiver, e.g. http://127.0.0.1:4318`,
      { field: 'otlpEndpoint' },
    )
  return `${endpoint.replace(/\/+$/, '')}/v1/traces`
}

/** From the clock of `performance.now()` to Unix time in milliseconds, with its fractions. */
function epoch(ms: number): number {
  return performance.timeOrigin + ms
}

/** In the words of the semantic conventions for HTTP servers and for generative AI. */
function attributesOf(record: RequestRecord): Attributes {
  const { request, method, route, status, answers } = record
  const agent = request.headers['user-agent']
  return {
    'http.request.method': method,
    ...(route === 'unmatched' ? {} : { 'http.route': route }),
    'http.response.status_code': status,
    'url.path': request.url.split('?')[0]!,
    'url.scheme': request.protocol,
    'server.address': request.hostname,
    'network.protocol.version': request.raw.httpVersion,
    ...(agent === undefined ? {} : { 'user_agent.original': agent }),
    'kvasir.request.id': request.id,
    ...(answers.length ? answerAttributes(answers, request.body) : {}),
  }
}

const OPERATIONS: Readonly<Record<string, string>> = { prompt: 'text_completion', messages: 'chat', input: 'chat' }

function answerAttributes(answers: readonly AnswerMeter[], body: unknown): Attributes {
  const fields = (body ?? {}) as Readonly<Record<string, unknown>>
  const asked = Object.keys(OPERATIONS).find((name) => name in fields)
  const { model, params } = answers[0]!
  return {
    'gen_ai.operation.name': OPERATIONS[asked ?? 'messages']!,
    'gen_ai.provider.name': 'kvasir',
    'gen_ai.request.model': typeof fields['model'] === 'string' ? fields['model'] : model,
    'gen_ai.response.model': model,
    'gen_ai.request.choice.count': params.n,
    ...(params.maxTokens === null ? {} : { 'gen_ai.request.max_tokens': params.maxTokens }),
    'gen_ai.usage.input_tokens': sum(answers, (a) => a.timings?.prompt_tokens ?? 0),
    'gen_ai.usage.cache_read.input_tokens': sum(answers, (a) => a.timings?.cached_tokens ?? 0),
    'gen_ai.usage.output_tokens': sum(answers, (a) => a.generated),
    'gen_ai.response.finish_reasons': answers.flatMap((a) => a.ends.map((e) => e.finish)),
  }
}

interface Stretch {
  readonly name: 'queue' | 'prefill' | 'decode'
  readonly fromMs: number
  readonly toMs: number
  readonly attributes: Attributes
}

/**
 * The engine's times, laid from the moment at which it was asked: so they lie within the request, however slowly its answer
 * was read. A sample's decode begins where the prompt that all share ends.
 */
function stretches({ startedMs, ends }: AnswerMeter): Stretch[] {
  const timings = ends[0]?.timings
  if (!timings) return []
  const prefillMs = startedMs + timings.queue_ms
  const decodeMs = prefillMs + timings.prompt_ms
  const prompt = { 'gen_ai.usage.input_tokens': timings.prompt_tokens, 'kvasir.cached_tokens': timings.cached_tokens }
  return [
    { name: 'queue', fromMs: startedMs, toMs: prefillMs, attributes: {} },
    { name: 'prefill', fromMs: prefillMs, toMs: decodeMs, attributes: prompt },
    ...ends.map(
      ({ sample, finish, timings: { generated_ms, generated_tokens } }): Stretch => ({
        ...{ name: 'decode', fromMs: decodeMs, toMs: decodeMs + generated_ms },
        attributes: {
          'kvasir.sample': sample,
          'gen_ai.usage.output_tokens': generated_tokens,
          'gen_ai.response.finish_reasons': [finish],
        },
      }),
    ),
  ]
}
