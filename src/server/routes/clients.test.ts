/** What holds for every route that makes answers: clients that leave, keys, queues that are full, an engine elsewhere. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import Anthropic, { AuthenticationError as AnthropicAuthenticationError } from '@anthropic-ai/sdk'
import OpenAI, { APIConnectionTimeoutError, AuthenticationError, NotFoundError, RateLimitError } from 'openai'
import type { EngineApi } from '../../engine/api.ts'
import { post, SMALL, startHouse } from '../server.fixture.ts'
import type { Server } from '../server.ts'
import { startServer } from '../server.ts'

const messages = [{ role: 'user' as const, content: 'Tell me about ships.' }]
/** Keeps an answer from ending by itself. */
const grammar = 'root ::= [a-z ] root'
const endless = { model: 'house', temperature: 0, stream: true as const, ...{ grammar } }

/** Streams that would go on until the context is full, by route. */
const ENDLESS: Readonly<Record<string, (url: string) => Promise<AsyncIterable<unknown>>>> = {
  '/v1/chat/completions': async (url) => await openai(url).chat.completions.create({ ...endless, messages }),
  '/v1/completions': async (url) =>
    await openai(url).completions.create({ ...endless, prompt: ['Ships', 'Trees', 'Kings'], n: 2, max_tokens: 2000 }),
  '/v1/responses': async (url) => await openai(url).responses.create({ ...endless, input: 'Tell me about ships.' }),
  '/v1/messages': async (url) => await anthropic(url).messages.create({ ...endless, messages, max_tokens: 2000 }),
}

const openai = (url: string, apiKey = 'none') => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 })
const anthropic = (url: string, apiKey = 'none') => new Anthropic({ baseURL: url, apiKey, maxRetries: 0 })

async function until(condition: () => Promise<boolean>, what: string): Promise<void> {
  const end = performance.now() + 10_000
  while (!(await condition())) {
    assert.ok(performance.now() < end, what)
    await sleep(5)
  }
}

describe('a client that leaves', () => {
  let server: Server
  let engine: EngineApi

  before(async () => {
    const house = await startHouse()
    server = house
    engine = house.engineOf()
  })
  after(() => server.close())

  const isIdle = async () => {
    const { running, waiting, kv } = await engine.status()
    // Only stored prefixes hold pages then.
    return running === 0 && waiting === 0 && kv.usedBytes === kv.prefixBytes
  }

  for (const [route, open] of Object.entries(ENDLESS))
    it(`stops the work and frees the pages: ${route}`, async () => {
      let events = 0
      for await (const _ of await open(server.url)) if (++events === 5) break
      await until(isIdle, 'the work goes on')
      await engine.clearCache()
      assert.equal((await engine.status()).kv.usedBytes, 0)
    })

  it('before its whole answer is there stops the work too', async () => {
    const impatient = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'none', maxRetries: 0, timeout: 100 })
    await assert.rejects(
      impatient.responses.create({ model: 'house', input: 'Ships', ...{ grammar } }),
      APIConnectionTimeoutError,
    )
    await until(isIdle, 'the work goes on')
  })

  it('stops embeddings too', async () => {
    const input = Array.from({ length: 2048 }, (_, i) => `The king of the ${i} ships rules the land. `.repeat(8))
    const impatient = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'none', maxRetries: 0, timeout: 100 })
    await assert.rejects(impatient.embeddings.create({ model: 'house', input }), APIConnectionTimeoutError)
    await until(isIdle, 'the work goes on')
  })
})

describe('an answer that breaks off', () => {
  for (const route of Object.keys(ENDLESS))
    it(`tells of the error in its last event: ${route}`, async () => {
      await using server = await startHouse()
      const events: { type?: string; response?: { status: string; error: { code: string } } }[] = []
      await assert.rejects(async () => {
        for await (const event of await ENDLESS[route]!(server.url)) {
          if (events.push(event as object) === 5) await server.engineOf().dispose()
        }
        // The client of responses throws for no event; the others for any that is an error.
        const last = events.at(-1)!
        assert.equal(last.type, 'response.failed')
        assert.equal(last.response!.status, 'failed')
        throw new Error(last.response!.error.code)
      }, /shutting.down/)
      assert.ok(events.length >= 5)
    })
})

describe('errors', () => {
  it('about keys and models have their classes', async () => {
    await using server = await startHouse({ apiKeys: ['sesame'] })
    const { url } = server
    await assert.rejects(openai(url, 'wrong').responses.create({ input: 'a' }), AuthenticationError)
    await assert.rejects(openai(url, 'wrong').embeddings.create({ model: 'house', input: 'a' }), AuthenticationError)
    const wrong = anthropic(url, 'wrong').messages.create({ model: 'house', max_tokens: 1, messages })
    await assert.rejects(wrong, AnthropicAuthenticationError)
    const right = openai(url, 'sesame')
    assert.equal((await right.embeddings.create({ model: 'house', input: 'a' })).data.length, 1)
    assert.ok(await anthropic(url, 'sesame').messages.create({ model: 'house', max_tokens: 1, messages }))
    for (const path of ['completions', 'responses', 'messages', 'embeddings']) {
      const model = 'horse'
      const body = { model, prompt: 'a', input: 'a', messages, max_tokens: 1 }
      const known = { completions: ['prompt'], responses: ['input'], messages: ['messages', 'max_tokens'] }
      const fields = ['model', ...(known[path as keyof typeof known] ?? ['input'])]
      const given = Object.fromEntries(Object.entries(body).filter(([name]) => fields.includes(name)))
      const answer = await post(`${url}/v1/${path}`, given, { authorization: 'Bearer sesame' })
      assert.equal(answer.status, 404)
      assert.match(JSON.stringify(answer.body), /Did you mean 'house'/)
    }
    await assert.rejects(right.completions.create({ model: 'horse', prompt: 'a' }), NotFoundError)
  })

  it('about a queue that is full say when to try again', async () => {
    await using server = await startHouse({}, { ...SMALL, maxSequences: 1, maxWaiting: 1 })
    const { url } = server
    const engine = server.engineOf()
    const busy = new AbortController()
    const fill = { model: 'house', input: 'Ships', ...{ grammar } }
    const hold = () =>
      openai(url)
        .responses.create(fill, { signal: busy.signal })
        .catch(() => {})
    // One after the other: as long as the first one waits for its turn, there is no room for the second.
    const first = hold()
    await until(async () => (await engine.status()).running === 1, 'nothing runs')
    const holders = [first, hold()]
    await until(async () => (await engine.status()).waiting === 1, 'nothing waits')
    for (const attempt of [
      openai(url).completions.create({ model: 'house', prompt: 'a' }),
      openai(url).completions.create({ model: 'house', prompt: 'a', stream: true }),
      openai(url).responses.create({ model: 'house', input: 'a', stream: true }),
      openai(url).embeddings.create({ model: 'house', input: 'a' }),
    ])
      await assert.rejects(attempt, (error: RateLimitError) => {
        assert.ok(error instanceof RateLimitError, String(error))
        assert.ok(Number(error.headers.get('retry-after')) >= 1)
        return true
      })
    const refused = anthropic(url).messages.create({ model: 'house', max_tokens: 1, messages })
    await assert.rejects(refused, Anthropic.RateLimitError)
    busy.abort()
    await Promise.all(holders)
  })
})

describe('an engine in a process of its own', () => {
  it('gives the same answers', async () => {
    const models = [{ id: 'house', path: 'house', engine: SMALL }]
    await using remote = await startServer({ models, port: 0, drainMs: 1000 })
    await using local = await startHouse()
    const answers = async (url: string) => {
      const client = openai(url)
      const greedy = { model: 'house', temperature: 0 }
      const completion = await client.completions.create({ ...greedy, prompt: ['Ships', 'Trees'], logprobs: 2 })
      const response = await client.responses.create({ ...greedy, input: 'Tell me about ships.' })
      const message = await anthropic(url)
        .messages.stream({ ...greedy, max_tokens: 30, messages })
        .finalMessage()
      const embedding = await client.embeddings.create({ model: 'house', input: ['Ships', 'Trees'] })
      return [completion.choices, response.output_text, message.content, message.usage, embedding.data]
    }
    assert.deepEqual(await answers(remote.url), await answers(local.url))
    const engine = remote.pool.loaded()[0]!.engine
    for await (const _ of await ENDLESS['/v1/responses']!(remote.url)) break
    await until(async () => (await engine.status()).running === 0, 'the work goes on')
  })
})
