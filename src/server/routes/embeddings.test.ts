/** `/v1/embeddings` as the official client sees it, on the house model. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import OpenAI, { BadRequestError } from 'openai'
import type { EngineApi } from '../../engine/api.ts'
import { post, startHouse } from '../server.fixture.ts'
import type { Server } from '../server.ts'

let server: Server
let engine: EngineApi
let client: OpenAI

before(async () => {
  const house = await startHouse()
  server = house
  engine = house.engineOf()
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'none', maxRetries: 0 })
})
after(() => server.close())

const TEXTS = ['A cat sits on the mat.', 'A dog runs in the park.', 'The king rules the land.']

describe('embeddings', () => {
  it('are the engine’s vectors, in the order of the texts, and say how they were pooled', async () => {
    const want = await Promise.all(TEXTS.map((prompt) => engine.embed({ prompt })))
    const response = await client.embeddings.create({ model: 'house', input: TEXTS })
    assert.deepEqual(
      response.data.map(({ index }) => index),
      [0, 1, 2],
    )
    // The client asks for base64 and reads it: the numbers are the engine's to the last bit.
    assert.deepEqual(
      response.data.map(({ embedding }) => embedding),
      want.map(({ vector }) => [...vector]),
    )
    const tokens = want.reduce((sum, e) => sum + e.tokens, 0)
    assert.deepEqual(response.usage, { prompt_tokens: tokens, total_tokens: tokens })
    assert.deepEqual((response as unknown as { kvasir: object }).kvasir, { pooling: 'mean' })
  })

  it('are the same as numbers and as base64, for a text and for its tokens', async () => {
    const input = TEXTS[0]!
    const tokens = [...(await engine.tokenize({ prompt: input }))]
    const [number] = (await client.embeddings.create({ model: 'house', input, encoding_format: 'float' })).data
    for (const same of [input, [input], tokens, [tokens]]) {
      const [vector] = (await client.embeddings.create({ model: 'house', input: same, encoding_format: 'base64' })).data
      const bytes = Buffer.from(vector!.embedding as unknown as string, 'base64')
      assert.equal(bytes.length, 4 * engine.info.width)
      const floats = Array.from({ length: engine.info.width }, (_, i) => bytes.readFloatLE(4 * i))
      assert.deepEqual(floats, number!.embedding)
    }
    const length = Math.hypot(...number!.embedding)
    assert.ok(Math.abs(length - 1) < 1e-5, `${length}`)
  })

  it('take another pooling, and leave vectors as long as they are', async () => {
    const body = { input: TEXTS[0]!, kvasir: { pooling: 'last', normalize: false } }
    const { body: answer } = await post(`${server.url}/v1/embeddings`, body)
    const want = await engine.embed({ prompt: TEXTS[0]!, pooling: 'last', normalize: false })
    assert.deepEqual((answer['data'] as { embedding: number[] }[])[0]!.embedding, [...want.vector])
    assert.deepEqual(answer['kvasir'], { pooling: 'last' })
  })

  it('come for as many texts as OpenAI takes, more than may wait at once', async () => {
    const input = Array.from({ length: 2048 }, (_, i) => `${i}`)
    const { data } = await client.embeddings.create({ model: 'house', input })
    assert.equal(data.length, 2048)
    const want = await engine.embed({ prompt: '1234' })
    assert.deepEqual(data[1234]!.embedding, [...want.vector])
  })

  it('refuse other widths, and name the field', async () => {
    const { width } = engine.info
    assert.equal((await client.embeddings.create({ model: 'house', input: 'a', dimensions: width })).data.length, 1)
    const refused: [object, string, RegExp][] = [
      [{ dimensions: width / 2 }, 'dimensions', /not shortened/],
      [{ input: '' }, 'input', /empty/],
      [{ input: [9_999_999] }, 'input', /vocabulary/],
      [{ input: 'a '.repeat(4000) }, 'input', /context/],
      [{ input: Array.from({ length: 2049 }, () => 'a') }, 'input', /at most 2048/],
      [{ encoding_format: 'int8' }, 'encoding_format', /"float", "base64"/],
    ]
    for (const [body, param, message] of refused)
      await assert.rejects(
        client.embeddings.create({ model: 'house', input: 'a', ...body }),
        (error: BadRequestError) => {
          assert.ok(error instanceof BadRequestError, String(error))
          assert.match(error.message, message)
          assert.equal(error.param, param, error.message)
          return true
        },
      )
  })
})
