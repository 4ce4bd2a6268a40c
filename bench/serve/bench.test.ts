import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { describe, it } from 'node:test'
import { type ServeBenchOptions, serveBench } from './bench.ts'
import { multiTurnDataset, randomDataset, single } from './datasets.ts'
import { type FakeOptions, FakeServer, tokensOf } from './fake-server.fixture.ts'
import { METRICS } from './metrics.ts'
import { showResult } from './result.ts'

const LENGTHS = { inputTokens: 24, outputTokens: 4, rangeRatio: 0 }
/** Timers may fire up to a millisecond early. */
const EARLY_MS = 1

const DEFAULTS: Omit<ServeBenchOptions, 'baseUrl'> = {
  ...{ endpoint: '/v1/completions', dataset: 'random', sessions: randomDataset(6, LENGTHS, 0, 1), seed: 1 },
  ...{ tokenIds: false, ignoreEos: true, extraBody: {}, rate: Number.POSITIVE_INFINITY, burstiness: 1 },
  ...{ maxConcurrency: null, warmups: 0, retry429: false, metrics: METRICS, percentiles: [50, 99], goodput: {} },
  detailed: true,
}

async function measure(fake: FakeOptions, options: Partial<ServeBenchOptions> = {}) {
  await using server = await FakeServer.start(fake)
  const result = await serveBench({ ...DEFAULTS, baseUrl: server.url, ...options })
  return { result, requests: server.requests, mostAtOnce: server.mostAtOnce }
}

describe('serveBench', () => {
  it("sees the server's delays, in vLLM's names", async () => {
    const { result: r, requests } = await measure({
      behave: () => ({ kind: 'answer', firstMs: 60, gapMs: 25, cachedTokens: 8 }),
    })
    assert.deepEqual([r.completed, r.failed, r.num_prompts, r.model_id, r.backend], [6, 0, 6, 'fake-model', 'openai'])
    assert.deepEqual([r.request_rate, r.burstiness, r.max_concurrency, r.request_goodput], ['inf', 1, null, null])
    assert.deepEqual([r.total_input_tokens, r.total_output_tokens], [6 * 24, 6 * 4])
    assert.deepEqual([r.input_lens, r.output_lens], [Array(6).fill(24), Array(6).fill(4)])
    for (const ttft of r.ttfts!) assert.ok(ttft >= (60 - EARLY_MS) / 1000, `${ttft}`)
    for (const gaps of r.itls!) assert.equal(gaps.length, 3)
    // Single gaps can be short, when the one before was read late; their sum cannot.
    for (const [i, latency] of r.latencies!.entries()) {
      const least = (60 + 3 * 25 - 4 * EARLY_MS) / 1000
      assert.ok(latency >= least, `${latency}`)
      assert.ok(latency <= r.duration)
      const sum = r.ttfts![i]! + r.itls![i]!.reduce((a, b) => a + b, 0)
      assert.ok(sum >= least && sum <= latency + 1e-9, `${sum} of ${latency}`)
    }
    assert.ok(r.mean_e2el_ms! >= r.mean_ttft_ms!)
    assert.ok(r.p99_ttft_ms! >= r.p50_ttft_ms!)
    assert.ok(r.request_throughput <= 6 / 0.131)
    assert.ok(r.max_concurrent_requests >= 1 && r.max_concurrent_requests <= 6)
    assert.deepEqual(r.errors, Array(6).fill(''))
    assert.deepEqual(r.generated_texts, Array(6).fill(' é0 é1 é2 é3'))
    assert.match(r.date, /^\d{8}-\d{6}$/)
    assert.deepEqual([r.kvasir.cached_tokens, r.kvasir.without_usage, r.kvasir.notes], [48, 0, []])
    assert.ok(r.kvasir.client_cpu_s > 0)
    const { prompt, ...body } = requests[0]!.body
    assert.deepEqual(body, {
      ...{ model: 'fake-model', max_tokens: 4, stream: true, stream_options: { include_usage: true } },
      ignore_eos: true,
    })
    assert.equal(typeof prompt, 'string')
  })

  it('prompts have the exact length, whichever form of /tokenize there is', async () => {
    for (const tokenizeField of ['prompt', 'content'] as const) {
      const { requests, result } = await measure({ tokenizeField })
      const prompts = requests.map((r) => String(r.body.prompt))
      for (const prompt of prompts) assert.equal(tokensOf(prompt).length, 24, prompt)
      assert.equal(new Set(prompts).size, 6)
      assert.deepEqual(result.kvasir.notes, [])
    }
  })

  it('counts words where nothing can be tokenized, and says so', async () => {
    const notes: string[] = []
    const { requests, result } = await measure({ tokenizeField: null }, { onNote: (n) => notes.push(n) })
    for (const { body } of requests) assert.equal(String(body.prompt).trim().split(' ').length, 24)
    assert.match(notes.join(), /no \/tokenize: prompts are as many words/)
    assert.deepEqual(result.kvasir.notes, notes)
    assert.match(showResult(result), /note: the server has no \/tokenize/)
  })

  it('sends tokens instead of text when it is asked to', async () => {
    const { requests } = await measure({}, { tokenIds: true })
    for (const { body } of requests) assert.equal((body.prompt as number[]).length, 24)
    await assert.rejects(measure({ tokenizeField: null }, { tokenIds: true }), /--token-ids: .* no \/tokenize/)
    await assert.rejects(measure({}, { tokenIds: true, endpoint: '/v1/chat/completions' }), /a chat has no prompt/)
    const sessions = [single('Hello', { outputTokens: 2 })]
    await assert.rejects(measure({}, { tokenIds: true, sessions }), /the prompts of this dataset are text/)
  })

  it('chats; the role that comes at once is not the first token', async () => {
    const { result, requests } = await measure(
      { behave: () => ({ kind: 'answer', firstMs: 60 }) },
      { endpoint: '/v1/chat/completions', extraBody: { temperature: 0 }, ignoreEos: false, apiKey: 'secret' },
    )
    assert.deepEqual([result.completed, result.backend], [6, 'openai-chat'])
    for (const ttft of result.ttfts!) assert.ok(ttft >= (60 - EARLY_MS) / 1000, `${ttft}`)
    const { messages, ...body } = requests[0]!.body
    assert.deepEqual(
      messages?.map((m) => m.role),
      ['user'],
    )
    assert.deepEqual(body, {
      ...{ model: 'fake-model', max_completion_tokens: 4, stream: true, stream_options: { include_usage: true } },
      temperature: 0,
    })
    assert.equal(requests[0]!.headers.authorization, 'Bearer secret')
  })

  it('conversations: each question holds what was said before, and waits for it', async () => {
    const sessions = multiTurnDataset({ conversations: 2, turns: 3, prefixTokens: 0 }, LENGTHS, 1)
    const answer = ' é0 é1 é2 é3'
    const chat = await measure({}, { sessions, endpoint: '/v1/chat/completions' })
    assert.equal(chat.result.completed, 6)
    assert.ok(chat.mostAtOnce <= 2)
    const longest = chat.requests.filter((r) => r.body.messages!.length === 5)
    assert.equal(longest.length, 2)
    for (const { body } of longest) {
      const roles = body.messages!.map((m) => m.role)
      assert.deepEqual(roles, ['user', 'assistant', 'user', 'assistant', 'user'])
      assert.equal(body.messages![1]!.content, answer)
      const before = chat.requests.find((r) => r.body.messages!.length === 3 && sameStart(r.body, body))
      assert.ok(before, 'the second question is the beginning of the third')
    }
    const text = await measure({}, { sessions: sessions.slice(0, 1) })
    const [first, second, third] = text.requests.map((r) => String(r.body.prompt))
    assert.ok(second!.startsWith(first! + answer) && third!.startsWith(second! + answer))
    assert.equal(tokensOf(second!).length, 24 + 4 + 24)
  })

  it('never has more under way than it may; who waits counts as waiting', async () => {
    const { result, mostAtOnce } = await measure(
      { behave: () => ({ kind: 'answer', firstMs: 40 }) },
      { maxConcurrency: 2, sessions: randomDataset(6, LENGTHS, 0, 1) },
    )
    assert.ok(mostAtOnce <= 2)
    assert.equal(result.max_concurrency, 2)
    assert.ok(result.max_concurrent_requests <= 2)
    // The last pair waits for two pairs before it.
    assert.ok(Math.max(...result.queue_times!) >= (80 - 2 * EARLY_MS) / 1000)
  })

  it('sends when requests are due', async () => {
    const even = await measure({}, { rate: 50, burstiness: Number.POSITIVE_INFINITY })
    assert.equal(even.result.request_rate, 50)
    assert.ok(even.result.duration >= (120 - EARLY_MS) / 1000)
    const timed = [0, 30, 90].map((arrivalMs) => single('Hello', { outputTokens: 1, arrivalMs }))
    const { result } = await measure({}, { sessions: timed })
    const [a, b, c] = result.start_times!
    assert.ok(a! <= b! && b! <= c!, `${a} ${b} ${c}`)
    // From when the run began: the first request may be late by itself, none is early.
    assert.ok(result.duration >= (90 - EARLY_MS) / 1000, `${result.duration} s`)
  })

  it('warms up with other prompts, which do not count', async () => {
    const { result, requests } = await measure({}, { warmups: 3 })
    assert.equal(requests.length, 9)
    assert.equal(result.completed, 6)
    assert.equal(new Set(requests.map((r) => r.body.prompt)).size, 9)
    assert.equal(tokensOf(String(requests[0]!.body.prompt)).length, 24)
  })

  it('reads events that are cut anywhere, in the middle of characters too', async () => {
    const { result } = await measure({ behave: () => ({ kind: 'answer', writeBytes: 5 }) })
    assert.deepEqual(result.generated_texts, Array(6).fill(' é0 é1 é2 é3'))
    assert.deepEqual(result.output_lens, Array(6).fill(4))
  })

  it('counts pieces where the server does not count tokens, and says so', async () => {
    const { result } = await measure({ behave: () => ({ kind: 'answer', usage: false }) })
    assert.deepEqual([result.total_output_tokens, result.total_input_tokens], [24, 144])
    assert.equal(result.kvasir.without_usage, 6)
    assert.match(result.kvasir.notes.join(), /reports no usage/)
  })

  it('judges goodput by what was measured', async () => {
    const behave = (n: number) => ({ kind: 'answer', firstMs: n < 3 ? 150 : 0 }) as const
    const { result } = await measure({ behave }, { goodput: { ttft: 149 - EARLY_MS } })
    const good = result.ttfts!.filter((s) => s * 1000 <= 149 - EARLY_MS).length
    assert.ok(good <= 3)
    assert.ok(Math.abs(result.request_goodput! * result.duration - good) < 1e-9)
  })
})

describe('serveBench, when things go wrong', () => {
  it('counts failures with their texts, and measures the rest', async () => {
    const behave: FakeOptions['behave'] = (n) =>
      (
        [
          { kind: 'answer' },
          { kind: 'refuse', status: 500 },
          { kind: 'cut', tokens: 2 },
          { kind: 'stop', tokens: 2 },
          { kind: 'event', data: '{"error": {"message": "the engine ended"}}' },
          { kind: 'event', data: '{"choices": [' },
        ] as const
      )[n]!
    const { result: r } = await measure({ behave }, { maxConcurrency: 1 })
    assert.deepEqual([r.completed, r.failed, r.total_output_tokens], [1, 5, 4])
    const errors = r.errors!
    assert.equal(errors[0], '')
    assert.equal(errors[1], 'HTTP 500: refused with 500')
    assert.match(errors[2]!, /ECONNRESET|aborted/)
    assert.equal(errors[3], 'the stream ended before the answer did')
    assert.equal(errors[4], 'the engine ended')
    assert.match(errors[5]!, /^an event is not a JSON object: /)
    assert.equal(
      r.kvasir.errors.reduce((sum, e) => sum + e.count, 0),
      5,
    )
    assert.match(showResult(r), /failed, 1 times: HTTP 500: refused with 500/)
  })

  it('429 is a failure that is counted apart', async () => {
    const behave: FakeOptions['behave'] = (n) =>
      n < 2 ? { kind: 'refuse', status: 429, headers: n === 0 ? { 'retry-after': '1' } : {} } : { kind: 'answer' }
    const { result, requests } = await measure({ behave }, { maxConcurrency: 1 })
    assert.deepEqual([result.completed, result.failed, requests.length], [4, 2, 6])
    assert.deepEqual([result.kvasir.rejected_429, result.kvasir.rejected_with_retry_after], [2, 1])
  })

  it('with --retry-429 it comes back when it was told to; that time counts', async () => {
    const headers = { 'retry-after-ms': '80' }
    const behave: FakeOptions['behave'] = (n) => (n < 2 ? { kind: 'refuse', status: 429, headers } : { kind: 'answer' })
    const { result, requests } = await measure({ behave }, { maxConcurrency: 1, retry429: true })
    assert.deepEqual([result.completed, result.failed, requests.length], [6, 0, 8])
    assert.equal(result.kvasir.rejected_429, 2)
    assert.ok(result.ttfts![0]! >= (160 - 2 * EARLY_MS) / 1000, `${result.ttfts![0]}`)
    assert.ok(requests[1]!.ms - requests[0]!.ms >= 80 - EARLY_MS)
  })

  it('a conversation ends with the turn that fails', async () => {
    const sessions = multiTurnDataset({ conversations: 1, turns: 3, prefixTokens: 0 }, LENGTHS, 1)
    const behave: FakeOptions['behave'] = (n) => (n === 1 ? { kind: 'refuse', status: 500 } : { kind: 'answer' })
    const { result, requests } = await measure({ behave }, { sessions })
    assert.deepEqual([result.completed, result.failed, requests.length], [1, 2, 2])
    assert.equal(result.errors![2], 'not sent: a turn before it failed')
  })

  it('a silent server fails the request, not the run', async () => {
    const behave = () => ({ kind: 'answer', firstMs: 400 }) as const
    const { result } = await measure({ behave }, { timeoutMs: 100 })
    assert.deepEqual([result.completed, result.failed], [0, 6])
    assert.deepEqual([result.mean_ttft_ms, result.p99_itl_ms, result.max_concurrent_requests], [0, 0, 0])
    assert.match(result.errors![0]!, /nothing came for 100 ms|aborted|ECONNRESET/)
  })

  it('says where no server is', async () => {
    const closed = createServer().listen(0, '127.0.0.1')
    await once(closed, 'listening')
    const { port } = closed.address() as { port: number }
    closed.close()
    await once(closed, 'close')
    const baseUrl = `http://127.0.0.1:${port}`
    await assert.rejects(serveBench({ ...DEFAULTS, baseUrl }), /\/v1\/models: .*ECONNREFUSED.*start the server/)
    const { failed, errors } = await serveBench({ ...DEFAULTS, baseUrl, model: 'x' })
    assert.equal(failed, 6)
    assert.match(errors![0]!, /ECONNREFUSED/)
    await assert.rejects(serveBench({ ...DEFAULTS, baseUrl: 'localhost:80' }), /--base-url is "localhost:80"/)
  })

  it('stops when it is told to', async () => {
    await using server = await FakeServer.start({ behave: () => ({ kind: 'answer', firstMs: 10_000 }) })
    const stop = new AbortController()
    const run = serveBench({ ...DEFAULTS, baseUrl: server.url, rate: 1, signal: stop.signal, maxConcurrency: 1 })
    setTimeout(() => stop.abort(), 300)
    await assert.rejects(run, { code: 'ABORTED' })
  })
})

function sameStart(short: { messages?: readonly object[] }, long: { messages?: readonly object[] }): boolean {
  return JSON.stringify(short.messages) === JSON.stringify(long.messages!.slice(0, short.messages!.length))
}
