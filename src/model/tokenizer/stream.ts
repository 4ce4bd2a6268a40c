/**
 * Tokens to text, one at a time. A token may end inside a code point; such bytes wait for the next token, so no text
 * given out ever holds half a character.
 */
import type { Tokenizer } from './tokenizer.ts'

export interface TextStreamOptions {
  /** Show control tokens as their text. Default false. */
  readonly special?: boolean
}

/**
 * For any tokens: what all `push` calls gave, plus `flush`, equals `tokenizer.decode(tokens)`. The tokens continue a
 * prompt, so a leading space of the first one is kept; trimming an answer is the caller's choice.
 */
export class TextStream {
  readonly #tokenizer: Tokenizer
  readonly #options: TextStreamOptions
  #pending: Uint8Array = new Uint8Array(0)

  constructor(tokenizer: Tokenizer, options: TextStreamOptions = {}) {
    this.#tokenizer = tokenizer
    this.#options = options
  }

  /** Text that this token completes, often ''. @throws KvasirError INVALID_ARGUMENT for an id outside the vocabulary. */
  push(token: number): string {
    const piece = this.#tokenizer.piece(token, this.#options)
    if (piece.length === 0) return ''
    const bytes = this.#pending.length === 0 ? Buffer.from(piece) : Buffer.concat([this.#pending, piece])
    const whole = bytes.length - unfinishedBytes(bytes)
    this.#pending = bytes.subarray(whole)
    return bytes.toString('utf8', 0, whole)
  }

  /** Ends the text: bytes that never became a character give U+FFFD. The stream may be used again afterwards. */
  flush(): string {
    const text = Buffer.from(this.#pending).toString('utf8')
    this.#pending = new Uint8Array(0)
    return text
  }
}

/** How many bytes at the end begin a code point that more bytes could still make valid: 0 to 3. */
export function unfinishedBytes(bytes: Uint8Array): number {
  for (let n = 1; n <= Math.min(3, bytes.length); n++) {
    const lead = bytes[bytes.length - n]!
    if (lead < 0x80) return 0
    if (lead < 0xc0) continue
    const need = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4
    if (lead < 0xc2 || lead > 0xf4 || n >= need) return 0
    return n === 1 || isSecondByte(lead, bytes[bytes.length - n + 1]!) ? n : 0
  }
  return 0
}

/** The Unicode standard's table 3-7: some lead bytes restrict what may follow (no overlong forms, no surrogates). */
function isSecondByte(lead: number, second: number): boolean {
  const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80
  const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf
  return second >= low && second <= high
}
