/**
 * What an engine process and its client say to each other. Plain data and typed arrays only, so that the same messages
 * can travel over a socket.
 *
 * ```
 * client                          worker
 *   load ------------------------>        first message, once
 *        <------------------------ hello, progress..., then ready or failed (and it ends)
 *   generate, call, events ------>
 *        <------------------------ batch: parts, done, refused, result, event
 *   credit, cancel -------------->
 *   dispose --------------------->        it ends by itself
 * ```
 */
import { type ErrorCode, KvasirError } from '../../contract/errors.ts'
import type { EngineEvent, Logged } from '../../contract/events.ts'
import type { CacheMap, CacheSnapshot, EngineInfo, EngineStatus } from '../api.ts'
import type { Embedding, EmbedRequest } from '../embed.ts'
import type { EngineOptions } from '../options.ts'
import type { GeneratePart, GenerateRequest, PromptRequest } from '../request.ts'

/** Grows with each change of a message. Client and worker of different versions refuse each other. */
export const PROTOCOL = 2

/** Never used twice by one client, restarts of the worker included. */
export type MessageId = number

/** An AbortSignal does not travel: it becomes a `cancel`. */
export type PlainRequest = Omit<GenerateRequest, 'signal'>
export type PlainEmbedRequest = Omit<EmbedRequest, 'signal'>
export type PlainOptions = Omit<EngineOptions, 'onProgress'>

export interface PlainError {
  readonly code: ErrorCode
  /** Without the code in front. */
  readonly message: string
  readonly details: Readonly<Record<string, unknown>>
  /** Text of the error behind it. */
  readonly cause: string | null
}

/** What has one answer. */
export type Call =
  | { readonly kind: 'embed'; readonly request: PlainEmbedRequest }
  | { readonly kind: 'tokenize'; readonly prompt: PromptRequest }
  | { readonly kind: 'detokenize'; readonly tokens: readonly number[] | Int32Array }
  | { readonly kind: 'status' }
  | { readonly kind: 'cacheMap' }
  | { readonly kind: 'snapshot' }
  | { readonly kind: 'clearCache' }
  | { readonly kind: 'saveSession'; readonly path: string; readonly prompt: PromptRequest }
  | { readonly kind: 'loadSession'; readonly path: string }

export interface CallResults {
  readonly embed: Embedding
  readonly tokenize: Int32Array
  readonly detokenize: string
  readonly status: EngineStatus
  readonly cacheMap: CacheMap
  readonly snapshot: CacheSnapshot
  readonly clearCache: null
  readonly saveSession: number
  readonly loadSession: number
}

export type ClientMessage =
  | {
      readonly kind: 'load'
      readonly version: number
      readonly model: string
      readonly options: PlainOptions
      /** Whether anyone wants to see `progress`. */
      readonly progress: boolean
    }
  /** `credits`: how many parts the worker may send before it hears of more. */
  | { readonly kind: 'generate'; readonly id: MessageId; readonly request: PlainRequest; readonly credits: number }
  | { readonly kind: 'credit'; readonly id: MessageId; readonly parts: number }
  /** Nothing about this request or call is listened to any more. */
  | { readonly kind: 'cancel'; readonly id: MessageId }
  | { readonly kind: 'call'; readonly id: MessageId; readonly call: Call }
  /** Whether `event` items are wanted. */
  | { readonly kind: 'events'; readonly wanted: boolean }
  | { readonly kind: 'dispose' }

export type WorkerMessage =
  | { readonly kind: 'hello'; readonly version: number }
  | { readonly kind: 'progress'; readonly loadedBytes: number; readonly totalBytes: number }
  | { readonly kind: 'ready'; readonly info: EngineInfo }
  /** Loading failed; the worker ends. */
  | { readonly kind: 'failed'; readonly error: PlainError }
  /** Everything that came up in one turn of the worker's event loop. */
  | { readonly kind: 'batch'; readonly items: readonly Item[] }

export type Item =
  | { readonly kind: 'parts'; readonly id: MessageId; readonly parts: readonly GeneratePart[] }
  /** No more parts. */
  | { readonly kind: 'done'; readonly id: MessageId }
  /** A request or a call ended with this error. */
  | { readonly kind: 'refused'; readonly id: MessageId; readonly error: PlainError }
  | { readonly kind: 'result'; readonly id: MessageId; readonly result: CallResults[Call['kind']] }
  | { readonly kind: 'event'; readonly event: Logged<EngineEvent> }

export function toPlain(error: unknown): PlainError {
  if (error instanceof KvasirError) {
    const { code, message, details, cause } = error
    const prefix = `${code}: `
    return {
      code,
      // The constructor on the other side puts the code in front again.
      message: message.startsWith(prefix) ? message.slice(prefix.length) : message,
      details: plainDetails(details),
      cause: cause === undefined ? null : textOf(cause),
    }
  }
  return {
    code: 'NATIVE_FAILED',
    message: `unexpected failure in the engine process: ${textOf(error)}`,
    details: error instanceof Error ? { stack: String(error.stack) } : {},
    cause: null,
  }
}

export function fromPlain({ code, message, details, cause }: PlainError): KvasirError {
  return new KvasirError(code, message, details, cause === null ? undefined : new Error(cause))
}

function textOf(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error)
}

/** Details are facts for programs; whatever cannot travel becomes its text. */
function plainDetails(details: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(details).map(([key, value]) => {
      try {
        return [key, value instanceof Error ? textOf(value) : structuredClone(value)]
      } catch {
        return [key, String(value)]
      }
    }),
  )
}
