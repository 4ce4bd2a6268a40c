import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { makeDocument } from './document.ts'

describe('the document of the demo', () => {
  it('is the same for the same seed, and holds each answer once', () => {
    const document = makeDocument(1, 145)
    assert.deepEqual(document, makeDocument(1, 145))
    assert.notEqual(document.text, makeDocument(2, 145).text)
    for (const { expected } of document.questions)
      assert.equal(document.text.split(` ${expected}.`).length, 2, expected)
  })
})
