import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { TextStream, unfinishedBytes } from './stream.ts'
import type { Tokenizer } from './tokenizer.ts'

/** A vocabulary whose tokens are bytes. */
const bytesOnly = { piece: (token: number) => Uint8Array.of(token) } as unknown as Tokenizer

function streamed(bytes: Iterable<number>): { parts: string[]; end: string } {
  const stream = new TextStream(bytesOnly)
  return { parts: [...bytes].map((b) => stream.push(b)), end: stream.flush() }
}

describe('TextStream', () => {
  it('gives a character when its last byte has come', () => {
    assert.deepEqual(streamed(Buffer.from('a😀é')), { parts: ['a', '', '', '', '😀', '', 'é'], end: '' })
  })

  it('gives U+FFFD for bytes that cannot be characters, as soon as that is sure', () => {
    assert.deepEqual(streamed([0xff, 0x61]).parts, ['\ufffd', 'a'])
    assert.deepEqual(streamed([0xe2, 0x82, 0x61]).parts, ['', '', '\ufffda'])
    assert.equal(streamed([0xf0, 0x9f]).end, '\ufffd')
    assert.equal(streamed([]).end, '')
  })

  it('keeps a byte order mark', () => {
    assert.equal(streamed(Buffer.from('\ufeffa\ufeff')).parts.join(''), '\ufeffa\ufeff')
  })

  it('equals decoding the whole, for any bytes', () => {
    const byte = fc.oneof(fc.nat(255), fc.constantFrom(0x80, 0xbf, 0xc2, 0xe0, 0xed, 0xa0, 0xf0, 0xf4, 0x90, 0x8f))
    fc.assert(
      fc.property(fc.array(byte, { maxLength: 24 }), (bytes) => {
        const { parts, end } = streamed(bytes)
        assert.equal(parts.join('') + end, new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(bytes)))
      }),
      { numRuns: 5000 },
    )
  })

  it('holds back at most three bytes', () => {
    assert.equal(unfinishedBytes(Uint8Array.of(0xf0, 0x9f, 0x98)), 3)
    assert.equal(unfinishedBytes(Uint8Array.of(0xf0, 0x80)), 0)
    assert.equal(unfinishedBytes(Uint8Array.of(0x80, 0x80, 0x80, 0x80)), 0)
  })
})
