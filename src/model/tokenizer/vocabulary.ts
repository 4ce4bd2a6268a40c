/**
 * Checks a file's vocabulary before libllama reads it: libllama ends the process over two equal tokens, a
 * SentencePiece vocabulary without a token for some byte, or a byte token whose text is no byte.
 */
import { KvasirError } from '../../contract/errors.ts'
import type { GgufFile } from '../../ggml/gguf/index.ts'

const TOKENS = 'tokenizer.ggml.tokens'
const TYPES = 'tokenizer.ggml.token_type'
/** Token type of `<0x00>` to `<0xFF>`. */
const BYTE = 6

/** @throws KvasirError MODEL_INVALID */
export function checkVocabulary({ path, metadata }: GgufFile): void {
  const fail: (what: string, details: object) => never = (what, details) => {
    throw new KvasirError('MODEL_INVALID', `${path}: ${what}`, { file: path, ...details })
  }
  const tokens = metadata.raw(TOKENS)
  if (tokens?.type !== 'array' || tokens.of !== 'string' || tokens.value.length === 0)
    fail(`${TOKENS} is not a list of texts: there is no vocabulary in this file`, {})
  const texts = new Map<string, number>()
  for (const [i, text] of tokens.value.entries()) {
    const bytes = tokens.bytes?.get(i)
    // libllama reads texts up to their first NUL, and names empty ones by their id
    const key = bytes ? `\0${Buffer.from(bytes).toString('latin1').split('\0')[0]}` : text.split('\0')[0]!
    if (key === '') continue
    const earlier = texts.get(key)
    if (earlier !== undefined) fail(`tokens ${earlier} and ${i} are equal: ${JSON.stringify(text)}`, { token: i })
    texts.set(key, i)
  }
  const types = metadata.raw(TYPES)
  if (types?.type === 'array' && types.of === 'i32')
    for (const [i, type] of types.value.entries())
      if (type === BYTE && !/^<0x[\da-fA-F]{2}>$/.test(tokens.value[i] ?? ''))
        fail(`token ${i} is of the type "byte", but its text is ${JSON.stringify(tokens.value[i])}`, { token: i })
  if (metadata.raw('tokenizer.ggml.model')?.value !== 'llama') return
  for (let b = 0; b < 256; b++) {
    const name = `<0x${b.toString(16).toUpperCase().padStart(2, '0')}>`
    if (!texts.has(name) && !(b < 128 && texts.has(String.fromCharCode(b))))
      fail(`a SentencePiece vocabulary needs a token for each byte; ${name} is missing`, { byte: b })
  }
}
