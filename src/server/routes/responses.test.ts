/** `/v1/responses` as the official client sees it, on the house model: the protocol, whatever a small model says. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import OpenAI, { BadRequestError, NotFoundError } from 'openai'
import type {
  FunctionTool,
  Response,
  ResponseCreateParamsNonStreaming,
  ResponseInputItem,
  ResponseStreamEvent,
} from 'openai/resources/responses/responses'
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

const base = { model: 'house', temperature: 0 }
const QUESTION =
  'Karin Osford keeps a hamster as a pet. Karin Osford plays the drums. Which animal does Karin Osford keep as a pet?'
const weather: FunctionTool = {
  type: 'function',
  name: 'get_weather',
  description: 'The weather of a city.',
  parameters: {
    type: 'object',
    properties: { city: { type: 'string', maxLength: 12 }, days: { type: 'integer', minimum: 1, maximum: 9 } },
    required: ['city', 'days'],
    additionalProperties: false,
  },
  strict: true,
}

const create = (body: object) =>
  client.responses.create({ ...base, input: QUESTION, ...body } as ResponseCreateParamsNonStreaming)

async function streamed(body: object): Promise<{ events: ResponseStreamEvent[]; final: Response }> {
  const stream = client.responses.stream({ ...base, input: QUESTION, ...body })
  const events: ResponseStreamEvent[] = []
  for await (const event of stream) events.push(event)
  return { events, final: await stream.finalResponse() }
}

const types = (events: readonly ResponseStreamEvent[]) => events.map(({ type }) => type)

describe('a response', () => {
  it('is complete and right', async () => {
    const response = await create({ instructions: 'Answer shortly.', metadata: { topic: 'pets' }, store: true })
    assert.match(response.id, /^resp_\w{24}$/)
    assert.equal(response.object, 'response')
    assert.equal(response.status, 'completed')
    assert.match(response.output_text, /hamster/)
    const [item] = response.output
    assert.ok(item?.type === 'message')
    assert.deepEqual(item.content, [{ type: 'output_text', text: response.output_text, annotations: [], logprobs: [] }])
    assert.equal(item.status, 'completed')
    assert.equal(response.instructions, 'Answer shortly.')
    assert.deepEqual(response.metadata, { topic: 'pets' })
    assert.equal(response.temperature, 0)
    assert.equal(response.tool_choice, 'auto')
    assert.deepEqual(response.tools, [])
    assert.deepEqual(response.text, { format: { type: 'text' } })
    assert.equal(response.error, null)
    const { usage } = response
    assert.equal(usage!.total_tokens, usage!.input_tokens + usage!.output_tokens)
    assert.equal(usage!.output_tokens_details.reasoning_tokens, 0)
    const again = await create({ instructions: 'Answer shortly.' })
    assert.equal(again.usage!.input_tokens_details.cached_tokens, 32 * Math.floor((usage!.input_tokens - 1) / 32))
  })

  it('reads items as the conversation that they are', async () => {
    const messages = [
      { role: 'system', content: 'Be kind.\n\nBe short.' },
      { role: 'user', content: 'Hello there.' },
      { role: 'assistant', content: 'Hello.' },
      { role: 'user', content: QUESTION },
    ]
    const input: ResponseInputItem[] = [
      { role: 'developer', content: [{ type: 'input_text', text: 'Be short.' }] },
      { type: 'message', role: 'user', content: 'Hello there.' },
      { type: 'reasoning', id: 'rs_1', summary: [] },
      {
        ...{ type: 'message', role: 'assistant', id: 'msg_1', status: 'completed' },
        content: [{ type: 'output_text', text: 'Hello.', annotations: [] }],
      },
      { role: 'user', content: QUESTION },
    ]
    const response = await create({ instructions: 'Be kind.', input })
    const want = await engine.tokenize({ messages })
    assert.equal(response.usage!.input_tokens, want.length)
    const chat = await client.chat.completions.create({ ...base, messages: messages as never })
    assert.equal(response.output_text, chat.choices[0]!.message.content)
  })

  it('is the same when it is streamed, event by event', async () => {
    const whole = await create({})
    const { events, final } = await streamed({})
    assert.equal(final.output_text, whole.output_text)
    assert.deepEqual(final.usage!.output_tokens, whole.usage!.output_tokens)
    assert.deepEqual(
      events.map(({ sequence_number: n }) => n),
      events.map((_, i) => i),
    )
    const deltas = events.filter((e) => e.type === 'response.output_text.delta')
    assert.ok(deltas.length > 1)
    assert.equal(deltas.map(({ delta }) => delta).join(''), whole.output_text)
    assert.deepEqual(
      types(events).filter((type) => type !== 'response.output_text.delta'),
      [
        ...['response.created', 'response.in_progress', 'response.output_item.added', 'response.content_part.added'],
        ...['response.output_text.done', 'response.content_part.done', 'response.output_item.done'],
        'response.completed',
      ],
    )
    const item = final.output[0]!
    for (const event of events) if ('item_id' in event) assert.equal(event.item_id, item.id)
  })

  it('that is cut off is incomplete', async () => {
    const whole = await create({ max_output_tokens: 3 })
    const { events, final } = await streamed({ max_output_tokens: 3 })
    for (const response of [whole, final]) {
      assert.equal(response.status, 'incomplete')
      assert.deepEqual(response.incomplete_details, { reason: 'max_output_tokens' })
      assert.ok(response.output[0]!.type === 'message' && response.output[0]!.status === 'incomplete')
      assert.equal(response.usage!.output_tokens, 3)
    }
    assert.equal(types(events).at(-1), 'response.incomplete')
    assert.equal(final.output_text, whole.output_text)
  })

  it('tells log-probabilities of all its tokens', async () => {
    const asked = { include: ['message.output_text.logprobs'], top_logprobs: 2 }
    const whole = await create(asked)
    const { events, final } = await streamed(asked)
    for (const { output } of [whole, final]) {
      assert.ok(output[0]?.type === 'message' && output[0].content[0]?.type === 'output_text')
      const { text, logprobs } = output[0].content[0]
      assert.equal(Buffer.concat(logprobs!.map(({ bytes }) => Buffer.from(bytes))).toString(), text)
      assert.ok(logprobs!.every((l) => l.top_logprobs.length === 2 && l.top_logprobs[0]!.token === l.token))
    }
    const deltas = events.flatMap((e) => (e.type === 'response.output_text.delta' ? e.logprobs : []))
    assert.equal(deltas.map(({ token }) => token).join(''), whole.output_text)
  })
})

describe('JSON', () => {
  const schema = {
    type: 'object',
    properties: { animal: { enum: ['cat', 'dog', 'hamster'] }, legs: { type: 'integer', minimum: 0, maximum: 9 } },
    required: ['animal', 'legs'],
    additionalProperties: false,
  }

  it('satisfies its schema, and the client parses it', async () => {
    const text = { format: { type: 'json_schema', name: 'pet', schema, strict: true } } as const
    const whole = await client.responses.parse({ ...base, input: QUESTION, text })
    const pet = JSON.parse(whole.output_text) as { animal: string; legs: number }
    assert.ok(schema.properties.animal.enum.includes(pet.animal) && Number.isInteger(pet.legs))
    assert.deepEqual(whole.text!.format, text.format)
    assert.equal((await streamed({ text })).final.output_text, whole.output_text)
  })

  it('is any object on request', async () => {
    const { output_text: text } = await create({ text: { format: { type: 'json_object' } }, max_output_tokens: 400 })
    assert.match(text, /^\s*\{/)
  })
})

describe('tools', () => {
  it('are called when they must be, with arguments that fit, whole and streamed', async () => {
    for (const choice of ['required', { type: 'function', name: 'get_weather' }] as const) {
      const asked = { tools: [weather], tool_choice: choice, parallel_tool_calls: false }
      await create(asked) // a cached prompt rounds otherwise than a fresh one
      const whole = await client.responses.parse({ ...base, input: QUESTION, ...asked })
      const [call] = whole.output
      assert.ok(call?.type === 'function_call', JSON.stringify(whole.output))
      assert.equal(call.name, 'get_weather')
      assert.match(call.call_id, /^call_/)
      const args = call.parsed_arguments as { city: string; days: number }
      assert.ok(typeof args.city === 'string' && args.days >= 1 && args.days <= 9)
      assert.deepEqual(whole.tools, [weather])
      const { events, final } = await streamed(asked)
      const streamedCall = final.output[0]
      assert.ok(streamedCall?.type === 'function_call')
      assert.equal(streamedCall.arguments, call.arguments)
      const deltas = events.filter((e) => e.type === 'response.function_call_arguments.delta')
      assert.equal(deltas.map(({ delta }) => delta).join(''), call.arguments)
      assert.deepEqual(
        types(events).filter((type) => !type.endsWith('.delta')),
        [
          ...['response.created', 'response.in_progress', 'response.output_item.added'],
          ...['response.function_call_arguments.done', 'response.output_item.done', 'response.completed'],
        ],
      )
    }
  })

  it('may be left alone, and their results are read', async () => {
    const call = {
      type: 'function_call',
      call_id: 'call_1',
      name: 'get_weather',
      arguments: '{"city":"Bonn"}',
    } as const
    const output = { type: 'function_call_output', call_id: 'call_1', output: 'Rain.' } as const
    const input: ResponseInputItem[] = [{ role: 'user', content: QUESTION }, call, output]
    const response = await create({ input, tools: [weather], tool_choice: 'auto', max_output_tokens: 40 })
    const { type: _, strict: __, ...fn } = weather
    const want = await engine.tokenize({
      messages: [
        { role: 'user', content: QUESTION },
        {
          role: 'assistant',
          content: null,
          tool_calls: [
            { id: 'call_1', type: 'function', function: { name: 'get_weather', arguments: '{"city":"Bonn"}' } },
          ],
        },
        { role: 'tool', tool_call_id: 'call_1', content: 'Rain.' },
      ],
      tools: [{ type: 'function', function: { ...fn, strict: true } }],
    })
    assert.equal(response.usage!.input_tokens, want.length)
    assert.ok(['completed', 'incomplete'].includes(response.status!))
  })
})

describe('refusals', () => {
  it('name the field, and how to mend it', async () => {
    const bad = { ...weather, parameters: { type: 'object', properties: { a: { type: 'nonsense' } } } }
    const refused: [object, string, RegExp][] = [
      [{ previous_response_id: 'resp_1' }, 'previous_response_id', /send the earlier items/],
      [{ conversation: 'conv_1' }, 'conversation', /nothing is stored/],
      [{ background: true }, 'background', /use stream/],
      [{ truncation: 'auto' }, 'truncation', /never shortened/],
      [{ top_logprobs: 2 }, 'top_logprobs', /include/],
      [{ tools: [{ type: 'web_search', name: 'web' }] }, 'tools[0].type', /"function"/],
      [{ tools: [weather, weather] }, 'tools[1].name', /not used before/],
      [{ tools: [bad], tool_choice: 'required' }, 'tools[0].parameters', /nonsense/],
      [{ tools: [weather], tool_choice: { type: 'function', name: 'get_whether' } }, 'tool_choice', /get_weather/],
      [{ tool_choice: 'required' }, 'tool_choice', /no tools/],
      [{ input: [{ type: 'item_reference', id: 'msg_1' }] }, 'input[0].type', /item_reference/],
      [
        { input: [{ role: 'user', content: [{ type: 'input_image', image_url: 'data:' }] }] },
        'input[0].content[0].type',
        /text only/,
      ],
      [{ input: [{ type: 'function_call', name: 'f', arguments: '{}' }] }, 'input[0].call_id', /Missing/],
      [{ input: 'a '.repeat(4000) }, 'input', /context/],
      [
        { text: { format: { type: 'json_schema', name: 'x', schema: { type: 'nonsense' } } } },
        'text.format',
        /nonsense/,
      ],
      [{ n: 2 }, 'n', /Unknown/],
    ]
    for (const [body, param, message] of refused)
      await assert.rejects(create(body), (error: BadRequestError) => {
        assert.ok(error instanceof BadRequestError, String(error))
        assert.equal(error.param, param, error.message)
        assert.match(error.message, message)
        return true
      })
    await assert.rejects(create({ model: 'mansion' }), NotFoundError)
  })

  it('of a stream come with their status too', async () => {
    await assert.rejects(
      client.responses.create({ ...base, input: 'a '.repeat(4000), stream: true }),
      (error: BadRequestError) => error instanceof BadRequestError && error.code === 'context_length_exceeded',
    )
  })
})
