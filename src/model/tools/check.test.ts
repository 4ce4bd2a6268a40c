import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { KvasirError } from '../../contract/errors.ts'
import { checkTools, chosenTools } from './check.ts'

const tool = (name: unknown, more: object = {}) => ({ type: 'function', function: { name, ...more } })
const parameters = (parameters: unknown) => [tool('f', { parameters })]

describe('checkTools', () => {
  it('takes what OpenAI takes', () => {
    const tools = [
      tool('a-Z_9'),
      tool('b', { description: null, parameters: null, strict: null }),
      tool('c', { description: 'x', parameters: { properties: {} }, strict: true }),
      tool('d'.repeat(64), { parameters: { type: 'object', $ref: '#/$defs/x' } }),
    ]
    assert.equal(checkTools(tools), tools)
    assert.equal(checkTools(Array.from({ length: 128 }, (_, i) => tool(`f${i}`))).length, 128)
  })

  const BAD: [tools: unknown, field: string, says: RegExp][] = [
    [undefined, 'tools', /undefined; allowed: a list/],
    [[], 'tools', /at least one/],
    [Array.from({ length: 129 }, (_, i) => tool(`f${i}`)), 'tools', /129.*at most 128/],
    [[tool('a'), 5], 'tools[1]', /5; allowed: an object/],
    [[{ type: 'retrieval' }], 'tools[0].type', /"retrieval"; allowed: "function"/],
    [[{ type: 'function' }], 'tools[0].function', /undefined/],
    [[tool('a'), tool('b'), tool('c d')], 'tools[2].function.name', /"c d"; allowed: 1 to 64 letters/],
    [[tool('')], 'tools[0].function.name', /""/],
    [[tool('x'.repeat(65))], 'tools[0].function.name', /xxx/],
    [[tool('ø')], 'tools[0].function.name', /letters/],
    [[tool(7)], 'tools[0].function.name', /7/],
    [[tool('a'), tool('b'), tool('a')], 'tools[2].function.name', /tools\[0\] has it/],
    [[tool('a', { description: 1 })], 'tools[0].function.description', /a text/],
    [[tool('a', { strict: 'yes' })], 'tools[0].function.strict', /true or false/],
    [parameters([]), 'tools[0].function.parameters', /an object/],
    [parameters('{}'), 'tools[0].function.parameters', /an object/],
    [parameters({ type: 'array' }), 'tools[0].function.parameters.type', /arguments have names/],
    [parameters({ type: ['object', 'null'] }), 'tools[0].function.parameters.type', /"object"/],
  ]
  for (const [tools, field, says] of BAD)
    it(`names ${field}: ${says.source}`, () => {
      assert.throws(
        () => checkTools(tools),
        (e) => {
          assert.ok(e instanceof KvasirError && e.code === 'INVALID_ARGUMENT', String(e))
          assert.equal(e.details['field'], field)
          return e.message.includes(field) && says.test(e.message)
        },
      )
    })
})

describe('chosenTools', () => {
  const tools = checkTools([tool('weather'), tool('time')])
  it('leaves the named one', () => {
    assert.deepEqual(chosenTools(tools, { name: 'time' }), [tools[1]])
    assert.equal(chosenTools(tools, 'auto'), tools)
  })
  it('refuses other names', () => {
    assert.throws(() => chosenTools(tools, { name: 'wether' }), /tool_choice is "wether".*did you mean "weather"/)
    assert.throws(() => chosenTools(tools, { name: 'zzzzzz' }), /the tools are weather, time/)
  })
})
