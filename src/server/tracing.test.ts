/** Spans of a server that listens, as an OTLP/HTTP receiver gets them. */
import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { describe, it } from 'node:test'
import { endless, post, start, until } from './metrics/server.fixture.ts'

interface Value {
  readonly stringValue?: string
  readonly intValue?: number
  readonly arrayValue?: { readonly values: readonly Value[] }
}
interface Attribute {
  readonly key: string
  readonly value: Value
}
interface Span {
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId?: string
  readonly traceState?: string
  readonly name: string
  readonly kind: number
  readonly startTimeUnixNano: string
  readonly endTimeUnixNano: string
  readonly attributes: readonly Attribute[]
  readonly status: { readonly code: number; readonly message?: string }
}
interface Export {
  readonly resourceSpans: readonly {
    readonly resource: { readonly attributes: readonly Attribute[] }
    readonly scopeSpans: readonly { readonly spans: readonly Span[] }[]
  }[]
}

// Numbers of OTLP.
const SERVER = 2
const UNSET = 0
const ERROR = 2

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736'
const PARENT = '00f067aa0ba902b7'

class Receiver implements AsyncDisposable {
  readonly exports: Export[] = []
  readonly paths: string[] = []
  readonly #server = createServer(async (request, response) => {
    this.paths.push(request.url!)
    this.exports.push(JSON.parse(await text(request)) as Export)
    response.setHeader('content-type', 'application/json').end('{}')
  })

  async listen(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve))
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  get spans(): Span[] {
    return this.exports.flatMap((e) => e.resourceSpans.flatMap((r) => r.scopeSpans.flatMap((s) => s.spans)))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
  }
}

function attribute(span: Pick<Span, 'attributes'>, key: string): unknown {
  const value = span.attributes.find((a) => a.key === key)?.value
  if (value?.arrayValue) return value.arrayValue.values.map((v) => v.stringValue)
  return value?.stringValue ?? value?.intValue
}

const from = (span: Span) => BigInt(span.startTimeUnixNano)
const to = (span: Span) => BigInt(span.endTimeUnixNano)

/** Sends requests to a server with tracing; what its receiver has when the server has closed. */
async function traced(requests: (server: Awaited<ReturnType<typeof start>>) => Promise<void>): Promise<Receiver> {
  await using receiver = new Receiver()
  const otlpEndpoint = await receiver.listen()
  const server = await start({ otlpEndpoint })
  try {
    await requests(server)
  } finally {
    await server.close()
  }
  return receiver
}

describe('tracing', () => {
  it('loads nothing where no endpoint is set', async () => {
    const loaded = () =>
      Object.keys(createRequire(import.meta.url).cache).filter((path) => path.includes('@opentelemetry/sdk-trace'))
    await using server = await start()
    assert.equal((await post(server, { max_tokens: 2 })).status, 200)
    assert.deepEqual(loaded(), [])
    await traced(async () => {})
    assert.ok(loaded().length > 0)
  })

  it("continues the caller's trace with a span for each stretch, one within the other", async () => {
    const sentMs = Date.now()
    let usage = { prompt_tokens: 0, completion_tokens: 0 }
    const receiver = await traced(async (server) => {
      const headers = {
        'content-type': 'application/json',
        'user-agent': 'a test',
        traceparent: `00-${TRACE}-${PARENT}-01`,
        tracestate: 'vendor=opaque',
      }
      const body = { messages: [{ role: 'user', content: 'What is a fjord?' }], max_tokens: 16 }
      const response = await post(server, {}, { headers, body: JSON.stringify(body) })
      usage = ((await response.json()) as { usage: typeof usage }).usage
    })
    assert.deepEqual(new Set(receiver.paths), new Set(['/v1/traces']))
    const { spans } = receiver
    const root = spans.find((s) => s.kind === SERVER)!
    assert.equal(root.name, 'POST /v1/chat/completions')
    assert.equal(root.parentSpanId, PARENT)
    assert.equal(root.traceState, 'vendor=opaque')
    assert.equal(root.status.code, UNSET)
    assert.deepEqual(new Set(spans.map((s) => s.traceId)), new Set([TRACE]))
    const [queue, prefill, decode, ...more] = ['queue', 'prefill', 'decode'].map(
      (n) => spans.find((s) => s.name === n)!,
    )
    assert.ok(queue && prefill && decode && more.length === 0)
    assert.equal(spans.length, 4)
    for (const child of [queue, prefill, decode]) assert.equal(child.parentSpanId, root.spanId)
    assert.ok(from(root) <= from(queue) && from(queue) <= to(queue))
    assert.equal(to(queue), from(prefill))
    assert.ok(from(prefill) < to(prefill))
    assert.equal(to(prefill), from(decode))
    assert.ok(from(decode) < to(decode) && to(decode) <= to(root))
    assert.ok(Number(from(root) / 1_000_000n) >= sentMs - 1 && Number(to(root) / 1_000_000n) <= Date.now() + 1)
    const expected: Readonly<Record<string, unknown>> = {
      'http.request.method': 'POST',
      'http.route': '/v1/chat/completions',
      'http.response.status_code': 200,
      'url.path': '/v1/chat/completions',
      'user_agent.original': 'a test',
      'gen_ai.operation.name': 'chat',
      'gen_ai.request.model': 'house',
      'gen_ai.response.model': 'house',
      'gen_ai.request.max_tokens': 16,
      'gen_ai.usage.input_tokens': usage.prompt_tokens,
      'gen_ai.usage.output_tokens': usage.completion_tokens,
      'gen_ai.usage.cache_read.input_tokens': 0,
    }
    for (const [key, value] of Object.entries(expected)) assert.equal(attribute(root, key), value, key)
    assert.equal((attribute(root, 'gen_ai.response.finish_reasons') as string[]).length, 1)
    const { resource } = receiver.exports[0]!.resourceSpans[0]!
    assert.equal(attribute(resource, 'service.name'), 'kvasir')
    assert.ok(!JSON.stringify(receiver.exports).includes('fjord'))
  })

  it('begins a trace where there is none, with a decode span for each sample of a stream', async () => {
    const { spans } = await traced(async (server) => {
      await (await post(server, { max_tokens: 6, n: 3, temperature: 1, stream: true })).text()
    })
    const root = spans.find((s) => s.kind === SERVER)!
    assert.match(root.traceId, /^[0-9a-f]{32}$/)
    assert.equal(root.parentSpanId ?? '', '')
    const decodes = spans.filter((s) => s.name === 'decode')
    assert.deepEqual(decodes.map((s) => attribute(s, 'kvasir.sample')).sort(), [0, 1, 2])
    for (const decode of decodes) assert.ok(from(decode) >= from(root) && to(decode) <= to(root))
    assert.equal(attribute(root, 'gen_ai.request.choice.count'), 3)
  })

  it('tells failures from refusals', async () => {
    const forbidden = await endless()
    const { spans } = await traced(async (server) => {
      assert.equal((await post(server, { temperature: 'hot' })).status, 400)
      assert.equal((await fetch(`${server.url}/nowhere`)).status, 404)
      const abort = new AbortController()
      const { signal } = abort
      const response = await post(server, { max_tokens: 1500, stream: true, ...forbidden }, { signal })
      await response.body!.getReader().read()
      abort.abort()
      await until(server, (m) => m.sum('kvasir_http_requests_total', { status: '499' }) === 1)
    })
    const of = (status: number) => spans.find((s) => attribute(s, 'http.response.status_code') === status)!
    assert.equal(of(400).status.code, UNSET)
    assert.equal(attribute(of(400), 'error.type'), '400')
    assert.equal(of(404).name, 'GET')
    assert.equal(attribute(of(404), 'http.route'), undefined)
    assert.equal(of(499).status.code, ERROR)
    assert.equal(attribute(of(499), 'error.type'), 'client_closed')
  })

  it("leaves out what the caller's trace leaves out", async () => {
    const { spans } = await traced(async (server) => {
      const headers = { 'content-type': 'application/json', traceparent: `00-${TRACE}-${PARENT}-00` }
      assert.equal((await post(server, { max_tokens: 2 }, { headers })).status, 200)
    })
    assert.deepEqual(spans, [])
  })

  it('refuses an endpoint that is no URL, and does not wait long for one that is not there', async () => {
    await assert.rejects(start({ otlpEndpoint: 'localhost' }), { code: 'INVALID_ARGUMENT', message: /otlpEndpoint/ })
    const server = await start({ otlpEndpoint: 'http://127.0.0.1:9' })
    assert.equal((await post(server, { max_tokens: 2 })).status, 200)
    const begin = performance.now()
    await server.close()
    assert.ok(performance.now() - begin < 7_000)
  })
})
