import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { KvasirError } from '../../contract/errors.ts'
import { type GgufFile, GgufMetadata, type GgufValue, i32s, readGguf, str, strings } from '../../ggml/gguf/index.ts'
import { HOUSE_MODEL } from './vocabularies.fixture.ts'
import { checkVocabulary } from './vocabulary.ts'

const BYTES = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`)

function file(model: string, tokens: GgufValue | null, types?: number[]): GgufFile {
  const values = new Map<string, GgufValue>([['tokenizer.ggml.model', str(model)]])
  if (tokens) values.set('tokenizer.ggml.tokens', tokens)
  if (types) values.set('tokenizer.ggml.token_type', i32s(Int32Array.from(types)))
  return { path: 'x.gguf', metadata: new GgufMetadata('x.gguf', values) } as GgufFile
}

/** What ends the process in libllama. */
const BAD: [string, GgufFile, RegExp][] = [
  ['no tokens', file('gpt2', null), /no vocabulary/],
  ['numbers for tokens', file('gpt2', i32s(Int32Array.of(1))), /no vocabulary/],
  ['equal tokens', file('gpt2', strings(['a', 'b', 'a'])), /tokens 0 and 2 are equal: "a"/],
  ['tokens equal up to NUL', file('gpt2', strings(['a', 'a\0b'])), /are equal/],
  ['a byte missing', file('llama', strings(BYTES.slice(1).concat('a'))), /<0x00> is missing/],
  ['byte tokens that are none', file('gpt2', strings(['<0']), [6]), /"byte"/],
]

describe('checkVocabulary', () => {
  it('lets sound ones through', () => {
    checkVocabulary(readGguf(HOUSE_MODEL))
    checkVocabulary(file('gpt2', strings(['a', '', '', 'b'])))
    checkVocabulary(file('llama', strings(BYTES), Array(256).fill(6)))
    const invalid = new Map([[0, Uint8Array.of(0xff)], [1, Uint8Array.of(0xfe)]]) // biome-ignore format: one line
    checkVocabulary(
      file('gpt2', { type: 'array', of: 'string', value: ['\ufffd', '\ufffd', '\ufffd'], bytes: invalid }),
    )
  })

  for (const [name, bad, says] of BAD)
    it(`refuses ${name}`, () => {
      assert.throws(
        () => checkVocabulary(bad),
        (e) => e instanceof KvasirError && e.code === 'MODEL_INVALID' && says.test(e.message),
      )
    })
})
