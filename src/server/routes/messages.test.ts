/** `/v1/messages` as Anthropic's client sees it, on the house model: the protocol, whatever a small model says. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import Anthropic, { BadRequestError, NotFoundError } from '@anthropic-ai/sdk'
import type {
  Message,
  MessageCreateParamsNonStreaming,
  MessageParam,
  RawMessageStreamEvent,
  Tool,
} from '@anthropic-ai/sdk/resources/messages'
import type { EngineApi } from '../../engine/api.ts'
import { startHouse } from '../server.fixture.ts'
import type { Server } from '../server.ts'

let server: Server
let engine: EngineApi
let client: Anthropic

before(async () => {
  const house = await startHouse()
  server = house
  engine = house.engineOf()
  client = new Anthropic({ baseURL: server.url, apiKey: 'none', maxRetries: 0 })
})
after(() => server.close())

const QUESTION =
  'Karin Osford keeps a hamster as a pet. Karin Osford plays the drums. Which animal does Karin Osford keep as a pet?'
const messages: MessageParam[] = [{ role: 'user', content: QUESTION }]
const base = { model: 'house', max_tokens: 100, temperature: 0, messages }
const weather: Tool = {
  name: 'get_weather',
  description: 'The weather of a city.',
  input_schema: {
    type: 'object',
    properties: { city: { type: 'string', maxLength: 12 }, days: { type: 'integer', minimum: 1, maximum: 9 } },
    required: ['city', 'days'],
    additionalProperties: false,
  },
}

const create = (body: object) => client.messages.create({ ...base, ...body } as MessageCreateParamsNonStreaming)

async function streamed(body: object): Promise<{ events: RawMessageStreamEvent[]; final: Message }> {
  const stream = client.messages.stream({ ...base, ...body } as MessageCreateParamsNonStreaming)
  const events: RawMessageStreamEvent[] = []
  for await (const event of stream) events.push(structuredClone(event))
  return { events, final: await stream.finalMessage() }
}

const textOf = ({ content }: Message) => content.map((block) => (block.type === 'text' ? block.text : '')).join('')

describe('a message', () => {
  it('is complete and right, and counts cached tokens by themselves', async () => {
    const fresh = { cache_salt: 'a message' }
    const message = await create(fresh)
    assert.match(message.id, /^msg_/)
    assert.equal(message.type, 'message')
    assert.equal(message.role, 'assistant')
    assert.equal(message.model, 'house')
    assert.match(textOf(message), /hamster/)
    assert.equal(message.stop_reason, 'end_turn')
    assert.equal(message.stop_sequence, null)
    assert.match(message._request_id ?? '', /^req_/)
    const length = (await engine.tokenize({ messages: [{ role: 'user', content: QUESTION }] })).length
    assert.equal(message.usage.input_tokens, length)
    assert.equal(message.usage.cache_read_input_tokens, 0)
    const { usage } = await create(fresh)
    assert.equal(usage.cache_read_input_tokens, 32 * Math.floor((length - 1) / 32))
    assert.equal(usage.input_tokens + usage.cache_read_input_tokens!, length)
    assert.equal((await client.messages.countTokens({ model: 'house', messages })).input_tokens, length)
  })

  it('is the same when it is streamed, event by event', async () => {
    await create({}) // so that both find the prompt in the cache
    const whole = await create({})
    const { events, final } = await streamed({})
    assert.deepEqual(final.content, whole.content)
    assert.equal(final.stop_reason, whole.stop_reason)
    assert.deepEqual(final.usage, whole.usage)
    const kinds = events.map(({ type }) => type)
    assert.ok(kinds.filter((type) => type === 'content_block_delta').length > 1)
    assert.deepEqual(
      kinds.filter((type) => type !== 'content_block_delta'),
      ['message_start', 'content_block_start', 'content_block_stop', 'message_delta', 'message_stop'],
    )
  })

  it('stops at a sequence, and at its length', async () => {
    const whole = await create({})
    const stop = 'pet ham'
    const asked = { stop_sequences: ['nowhere', stop] }
    for (const message of [await create(asked), (await streamed(asked)).final]) {
      assert.equal(message.stop_reason, 'stop_sequence')
      assert.equal(message.stop_sequence, stop)
      assert.equal(textOf(message), textOf(whole).slice(0, textOf(whole).indexOf(stop)))
    }
    const short = await create({ max_tokens: 3 })
    assert.equal(short.stop_reason, 'max_tokens')
    assert.equal(short.usage.output_tokens, 3)
  })

  it('that fills the context says so', async () => {
    // A grammar keeps it from ending by itself.
    const grammar = 'root ::= "a" root'
    const words = 'ship '.repeat(1990)
    const message = await create({ max_tokens: 1000, messages: [{ role: 'user', content: words }], grammar })
    assert.equal(message.stop_reason, 'model_context_window_exceeded')
  })

  it('reads blocks as the conversation that they are', async () => {
    const cache_control = { type: 'ephemeral' } as const
    const conversation: MessageParam[] = [
      {
        role: 'user',
        content: [
          { type: 'text', text: 'Hello ' },
          { type: 'text', text: 'there.', cache_control },
        ],
      },
      {
        role: 'assistant',
        content: [
          { type: 'thinking', thinking: 'Hm.', signature: '' },
          { type: 'text', text: 'Let me see.' },
          { type: 'tool_use', id: 'toolu_1', name: 'get_weather', input: { city: 'Bonn' } },
        ],
      },
      {
        role: 'user',
        content: [
          { type: 'tool_result', tool_use_id: 'toolu_1', content: [{ type: 'text', text: 'Rain.' }] },
          { type: 'text', text: QUESTION },
        ],
      },
    ]
    const { input_tokens: tokens } = await client.messages.countTokens({
      ...{ model: 'house', messages: conversation, tools: [weather] },
      system: [{ type: 'text', text: 'Be kind.', cache_control }],
      thinking: { type: 'disabled' },
    })
    const { name, description, input_schema: parameters } = weather
    const want = await engine.tokenize({
      messages: [
        { role: 'system', content: 'Be kind.' },
        { role: 'user', content: 'Hello there.' },
        {
          ...{ role: 'assistant', content: 'Let me see.' },
          tool_calls: [{ id: 'toolu_1', function: { name: 'get_weather', arguments: { city: 'Bonn' } } }],
        },
        { role: 'tool', tool_call_id: 'toolu_1', content: 'Rain.' },
        { role: 'user', content: QUESTION },
      ],
      tools: [{ type: 'function', function: { name, parameters, description } }],
    })
    assert.equal(tokens, want.length)
  })

  it('is JSON that satisfies its schema on request', async () => {
    const schema = {
      type: 'object',
      properties: { animal: { enum: ['cat', 'dog', 'hamster'] } },
      required: ['animal'],
      additionalProperties: false,
    }
    const text = textOf(await create({ output_config: { format: { type: 'json_schema', schema } } }))
    assert.ok(schema.properties.animal.enum.includes((JSON.parse(text) as { animal: string }).animal))
  })
})

describe('tools', () => {
  it('are called when they must be, with arguments that fit, whole and streamed', async () => {
    for (const choice of [{ type: 'any' }, { type: 'tool', name: 'get_weather' }]) {
      const asked = { tools: [weather], tool_choice: { ...choice, disable_parallel_tool_use: true } }
      await create(asked) // a cached prompt rounds otherwise than a fresh one
      const whole = await create(asked)
      assert.equal(whole.stop_reason, 'tool_use')
      assert.equal(whole.content.length, 1)
      const [call] = whole.content
      assert.ok(call?.type === 'tool_use')
      assert.match(call.id, /^toolu_/)
      assert.equal(call.name, 'get_weather')
      const input = call.input as { city: string; days: number }
      assert.ok(typeof input.city === 'string' && input.days >= 1 && input.days <= 9)
      const { events, final } = await streamed(asked)
      assert.equal(final.stop_reason, 'tool_use')
      const [streamedCall] = final.content
      assert.ok(streamedCall?.type === 'tool_use')
      assert.deepEqual(streamedCall.input, call.input)
      const json = events.map((e) =>
        e.type === 'content_block_delta' && e.delta.type === 'input_json_delta' ? e.delta.partial_json : '',
      )
      assert.deepEqual(JSON.parse(json.join('')), call.input)
    }
  })

  it('may be left alone', async () => {
    const auto = await create({ tools: [weather], max_tokens: 40 })
    assert.ok(['end_turn', 'max_tokens', 'tool_use'].includes(auto.stop_reason!))
    const none = await create({ tools: [weather], tool_choice: { type: 'none' } })
    assert.deepEqual(none.content, (await create({})).content)
  })
})

describe('refusals', () => {
  it('have Anthropic’s form and name the field', async () => {
    const bad = { ...weather, input_schema: { type: 'object', properties: { a: { type: 'nonsense' } } } }
    const image = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: 'AAAA' } }
    const refused: [object, RegExp][] = [
      [{ max_tokens: undefined }, /max_tokens/],
      [{ temperature: 1.5 }, /temperature.*<= 1/],
      [{ thinking: { type: 'enabled', budget_tokens: 1024 } }, /thinking.*disabled/],
      [{ messages: [{ role: 'user', content: [image] }] }, /messages\[0\]\.content\[0\]\.type: .*text only/],
      [{ messages: [...messages, { role: 'assistant', content: 'Karin' }] }, /messages\[1\]\.role: .*End with/],
      [{ messages: [{ role: 'user', content: 'a '.repeat(4000) }] }, /context/],
      [{ tools: [{ type: 'web_search_20250305', name: 'web_search' }] }, /tools\[0\]/],
      [{ tools: [weather, weather] }, /tools\[1\]\.name/],
      [{ tools: [bad], tool_choice: { type: 'any' } }, /tools\[0\]\.input_schema.*nonsense/],
      [{ tool_choice: { type: 'any' } }, /no tools/],
      [{ max_token: 3 }, /Unknown parameter: 'max_token'/],
    ]
    for (const [body, message] of refused)
      for (const stream of [false, true])
        await assert.rejects(create({ ...body, stream }), (error: BadRequestError) => {
          assert.ok(error instanceof BadRequestError, String(error))
          const { type, error: inner } = error.error as { type: string; error: { type: string; message: string } }
          assert.deepEqual([type, inner.type], ['error', 'invalid_request_error'])
          assert.match(inner.message, message)
          return true
        })
    await assert.rejects(create({ model: 'mansion' }), NotFoundError)
  })
})
