/**
 * What an engine is to those who use it, wherever it runs: `LocalEngine` in this process, `Engine` as the client of a
 * process of its own. Everything that crosses here is plain data.
 */
import type { CacheType } from '../cache/arena.ts'
import type { TierUse } from '../cache/prefix-cache.ts'
import type { BlockHash, EngineEvent, Logged, Medium } from '../contract/events.ts'
import type { ToolFormat } from '../model/tools/format.ts'
import type { WeightReport } from '../model/weights/load.ts'
import type { SchedulerName } from '../scheduler/index.ts'
import type { Embedding, EmbedRequest } from './embed.ts'
import type { GeneratePart, GenerateRequest, PromptRequest } from './request.ts'

/** What was loaded, and how; it does not change. */
export interface EngineInfo {
  /** Path of the GGUF file. */
  readonly file: string
  readonly name: string
  readonly architecture: string
  readonly layers: number
  readonly width: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly vocabSize: number
  /** Name of the device, e.g. `CPU`. */
  readonly device: string
  /** Tokens of one prompt and its answer together that fit. */
  readonly contextLength: number
  /** Bytes that KV caches may take, all requests together. */
  readonly kvMemory: number
  /** Bytes that one token takes in the cache. */
  readonly kvBytesPerToken: number
  readonly keyType: CacheType
  readonly valueType: CacheType
  readonly scheduler: SchedulerName
  /** Most rows of a step. */
  readonly tokenBudget: number
  /** Most sequences that run at once. */
  readonly maxSequences: number
  /** Requests that may wait. */
  readonly maxWaiting: number
  /** How the model writes calls of functions. */
  readonly toolFormat: ToolFormat
  /** Id of the control token that begins tool calls, where the format has one (Mistral's). */
  readonly toolCallToken: number | null
  readonly weights: readonly WeightReport[]
}

/** How things stand now. */
export interface EngineStatus {
  readonly running: number
  readonly waiting: number
  readonly kv: {
    /** Bytes of native memory held for keys and values. */
    readonly allocatedBytes: number
    /** Bytes of the pages that requests or stored prefixes hold. */
    readonly usedBytes: number
    /** Bytes of pages that only stored prefixes hold: they are given up when room is needed. */
    readonly prefixBytes: number
    readonly hostBytes: number
    readonly diskBytes: number
  }
  /** Bytes held for intermediate results. */
  readonly scratchBytes: number
  /** Counts since the start. */
  readonly totals: {
    readonly requests: number
    readonly refused: number
    readonly promptTokens: number
    readonly cachedTokens: number
    readonly generatedTokens: number
    readonly preemptions: number
    readonly evictedPages: number
    readonly steps: number
    readonly restarts: number
  }
  /** Those that run, oldest admission first, then those that wait; no more than {@link MOST_REQUESTS}. */
  readonly requests: readonly RequestStatus[]
}

/** Requests that a status tells of. */
export const MOST_REQUESTS = 256

/** One sequence: further samples of a request stand beside its first. */
export interface RequestStatus {
  /** As in events. */
  readonly id: number
  readonly tenant: string
  readonly phase: 'waiting' | 'prefill' | 'decode'
  readonly promptTokens: number
  /** Rows that are in the cache. */
  readonly computed: number
  /** Tokens of the answer so far. */
  readonly generated: number
  /** Since its arrival. */
  readonly ageMs: number
}

/** The store as a picture, page by page. */
export interface CacheMap {
  /** Tokens that a page holds. */
  readonly pageTokens: number
  readonly arenas: readonly ArenaMap[]
  /** Places below the arenas, from fast to slow. */
  readonly tiers: readonly TierUse[]
}

export interface ArenaMap {
  readonly keyType: CacheType | `${number} bits`
  readonly valueType: CacheType | `${number} bits`
  readonly pageBytes: number
  readonly pages: number
  /**
   * A character per page: `.` free, `o` held by one sequence, `s` by several, `p` only by stored prefixes, `l` lent to rows in other
   * formats, which have arenas of their own.
   */
  readonly states: string
  /** [pages]: id, as in events, of the request that has run longest of those that hold it; 0: none. */
  readonly owners: readonly number[]
  /** [pages]: milliseconds since it was last taken, shared or read as a prefix; 0 for free ones. */
  readonly agesMs: readonly number[]
}

export interface CacheSnapshot {
  readonly lastEventId: number
  /** Parents stand before their children. */
  readonly blocks: readonly {
    readonly hash: BlockHash
    readonly parent: BlockHash | null
    readonly tokens: readonly number[]
    readonly medium: Medium
  }[]
}

export interface EngineApi extends AsyncDisposable {
  readonly info: EngineInfo
  /**
   * Generates one answer (with `samples`, several). Requests are batched as they come; the prompt is never shortened.
   * Leaving the iteration early stops the request.
   * @throws KvasirError INVALID_ARGUMENT, CONTEXT_OVERFLOW, TEMPLATE_FAILED, GRAMMAR_INVALID, ABORTED, DEADLINE,
   *   QUEUE_FULL, KV_BUDGET, ENGINE_CRASHED, DISPOSED
   */
  generate(request: GenerateRequest): AsyncGenerator<GeneratePart, void, undefined>
  /**
   * One vector for a text: the states behind the model's final norm, pooled. It is batched with everything else that runs.
   * @throws KvasirError what {@link generate} throws
   */
  embed(request: EmbedRequest): Promise<Embedding>
  /** The tokens of a request's prompt. @throws KvasirError INVALID_ARGUMENT, TEMPLATE_FAILED */
  tokenize(request: PromptRequest): Promise<Int32Array>
  /** Text of tokens. */
  detokenize(tokens: readonly number[] | Int32Array): Promise<string>
  status(): Promise<EngineStatus>
  /** Which pages are held, by whom, and for how long: for displays. */
  cacheMap(): Promise<CacheMap>
  /** Events from now on; the function it gives ends it. */
  onEvent(listener: (event: Logged<EngineEvent>) => void): () => void
  /** Blocks that are stored in memory now, and the id of the last event: a follower begins here and goes on with events. */
  snapshot(): Promise<CacheSnapshot>
  /** Forgets every stored prefix, in memory and on disk. Running requests keep what they hold. */
  clearCache(): Promise<void>
  /**
   * Writes the cached rows of a prompt, as far as there are any, to a file; the tokens that it holds.
   * @throws KvasirError GGUF_IO, INVALID_ARGUMENT when nothing of it is stored, ABORTED when the cache is cleared meanwhile, DISPOSED
   */
  saveSession(path: string, request: PromptRequest): Promise<number>
  /**
   * Makes a saved session's rows a stored prefix; the tokens that it holds.
   * @throws KvasirError SESSION_INVALID, GGUF_IO, KV_BUDGET, ABORTED when the cache is cleared meanwhile, DISPOSED
   */
  loadSession(path: string): Promise<number>
  /** Ends running requests with ABORTED, then frees everything. */
  dispose(): Promise<void>
}
