import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { toolGrammar } from './grammar.ts'
import { loosened } from './loosen.ts'

const tool = (parameters: object, strict?: boolean) => ({
  type: 'function' as const,
  function: { name: 'f', parameters, ...(strict === undefined ? {} : { strict }) },
})
const options = { format: 'hermes', choice: 'required', parallel: false } as const

describe('schemas that say more than a grammar holds', () => {
  const tags = { type: 'array', items: { type: 'string', format: 'uri' }, uniqueItems: true }
  const parameters = {
    type: 'object',
    properties: { tags, format: { not: { const: 1 }, type: 'integer' } },
    required: ['tags'],
  }

  it('lose only those keywords, and no property of that name', () => {
    assert.deepEqual(loosened(parameters), {
      type: 'object',
      properties: { tags: { type: 'array', items: { type: 'string' } }, format: { type: 'integer' } },
      required: ['tags'],
    })
  })

  it('keep what can be expressed', () => {
    const fine = {
      type: 'object',
      properties: { at: { type: 'string', format: 'date-time' }, n: { pattern: '^a+$', type: 'string' } },
    }
    assert.deepEqual(loosened(fine), fine)
  })

  it('make a grammar, unless the tool is strict', () => {
    assert.match(toolGrammar([tool(parameters)], options), /root ::=/)
    assert.throws(() => toolGrammar([tool(parameters, true)], options), { code: 'GRAMMAR_INVALID' })
  })

  it('are still refused when they are wrong', () => {
    for (const bad of [{ type: 'nonsense' }, { $ref: '#/none' }])
      assert.throws(() => toolGrammar([tool({ type: 'object', properties: { a: bad } })], options), {
        code: 'GRAMMAR_INVALID',
      })
  })
})
