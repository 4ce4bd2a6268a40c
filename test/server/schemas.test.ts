/** JSON-schema output: valid for 200 of 200 generated schemas and prompts; a call's arguments parse and fit, always. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { Ajv2020 } from 'ajv/dist/2020.js'
import fc from 'fast-check'
import { parameters } from '../../src/model/tools/schemas.fixture.ts'
import { post, startHouse } from '../../src/server/server.fixture.ts'

/** The first of them by default; all of them, and as many calls, with KVASIR_LONG=1. */
const COUNT = process.env['KVASIR_LONG'] ? 200 : 100
const CALLS = process.env['KVASIR_LONG'] ? 200 : 30
const AT_ONCE = 8
const SEED = 20261124

type House = Awaited<ReturnType<typeof startHouse>>
let server: House
before(async () => {
  server = await startHouse()
})
after(() => server.close())

/** The same schema without room for further properties: a small model would fill it until its context is full. */
function closed(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(closed)
  if (typeof schema !== 'object' || schema === null) return schema
  const inner = Object.fromEntries(Object.entries(schema).map(([k, v]) => [k, k === 'enum' ? v : closed(v)]))
  return 'properties' in inner && inner['type'] === 'object' ? { ...inner, additionalProperties: false } : inner
}

const cases = fc
  .sample(fc.tuple(parameters, fc.lorem({ maxCount: 12 })), { numRuns: COUNT, seed: SEED })
  .map(([schema, words], i) => ({ i, schema: closed(schema) as object, words }))

/** What is wrong with the answers, by case. */
async function failures(n: number, check: (c: (typeof cases)[number]) => Promise<string | null>): Promise<string[]> {
  const left = cases.slice(0, n)
  const wrong: string[] = []
  const worker = async () => {
    for (let c = left.pop(); c; c = left.pop()) {
      const said = await check(c)
      if (said !== null) wrong.push(`${c.i}: ${said} ${JSON.stringify(c.schema)}`)
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worker))
  return wrong
}

function misfit(schema: object, json: string): string | null {
  try {
    const ajv = new Ajv2020({ strict: false, validateFormats: false })
    return ajv.validate(schema, JSON.parse(json)) ? null : `${json}: ${ajv.errorsText()}`
  } catch (error) {
    return `${json}: ${(error as Error).message}`
  }
}

interface Chat {
  readonly choices: readonly {
    readonly finish_reason: string
    readonly message: {
      readonly content: string | null
      readonly tool_calls?: readonly { readonly function: { readonly name: string; readonly arguments: string } }[]
    }
  }[]
}

const base = ({ i, words }: (typeof cases)[number]) => ({
  ...{ messages: [{ role: 'user', content: words }], seed: i, temperature: (i % 3) * 0.7 },
})

describe('generated schemas', () => {
  it(`response_format: ${COUNT} of ${COUNT} answers are valid`, async () => {
    const wrong = await failures(COUNT, async (c) => {
      const response_format = { type: 'json_schema', json_schema: { name: 'x', schema: c.schema } }
      const { status, body } = await post(`${server.url}/v1/chat/completions`, { ...base(c), response_format })
      if (status !== 200) return JSON.stringify(body)
      const [choice] = (body as unknown as Chat).choices
      return choice!.finish_reason === 'stop' ? misfit(c.schema, choice!.message.content!) : choice!.finish_reason
    })
    assert.deepEqual(wrong, [])
  })

  it(`tool calls: the arguments of ${CALLS} of ${CALLS} parse and fit`, async () => {
    const wrong = await failures(CALLS, async (c) => {
      const tools = [
        { type: 'function', function: { name: 'other', parameters: { type: 'object', properties: {} } } },
        { type: 'function', function: { name: 'save', parameters: c.schema } },
      ]
      const asked = {
        ...base(c),
        tools,
        tool_choice: { type: 'function', function: { name: 'save' } },
        parallel_tool_calls: false,
      }
      const { status, body } = await post(`${server.url}/v1/chat/completions`, asked)
      if (status !== 200) return JSON.stringify(body)
      const [choice] = (body as unknown as Chat).choices
      const calls = choice!.message.tool_calls ?? []
      if (choice!.finish_reason !== 'tool_calls' || calls.length !== 1) return JSON.stringify(choice)
      return misfit(c.schema, calls[0]!.function.arguments)
    })
    assert.deepEqual(wrong, [])
  })
})
