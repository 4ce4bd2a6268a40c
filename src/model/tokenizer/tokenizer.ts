/**
 * Text to tokens and back, by libllama's vocabularies (SentencePiece, BPE, WordPiece, Unigram, RWKV, ...), loaded
 * without any weights.
 *
 * Text is bytes here. A JS string goes through UTF-8 first; a lone surrogate has no UTF-8 form and becomes U+FFFD, as
 * `TextEncoder` and `Buffer` do it. NUL is an ordinary character. Give a `Uint8Array` for bytes that are not UTF-8:
 * vocabularies with byte tokens keep them exactly, byte-level BPE reads each bad byte as U+FFFD. SentencePiece writes a
 * space as U+2581, so that sign comes back as a space.
 */
import { existsSync } from 'node:fs'
import { KvasirError } from '../../contract/errors.ts'
import type { Pointer } from '../../ggml/declare.ts'
import { readGguf } from '../../ggml/gguf/index.ts'
import { captureLog, loggedErrors } from '../../ggml/log.ts'
import { Owned } from '../../ggml/owned.ts'
import { llama, loadLlama } from '../libllama/library.ts'
import { checkVocabulary } from './vocabulary.ts'

/** llama_token_attr: the two kinds whose text is markup, not content. */
const ATTR_UNKNOWN = 1
const ATTR_CONTROL = 8
const NONE = new Uint8Array(0)

export interface EncodeOptions {
  /** Put BOS in front and EOS behind where the vocabulary asks for them. Default false. */
  readonly addSpecial?: boolean
  /**
   * Read the text of control tokens, e.g. `<|im_end|>`, as those tokens. Default false: then text from users cannot
   * forge the turns of a chat. Rendered chat templates need true.
   */
  readonly parseSpecial?: boolean
}

export interface DecodeOptions {
  /** Show control tokens and the unknown token as their text. Default false: they give nothing. */
  readonly special?: boolean
  /**
   * The tokens begin a text. Default false: they continue one. Some SentencePiece vocabularies put a space in front of
   * every text when encoding; only with `atStart` is one leading space taken off again. Generated tokens continue their
   * prompt, so their first space is content.
   */
  readonly atStart?: boolean
}

/** Owns a vocabulary in native memory: ~50 MB for 152,000 tokens. Any thread, one at a time. */
export class Tokenizer extends Owned {
  readonly vocabSize: number
  /** Ids of special tokens, null where the vocabulary has none. */
  readonly bos: number | null
  readonly eos: number | null
  /** End of turn. */
  readonly eot: number | null
  readonly nl: number | null
  readonly pad: number | null
  /** What `addSpecial` adds. */
  readonly addBos: boolean
  readonly addEos: boolean
  /** Jinja source of the model's chat template, null when the file has none. */
  readonly chatTemplate: string | null
  readonly #vocab: Pointer
  readonly #pieces: (Uint8Array | undefined)[]
  readonly #attributes: Int32Array
  /** Whether `encode` puts a space in front of a text. */
  readonly #addsSpace: boolean

  private constructor(model: Pointer, vocab: Pointer) {
    super('vocabulary', model)
    const id = (token: number) => (token < 0 ? null : token)
    this.#vocab = vocab
    this.vocabSize = llama.llama_vocab_n_tokens(vocab)
    this.bos = id(llama.llama_vocab_bos(vocab))
    this.eos = id(llama.llama_vocab_eos(vocab))
    this.eot = id(llama.llama_vocab_eot(vocab))
    this.nl = id(llama.llama_vocab_nl(vocab))
    this.pad = id(llama.llama_vocab_pad(vocab))
    this.addBos = llama.llama_vocab_get_add_bos(vocab)
    this.addEos = llama.llama_vocab_get_add_eos(vocab)
    this.chatTemplate = llama.llama_model_chat_template(model, null)
    this.#pieces = new Array(this.vocabSize)
    this.#attributes = new Int32Array(this.vocabSize).map((_, i) => llama.llama_vocab_get_attr(vocab, i))
    this.#addsSpace = this.#encodesSpaceFirst()
  }

  /**
   * Reads the vocabulary of a GGUF file. Its header is checked by our own reader first, since libllama ends the process
   * over some defects.
   *
   * @throws KvasirError MODEL_NOT_FOUND, GGUF_INVALID, or MODEL_INVALID when the file has no usable vocabulary.
   */
  static async load(path: string): Promise<Tokenizer> {
    if (!existsSync(path)) throw new KvasirError('MODEL_NOT_FOUND', `no file at ${path}`, { file: path })
    checkVocabulary(readGguf(path))
    await loadLlama()
    const params = { ...llama.llama_model_default_params(), vocab_only: true }
    const load = () => llama.llama_model_load_from_file(path, params)
    const { result: model, lines } = captureLog(load, llama.llama_log_set)
    const mend = 'Check that it is a whole GGUF file of a language model'
    if (model === null)
      throw new KvasirError(
        'MODEL_INVALID',
        `libllama could not read a vocabulary from ${path}${loggedErrors(lines)}. ${mend}`,
        { file: path },
      )
    const vocab = llama.llama_model_get_vocab(model)
    // type 0 is "no vocabulary"; most calls on it end the process
    if (vocab === null || llama.llama_vocab_type(vocab) === 0 || llama.llama_vocab_n_tokens(vocab) < 1) {
      llama.llama_model_free(model)
      throw new KvasirError('MODEL_INVALID', `${path} holds no vocabulary. ${mend}`, { file: path })
    }
    return new Tokenizer(model, vocab)
  }

  /** libllama's `llama_vocab*`, for its samplers. Lives as long as this tokenizer. */
  get vocabPtr(): Pointer {
    void this.ptr // throws after dispose
    return this.#vocab
  }

  /** @throws KvasirError INVALID_ARGUMENT for a text of 2 GiB or more. */
  encode(text: string | Uint8Array, options: EncodeOptions = {}): Int32Array {
    const { addSpecial = false, parseSpecial = false } = options
    const vocab = this.vocabPtr
    const bytes = typeof text === 'string' ? Buffer.from(text, 'utf8') : text
    if (bytes.length >= 2 ** 31)
      throw new KvasirError('INVALID_ARGUMENT', `encode: a text of ${bytes.length} bytes; less than 2^31 are allowed`)
    const source = bytes.length === 0 ? new Uint8Array(1) : bytes
    let out = new Int32Array(bytes.length + 8)
    const run = () => llama.llama_tokenize(vocab, source, bytes.length, out, out.length, addSpecial, parseSpecial)
    let n = run()
    if (n < 0 && n > -(2 ** 31)) {
      out = new Int32Array(-n)
      n = run()
    }
    if (n < 0) throw new KvasirError('NATIVE_FAILED', `encode: llama_tokenize gave ${n} for ${bytes.length} bytes`)
    return out.slice(0, n)
  }

  /** The text of tokens: their bytes joined, then read as UTF-8; what is not UTF-8 becomes U+FFFD. */
  decode(tokens: Iterable<number>, options: DecodeOptions = {}): string {
    const text = Buffer.from(this.decodeBytes(tokens, options))
    return text.toString('utf8')
  }

  /** Like {@link decode}, before it is read as UTF-8. */
  decodeBytes(tokens: Iterable<number>, options: DecodeOptions = {}): Uint8Array {
    const { atStart = false } = options
    const pieces: Uint8Array[] = []
    let first = true
    for (const token of tokens) {
      const bytes = this.piece(token, options)
      // as llama_detokenize does it: markup that is not shown comes before the start
      const strip = first && atStart && this.#addsSpace && bytes[0] === 0x20
      pieces.push(strip ? bytes.subarray(1) : bytes)
      if (bytes.length > 0) first = false
    }
    return Buffer.concat(pieces)
  }

  /**
   * The bytes of one token as they stand inside a text; a leading space is kept. May be a part of a code point.
   * The array is shared: do not write to it.
   *
   * @throws KvasirError INVALID_ARGUMENT for an id outside the vocabulary.
   */
  piece(token: number, options: { readonly special?: boolean } = {}): Uint8Array {
    this.#check(token)
    if (!options.special && this.#isMarkup(token)) return NONE
    return (this.#pieces[token] ??= this.#readPiece(token))
  }

  /** The token as the vocabulary spells it, e.g. `▁the` or `<0x0A>`. */
  text(token: number): string {
    this.#check(token)
    return llama.llama_vocab_get_text(this.vocabPtr, token) ?? ''
  }

  /** Whether a model that gives this token has finished its answer: EOS, EOT and their like. */
  isEndOfGeneration(token: number): boolean {
    this.#check(token)
    return llama.llama_vocab_is_eog(this.vocabPtr, token)
  }

  /** Whether the token is markup such as `<|im_start|>`. */
  isControl(token: number): boolean {
    this.#check(token)
    return (this.#attributes[token]! & ATTR_CONTROL) !== 0
  }

  protected override free(model: Pointer): void {
    llama.llama_model_free(model)
  }

  #isMarkup(token: number): boolean {
    return (this.#attributes[token]! & (ATTR_CONTROL | ATTR_UNKNOWN)) !== 0
  }

  #readPiece(token: number): Uint8Array {
    let out = new Uint8Array(64)
    const run = () => llama.llama_token_to_piece(this.vocabPtr, token, out, out.length, 0, true)
    let n = run()
    if (n < 0) {
      out = new Uint8Array(-n)
      n = run()
    }
    return out.slice(0, Math.max(0, n))
  }

  /** libllama knows but does not tell, so ask: such a vocabulary gives bytes beginning with a space for `a`. */
  #encodesSpaceFirst(): boolean {
    const first = this.encode('a')[0]
    return first !== undefined && this.piece(first, { special: true })[0] === 0x20
  }

  /** Native code ends the process over an id that is out of range. */
  #check(token: number): void {
    if (!Number.isInteger(token) || token < 0 || token >= this.vocabSize)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `token ${token} is not in the vocabulary; allowed are whole numbers from 0 to ${this.vocabSize - 1}`,
        { token, vocabSize: this.vocabSize },
      )
  }
}
