import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import fc from 'fast-check'
import { KvasirError } from '../../contract/errors.ts'
import { liveNatives } from '../../ggml/owned.ts'
import { llama } from '../libllama/library.ts'
import { TextStream } from './stream.ts'
import { Tokenizer } from './tokenizer.ts'
import { bpeVocabulary, HOUSE_MODEL, spaceFirstVocabulary } from './vocabularies.fixture.ts'

const ODD_TEXTS = [
  '',
  ' ',
  '  two  spaces  ',
  'hello world',
  '\u{1f468}\u200d\u{1f469}\u200d\u{1f467}\u200d\u{1f466}',
  'e\u0301 a\u0308\u0323',
  'שלום \u202bعالم\u202c',
  'a\0b\0',
  'line\r\nline\n\r\n\t\n\n\n',
  '\ufeffBOM',
  '日本語のテキスト',
  '\u{10ffff}\ud7ff\ue000',
  '<s></s><|user|><|im_end|>',
  '<0x41>',
  'x'.repeat(3000),
]

const isCode = (code: string) => (e: unknown) => e instanceof KvasirError && e.code === code

describe('Tokenizer', () => {
  const before_ = liveNatives()
  const tokenizers: Record<string, Tokenizer> = {}
  before(async () => {
    tokenizers['house'] = await Tokenizer.load(HOUSE_MODEL)
    tokenizers['bpe'] = await bpeVocabulary()
    tokenizers['space first'] = await spaceFirstVocabulary()
  })
  after(() => {
    for (const t of Object.values(tokenizers)) t.dispose()
    assert.deepEqual(liveNatives(), before_)
  })
  const each = (check: (t: Tokenizer, name: string) => void) => {
    for (const [name, t] of Object.entries(tokenizers)) check(t, name)
  }

  /** llama_detokenize, called as libllama's own users do. */
  function detokenize(t: Tokenizer, tokens: Int32Array, special: boolean): string {
    const out = new Uint8Array(tokens.length * 32 + 64)
    const n = llama.llama_detokenize(t.vocabPtr, tokens, tokens.length, out, out.length, false, special)
    assert.ok(n >= 0)
    return Buffer.from(out.subarray(0, n)).toString('utf8')
  }

  it('gives odd texts back as they were, and as llama_detokenize gives them', () => {
    each((t, name) => {
      for (const text of ODD_TEXTS) {
        const tokens = t.encode(text)
        assert.equal(t.decode(tokens, { atStart: true }), text, `${name} ${JSON.stringify(text)}`)
        assert.equal(t.decode(tokens, { atStart: true }), detokenize(t, tokens, false), name)
      }
    })
  })

  it('gives any well-formed text back', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (any) => {
        const text = any.replaceAll('\u2581', '') // SentencePiece's own sign for a space comes back as a space
        each((t) => {
          assert.equal(t.decode(t.encode(text), { atStart: true }), text)
        })
      }),
      { numRuns: 150 },
    )
  })

  it('keeps any bytes where the vocabulary has byte tokens', () => {
    const all = Uint8Array.from({ length: 256 }, (_, i) => i)
    for (const name of ['house', 'space first']) {
      const t = tokenizers[name]!
      const lone = Uint8Array.of(0xff, 0x61, 0xc3, 0x28, 0xe2, 0x82)
      for (const bytes of [all, lone]) {
        const back = t.decodeBytes(t.encode(bytes), { atStart: true })
        assert.deepEqual(Buffer.from(back), Buffer.from(bytes), name)
      }
    }
  })

  it('reads lone surrogates as U+FFFD', () => {
    each((t) => {
      assert.equal(t.decode(t.encode('a\ud800b\udc00'), { atStart: true }), 'a\ufffdb\ufffd')
    })
  })

  it('keeps the first space of a continuation, takes it off a text that begins', () => {
    const t = tokenizers['space first']!
    assert.equal(t.decode(t.encode('the')), ' the')
    assert.equal(t.decode(t.encode('the'), { atStart: true }), 'the')
    assert.equal(t.decode([t.bos!, ...t.encode('the')], { atStart: true }), 'the')
    const house = tokenizers['house']!
    assert.equal(house.decode(house.encode(' the'), { atStart: true }), ' the')
  })

  it('knows control tokens in text only when told to', () => {
    const t = tokenizers['bpe']!
    const text = '<|im_start|>hello<|im_end|>'
    const parsed = t.encode(text, { parseSpecial: true })
    assert.equal(parsed.length, 3)
    assert.ok(t.encode(text).length > 10)
    assert.ok(t.encode(text).every((token) => !t.isControl(token)))
    assert.ok(t.isControl(parsed[0]!) && t.isEndOfGeneration(parsed[2]!) && !t.isEndOfGeneration(parsed[1]!))
    assert.equal(t.decode(parsed), 'hello')
    assert.equal(t.decode(parsed, { special: true }), text)
    assert.equal(t.decode(parsed, { special: true }), detokenize(t, parsed, true))
  })

  it('adds what the vocabulary asks for', () => {
    const t = tokenizers['house']!
    assert.equal(t.addBos, true)
    assert.deepEqual([...t.encode('', { addSpecial: true })], [t.bos])
    assert.deepEqual([...t.encode('a', { addSpecial: true })], [t.bos, ...t.encode('a')])
    assert.equal(tokenizers['bpe']!.addBos, false)
  })

  it('tells the facts of the house model', () => {
    const t = tokenizers['house']!
    const { vocabSize, bos, eos, eot, pad } = t
    assert.deepEqual({ vocabSize, bos, eos, eot, pad }, { vocabSize: 4096, bos: 1, eos: 6, eot: 6, pad: null })
    assert.equal(t.text(6), '<|end|>')
    assert.match(t.chatTemplate ?? '', /message\['role'\]/)
    assert.equal(tokenizers['bpe']!.chatTemplate, null)
  })

  it('refuses ids outside the vocabulary before native code sees them', () => {
    const t = tokenizers['house']!
    for (const id of [-1, t.vocabSize, 1.5, Number.NaN, 2 ** 32]) {
      assert.throws(() => t.piece(id), isCode('INVALID_ARGUMENT'))
      assert.throws(() => t.text(id), isCode('INVALID_ARGUMENT'))
      assert.throws(() => t.decode([id]), isCode('INVALID_ARGUMENT'))
      assert.throws(() => t.isControl(id), isCode('INVALID_ARGUMENT'))
      assert.throws(() => t.isEndOfGeneration(id), isCode('INVALID_ARGUMENT'))
    }
  })

  it('refuses files without a vocabulary', async () => {
    await assert.rejects(Tokenizer.load('/nonexistent.gguf'), isCode('MODEL_NOT_FOUND'))
    await assert.rejects(Tokenizer.load(new URL(import.meta.url).pathname), isCode('GGUF_INVALID'))
  })

  it('throws after dispose', async () => {
    const t = await Tokenizer.load(HOUSE_MODEL)
    t.dispose()
    assert.throws(() => t.encode('a'), isCode('DISPOSED'))
    assert.throws(() => t.vocabPtr, isCode('DISPOSED'))
  })

  it('streams the same text that decode gives, whole characters only', () => {
    each((t, name) => {
      fc.assert(
        fc.property(fc.array(fc.nat(t.vocabSize - 1), { maxLength: 40 }), fc.boolean(), (tokens, special) => {
          const stream = new TextStream(t, { special })
          const parts = [...tokens.map((token) => stream.push(token)), stream.flush()]
          assert.equal(parts.join(''), t.decode(tokens, { special }), name)
          assert.ok(parts.every((part) => !/\p{Surrogate}/u.test(part)))
        }),
        { numRuns: 300 },
      )
    })
  })
})
