/**
 * The engine in this process: a model, a store of keys and values, and the loop that serves requests.
 *
 * ```ts
 * await using engine = await LocalEngine.load('house')
 * for await (const part of engine.generate({ messages: [{ role: 'user', content: 'Hello' }] })) process.stdout.write(part.text)
 * ```
 */
import { arenaBytes, PAGE_CELLS } from '../cache/arena.ts'
import type { CacheIdentity } from '../cache/identity.ts'
import type { StoreShape } from '../cache/memory.ts'
import { PrefixCache } from '../cache/prefix-cache.ts'
import { KvStore } from '../cache/store.ts'
import type { Calibration } from '../contract/calibration.ts'
import { KvasirError } from '../contract/errors.ts'
import type { EngineEvent, Logged } from '../contract/events.ts'
import { Executor, scratchBytes } from '../executor/run.ts'
import { deviceNamed, devices } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import { Model } from '../model/model.ts'
import { checkSampling } from '../model/sampling/params.ts'
import { ChatTemplate } from '../model/template/template.ts'
import { StopMatcher } from '../model/tokenizer/stop.ts'
import { loadPolicyModule } from '../policies/modules.ts'
import { DEFAULT_SCHEDULER_OPTIONS, schedulerNamed } from '../scheduler/index.ts'
import {
  type CacheMap,
  type CacheSnapshot,
  type EngineApi,
  type EngineInfo,
  type EngineStatus,
  MOST_REQUESTS,
} from './api.ts'
import { cacheMap } from './cache-map.ts'
import { arenaOf } from './cache-types.ts'
import { findCalibration } from './calibrations.ts'
import { chooseCompression } from './compression-options.ts'
import { describe, fullIdentity, identityOf } from './describe.ts'
import { checkEmbed, defaultPooling, type Embedding, type EmbedRequest } from './embed.ts'
import { EventLog } from './events.ts'
import { EngineLoop } from './loop.ts'
import { type CompleteOptions, completeOptions, DEFAULT_CONTEXT, type EngineOptions, modelPath } from './options.ts'
import { PartQueue } from './parts.ts'
import { planStore } from './plan-store.ts'
import { encodePrompt } from './prompt.ts'
import { checkForced, checkRequest, type GeneratePart, type GenerateRequest, type PromptRequest } from './request.ts'
import { type EmbedTask, type GenerateTask, NOT_STARTED, stoppedByCaller, type Task } from './task.ts'

/** Memory of pages that nobody has used for so long goes back to the system; looked for as often. */
const IDLE_MS = 1000

export class LocalEngine implements EngineApi, Disposable {
  readonly model: Model
  readonly options: CompleteOptions
  readonly info: EngineInfo
  readonly store: KvStore
  readonly #path: string
  readonly #executor: Executor
  readonly #prefixes: PrefixCache
  readonly #loop: EngineLoop
  readonly #events: EventLog
  readonly #tasks = new Set<Task>()
  /** Gives memory back that is not used. */
  readonly #giver: NodeJS.Timeout
  readonly #calibrations = new Map<Calibration['policy'], Promise<Calibration | null>>()
  #template: ChatTemplate | null = null
  #disposed = false

  private constructor(
    model: Model,
    store: KvStore,
    options: CompleteOptions,
    info: EngineInfo,
    prefixes: PrefixCache,
    events: EventLog,
    path: string,
  ) {
    this.model = model
    this.#path = path
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
    this.#giver = setInterval(() => store.giveBack(IDLE_MS), IDLE_MS).unref()
  }

  /**
   * @param model a GGUF file (the first part of a split one), or `house`, the small model that the package carries.
   * @throws KvasirError MODEL_NOT_FOUND, GGUF_INVALID, MODEL_INVALID, MODEL_UNSUPPORTED, OUT_OF_MEMORY, NATIVE_MISSING,
   *   INVALID_ARGUMENT. What does not fit into memory is refused before it is loaded.
   */
  static async load(model = 'house', options: EngineOptions = {}): Promise<LocalEngine> {
    const complete = completeOptions(options)
    for (const path of complete.policyModules) await loadPolicyModule(path)
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
      const info = describe(loaded, made, complete, Math.min(contextLength, made.home.cells))
      const emit = (event: EngineEvent) => events.add(event)
      const prefixes = await PrefixCache.open(
        made,
        // Without a disk nobody else meets these blocks, and the file need not be read for its digest.
        complete.diskCache === null
          ? identityOf(loaded, made, complete, path)
          : await fullIdentity(loaded, made, complete),
        { ...complete, emit },
      )
      return new LocalEngine(loaded, made, complete, info, prefixes, events, path)
    } catch (error) {
      store?.[Symbol.dispose]()
      loaded[Symbol.dispose]()
      throw error
    }
  }

  async *generate(request: GenerateRequest): AsyncGenerator<GeneratePart, void, undefined> {
    this.#checkAlive()
    const task = await this.#generateTask(request)
    this.#checkAlive()
    yield* this.#serve(task, task.parts)
  }

  async embed(request: EmbedRequest): Promise<Embedding> {
    this.#checkAlive()
    const task = this.#embedTask(request)
    for await (const embedding of this.#serve(task, task.parts)) return embedding
    throw new KvasirError('NATIVE_FAILED', 'the engine ended a request for an embedding without one')
  }

  /** What comes of a task, from its submission to its end. Whoever leaves early ends it. */
  async *#serve<T>(task: Task, parts: PartQueue<T>): AsyncGenerator<T, void, undefined> {
    const { signal } = task.request
    const abort = () => this.#cancel(task, signal?.reason)
    if (signal?.aborted) throw stoppedByCaller(signal.reason)
    this.#loop.submit(task)
    this.#tasks.add(task)
    signal?.addEventListener('abort', abort, { once: true })
    try {
      for (;;) {
        const part = await parts.next()
        if (part === undefined) return
        yield part
      }
    } finally {
      signal?.removeEventListener('abort', abort)
      this.#tasks.delete(task)
      if (task.open > 0) this.#cancel(task, 'the caller left')
    }
  }

  /** Ends a request. What was made before can still be read; its pages are free before the next step. */
  #cancel(task: Task, reason: unknown): void {
    task.cancelled ??= reason ?? 'aborted'
    this.#loop.wake()
  }

  async #generateTask(asked: GenerateRequest): Promise<GenerateTask> {
    checkRequest(asked, this.options.maxSequences)
    const request = this.#seeded(asked)
    const prompt = this.encodePrompt(request)
    const { store } = this
    const { config: model } = this.model
    const arena = arenaOf(request, { store, model, lowering: this.options.lowering })
    const compression = await chooseCompression(request, prompt, { model, arena: store.rowArena(arena) }, (policy) =>
      this.#calibration(policy),
    )
    const most = request.forced?.length ?? request.maxTokens
    const { contextLength } = this.info
    const left = this.#mostRows(arena) - prompt.length
    // An answer without end ends where the caller wants, or else where any other would.
    const endless = most !== undefined && compression?.isEndless && compression.budget < contextLength
    const room = endless ? most : left
    if (left < 1 && !(endless && compression.chunkRows !== null))
      throw this.#tooLong(prompt.length, 1, ', at least one of them for the answer', arena)
    if (request.forced && room < request.forced.length)
      throw this.#tooLong(prompt.length, most!, `, and the forced answer has ${most}`, arena)
    checkForced(request.forced, model.vocab)
    checkSampling(request.sampling ?? {}, this.model.tokenizer.vocabSize)
    new StopMatcher(typeof request.stop === 'string' ? [request.stop] : (request.stop ?? []))
    return {
      ...this.#task(request, prompt, arena),
      kind: 'generate',
      request,
      maxTokens: Math.min(most ?? room, room),
      endsContext: most === undefined || most > room,
      samples: request.samples ?? 1,
      compression,
      parts: new PartQueue(() => this.#loop.wake()),
    }
  }

  /** Policies and sampling draw from one seed, the one that the answer tells: given again, it gives the same plan and answer. */
  #seeded(request: GenerateRequest): GenerateRequest {
    const { policy, sampling = {} } = request
    if (policy === undefined || sampling.seed !== undefined) return request
    return { ...request, sampling: { ...sampling, seed: checkSampling(sampling, this.model.tokenizer.vocabSize).seed } }
  }

  #embedTask(request: EmbedRequest): EmbedTask {
    checkEmbed(request)
    const prompt = this.encodePrompt(request)
    if (prompt.length > this.info.contextLength) throw this.#overflow(prompt.length, '')
    return {
      ...this.#task(request, prompt, 0),
      kind: 'embed',
      request,
      pooling: request.pooling ?? defaultPooling(this.model.file),
      maxTokens: 0,
      samples: 1,
      parts: new PartQueue(() => this.#loop.wake()),
    }
  }

  #task({ tenant = '', salt = '', deadlineMs }: EmbedRequest | GenerateRequest, prompt: Int32Array, arena: number) {
    const now = performance.now()
    const pageSize = { bytes: this.store.rowArena(arena).pageBytes, counted: this.store.home.pageBytes }
    return {
      ...NOT_STARTED,
      prompt,
      tenant,
      ...{ arena, pageSize },
      root: this.#prefixes.root(tenant, salt, arena),
      arrivedMs: now,
      deadlineMs: deadlineMs === undefined ? null : now + deadlineMs,
    }
  }

  /** Most rows of a sequence in an arena: of types larger than the engine's own memory may hold fewer than the context. */
  #mostRows(arena: number): number {
    return Math.min(this.info.contextLength, PAGE_CELLS * this.store.mostPages(arena))
  }

  /** @param answer least tokens of the answer */
  #tooLong(promptTokens: number, answer: number, remark: string, arena: number): KvasirError {
    if (promptTokens + answer > this.info.contextLength) return this.#overflow(promptTokens, remark)
    const { keyType, valueType } = this.store.rowArena(arena).shape
    const rows = this.#mostRows(arena)
    return new KvasirError(
      'KV_BUDGET',
      `the prompt has ${promptTokens} tokens, and the KV memory holds ${rows} as ${keyType} keys and ${valueType} values${remark}. Shorten ` +
        'the prompt, ask for smaller types (cacheTypeK, cacheTypeV), or load the model with a larger kvMemory (--kv-memory)',
      { promptTokens, rows },
    )
  }

  #overflow(promptTokens: number, remark: string): KvasirError {
    const { contextLength } = this.info
    const bound = contextLength === this.store.home.cells ? 'kvMemory (--kv-memory)' : 'contextLength (--context)'
    return new KvasirError(
      'CONTEXT_OVERFLOW',
      `the prompt has ${promptTokens} tokens, and the context holds ${contextLength}${remark}. Shorten the prompt, or load ` +
        `the model with a larger ${bound}`,
      { promptTokens, contextLength },
    )
  }

  /** The tokens of a request's prompt. @throws KvasirError INVALID_ARGUMENT, TEMPLATE_FAILED */
  encodePrompt(request: PromptRequest): Int32Array {
    return encodePrompt(request, this.model.tokenizer, () => this.chatTemplate)
  }

  async tokenize(request: PromptRequest): Promise<Int32Array> {
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
    const { running, waiting } = this.#loop
    const now = performance.now()
    return {
      running: running.length,
      waiting: waiting.length,
      kv: {
        allocatedBytes: this.store.bytes,
        usedBytes: this.store.usedBytes,
        prefixBytes: this.#prefixes.evictableBytes,
        hostBytes: this.#prefixes.hostBytes,
        diskBytes: this.#prefixes.diskBytes,
      },
      scratchBytes: this.#executor.scratchBytes,
      totals: { ...this.#loop.totals, restarts: 0 },
      requests: [...running, ...waiting].slice(0, MOST_REQUESTS).map((b) => b.status(now)),
    }
  }

  async cacheMap(): Promise<CacheMap> {
    this.#checkAlive()
    return cacheMap(this.store, this.#prefixes, this.#loop.running)
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

  async saveSession(path: string, request: PromptRequest): Promise<number> {
    this.#checkAlive()
    const root = this.#prefixes.root('', '')
    return await this.#prefixes.save(path, root, [...this.encodePrompt(request)], await this.#identity())
  }

  async loadSession(path: string): Promise<number> {
    this.#checkAlive()
    return await this.#prefixes.restore(path, this.#prefixes.root('', ''), await this.#identity())
  }

  #calibration(policy: Calibration['policy']): Promise<Calibration | null> {
    const known = this.#calibrations.get(policy)
    if (known) return known
    const found = findCalibration(policy, this.model, this.#path)
    this.#calibrations.set(policy, found)
    // Made in the meantime, or mended: looked for again.
    found.then((c) => c || this.#calibrations.delete(policy)).catch(() => this.#calibrations.delete(policy))
    return found
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
    clearInterval(this.#giver)
    this.#executor[Symbol.dispose]()
    this.store[Symbol.dispose]()
    this.model[Symbol.dispose]()
  }
}
