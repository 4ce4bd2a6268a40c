/** Log-probabilities as completions had them first: four lists side by side. */
import { isUtf8 } from 'node:buffer'
import type { TokenText } from '../../engine/request.ts'
import type { TokenInfo } from '../answer.ts'

export interface OldLogprobLists {
  readonly tokens: readonly string[]
  readonly token_logprobs: readonly number[]
  readonly top_logprobs: readonly Readonly<Record<string, number>>[]
  /** Where each token begins in the answer, in Unicode characters. */
  readonly text_offset: readonly number[]
}

/** Of one answer, token by token. */
export class OldLogprobs {
  #chars = 0

  of(tokens: readonly TokenInfo[]): OldLogprobLists {
    return {
      tokens: tokens.map(nameOf),
      token_logprobs: tokens.map(({ logprob }) => logprob),
      top_logprobs: tokens.map(({ top }) => Object.fromEntries(top.map((t) => [nameOf(t), t.logprob]))),
      text_offset: tokens.map((token) => this.#offset(token)),
    }
  }

  /** A character begins with its first byte; a token that goes on with a character begins where that one does. */
  #offset({ bytes }: TokenInfo): number {
    const isRest = (byte: number) => (byte & 0xc0) === 0x80
    const offset = this.#chars - (bytes[0] !== undefined && isRest(bytes[0]) ? 1 : 0)
    this.#chars += bytes.filter((byte) => !isRest(byte)).length
    return offset
  }
}

/** Its text; of a part of a character its bytes, as OpenAI writes them: `bytes:\xe2\x80`. */
function nameOf({ bytes }: Pick<TokenText, 'bytes'>): string {
  const buffer = Buffer.from(bytes)
  if (isUtf8(buffer)) return buffer.toString('utf8')
  return `bytes:${bytes.map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}`
}
