import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { AnswerReader } from './answer-reader.ts'

function data(...values: readonly (object | string)[]): string {
  return values.map((v) => `data: ${typeof v === 'string' ? v : JSON.stringify(v)}\n\n`).join('')
}

const text = (t: string, finish: string | null = null) => ({ choices: [{ text: t, finish_reason: finish }] })
const delta = (d: object, finish: string | null = null) => ({ choices: [{ delta: d, finish_reason: finish }] })

describe('AnswerReader', () => {
  it('notes when pieces come, the gaps between them, and the end', () => {
    const reader = new AnswerReader()
    reader.feed(data(text(' a')), 100)
    reader.feed(data(text(' b'), text(' c')), 130)
    reader.feed(data(text('', 'length')), 150)
    reader.feed(data({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 3 } }, '[DONE]'), 170)
    assert.deepEqual([reader.firstMs, reader.gapsMs, reader.lastMs, reader.pieces], [100, [30, 0], 150, 3])
    assert.deepEqual([reader.text, reader.complete, reader.error], [' a b c', true, null])
    assert.deepEqual(reader.usage, { prompt_tokens: 3, completion_tokens: 3 })
  })

  it('reads events that are cut anywhere, comments, and lines that end in CR LF', () => {
    const all = `: hello\r\n\r\nevent: x\r\n${data(text(' é'), text(' b', 'stop'), '[DONE]').replaceAll('\n', '\r\n')}`
    for (const step of [1, 2, 7]) {
      const reader = new AnswerReader()
      for (let i = 0; i < all.length; i += step) reader.feed(all.slice(i, i + step), i)
      assert.deepEqual([reader.text, reader.pieces, reader.complete, reader.error], [' é b', 2, true, null])
    }
  })

  it("a chat's role is no token, its thoughts are", () => {
    const reader = new AnswerReader()
    reader.feed(data(delta({ role: 'assistant', content: '' })), 5)
    assert.equal(reader.firstMs, null)
    reader.feed(data(delta({ reasoning_content: 'Hm' })), 50)
    reader.feed(data(delta({ content: 'Yes' })), 70)
    reader.feed(data(delta({}, 'stop')), 71)
    assert.deepEqual([reader.firstMs, reader.gapsMs, reader.lastMs, reader.text], [50, [20], 71, 'HmYes'])
  })

  it('an empty text is a token, but not at the end', () => {
    const reader = new AnswerReader()
    reader.feed(data(text('')), 10)
    reader.feed(data(text('é')), 20)
    reader.feed(data(text('', 'length')), 30)
    assert.deepEqual([reader.pieces, reader.firstMs, reader.gapsMs], [2, 10, [10]])
  })

  it('an answer without text has its token at the end', () => {
    const reader = new AnswerReader()
    reader.feed(data(text('', 'stop'), '[DONE]'), 10)
    assert.deepEqual([reader.pieces, reader.firstMs, reader.lastMs], [1, 10, 10])
  })

  it('is not complete before the end, and keeps the first error', () => {
    const reader = new AnswerReader()
    reader.feed(data(text(' a')), 1)
    assert.equal(reader.complete, false)
    reader.feed(data({ error: { message: 'the engine ended' } }, '{"choices": ['), 2)
    assert.equal(reader.error, 'the engine ended')
  })

  it('reports what is no JSON object', () => {
    for (const wrong of ['{"choices": [', 'null', '7', 'hello']) {
      const reader = new AnswerReader()
      reader.feed(data(wrong), 1)
      assert.equal(reader.error, `an event is not a JSON object: ${wrong}`)
    }
  })
})
