/**
 * An engine without a model, for tests: each request's prompt is a {@link Script} in JSON, and so is the name of the model
 * ({@link LoadScript}).
 */
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { KvasirError } from '../../contract/errors.ts'
import type { EngineEvent, Logged } from '../../contract/events.ts'
import type { RequestId } from '../../contract/units.ts'
import type { CacheMap, CacheSnapshot, EngineApi, EngineInfo, EngineStatus } from '../api.ts'
import type { Embedding, EmbedRequest } from '../embed.ts'
import type { EngineOptions } from '../options.ts'
import type { GeneratePart, GenerateRequest, PromptRequest } from '../request.ts'

export type Fault = 'kill' | 'abort' | 'exit' | 'hang' | 'typed' | 'bug'

export interface Script {
  /** Default 5; null: without end. */
  readonly tokens?: number | null
  /** Between tokens. Default 0: as fast as they are taken, one turn of the event loop for every hundred. */
  readonly delayMs?: number
  /** What happens instead of token number `at`, from 0. */
  readonly fault?: Fault
  readonly at?: number
}

export interface LoadScript {
  readonly fault?: 'missing' | 'exit' | 'kill' | 'bug'
  /** The fault happens only while this file is there. */
  readonly whileThere?: string
  /** Calls of onProgress. */
  readonly progress?: number
}

export const MODULE = import.meta.url

export const script = (s: Script): { readonly prompt: string } => ({ prompt: JSON.stringify(s) })
export const model = (s: LoadScript = {}): string => JSON.stringify(s)

export async function load(name: string, options: EngineOptions): Promise<EngineApi> {
  const { fault, whileThere, progress = 0 } = JSON.parse(name) as LoadScript
  for (let i = 1; i <= progress; i++) options.onProgress?.(i, progress)
  if (fault && (whileThere === undefined || existsSync(whileThere))) {
    if (fault === 'missing') throw new KvasirError('MODEL_NOT_FOUND', 'no such model', { file: name, odd: () => 1 })
    if (fault === 'bug') throw new TypeError('a bug in load')
    console.error('the fake engine cannot start: no luck today')
    if (fault === 'kill') process.kill(process.pid, 'SIGKILL')
    process.exit(3)
  }
  return new FakeEngine(name, options)
}

class FakeEngine implements EngineApi {
  readonly info: EngineInfo
  readonly #listeners = new Set<(event: Logged<EngineEvent>) => void>()
  #eventId = 0
  #running = 0
  #requests = 0
  #generated = 0

  constructor(file: string, options: EngineOptions) {
    this.info = {
      file,
      name: 'fake',
      architecture: 'fake',
      layers: 1,
      width: 1,
      heads: 1,
      kvHeads: 1,
      headDim: 1,
      vocabSize: 256,
      device: `threads of libuv: ${process.env['UV_THREADPOOL_SIZE']}`,
      contextLength: options.contextLength ?? 4096,
      // Another one with each start.
      kvMemory: process.pid,
      kvBytesPerToken: 1,
      ...{ keyType: 'f16', valueType: 'f16', scheduler: 'fcfs', toolFormat: 'generic', toolCallToken: null },
      ...{ tokenBudget: 512, maxSequences: 16, maxWaiting: 256 },
      weights: [],
    }
  }

  async *generate({ prompt, signal }: GenerateRequest): AsyncGenerator<GeneratePart, void, undefined> {
    const { tokens = 5, delayMs = 0, fault, at = 0 } = JSON.parse(prompt ?? '{}') as Script
    const request = ++this.#requests
    this.#running++
    try {
      for (let i = 0; tokens === null || i < tokens; i++) {
        if (fault && i === at) await strike(fault)
        if (delayMs > 0) await sleep(delayMs, undefined, signal ? { signal } : {}).catch(() => {})
        else if (i % 100 === 99) await new Promise((resolve) => setImmediate(resolve))
        if (signal?.aborted) throw new KvasirError('ABORTED', 'stopped', {}, signal.reason)
        this.#generated++
        yield { kind: 'token', token: i, text: `${i} ` }
      }
      this.#log({
        kind: 'request-end',
        request: request as RequestId,
        reason: 'end',
        promptTokens: 1,
        generatedTokens: 1,
        ms: 0,
      })
      yield {
        kind: 'end',
        text: '',
        reason: { kind: 'max-tokens' },
        seed: 7,
        request,
        timings: {
          queue_ms: 0,
          prompt_tokens: 1,
          cached_tokens: 0,
          prompt_ms: 0,
          generated_tokens: tokens ?? 0,
          generated_ms: 0,
          ttft_ms: 0,
          compute_ms: 0,
          policy_ms: 0,
          kv_bytes: 0,
          kv_bytes_full: 0,
        },
      }
    } finally {
      this.#running--
    }
  }

  /** As many tokens as the script says, in its time; the vector holds them all. */
  async embed({ prompt, signal }: EmbedRequest): Promise<Embedding> {
    let end = 0
    const vector: number[] = []
    for await (const part of this.generate({ ...(prompt ? { prompt } : {}), ...(signal ? { signal } : {}) }))
      if (part.kind === 'token') vector.push(part.token)
      else end = part.request
    return { vector: Float32Array.from(vector), tokens: vector.length, pooling: 'mean', request: end }
  }

  #log(event: EngineEvent): void {
    const logged = { ...event, id: this.#eventId++, atMs: performance.now() }
    for (const listener of this.#listeners) listener(logged)
  }

  async tokenize({ prompt }: PromptRequest): Promise<Int32Array> {
    return Int32Array.from(prompt ?? '', (c) => c.codePointAt(0)!)
  }

  async detokenize(tokens: readonly number[] | Int32Array): Promise<string> {
    return String.fromCodePoint(...tokens)
  }

  async status(): Promise<EngineStatus> {
    return {
      running: this.#running,
      waiting: 0,
      kv: { allocatedBytes: 0, usedBytes: 0, prefixBytes: 0, hostBytes: 0, diskBytes: 0 },
      scratchBytes: 0,
      totals: {
        requests: this.#requests,
        refused: 0,
        promptTokens: 0,
        cachedTokens: 0,
        generatedTokens: this.#generated,
        preemptions: 0,
        evictedPages: 0,
        steps: 0,
        restarts: 0,
      },
      requests: [
        {
          ...{ id: this.#requests, tenant: '', phase: 'decode' },
          ...{ promptTokens: 1, computed: 1, generated: 1, ageMs: 0 },
        },
      ],
    }
  }

  async cacheMap(): Promise<CacheMap> {
    const arena = { keyType: 'f16', valueType: 'f16', pageBytes: 1, pages: 2, states: '.o', agesMs: [0, 1] } as const
    return { pageTokens: 32, arenas: [{ ...arena, owners: [0, this.#requests] }], tiers: [] }
  }

  onEvent(listener: (event: Logged<EngineEvent>) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async snapshot(): Promise<CacheSnapshot> {
    return { lastEventId: 0, blocks: [] }
  }

  async clearCache(): Promise<void> {
    this.#log({ kind: 'AllBlocksCleared' })
  }

  /** Tells the path that arrived. */
  async saveSession(path: string): Promise<number> {
    throw new KvasirError('GGUF_IO', path)
  }

  async loadSession(path: string): Promise<number> {
    return path.length
  }

  async dispose(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}
}

async function strike(fault: Fault): Promise<void> {
  switch (fault) {
    case 'typed':
      throw new KvasirError('KV_BUDGET', 'too little', { neededBytes: 2, freeBytes: 1 }, new Error('behind it'))
    case 'bug':
      throw new TypeError('a bug')
    case 'kill':
      process.kill(process.pid, 'SIGKILL')
      return
    case 'abort':
      console.error('GGML_ASSERT(fake) failed')
      process.abort()
      break
    case 'exit':
      process.exit(5)
      break
    case 'hang':
      // As a native call that never returns: the event loop stands still.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
  }
}
