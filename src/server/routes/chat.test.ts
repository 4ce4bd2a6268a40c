/** The chat API as OpenAI's own client and the AI SDK see it, on the house model. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embedMany, generateObject, generateText, stepCountIs, streamText, tool } from 'ai'
import OpenAI from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { z } from 'zod'
import type { Timings } from '../../engine/request.ts'
import { eventsOf, post, startHouse } from '../server.fixture.ts'

type House = Awaited<ReturnType<typeof startHouse>>
let server: House
let openai: OpenAI

const QUESTION = 'Vera Marlow keeps a rabbit as a pet. Which animal does Vera Marlow keep as a pet?'
const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: QUESTION }]
/** A question without an answer, and nothing that narrows the choice. */
const open: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: 'Tell me a story.' }]
const WILD = { temperature: 2, top_p: 1, top_k: 0, min_p: 0 }
const weather = {
  type: 'function' as const,
  function: {
    name: 'get_weather',
    description: 'The weather of a city',
    parameters: {
      type: 'object',
      properties: { city: { type: 'string', maxLength: 20 }, unit: { enum: ['C', 'F'] } },
      required: ['city', 'unit'],
      additionalProperties: false,
    },
  },
}

before(async () => {
  server = await startHouse()
  openai = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'none', maxRetries: 0 })
})
after(() => server.close())

describe("OpenAI's client", () => {
  it('gets an answer with usage, and the model by its name', async () => {
    const made = await openai.chat.completions.create({ model: 'house', messages, temperature: 0, max_tokens: 20 })
    const [choice] = made.choices
    assert.match(choice!.message.content!, /rabbit/)
    assert.equal(choice!.message.role, 'assistant')
    assert.equal(choice!.finish_reason, 'stop')
    assert.equal(made.object, 'chat.completion')
    assert.equal(made.model, 'house')
    assert.equal(made.usage!.total_tokens, made.usage!.prompt_tokens + made.usage!.completion_tokens)
    const { prompt_tokens: count } = made.usage!
    const { body } = await post(`${server.url}/tokenize`, { messages })
    assert.equal(count, body['count'])
  })

  it('sees in its usage what was cached', async () => {
    const long = [{ role: 'user' as const, content: `${'A quiet afternoon by the lake. '.repeat(30)}${QUESTION}` }]
    const ask = () => openai.chat.completions.create({ model: 'house', messages: long, temperature: 0, max_tokens: 8 })
    const first = await ask()
    const second = await ask()
    assert.equal(first.usage!.prompt_tokens_details!.cached_tokens, 0)
    const { cached_tokens: cached } = second.usage!.prompt_tokens_details!
    assert.equal(cached, Math.floor((second.usage!.prompt_tokens - 1) / 32) * 32)
    assert.equal(second.choices[0]!.message.content, first.choices[0]!.message.content)
  })

  it('streams what it would give as a whole', async () => {
    const asked = { model: 'house', messages, temperature: 0, max_tokens: 30, logprobs: true, top_logprobs: 2 } as const
    const whole = await openai.chat.completions.create(asked)
    const stream = await openai.chat.completions.create({
      ...asked,
      stream: true,
      stream_options: { include_usage: true },
    })
    let text = ''
    let finish: string | null = null
    let usage: OpenAI.CompletionUsage | null | undefined
    const logprobs: OpenAI.ChatCompletionTokenLogprob[] = []
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? ''
      finish = chunk.choices[0]?.finish_reason ?? finish
      logprobs.push(...(chunk.choices[0]?.logprobs?.content ?? []))
      usage = chunk.usage ?? usage
    }
    assert.equal(text, whole.choices[0]!.message.content)
    assert.equal(finish, whole.choices[0]!.finish_reason)
    assert.equal(usage!.completion_tokens, whole.usage!.completion_tokens)
    // A later answer finds more cached, and computes in another batch shape: the last digits may differ.
    const near = (a: number, b: number) => Math.abs(a - b) < 0.05
    assert.deepEqual(
      logprobs.map((l) => l.token),
      whole.choices[0]!.logprobs!.content!.map((l) => l.token),
    )
    assert.ok(logprobs.every((l, i) => near(l.logprob, whole.choices[0]!.logprobs!.content![i]!.logprob)))
  })

  it('log-probabilities: bytes spell the text, the most likely come first', async () => {
    const made = await openai.chat.completions.create({
      ...{ model: 'house', messages, temperature: 0, max_tokens: 12, logprobs: true, top_logprobs: 5 },
    })
    const { content } = made.choices[0]!.logprobs!
    const bytes = content!.flatMap((l) => l.bytes!)
    assert.equal(Buffer.from(bytes).toString(), made.choices[0]!.message.content)
    for (const { logprob, top_logprobs: top } of content!) {
      assert.equal(top.length, 5)
      assert.ok(logprob <= 0 && Math.abs(top[0]!.logprob - logprob) < 1e-6, 'greedy takes the most likely')
      assert.deepEqual(
        top.map((t) => t.logprob),
        top.map((t) => t.logprob).sort((a, b) => b - a),
      )
    }
  })

  it('gets three answers to one prompt, whole and streamed', async () => {
    const asked = { model: 'house', messages: open, n: 3, seed: 7, max_tokens: 12, ...WILD }
    const made = await openai.chat.completions.create(asked)
    assert.deepEqual(
      made.choices.map((c) => c.index),
      [0, 1, 2],
    )
    const texts = made.choices.map((c) => c.message.content)
    const stream = await openai.chat.completions.create({ ...asked, stream: true })
    const streamed = ['', '', '']
    const finished = new Set<number>()
    for await (const { choices } of stream)
      for (const { index, delta, finish_reason: finish } of choices) {
        streamed[index] += delta.content ?? ''
        if (finish) finished.add(index)
      }
    assert.deepEqual([...finished].sort(), [0, 1, 2])
    assert.equal(new Set(texts).size > 1, true, 'equal samples')
    assert.deepEqual(streamed, texts)
  })

  it('the same seed gives the same answer, another one another', async () => {
    const ask = async (seed: number) => {
      const asked = { model: 'house', messages: open, seed, max_tokens: 16, ...WILD }
      return (await openai.chat.completions.create(asked)).choices[0]!.message.content
    }
    assert.equal(await ask(11), await ask(11))
    assert.notEqual(await ask(11), await ask(12))
  })

  it('stop texts, limits and biases hold', async () => {
    const base = { model: 'house', messages, temperature: 0 }
    const whole = (await openai.chat.completions.create({ ...base, max_tokens: 30 })).choices[0]!.message.content!
    const stop = whole.slice(3, 6)
    const stopped = await openai.chat.completions.create({ ...base, stop: [stop], max_tokens: 30 })
    assert.equal(stopped.choices[0]!.message.content, whole.slice(0, whole.indexOf(stop)))
    assert.equal(stopped.choices[0]!.finish_reason, 'stop')
    const short = await openai.chat.completions.create({ ...base, max_completion_tokens: 2 })
    assert.equal(short.choices[0]!.finish_reason, 'length')
    assert.equal(short.usage!.completion_tokens, 2)
    const { body } = await post(`${server.url}/tokenize`, { prompt: whole, add_special_tokens: false })
    const [first] = body['tokens'] as number[]
    const biased = await openai.chat.completions.create({ ...base, logit_bias: { [first!]: -100 }, max_tokens: 5 })
    assert.notEqual(biased.choices[0]!.message.content!.slice(0, 4), whole.slice(0, 4))
  })

  it('calls a function that it must call, with arguments that fit', async () => {
    const made = await openai.chat.completions.create({
      ...{ model: 'house', messages, tools: [weather], max_tokens: 200, temperature: 0.7, seed: 1 },
      tool_choice: { type: 'function', function: { name: 'get_weather' } },
    })
    const [choice] = made.choices
    assert.equal(choice!.finish_reason, 'tool_calls')
    assert.equal(choice!.message.content, null)
    const [call] = choice!.message.tool_calls!
    assert.ok(call!.type === 'function' && call!.id.startsWith('call_'))
    assert.equal(call!.function.name, 'get_weather')
    const args = JSON.parse(call!.function.arguments)
    assert.ok(typeof args.city === 'string' && ['C', 'F'].includes(args.unit), call!.function.arguments)
  })

  it('streams the arguments of a call, and its runner takes results back', async () => {
    const runner = openai.chat.completions.stream({
      ...{ model: 'house', messages, tools: [weather], tool_choice: 'required', max_tokens: 200, seed: 3 },
    })
    let pieces = 0
    runner.on('tool_calls.function.arguments.delta', () => pieces++)
    const final = await runner.finalChatCompletion()
    const [call] = final.choices[0]!.message.tool_calls!
    assert.ok(pieces > 1, `${pieces} pieces`)
    assert.ok(call!.type === 'function')
    JSON.parse(call!.function.arguments)
    const next = await openai.chat.completions.create({
      ...{ model: 'house', max_tokens: 10, tools: [weather], tool_choice: 'none' },
      messages: [
        ...messages,
        { role: 'assistant', content: null, tool_calls: [call!] },
        { role: 'tool', tool_call_id: call!.id, content: '{"temperature": 21}' },
      ],
    })
    assert.equal(typeof next.choices[0]!.message.content, 'string')
    assert.equal(next.choices[0]!.message.tool_calls, undefined)
  })

  it('gets JSON that satisfies a schema, parsed', async () => {
    const Pet = z.object({ owner: z.string().max(20), animal: z.enum(['cat', 'rabbit', 'dog']), age: z.number().int() })
    const made = await openai.chat.completions.parse({
      ...{ model: 'house', messages, max_tokens: 300, temperature: 0, response_format: zodResponseFormat(Pet, 'pet') },
    })
    assert.ok(Pet.safeParse(made.choices[0]!.message.parsed).success)
    const object = await openai.chat.completions.create({
      ...{ model: 'house', messages, max_tokens: 400, temperature: 0, response_format: { type: 'json_object' } },
    })
    if (object.choices[0]!.finish_reason === 'stop') JSON.parse(object.choices[0]!.message.content!)
  })

  it('gets either a call or an answer of the schema, with tools and a format', async () => {
    const { data: ran } = await openai.chat.completions
      .create({
        ...{ model: 'house', messages, tools: [weather], max_tokens: 300, parallel_tool_calls: false, temperature: 0 },
        response_format: {
          type: 'json_schema',
          json_schema: {
            name: 'x',
            schema: {
              type: 'object',
              properties: { n: { type: 'integer' } },
              required: ['n'],
              additionalProperties: false,
            },
          },
        },
      })
      .withResponse()
    const { content, tool_calls: calls } = ran.choices[0]!.message
    if (calls) assert.ok(calls[0]!.type === 'function' && JSON.parse(calls[0]!.function.arguments))
    else assert.ok(Number.isInteger(JSON.parse(content!).n), content!)
  })

  it('can leave in the middle', async () => {
    const stream = await openai.chat.completions.create({
      ...{ model: 'house', messages, stream: true, max_tokens: 1500 },
      // @ts-expect-error not OpenAI's
      ignore_eos: true,
    })
    let chunks = 0
    for await (const _ of stream) if (++chunks === 5) break
    for (let i = 0; i < 300 && (await server.engineOf().status()).running > 0; i++) await sleep(10)
    const { running, kv } = await server.engineOf().status()
    assert.equal(running, 0)
    assert.equal(kv.usedBytes, kv.prefixBytes)
    const abort = new AbortController()
    const asked = openai.chat.completions.create(
      { model: 'house', messages, max_tokens: 1500, ignore_eos: true } as OpenAI.ChatCompletionCreateParamsNonStreaming,
      { signal: abort.signal },
    )
    setTimeout(() => abort.abort(), 100)
    await assert.rejects(asked, OpenAI.APIUserAbortError)
    for (let i = 0; i < 300 && (await server.engineOf().status()).running > 0; i++) await sleep(10)
    assert.equal((await server.engineOf().status()).running, 0)
  })

  it('throws its own errors for ours', async () => {
    const ask = (body: object) => openai.chat.completions.create(body as OpenAI.ChatCompletionCreateParamsNonStreaming)
    await assert.rejects(ask({ model: 'house', messages: [] }), (e) => {
      assert.ok(e instanceof OpenAI.BadRequestError)
      assert.equal(e.param, 'messages')
      assert.equal(e.type, 'invalid_request_error')
      return true
    })
    await assert.rejects(ask({ model: 'gpt-4o', messages }), OpenAI.NotFoundError)
    await assert.rejects(ask({ model: 'house', messages, stream: true, n: 99 }), OpenAI.BadRequestError)
    await assert.rejects(
      ask({ model: 'house', messages: [{ role: 'user', content: 'word '.repeat(5000) }] }),
      (e) => e instanceof OpenAI.BadRequestError && e.code === 'context_length_exceeded',
    )
  })

  it('lists the models', async () => {
    const list = await openai.models.list()
    assert.deepEqual(
      list.data.map((m) => m.id),
      ['house'],
    )
    assert.equal((await openai.models.retrieve('house')).id, 'house')
    await assert.rejects(openai.models.retrieve('none'), OpenAI.NotFoundError)
  })
})

describe('a queue that is full', () => {
  it('is a rate limit with a time to wait', async () => {
    await using small = await startHouse({}, { contextLength: 1024, threads: 1, maxSequences: 1, maxWaiting: 1 })
    const client = new OpenAI({ baseURL: `${small.url}/v1`, apiKey: 'none', maxRetries: 0 })
    const ask = () =>
      client.chat.completions.create({
        ...{ model: 'house', messages, max_tokens: 300, ignore_eos: true },
      } as OpenAI.ChatCompletionCreateParamsNonStreaming)
    const results = await Promise.allSettled(Array.from({ length: 8 }, ask))
    const refused = results.flatMap((r) => (r.status === 'rejected' ? [r.reason] : []))
    assert.ok(refused.length >= 4 && refused.length <= 7, `${refused.length} refused`)
    for (const e of refused) {
      assert.ok(e instanceof OpenAI.RateLimitError)
      assert.ok(Number(e.headers!.get('retry-after')) >= 1)
    }
  })
})

describe('API keys', () => {
  it('open every route but the probes', async () => {
    await using closed = await startHouse({ apiKeys: ['secret-1', 'secret-2'] })
    const good = new OpenAI({ baseURL: `${closed.url}/v1`, apiKey: 'secret-2', maxRetries: 0 })
    const bad = new OpenAI({ baseURL: `${closed.url}/v1`, apiKey: 'secret-3', maxRetries: 0 })
    assert.equal((await good.models.list()).data.length, 1)
    await assert.rejects(bad.models.list(), OpenAI.AuthenticationError)
    for (const path of ['/v1/models', '/metrics', '/openapi.json', '/nothing'])
      assert.equal((await fetch(closed.url + path)).status, 401, path)
    for (const path of ['/health', '/ready', '/version'])
      assert.equal((await fetch(closed.url + path)).status, 200, path)
    const as = (key: string, path: string) => fetch(closed.url + path, { headers: { 'x-api-key': key } })
    assert.equal((await as('secret-1', '/v1/models')).status, 200)
    // What tells of all tenants is for the first key alone.
    assert.equal((await as('secret-1', '/metrics')).status, 200)
    for (const path of ['/metrics', '/live']) assert.equal((await as('secret-2', path)).status, 403, path)
  })
})

describe('the AI SDK', () => {
  const model = () =>
    createOpenAICompatible({ name: 'kvasir', baseURL: `${server.url}/v1`, supportsStructuredOutputs: true })

  it('generates and streams text', async () => {
    const asked = { model: model()('house'), prompt: QUESTION, temperature: 0, maxOutputTokens: 20 }
    const { text, finishReason, usage } = await generateText(asked)
    assert.match(text, /rabbit/)
    assert.equal(finishReason, 'stop')
    assert.ok(usage.inputTokens! > 10)
    const streamed = streamText(asked)
    let all = ''
    for await (const piece of streamed.textStream) all += piece
    assert.equal(all, text)
    assert.equal(await streamed.finishReason, 'stop')
  })

  it('runs a tool and goes on with its result', async () => {
    let asked: unknown
    const result = await generateText({
      model: model()('house'),
      prompt: QUESTION,
      maxOutputTokens: 200,
      stopWhen: stepCountIs(2),
      providerOptions: { kvasir: { parallel_tool_calls: false } },
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'none' }),
      tools: {
        look: tool({
          description: 'Looks for an animal',
          inputSchema: z.object({ animal: z.enum(['cat', 'dog', 'rabbit']) }),
          execute: async (input) => {
            asked = input
            return { found: true }
          },
        }),
      },
    })
    assert.ok(['cat', 'dog', 'rabbit'].includes((asked as { animal: string }).animal))
    assert.equal(result.steps.length, 2)
    assert.equal(result.steps[0]!.finishReason, 'tool-calls')
  })

  it('makes objects', async () => {
    const { object } = await generateObject({
      ...{ model: model()('house'), prompt: QUESTION, maxOutputTokens: 300, temperature: 0 },
      schema: z.object({ animal: z.enum(['cat', 'rabbit']), sure: z.boolean() }),
    })
    assert.ok(['cat', 'rabbit'].includes(object.animal))
  })

  it('embeds', async () => {
    const { embeddings } = await embedMany({
      model: model().textEmbeddingModel('house'),
      values: ['a rabbit', 'a small rabbit', 'the stock market fell'],
    })
    assert.equal(embeddings.length, 3)
    const dot = (a: number[], b: number[]) => a.reduce((sum, x, i) => sum + x * b[i]!, 0)
    assert.ok(Math.abs(dot(embeddings[0]!, embeddings[0]!) - 1) < 1e-5, 'not of length one')
    assert.ok(dot(embeddings[0]!, embeddings[1]!) > dot(embeddings[0]!, embeddings[2]!))
  })

  it('can be stopped', async () => {
    const abort = new AbortController()
    const { textStream } = streamText({
      ...{
        model: model()('house'),
        prompt: QUESTION,
        maxOutputTokens: 1500,
        abortSignal: abort.signal,
        onError: () => {},
      },
      providerOptions: { kvasir: { ignore_eos: true } },
    })
    let n = 0
    for await (const _ of textStream) if (++n === 4) abort.abort()
    for (let i = 0; i < 300 && (await server.engineOf().status()).running > 0; i++) await sleep(10)
    assert.equal((await server.engineOf().status()).running, 0)
  })
})

describe('plain fetch', () => {
  it('reads server-sent events to [DONE]', async () => {
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      ...{ method: 'POST', headers: { 'content-type': 'application/json', 'x-request-id': 'mine-1' } },
      body: JSON.stringify({ messages, stream: true, max_tokens: 5, temperature: 0 }),
    })
    assert.match(response.headers.get('content-type')!, /^text\/event-stream/)
    assert.equal(response.headers.get('x-request-id'), 'mine-1')
    const all: string[] = []
    for await (const { data } of eventsOf(response)) all.push(data)
    assert.equal(all.at(-1), '[DONE]')
    const chunks = all.slice(0, -1).map((d) => JSON.parse(d))
    assert.deepEqual(chunks[0].choices[0].delta, { role: 'assistant', content: '', refusal: null })
    const last = chunks.at(-1)
    assert.equal(last.choices[0].finish_reason, 'length')
    assert.ok(last.kvasir.timings.ttft_ms > 0)
    assert.ok(
      chunks.every((c) => !('usage' in c)),
      'usage that nobody asked for',
    )
  })

  it('counts a conversation as it is answered: roles by their older names, texts in parts', async () => {
    const parts = [
      { type: 'text', text: 'What is ' },
      { type: 'text', text: 'a lake?' },
    ]
    const conversation = [
      { role: 'developer', content: 'Be brief.' },
      { role: 'user', content: parts },
    ]
    const asked = { messages: conversation, max_tokens: 1 }
    const answered = (await post(`${server.url}/v1/chat/completions`, asked)).body['usage'] as OpenAI.CompletionUsage
    const { body } = await post(`${server.url}/tokenize`, { messages: conversation })
    assert.equal(body['count'], answered.prompt_tokens)
  })

  it('shortens the cache as it is told', async () => {
    const asked = { messages, max_tokens: 4, kvasir: { policy: 'snapkv?window=8', budget: 0.5 } }
    assert.equal((await post(`${server.url}/v1/chat/completions`, asked)).status, 200)
    const wrong = { ...asked, kvasir: { policy: 'snapvk', budget: 0.5 } }
    const { status, body } = await post(`${server.url}/v1/chat/completions`, wrong)
    assert.equal(status, 400)
    assert.match(JSON.stringify(body), /Did you mean 'snapkv'/)
  })

  it('caches in the types that it is asked for', async () => {
    const asked = { messages, max_tokens: 4, temperature: 0 }
    const q8 = { cache_type_k: 'q8_0', cache_type_v: 'q8_0' }
    for (const [route, body] of [
      ['chat/completions', asked],
      ['completions', { prompt: QUESTION, max_tokens: 4 }],
      ['responses', { input: QUESTION, max_output_tokens: 16 }],
      ['messages', asked],
    ] as const) {
      const { kvasir } = (await post(`${server.url}/v1/${route}`, { ...body, kvasir: q8 })).body
      const { kv_bytes, kv_bytes_full } = (kvasir as { timings: Timings }).timings
      // 32 numbers in 34 bytes, where f16 takes 64.
      assert.equal(kv_bytes / kv_bytes_full, 34 / 64, route)
    }
    const wrong = await post(`${server.url}/v1/chat/completions`, { ...asked, kvasir: { cache_type_k: 'q8' } })
    assert.equal(wrong.status, 400)
    assert.match(JSON.stringify(wrong.body), /kvasir\.cache_type_k.*q8_0/)
    // A prompt of several blocks, of which a policy keeps half: both save.
    const long = { ...asked, messages: [{ role: 'user', content: `${'A bell rang. '.repeat(60)}${QUESTION}` }] }
    const bytesOf = async (kvasir: object) => {
      const { status, body } = await post(`${server.url}/v1/chat/completions`, { ...long, kvasir })
      assert.equal(status, 200, JSON.stringify(body))
      return (body['kvasir'] as { timings: Timings }).timings.kv_bytes
    }
    const kept = { policy: 'snapkv', budget: 0.5 }
    const [full, half, both] = [await bytesOf({}), await bytesOf(kept), await bytesOf({ ...q8, ...kept })]
    assert.ok(half < 0.8 * full, `${half} of ${full}`)
    assert.equal(both / half, 34 / 64)
  })

  it('nulls at the top are absent fields', async () => {
    const { status } = await post(`${server.url}/v1/chat/completions`, {
      ...{ messages, max_tokens: 2, temperature: null, stop: null, tools: null, response_format: null, n: null },
    })
    assert.equal(status, 200)
  })
})
