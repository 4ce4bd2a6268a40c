/** `/v1/completions` as the official client sees it, on the house model. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import OpenAI, { BadRequestError } from 'openai'
import type { Completion, CompletionCreateParamsNonStreaming } from 'openai/resources/completions'
import type { EngineApi } from '../../engine/api.ts'
import { startHouse } from '../server.fixture.ts'
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

const greedy = { model: 'house', temperature: 0 }
const PROMPT = 'The ships left the harbour in the morning and'

const create = (body: Partial<CompletionCreateParamsNonStreaming> & object) =>
  client.completions.create({ ...greedy, prompt: PROMPT, ...body } as CompletionCreateParamsNonStreaming)

/** A stream's choices put together, and its last usage. */
async function streamed(body: object): Promise<{ texts: string[]; finishes: string[]; usage: Completion['usage'] }> {
  const texts: string[] = []
  const finishes: string[] = []
  let usage: Completion['usage']
  const stream = await client.completions.create({
    ...{ ...greedy, prompt: PROMPT, stream: true, stream_options: { include_usage: true } },
    ...body,
  })
  for await (const chunk of stream) {
    for (const { index, text, finish_reason: finish } of chunk.choices) {
      texts[index] = (texts[index] ?? '') + text
      if (finish) finishes[index] = finish
    }
    usage = chunk.usage ?? usage
  }
  return { texts, finishes, usage }
}

describe('a completion', () => {
  it('goes on with a text, 16 tokens long unless asked for more', async () => {
    const { id, object, choices, usage, model } = await create({})
    assert.match(id, /^cmpl-\w{24}$/)
    assert.equal(object, 'text_completion')
    assert.equal(model, 'house')
    assert.equal(choices[0]!.finish_reason, 'length')
    assert.equal(usage!.completion_tokens, 16)
    assert.equal(usage!.prompt_tokens, (await engine.tokenize({ prompt: PROMPT })).length)
    assert.equal((await create({ max_tokens: 3 })).usage!.completion_tokens, 3)
  })

  it('is the same when it is streamed, and when the prompt is given as tokens', async () => {
    const { choices } = await create({ max_tokens: 24 })
    const stream = await streamed({ max_tokens: 24 })
    assert.deepEqual(stream.texts, [choices[0]!.text])
    assert.deepEqual(stream.finishes, ['length'])
    assert.equal(stream.usage!.completion_tokens, 24)
    const tokens = [...(await engine.tokenize({ prompt: PROMPT }))]
    assert.equal((await create({ max_tokens: 24, prompt: tokens })).choices[0]!.text, choices[0]!.text)
    const bare = [...(await engine.tokenize({ prompt: PROMPT, addSpecial: false }))]
    const { usage } = await create({ add_special_tokens: false } as object)
    assert.equal(usage!.prompt_tokens, bare.length)
  })

  it('of several prompts has each prompt’s answers side by side, as alone', async () => {
    const prompts = [PROMPT, 'Once upon a time', 'The king said']
    const alone = await Promise.all(prompts.map(async (prompt) => (await create({ prompt })).choices[0]!.text))
    const { choices, usage } = await create({ prompt: prompts, n: 2 })
    assert.deepEqual(
      choices.map(({ index }) => index),
      [0, 1, 2, 3, 4, 5],
    )
    assert.deepEqual(
      choices.map(({ text }) => text),
      alone.flatMap((text) => [text, text]),
    )
    const lengths = await Promise.all(prompts.map(async (prompt) => (await engine.tokenize({ prompt })).length))
    assert.equal(
      usage!.prompt_tokens,
      lengths.reduce((a, b) => a + b),
    )
    assert.equal(usage!.completion_tokens, 6 * 16)
    const stream = await streamed({ prompt: prompts, n: 2 })
    assert.deepEqual(
      stream.texts,
      choices.map(({ text }) => text),
    )
    assert.deepEqual(stream.usage!.prompt_tokens, usage!.prompt_tokens)
  })

  it('of more prompts than run or wait at once answers them all', async () => {
    const prompt = Array.from({ length: 300 }, (_, i) => `${i} and`)
    const { choices } = await create({ prompt, max_tokens: 1 })
    assert.equal(choices.length, 300)
    assert.ok(choices.every(({ index, finish_reason }, i) => index === i && finish_reason === 'length'))
  })

  it('begins with its prompt on request', async () => {
    const plain = (await create({})).choices[0]!.text
    assert.equal((await create({ echo: true })).choices[0]!.text, PROMPT + plain)
    const tokens = [...(await engine.tokenize({ prompt: PROMPT }))]
    const text = await engine.detokenize(tokens)
    assert.deepEqual((await streamed({ echo: true, prompt: [tokens, tokens] })).texts, [text + plain, text + plain])
  })

  it('tells log-probabilities in the old form', async () => {
    const { choices } = await create({ logprobs: 3, max_tokens: 12 })
    const { text, logprobs } = choices[0]!
    const { tokens, token_logprobs, top_logprobs, text_offset } = logprobs!
    assert.equal(tokens!.length, 12)
    assert.equal(tokens!.join(''), text)
    let offset = 0
    for (const [i, token] of tokens!.entries()) {
      assert.equal(text_offset![i], offset)
      offset += [...token].length
      // Greedy: the token taken is the most likely one.
      const top = Object.values(top_logprobs![i]!)
      assert.equal(top.length, 3)
      assert.equal(top_logprobs![i]![token], token_logprobs![i])
      assert.equal(Math.max(...top), token_logprobs![i])
      assert.ok(token_logprobs![i]! <= 0)
    }
    const parts: { tokens?: string[]; text_offset?: number[] }[] = []
    for await (const chunk of await client.completions.create({
      ...{ ...greedy, prompt: PROMPT, logprobs: 3, max_tokens: 12, stream: true },
    }))
      if (chunk.choices[0]?.logprobs) parts.push(chunk.choices[0].logprobs)
    assert.deepEqual(
      parts.flatMap((p) => p.tokens!),
      tokens,
    )
    assert.deepEqual(
      parts.flatMap((p) => p.text_offset!),
      text_offset,
    )
  })

  it('honours stops, seeds, biases and formats', async () => {
    const { text } = (await create({ max_tokens: 24 })).choices[0]!
    const stop = text.trim().split(' ')[2]!
    const stopped = (await create({ max_tokens: 24, stop })).choices[0]!
    assert.equal(stopped.text, text.slice(0, text.indexOf(stop)))
    assert.equal(stopped.finish_reason, 'stop')
    const seeded = () => create({ temperature: 1.5, seed: -7, n: 2 })
    assert.deepEqual((await seeded()).choices, (await seeded()).choices)
    const first = (await engine.tokenize({ prompt: text, addSpecial: false }))[0]!
    const biased = await create({ logit_bias: { [first]: -100 } })
    assert.notEqual((await engine.tokenize({ prompt: biased.choices[0]!.text, addSpecial: false }))[0], first)
    const schema = { type: 'object', properties: { ships: { type: 'integer' } }, required: ['ships'] }
    const format = { response_format: { type: 'json_schema', json_schema: { name: 'n', schema } } }
    const json = (await create({ ...format, max_tokens: 64 } as object)).choices[0]!.text
    assert.equal(typeof (JSON.parse(json) as { ships: unknown }).ships, 'number')
    const endless = await create({ ignore_eos: true, max_tokens: 200 } as object)
    assert.equal(endless.usage!.completion_tokens, 200)
  })

  it('names the field of what is refused', async () => {
    const refused: [object, string, RegExp][] = [
      [{ suffix: 'the end' }, 'suffix', /do not fill in/],
      [{ best_of: 3 }, 'best_of', /can only be n/],
      [{ echo: true, logprobs: 1 }, 'echo', /log-probabilities of a prompt/],
      [{ logprobs: 6 }, 'logprobs', /<= 5/],
      [{ prompt: [] }, 'prompt', /list of at least 1/],
      [{ prompt: { text: 'a' } }, 'prompt', /a string, or a list/],
      [{ prompt: [9_999_999] }, 'prompt', /vocabulary/],
      [{ prompt: 'a '.repeat(4000) }, 'prompt', /context/],
      [{ max_token: 5 }, 'max_token', /Did you mean 'max_tokens'/],
    ]
    for (const [body, param, message] of refused)
      await assert.rejects(create(body), (error: BadRequestError) => {
        assert.ok(error instanceof BadRequestError, String(error))
        assert.equal(error.param, param, error.message)
        assert.match(error.message, message)
        return true
      })
  })
})
