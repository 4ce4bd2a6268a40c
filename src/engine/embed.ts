/** What a caller of `embed` asks for, and what comes back. */
import { KvasirError } from '../contract/errors.ts'
import type { GgufFile } from '../ggml/gguf/index.ts'
import {
  checkFields,
  checkPrompt,
  checkSharing,
  PROMPT_FIELDS,
  type PromptRequest,
  SHARING_FIELDS,
  type SharingRequest,
} from './request.ts'

/** How the states of a text's tokens become one vector: their mean, or the state of the last token. */
export const POOLINGS = ['mean', 'last'] as const
export type Pooling = (typeof POOLINGS)[number]

export interface EmbedRequest extends PromptRequest, SharingRequest {
  /** Default: what the model's file says (`<architecture>.pooling_type`), where that is one of these; else `mean`. */
  readonly pooling?: Pooling
  /** Divides the vector by its Euclidean length. Default true. */
  readonly normalize?: boolean
}

export interface Embedding {
  /** f32 [D]: states behind the model's final norm, pooled. */
  readonly vector: Float32Array
  /** Tokens of the text. */
  readonly tokens: number
  readonly pooling: Pooling
  /** Its id in events. */
  readonly request: number
}

const FIELDS = [...PROMPT_FIELDS, ...SHARING_FIELDS, 'pooling', 'normalize']

/** @throws KvasirError INVALID_ARGUMENT */
export function checkEmbed(request: EmbedRequest): void {
  checkFields(request, FIELDS)
  checkPrompt(request)
  checkSharing(request)
  const { pooling, normalize } = request
  if (pooling !== undefined && !POOLINGS.includes(pooling))
    throw new KvasirError('INVALID_ARGUMENT', `pooling is "${pooling}"; it must be one of ${POOLINGS.join(', ')}`)
  if (normalize !== undefined && typeof normalize !== 'boolean')
    throw new KvasirError('INVALID_ARGUMENT', `normalize is ${normalize}; it must be true or false`)
}

/** enum llama_pooling_type of llama.h: 1 is mean, 2 the first token (of no use with causal attention), 3 the last. */
export function defaultPooling({ metadata }: GgufFile): Pooling {
  return metadata.getNumber(`${metadata.getString('general.architecture')}.pooling_type`, 0) === 3 ? 'last' : 'mean'
}
