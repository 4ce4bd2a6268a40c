/** What a caller asks for, and what comes back. */

import type { SamplingParams } from '../model/sampling/params.ts'
import type { ChatMessage } from '../model/template/template.ts'

export interface GenerateRequest {
  /** Turns of a conversation, put into text by the model's own chat template. One of `messages`, `prompt`, `tokens`. */
  readonly messages?: readonly ChatMessage[]
  /** Text to continue. Special tokens in it are recognised. */
  readonly prompt?: string
  /** Tokens to continue, taken as they are. */
  readonly tokens?: readonly number[] | Int32Array
  readonly sampling?: SamplingParams
  /** Most tokens to generate. Default: until the context is full. */
  readonly maxTokens?: number
  /** Texts that end the answer; they are not part of it. */
  readonly stop?: string | readonly string[]
  /** Tokens that end the answer, beside the model's own. */
  readonly stopTokens?: readonly number[]
  /** Stops the request, in the middle of a step too; the iteration then throws ABORTED. */
  readonly signal?: AbortSignal
}

export interface TokenLogprob {
  readonly token: number
  /** Natural logarithm of its probability before temperature and penalties. */
  readonly logprob: number
}

export type GeneratePart =
  | {
      readonly kind: 'token'
      readonly token: number
      /** Text that became certain with this token: can be empty, or hold characters of earlier ones. */
      readonly text: string
      /** With `sampling.logprobs`. */
      readonly logprob?: number
      readonly top?: readonly TokenLogprob[]
    }
  | {
      readonly kind: 'end'
      /** Text that was held back as the possible beginning of a stop text. */
      readonly text: string
      readonly reason: FinishReason
      /** Gives the same answer again, with the same request and machine. */
      readonly seed: number
      readonly timings: Timings
    }

export type FinishReason =
  /** The model ended its answer. */
  | { readonly kind: 'end-of-answer'; readonly token: number }
  /** A stop text or stop token came up. */
  | { readonly kind: 'stop'; readonly stop: string | number }
  /** `maxTokens` were generated. */
  | { readonly kind: 'max-tokens' }
  /** The context is full. */
  | { readonly kind: 'context-full' }

/** Names and units are those of the CLI's JSON. */
export interface Timings {
  readonly prompt_tokens: number
  /** Prompt tokens whose keys and values were still in the cache. */
  readonly cached_tokens: number
  /** From the start of work on the prompt until its last logits. */
  readonly prompt_ms: number
  readonly generated_tokens: number
  /** From the last logits of the prompt until the end. */
  readonly generated_ms: number
  /** Time to first token: from the request's arrival, waiting included, until its first token was sampled. */
  readonly ttft_ms: number
  /** Milliseconds inside ggml's graph computation, prompt and answer. */
  readonly compute_ms: number
}
