/**
 * What happens in an engine, as plain data. One log (`engine/events.ts`) carries all of them, with ids that only grow;
 * metrics, dashboard, simulator and router read it.
 *
 * Block events have vLLM's names and fields (vllm/distributed/kv_events.py), so that a router for vLLM can follow Kvasir.
 */
import type { RequestId } from './units.ts'

/** Where a block's bytes lie. */
export type Medium = 'device' | 'host' | 'disk' | 'remote'

/** Key of a full block: hex text of the hash described in `cache/identity.ts`. */
export type BlockHash = string

export type BlockEvent =
  | {
      readonly kind: 'BlockStored'
      readonly block_hashes: readonly BlockHash[]
      readonly parent_block_hash: BlockHash | null
      readonly token_ids: readonly number[]
      readonly block_size: number
      readonly lora_id: null
      readonly medium: Medium
    }
  | { readonly kind: 'BlockRemoved'; readonly block_hashes: readonly BlockHash[]; readonly medium: Medium }
  | { readonly kind: 'AllBlocksCleared' }

export type RequestEvent =
  | {
      readonly kind: 'request-arrive'
      readonly request: RequestId
      readonly tenant: string
      readonly task: 'generate' | 'embed'
      readonly promptTokens: number
    }
  | {
      readonly kind: 'request-admit'
      readonly request: RequestId
      readonly cachedTokens: number
      /** The cached tokens by where they were found: `host` and `disk` are those that were loaded for this request. */
      readonly loadedTokens: Readonly<Record<'device' | 'host' | 'disk', number>>
    }
  | { readonly kind: 'request-first-token'; readonly request: RequestId; readonly ttftMs: number }
  /** A further sample of a request whose prompt is done: it has an id of its own, and an end of its own. */
  | { readonly kind: 'request-fork'; readonly request: RequestId; readonly from: RequestId }
  /** Back to waiting. Its full blocks stay as stored prefixes for as long as there is room, or go to a tier. */
  | { readonly kind: 'request-preempt'; readonly request: RequestId; readonly rows: number }
  | {
      readonly kind: 'request-end'
      readonly request: RequestId
      readonly reason: string
      readonly promptTokens: number
      readonly generatedTokens: number
      /** Since it arrived. */
      readonly ms: number
    }
  | { readonly kind: 'request-refuse'; readonly code: string; readonly promptTokens: number }

/**
 * What evicted pages made room for: a request that is admitted, one that grows, a block that is loaded from a tier, a
 * session file that is read.
 */
export type EvictCause = 'admission' | 'growth' | 'load' | 'session'

/** The ladder of memory: each rung is an event. */
export type MemoryEvent =
  | { readonly kind: 'pages-evict'; readonly pages: number; readonly bytes: number; readonly cause: EvictCause }
  | { readonly kind: 'pages-offload'; readonly pages: number; readonly bytes: number; readonly to: Medium }
  | {
      readonly kind: 'pages-load'
      readonly pages: number
      readonly bytes: number
      readonly from: Medium
      readonly ms: number
    }
  | { readonly kind: 'load-decline'; readonly pages: number; readonly loadMs: number; readonly recomputeMs: number }

export type StepEvent = {
  readonly kind: 'step-end'
  readonly prefillRows: number
  readonly decodeRows: number
  readonly sequences: number
  readonly ms: number
  readonly computeMs: number
}

export type EngineEvent = BlockEvent | RequestEvent | MemoryEvent | StepEvent

/** An event as it stands in the log. */
export type Logged<E extends EngineEvent = EngineEvent> = E & { readonly id: number; readonly atMs: number }
