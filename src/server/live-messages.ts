/** What `GET /live` sends, as types alone: the page reads them too. Each message is the data of an event of its kind's name. */
import type { Logged, MemoryEvent, RequestEvent, StepEvent } from '../contract/events.ts'
import type { CacheMap, EngineInfo, EngineStatus } from '../engine/api.ts'
import type { ModelState } from './models.ts'

/** What is told of an engine: nothing about the machine's files. */
export type LiveInfo = Omit<EngineInfo, 'file' | 'weights'>

export interface LiveModel {
  readonly id: string
  readonly state: ModelState
  /** Null: not loaded. */
  readonly info: LiveInfo | null
}

/** Events without blocks, which name tokens. */
export type LiveEvent = Logged<RequestEvent | MemoryEvent | StepEvent>

export interface LiveMessages {
  /** First of all, and again when a model was loaded or unloaded. */
  readonly hello: { readonly version: string; readonly watched: string; readonly models: readonly LiveModel[] }
  /** `nowMs` is of the clock that `atMs` of events is of. */
  readonly status: { readonly nowMs: number; readonly status: EngineStatus }
  /** The cache, when it changed. */
  readonly cache: { readonly cache: CacheMap }
  /** `dropped`: events before these that nobody kept, because the viewer read too slowly. */
  readonly events: { readonly dropped: number; readonly events: readonly LiveEvent[] }
}

export type LiveKind = keyof LiveMessages
/** Some message with its kind. */
export type LiveMessage = { readonly [K in LiveKind]: { readonly kind: K } & LiveMessages[K] }[LiveKind]
