/**
 * The engine in this process: a model, a store of keys and values, and the loop that serves requests.
 *
 * ```ts
 * await using engine = await LocalEngine.load('house')
 * for await (const part of engine.generate({ messages: [{ role: 'user', content: 'Hello' }] })) process.stdout.write(part.text)
 * ```
 */
import { arenaBytes, PAGE_CELLS, pageBytes } from '../cache/arena.ts'
import { type CacheIdentity, fileDigest } from '../cache/identity.ts'
import { PrefixCache } from '../cache/prefix-cache.ts'
import { KvStore, type StoreShape } from '../cache/store.ts'
import { KvasirError, showBytes } from '../contract/errors.ts'
import type { EngineEvent, Logged } from '../contract/events.ts'
import { Executor, scratchBytes } from '../executor/run.ts'
import { storeShape } from '../executor/store-shape.ts'
import { type Device, deviceNamed, devices } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import type { ModelConfig } from '../model/config.ts'
import { freeHostBytes } from '../model/memory.ts'
import { Model } from '../model/model.ts'
import { checkSampling } from '../model/sampling/params.ts'
import { ChatTemplate } from '../model/template/template.ts'
import { StopMatcher } from '../model/tokenizer/stop.ts'
import { DEFAULT_SCHEDULER_OPTIONS, schedulerNamed } from '../scheduler/index.ts'
import type { CacheSnapshot, EngineApi, EngineInfo, EngineStatus } from './api.ts'
import type { Task } from './branch.ts'
import { EventLog } from './events.ts'
import { EngineLoop } from './loop.ts'
import {
  type CompleteOptions,
  completeOptions,
  DEFAULT_CONTEXT,
  DEFAULT_CONTEXTS,
  DEFAULT_SHARE,
  type EngineOptions,
  modelPath,
} from './options.ts'
import { PartQueue } from './parts.ts'
import { checkRequest, type GeneratePart, type GenerateRequest } from './request.ts'

type PromptOf = Pick<GenerateRequest, 'messages' | 'prompt' | 'tokens'>

export class LocalEngine implements EngineApi, Disposable {
  readonly model: Model
  readonly options: CompleteOptions
  readonly info: EngineInfo
  readonly store: KvStore
  readonly #executor: Executor
  readonly #prefixes: PrefixCache
  readonly #loop: EngineLoop
  readonly #events: EventLog
  readonly #tasks = new Set<Task>()
  #template: ChatTemplate | null = null
  #disposed = false

  private constructor(
    model: Model,
    store: KvStore,
    options: CompleteOptions,
    info: EngineInfo,
    prefixes: PrefixCache,
    events: EventLog,
  ) {
    this.model = model
    this.options = options
    this.info = info
    this.store = store
    this.#executor = new Executor(model, store, { ...options, mostItems: options.maxSequences })
    this.#prefixes = prefixes
    this.#events = events
    this.#loop = new EngineLoop(model, store, this.#executor, this.#prefixes, this.#events, {
      ...DEFAULT_SCHEDULER_OPTIONS,
      ...options,
      scheduler: schedulerNamed(options.scheduler),
    })
  }

  /**
   * @param model a GGUF file (the first part of a split one), or `house`, the small model that the package carries.
   * @throws KvasirError MODEL_NOT_FOUND, GGUF_INVALID, MODEL_INVALID, MODEL_UNSUPPORTED, OUT_OF_MEMORY, NATIVE_MISSING,
   *   INVALID_ARGUMENT. What does not fit into memory is refused before it is loaded.
   */
  static async load(model = 'house', options: EngineOptions = {}): Promise<LocalEngine> {
    const complete = completeOptions(options)
    await loadNative()
    const device = complete.device
      ? deviceNamed(complete.device)
      : (devices().find((d) => d.kind === 'gpu' || d.kind === 'igpu') ?? deviceNamed('CPU'))
    const path = modelPath(model)
    let contextLength = 0
    let shape: StoreShape | undefined
    const events = new EventLog()
    const loaded = await Model.load(path, (config) => {
      contextLength = complete.contextLength ?? Math.min(config.contextLength, DEFAULT_CONTEXT)
      shape = planStore(config, complete, contextLength, device)
      const kv = shape.arenas.reduce((sum, a) => sum + arenaBytes({ ...shape!, ...a }), complete.hostCacheBytes)
      return {
        device,
        contextLength,
        alsoNeeds: [
          { what: `KV cache of ${contextLength} tokens`, bytes: kv },
          { what: 'intermediate results', bytes: scratchBytes(config, complete.tokenBudget, contextLength) },
        ],
        ...(complete.onProgress ? { onProgress: complete.onProgress } : {}),
      }
    })
    let store: KvStore | undefined
    try {
      const made = new KvStore(shape!, device)
      store = made
      const info = describe(loaded, made, Math.min(contextLength, made.arenas[0]!.cells))
      const emit = (event: EngineEvent) => events.add(event)
      const prefixes = await PrefixCache.open(
        made,
        // Without a disk nobody else meets these blocks, and the file need not be read for its digest.
        complete.diskCache === null
          ? identityOf(loaded, made, complete, path)
          : await fullIdentity(loaded, made, complete),
        { ...complete, emit },
      )
      return new LocalEngine(loaded, made, complete, info, prefixes, events)
    } catch (error) {
      store?.[Symbol.dispose]()
      loaded[Symbol.dispose]()
      throw error
    }
  }

  async *generate(request: GenerateRequest): AsyncGenerator<GeneratePart, void, undefined> {
    this.#checkAlive()
    const task = this.#task(request)
    const abort = () => this.#cancel(task, request.signal?.reason)
    if (request.signal?.aborted) throw new KvasirError('ABORTED', 'stopped by the caller', {}, request.signal.reason)
    this.#loop.submit(task)
    this.#tasks.add(task)
    request.signal?.addEventListener('abort', abort, { once: true })
    try {
      for (;;) {
        const part = await task.parts.next()
        if (part === undefined) return
        yield part
      }
    } finally {
      request.signal?.removeEventListener('abort', abort)
      this.#tasks.delete(task)
      if (task.open > 0) this.#cancel(task, 'the caller left')
    }
  }

  /** Ends a request. What was made before can still be read; its pages are free before the next step. */
  #cancel(task: Task, reason: unknown): void {
    task.cancelled ??= reason ?? 'aborted'
    this.#loop.wake()
  }

  #task(request: GenerateRequest): Task {
    checkRequest(request, this.options.maxSequences)
    const prompt = this.encodePrompt(request)
    const { contextLength } = this.info
    const room = contextLength - prompt.length
    if (room < 1) {
      const bound =
        contextLength === this.store.arenas[0]!.cells ? 'kvMemory (--kv-memory)' : 'contextLength (--context)'
      throw new KvasirError(
        'CONTEXT_OVERFLOW',
        `the prompt has ${prompt.length} tokens, and the context holds ${contextLength}, at least one of them for the ` +
          `answer. Shorten the prompt, or load the model with a larger ${bound}`,
        { promptTokens: prompt.length, contextLength },
      )
    }
    const now = performance.now()
    checkSampling(request.sampling ?? {}, this.model.tokenizer.vocabSize)
    new StopMatcher(typeof request.stop === 'string' ? [request.stop] : (request.stop ?? []))
    return {
      request,
      prompt,
      tenant: request.tenant ?? '',
      root: this.#prefixes.root(request.tenant ?? '', request.salt ?? ''),
      maxTokens: Math.min(request.maxTokens ?? room, room),
      endsContext: request.maxTokens === undefined || request.maxTokens > room,
      samples: request.samples ?? 1,
      arrivedMs: now,
      deadlineMs: request.deadlineMs === undefined ? null : now + request.deadlineMs,
      parts: new PartQueue(() => this.#loop.wake()),
      cancelled: undefined,
      ...{ startedMs: 0, promptEndMs: 0, firstTokenMs: 0, cachedTokens: 0, computeMs: 0 },
      open: 1,
    }
  }

  /** The tokens of a request's prompt. @throws KvasirError INVALID_ARGUMENT, TEMPLATE_FAILED */
  encodePrompt(request: PromptOf): Int32Array {
    const { tokenizer } = this.model
    let tokens: Int32Array
    if (request.tokens) {
      tokens = Int32Array.from(request.tokens)
      const bad = [...request.tokens].find((t) => !Number.isInteger(t) || t < 0 || t >= tokenizer.vocabSize)
      if (bad !== undefined) throw new KvasirError('INVALID_ARGUMENT', `token ${bad} is outside the vocabulary`)
    } else if (request.messages) {
      const text = this.chatTemplate.render(request.messages)
      tokens = tokenizer.encode(text, { addSpecial: !this.chatTemplate.writesBos(text), parseSpecial: true })
    } else tokens = tokenizer.encode(request.prompt!, { addSpecial: true, parseSpecial: true })
    if (tokens.length === 0)
      throw new KvasirError('INVALID_ARGUMENT', 'the prompt is empty: there is nothing to continue')
    return tokens
  }

  async tokenize(request: PromptOf): Promise<Int32Array> {
    this.#checkAlive()
    return this.encodePrompt(request)
  }

  async detokenize(tokens: readonly number[] | Int32Array): Promise<string> {
    this.#checkAlive()
    return this.model.tokenizer.decode(tokens)
  }

  /** The model's chat template; ChatML for a model that has none. @throws KvasirError TEMPLATE_FAILED for a broken one. */
  get chatTemplate(): ChatTemplate {
    return (this.#template ??= ChatTemplate.of(this.model.tokenizer))
  }

  async status(): Promise<EngineStatus> {
    this.#checkAlive()
    return {
      running: this.#loop.running,
      waiting: this.#loop.waiting,
      kv: {
        allocatedBytes: this.store.bytes,
        usedBytes: this.store.usedBytes,
        prefixBytes: this.#prefixes.evictablePages * this.store.arenas[0]!.pageBytes,
        hostBytes: this.#prefixes.hostBytes,
        diskBytes: this.#prefixes.diskBytes,
      },
      scratchBytes: this.#executor.scratchBytes,
      totals: { ...this.#loop.totals, restarts: 0 },
    }
  }

  onEvent(listener: (event: Logged<EngineEvent>) => void): () => void {
    return this.#events.on(listener)
  }

  /** Events that are still kept, behind `id`. */
  eventsSince(id: number): readonly Logged<EngineEvent>[] {
    return this.#events.since(id)
  }

  async snapshot(): Promise<CacheSnapshot> {
    this.#checkAlive()
    return { lastEventId: this.#events.lastId, blocks: this.#prefixes.snapshot() }
  }

  async clearCache(): Promise<void> {
    this.#checkAlive()
    await this.#prefixes.clear()
  }

  async saveSession(path: string, request: PromptOf): Promise<number> {
    this.#checkAlive()
    const root = this.#prefixes.root('', '')
    return await this.#prefixes.save(path, root, [...this.encodePrompt(request)], await this.#identity())
  }

  async loadSession(path: string): Promise<number> {
    this.#checkAlive()
    return await this.#prefixes.restore(path, this.#prefixes.root('', ''), await this.#identity())
  }

  #identity(): Promise<CacheIdentity> {
    return fullIdentity(this.model, this.store, this.options)
  }

  /** Stored prefixes, for checks and displays. */
  get prefixes(): PrefixCache {
    return this.#prefixes
  }

  #checkAlive(): void {
    if (this.#disposed) throw new KvasirError('DISPOSED', 'this engine was disposed of')
  }

  async dispose(): Promise<void> {
    if (this.#disposed) return
    this.#disposed = true
    for (const task of this.#tasks) this.#cancel(task, 'the engine was disposed of')
    await this.#loop.idle()
    await this.#prefixes.close()
    this.#free()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  /** @throws KvasirError INVALID_ARGUMENT while requests are being served: `await dispose()` ends them. */
  [Symbol.dispose](): void {
    if (this.#disposed) return
    if (this.#tasks.size > 0)
      throw new KvasirError('INVALID_ARGUMENT', 'requests are being served: `await engine.dispose()` ends them')
    this.#disposed = true
    void this.#prefixes.close(false)
    this.#free()
  }

  #free(): void {
    this.#executor[Symbol.dispose]()
    this.store[Symbol.dispose]()
    this.model[Symbol.dispose]()
  }
}

/** The store that `kvMemory` pays for. @throws KvasirError KV_BUDGET when that is less than one page's worth */
function planStore(config: ModelConfig, o: CompleteOptions, contextLength: number, device: Device): StoreShape {
  const shapeOf = (cells: number) => storeShape(config, { ...o, cells }, device)
  const perPage = pageBytes({ ...shapeOf(1), ...shapeOf(1).arenas[0]! })
  const step = shapeOf(1).arenas[0]!.pages
  const context = arenaBytes({ ...shapeOf(contextLength), ...shapeOf(contextLength).arenas[0]! })
  const free = device.kind === 'cpu' ? freeHostBytes() : device.memory().free
  // More than an arena's indices reach is no default.
  const most = Math.floor((2 ** 31 - 1) / (config.headDim * config.kvHeads * PAGE_CELLS)) * perPage
  const budget = o.kvMemory ?? Math.max(context, Math.min(DEFAULT_CONTEXTS * context, free * DEFAULT_SHARE, most))
  const pages = Math.floor((budget - o.hostCacheBytes) / perPage / step) * step
  if (pages < step)
    throw new KvasirError(
      'KV_BUDGET',
      `kvMemory of ${showBytes(budget)}${o.hostCacheBytes ? `, less ${showBytes(o.hostCacheBytes)} for hostCacheBytes,` : ''} ` +
        `does not hold the ${showBytes(step * perPage)} that ${step} pages take. Give more of it`,
      { budgetBytes: budget, neededBytes: step * perPage },
    )
  const shape = shapeOf(1)
  return { ...shape, arenas: [{ ...shape.arenas[0]!, pages }] }
}

function describe(
  { file, config, device, tokenizer, weights }: Model,
  store: KvStore,
  contextLength: number,
): EngineInfo {
  const arena = store.arenas[0]!
  const { architecture, name, layers, width, heads, kvHeads, headDim } = config
  return {
    file: file.path,
    ...{ name, architecture, layers, width, heads, kvHeads, headDim },
    vocabSize: tokenizer.vocabSize,
    device: device.name,
    contextLength,
    kvMemory: store.bytes,
    kvBytesPerToken: arena.pageBytes / PAGE_CELLS,
    weights: weights.report,
  }
}

async function fullIdentity(model: Model, store: KvStore, o: CompleteOptions): Promise<CacheIdentity> {
  const digests = await Promise.all(model.file.parts.map((part) => fileDigest(part.path)))
  return identityOf(model, store, o, digests.join('+'))
}

/** What cached rows depend on. Vocabulary and merges are in the model's file: one digest serves both. */
function identityOf({ config }: Model, store: KvStore, o: CompleteOptions, digest: string): CacheIdentity {
  const { keyType, valueType, valuesTransposed } = store.arenas[0]!.shape
  const layout = `page${PAGE_CELLS} ${valuesTransposed ? 'transposed' : 'rows'} ${o.lowering}`
  return {
    model: digest,
    tokenizer: digest,
    adapters: [],
    rope: { ...config.rope },
    kv: { keys: keyType, values: valueType, layout },
    policy: { name: 'full', params: {} },
    tenant: '',
    salt: '',
  }
}
