/** Vocabularies for tests: the house model's, and two small ones written with libggml's gguf functions. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import koffi from 'koffi'
import { declare } from '../../ggml/declare.ts'
import { loadNative } from '../../ggml/library.ts'
import { Tokenizer } from './tokenizer.ts'

export const HOUSE_MODEL = fileURLToPath(new URL('../../../models/house-5m/house-5m-q8_0.gguf', import.meta.url))

const GGUF = {
  gguf_init_empty: 'void* ()',
  gguf_free: 'void (void*)',
  gguf_set_val_str: 'void (void*, const char*, const char*)',
  gguf_set_val_u32: 'void (void*, const char*, uint32_t)',
  gguf_set_val_bool: 'void (void*, const char*, bool)',
  gguf_set_arr_data: 'void (void*, const char*, int, void*, size_t)',
  gguf_set_arr_str: 'void (void*, const char*, const char**, size_t)',
  gguf_write_to_file: 'bool (void*, const char*, bool)',
} as const

const NORMAL = 1
const UNKNOWN = 2
const CONTROL = 3
const BYTE = 6
type Entry = readonly [text: string, type: number, score?: number]

/** SentencePiece like Llama 2: byte tokens, and a space put in front of every text. `markup` are more control tokens. */
export async function spaceFirstVocabulary(markup: readonly string[] = []): Promise<Tokenizer> {
  const words = ['▁', '▁the', '▁a', '▁b', ...'abcdefgh.', 'ab', 'the', 'th', '▁t', '▁th']
  const entries: Entry[] = [
    ['<unk>', UNKNOWN],
    ['<s>', CONTROL],
    ['</s>', CONTROL],
    ...Array.from({ length: 256 }, (_, i): Entry => [`<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`, BYTE]),
    ...words.map((word, i): Entry => [word, NORMAL, word.length * 8 - i]),
    ...markup.map((text): Entry => [text, CONTROL]),
  ]
  return load('llama', entries, [], { bos: 1, eos: 2 })
}

/** Byte-level BPE like GPT-2, with ChatML's markup. */
export async function bpeVocabulary(): Promise<Tokenizer> {
  const chars = byteLevelAlphabet()
  const merges = ['t h', 'th e', 'Ġ the', 'h e', 'l l', 'he ll', 'hell o', 'ð Ł', 'ðŁ ĺ', 'Ġ a', 'Ċ Ċ', '{ "', '" :']
  const entries: Entry[] = [
    ...[...new Set(chars)].map((c): Entry => [c, NORMAL]),
    ...merges.map((m): Entry => [m.replace(' ', ''), NORMAL]),
    ['<|endoftext|>', CONTROL],
    ['<|im_start|>', CONTROL],
    ['<|im_end|>', CONTROL],
  ]
  const n = entries.length
  return load('gpt2', entries, merges, { bos: n - 3, eos: n - 1 })
}

/** GPT-2's `bytes_to_unicode`, in byte order. */
function byteLevelAlphabet(): string[] {
  const printable = (b: number) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174
  let next = 256
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(printable(b) ? b : next++))
}

async function load(model: string, entries: Entry[], merges: string[], ids: { bos: number; eos: number }) {
  const { files } = await loadNative()
  const gguf = declare(koffi.load(files.base), GGUF)
  const file = gguf.gguf_init_empty()
  const texts = entries.map(([text]) => text)
  const types = Int32Array.from(entries, ([, type]) => type)
  const scores = Float32Array.from(entries, ([, , score]) => score ?? 0)
  gguf.gguf_set_val_str(file, 'general.architecture', 'llama')
  gguf.gguf_set_val_str(file, 'tokenizer.ggml.model', model)
  gguf.gguf_set_arr_str(file, 'tokenizer.ggml.tokens', texts, texts.length)
  gguf.gguf_set_arr_data(file, 'tokenizer.ggml.token_type', 5, types, types.length)
  gguf.gguf_set_arr_data(file, 'tokenizer.ggml.scores', 6, scores, scores.length)
  if (merges.length > 0) {
    gguf.gguf_set_val_str(file, 'tokenizer.ggml.pre', 'gpt-2')
    gguf.gguf_set_arr_str(file, 'tokenizer.ggml.merges', merges, merges.length)
  }
  gguf.gguf_set_val_u32(file, 'tokenizer.ggml.bos_token_id', ids.bos)
  gguf.gguf_set_val_u32(file, 'tokenizer.ggml.eos_token_id', ids.eos)
  gguf.gguf_set_val_bool(file, 'tokenizer.ggml.add_bos_token', model === 'llama')
  const folder = mkdtempSync(join(tmpdir(), 'kvasir-vocab-'))
  try {
    const path = join(folder, 'vocab.gguf')
    gguf.gguf_write_to_file(file, path, false)
    gguf.gguf_free(file)
    return await Tokenizer.load(path)
  } finally {
    rmSync(folder, { recursive: true })
  }
}
