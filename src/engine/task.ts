/** A request while it is being served: what was asked, what is known of it, where its results go. */
import { KvasirError } from '../contract/errors.ts'
import type { PageSize } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'
import type { CompressionOptions } from './compression-options.ts'
import type { Embedding, EmbedRequest, Pooling } from './embed.ts'
import type { PartQueue } from './parts.ts'
import type { GeneratePart, GenerateRequest } from './request.ts'

interface Served {
  /** Its name in events; 0 until it is taken in. */
  id: RequestId
  readonly prompt: Int32Array
  readonly tenant: string
  /** Arena of the store in which its rows are stored. */
  readonly arena: number
  readonly pageSize: PageSize
  /** Root of its blocks' names in the prefix index. */
  readonly root: string
  /** Most tokens of the answer. */
  readonly maxTokens: number
  readonly samples: number
  readonly arrivedMs: number
  readonly deadlineMs: number | null
  /** Set when the caller has left. */
  cancelled: unknown
  startedMs: number
  promptEndMs: number
  firstTokenMs: number
  cachedTokens: number
  computeMs: number
  /** Spent on its policy. */
  policyMs: number
  /** Branches that have not ended. */
  open: number
}

export interface GenerateTask extends Served {
  readonly kind: 'generate'
  readonly request: GenerateRequest
  /** Whether `maxTokens` is the context's end rather than the caller's wish. */
  readonly endsContext: boolean
  /** What shortens its cache; null: nothing. */
  readonly compression: CompressionOptions | null
  readonly parts: PartQueue<GeneratePart>
}

export interface EmbedTask extends Served {
  readonly kind: 'embed'
  readonly request: EmbedRequest
  readonly pooling: Pooling
  readonly parts: PartQueue<Embedding>
}

export type Task = GenerateTask | EmbedTask

/** What every task begins with. */
export const NOT_STARTED = {
  id: 0 as RequestId,
  cancelled: undefined,
  startedMs: 0,
  promptEndMs: 0,
  firstTokenMs: 0,
  cachedTokens: 0,
  computeMs: 0,
  policyMs: 0,
  open: 1,
} as const

/** Why a task that the caller left is over. */
export function stoppedByCaller(reason: unknown): KvasirError {
  return new KvasirError('ABORTED', 'stopped by the caller', {}, reason)
}
