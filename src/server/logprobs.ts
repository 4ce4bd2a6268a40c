/** Log-probabilities in the form of OpenAI's chat and responses. */
import type { TokenText } from '../engine/request.ts'
import type { TokenInfo } from './answer.ts'

export interface Logprob {
  readonly token: string
  readonly logprob: number
  readonly bytes: readonly number[]
}

export function logprobOf({ top, ...token }: TokenInfo): Logprob & { readonly top_logprobs: readonly Logprob[] } {
  return { ...one(token), top_logprobs: top.map(one) }
}

function one({ logprob, bytes }: Pick<TokenText, 'logprob' | 'bytes'>): Logprob {
  return { token: Buffer.from(bytes).toString('utf8'), logprob, bytes }
}
