/**
 * An engine in a process of its own, supervised: a fault in native code ends that process and the requests it worked on,
 * with a clear error; it is started again, and this process goes on.
 *
 * ```ts
 * await using engine = await EngineClient.load('house')
 * for await (const part of engine.generate({ messages: [{ role: 'user', content: 'Hello' }] })) process.stdout.write(part.text)
 * ```
 */
import { resolve as absolute } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { KvasirError } from '../../contract/errors.ts'
import type { EngineEvent, Logged } from '../../contract/events.ts'
import type { LoadProgress } from '../../model/weights/load.ts'
import type { CacheMap, CacheSnapshot, EngineApi, EngineInfo, EngineStatus } from '../api.ts'
import type { Embedding, EmbedRequest } from '../embed.ts'
import type { EngineOptions } from '../options.ts'
import type { GeneratePart, GenerateRequest, PromptRequest } from '../request.ts'
import { Answer } from './answer.ts'
import { Child, type Death, type Launch } from './child.ts'
import {
  type Call,
  type CallResults,
  type ClientMessage,
  fromPlain,
  type Item,
  type MessageId,
  type PlainOptions,
  PROTOCOL,
  type WorkerMessage,
} from './messages.ts'
import { RequestIds } from './request-ids.ts'

/** Parts of one request that may be on their way or unread. */
export const CREDITS = 64

/** How the process is watched over. */
export interface Supervision {
  /** Before the first restart; doubles with each death in a row. */
  readonly firstDelayMs: number
  readonly maxDelayMs: number
  /** Failed starts in a row after which requests are refused; after `maxDelayMs` the next one causes one more try. */
  readonly failedStarts: number
  /** The longest that a request waits for a restart. */
  readonly waitMs: number
  /** For a process to end by itself after `dispose`. */
  readonly graceMs: number
  /** A process that lived as long, or completed an answer, was a sound one: delays begin anew. */
  readonly soundMs: number
}

const SUPERVISION: Supervision = {
  firstDelayMs: 100,
  maxDelayMs: 10_000,
  failedStarts: 5,
  waitMs: 60_000,
  graceMs: 20_000,
  soundMs: 10_000,
}

type State =
  | { readonly kind: 'starting'; readonly child: Child; failure: KvasirError | null }
  | { readonly kind: 'up'; readonly child: Child; readonly sinceMs: number }
  | { readonly kind: 'pause'; readonly timer: NodeJS.Timeout }
  | { readonly kind: 'given-up'; readonly untilMs: number; readonly refusal: () => KvasirError }
  | { readonly kind: 'disposed' }

interface Waiting<T> {
  readonly resolve: (value: T) => void
  readonly reject: (error: unknown) => void
}

interface Loading {
  readonly launch: Launch
  readonly model: string
  readonly options: PlainOptions
  readonly onProgress: LoadProgress | null
}

export class EngineClient implements EngineApi, Disposable {
  readonly #loading: Loading
  readonly #supervision: Supervision
  /** Null until the first start succeeded. */
  #loaded: { readonly info: EngineInfo } | null = null
  #state: State

  readonly #answers = new Map<MessageId, Answer>()
  readonly #calls = new Map<MessageId, Waiting<CallResults[Call['kind']]>>()
  /** Those who wait for a process that is up. */
  readonly #arrivals = new Set<Waiting<void>>()
  readonly #listeners = new Set<(event: Logged<EngineEvent>) => void>()
  #nextId: MessageId = 1
  readonly #ids = new RequestIds()

  /** Promises that only the child can settle. While there are any, it keeps this process alive. */
  #awaited = 0
  /** Deaths in a row of processes that were not sound. */
  #deaths = 0
  #failedStarts = 0
  #restarts = 0
  /** Event ids grow over restarts. */
  #eventOffset = 0
  #lastEvent: { readonly id: number; readonly atMs: number; readonly seenMs: number } | null = null
  #disposal: Promise<void> | null = null

  private constructor(loading: Loading, supervision: Supervision) {
    this.#loading = loading
    this.#supervision = supervision
    this.#state = this.#start()
  }

  /**
   * @param model a GGUF file (the first part of a split one), or `house`, the small model that the package carries.
   * @throws KvasirError what loading the engine in this process throws, and ENGINE_CRASHED
   */
  static load(model = 'house', options: EngineOptions = {}): Promise<EngineClient> {
    return EngineClient.loadWith(null, model, options)
  }

  /**
   * {@link load}, with an engine of one's own.
   * @param engineModule file URL of a module that exports `load(model, options): Promise<EngineApi>`
   * @internal
   */
  static async loadWith(
    engineModule: string | null,
    model = 'house',
    options: EngineOptions = {},
    supervision: Partial<Supervision> = {},
  ): Promise<EngineClient> {
    const { onProgress = null, ...plain } = options
    const launch = { engineModule, cwd: process.cwd() }
    const client = new EngineClient({ launch, model, options: plain, onProgress }, { ...SUPERVISION, ...supervision })
    await client.#arrival(null)
    return client
  }

  get info(): EngineInfo {
    return this.#loaded!.info
  }

  /** The engine's process; null while there is none. It changes with a restart. */
  get pid(): number | null {
    return this.#child?.pid ?? null
  }

  async *generate(request: GenerateRequest): AsyncGenerator<GeneratePart, void, undefined> {
    const { signal, ...plain } = request
    if (signal?.aborted) throw aborted(signal)
    const child = this.#running() ?? (await this.#restarted(signal))
    const id = this.#nextId++
    const answer = new Answer()
    const cancel = () => this.#send(child, { kind: 'cancel', id })
    // At once, also when nobody is reading just now.
    const abort = () => {
      answer.stop(aborted(signal))
      cancel()
    }
    signal?.addEventListener('abort', abort, { once: true })
    this.#answers.set(id, answer)
    let taken = 0
    try {
      if (signal?.aborted) throw aborted(signal)
      this.#ids.sent(plain.samples ?? 1)
      this.#send(child, { kind: 'generate', id, request: plain, credits: CREDITS })
      for (;;) {
        if (!answer.ready) await this.#keepAlive(answer.wait())
        const part = answer.take()
        if (!part) return
        if (++taken >= CREDITS / 2 && !answer.over) {
          this.#send(child, { kind: 'credit', id, parts: taken })
          taken = 0
        }
        yield part
      }
    } finally {
      signal?.removeEventListener('abort', abort)
      this.#answers.delete(id)
      if (!answer.over) cancel()
    }
  }

  async embed(request: EmbedRequest): Promise<Embedding> {
    const { signal, ...plain } = request
    const embedding = await this.#call({ kind: 'embed', request: plain }, signal)
    return { ...embedding, request: this.#ids.of(embedding.request) }
  }

  tokenize(request: PromptRequest): Promise<Int32Array> {
    return this.#call({ kind: 'tokenize', prompt: promptOf(request) })
  }

  detokenize(tokens: readonly number[] | Int32Array): Promise<string> {
    return this.#call({ kind: 'detokenize', tokens })
  }

  async status(): Promise<EngineStatus> {
    const status = this.#ids.ofStatus(await this.#call({ kind: 'status' }))
    return { ...status, totals: { ...status.totals, restarts: this.#restarts } }
  }

  async cacheMap(): Promise<CacheMap> {
    return this.#ids.ofCacheMap(await this.#call({ kind: 'cacheMap' }))
  }

  onEvent(listener: (event: Logged<EngineEvent>) => void): () => void {
    if (this.#state.kind === 'disposed') throw disposed()
    // A function of its own: the same listener may be given twice.
    const own = (event: Logged<EngineEvent>) => listener(event)
    this.#listeners.add(own)
    if (this.#listeners.size === 1) this.#wantEvents(true)
    return () => {
      if (this.#listeners.delete(own) && this.#listeners.size === 0) this.#wantEvents(false)
    }
  }

  async snapshot(): Promise<CacheSnapshot> {
    return await this.#call({ kind: 'snapshot' })
  }

  async clearCache(): Promise<void> {
    await this.#call({ kind: 'clearCache' })
  }

  saveSession(path: string, request: PromptRequest): Promise<number> {
    return this.#call({ kind: 'saveSession', path: absolute(path), prompt: promptOf(request) })
  }

  loadSession(path: string): Promise<number> {
    return this.#call({ kind: 'loadSession', path: absolute(path) })
  }

  /** Ends running requests with ABORTED; the process ends by itself, or is ended after a few seconds. */
  dispose(): Promise<void> {
    this.#disposal ??= this.#end((child, wasUp) => {
      if (wasUp) child.send({ kind: 'dispose' })
      else child.kill()
    })
    return this.#disposal
  }

  /** Ends the process on the spot. */
  [Symbol.dispose](): void {
    this.#disposal ??= this.#end((child) => child.kill())
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }

  // ---- the process ----

  #start(): State {
    const { model, options, onProgress, launch } = this.#loading
    const child: Child = new Child(launch, {
      message: (message) => this.#onMessage(child, message),
      death: (death) => this.#onDeath(death),
    })
    child.keep(this.#awaited > 0)
    const state: State = { kind: 'starting', child, failure: null }
    try {
      const progress = onProgress !== null && !this.#loaded
      this.#send(child, { kind: 'load', version: PROTOCOL, model, options, progress })
    } catch (error) {
      state.failure = error as KvasirError
      child.kill()
    }
    return state
  }

  #onMessage(child: Child, message: WorkerMessage): void {
    const state = this.#state
    if (state.kind === 'disposed') return
    switch (message.kind) {
      case 'batch':
        for (const item of message.items) this.#onItem(item)
        break
      case 'progress':
        this.#loading.onProgress?.(message.loadedBytes, message.totalBytes)
        break
      case 'hello':
        if (message.version !== PROTOCOL)
          this.#refuseStart(
            new KvasirError(
              'NOT_SUPPORTED',
              `the engine process speaks version ${message.version} of the messages, this client version ${PROTOCOL}. ` +
                'Use the same version of Kvasir on both sides',
            ),
          )
        break
      case 'failed':
        this.#refuseStart(fromPlain(message.error))
        break
      case 'ready': {
        const changed = this.#loaded ? changes(this.#loaded.info, message.info) : []
        if (changed.length > 0)
          this.#refuseStart(
            new KvasirError(
              'MODEL_INVALID',
              `${this.#loading.model} is not what it was when it was loaded (${changed.join(', ')} changed). ` +
                'Load it as a new engine',
              { changed },
            ),
          )
        else this.#onReady(child, message.info)
        break
      }
      default:
        message satisfies never
    }
  }

  #onReady(child: Child, info: EngineInfo): void {
    if (this.#loaded) {
      this.#restarts++
      this.#ids.restarted()
    }
    this.#loaded ??= { info }
    this.#failedStarts = 0
    this.#state = { kind: 'up', child, sinceMs: performance.now() }
    if (this.#listeners.size > 0) this.#wantEvents(true)
    for (const { resolve } of this.#arrivals) resolve()
    this.#arrivals.clear()
  }

  /** Its death tells the rest. */
  #refuseStart(failure: KvasirError): void {
    if (this.#state.kind !== 'starting') return
    this.#state.failure ??= failure
    this.#state.child.kill()
  }

  #onItem(item: Item): void {
    switch (item.kind) {
      case 'parts':
        this.#answers.get(item.id)?.add(item.parts.map((part) => this.#ids.ofPart(part)))
        break
      case 'done':
        this.#deaths = 0
        this.#answers.get(item.id)?.end(null)
        break
      case 'refused':
        this.#answers.get(item.id)?.end(fromPlain(item.error))
        this.#calls.get(item.id)?.reject(fromPlain(item.error))
        break
      case 'result':
        this.#calls.get(item.id)?.resolve(item.result)
        break
      case 'event':
        this.#tell({ ...this.#ids.ofEvent(item.event), id: item.event.id + this.#eventOffset })
        break
      default:
        item satisfies never
    }
  }

  #onDeath(death: Death): void {
    const state = this.#state
    if (state.kind !== 'starting' && state.kind !== 'up') return
    if (!this.#loaded) {
      this.#state = { kind: 'disposed' }
      this.#refuseArrivals(() => (state.kind === 'starting' && state.failure) || startFailed(death))
      return
    }
    if (state.kind === 'up') {
      if (performance.now() - state.sinceMs >= this.#supervision.soundMs) this.#deaths = 0
      for (const answer of this.#answers.values()) if (!answer.over) answer.stop(crashed(death, answer))
      for (const { reject } of this.#calls.values()) reject(crashed(death))
      this.#tellCacheIsGone()
    } else this.#failedStarts++
    const { firstDelayMs, maxDelayMs, failedStarts } = this.#supervision
    if (this.#failedStarts >= failedStarts) {
      const failure = state.kind === 'starting' ? state.failure : null
      const refusal = () => gaveUp(this.#failedStarts, death, failure)
      this.#state = { kind: 'given-up', untilMs: performance.now() + maxDelayMs, refusal }
      this.#refuseArrivals(refusal)
      return
    }
    const delay = Math.min(maxDelayMs, firstDelayMs * 2 ** this.#deaths++)
    const timer = setTimeout(() => {
      this.#state = this.#start()
    }, delay)
    this.#state = { kind: 'pause', timer }
    if (this.#awaited === 0) timer.unref()
  }

  async #end(how: (child: Child, wasUp: boolean) => void): Promise<void> {
    const state = this.#state
    const child = this.#child
    this.#state = { kind: 'disposed' }
    if (state.kind === 'pause') clearTimeout(state.timer)
    const ended = () => new KvasirError('ABORTED', 'the engine was disposed of')
    for (const answer of this.#answers.values()) answer.stop(ended())
    for (const { reject } of this.#calls.values()) reject(ended())
    this.#refuseArrivals(ended)
    this.#listeners.clear()
    if (!child) return
    how(child, state.kind === 'up')
    const timer = setTimeout(() => child.kill(), this.#supervision.graceMs)
    child.keep(true)
    await child.gone
    clearTimeout(timer)
  }

  // ---- those who wait for it ----

  get #child(): Child | null {
    return this.#state.kind === 'up' || this.#state.kind === 'starting' ? this.#state.child : null
  }

  /** Null: it is being restarted. @throws KvasirError DISPOSED, ENGINE_CRASHED */
  #running(): Child | null {
    const state = this.#state
    switch (state.kind) {
      case 'up':
        return state.child
      case 'disposed':
        throw disposed()
      case 'given-up':
        if (performance.now() < state.untilMs) throw state.refusal()
        this.#state = this.#start()
        return null
      default:
        return null
    }
  }

  async #restarted(signal?: AbortSignal): Promise<Child> {
    const deadline = performance.now() + this.#supervision.waitMs
    for (;;) {
      // Between the arrival and here it may have died again.
      const child = this.#running()
      if (child) return child
      await this.#arrival(deadline, signal)
    }
  }

  /** @throws KvasirError ABORTED, ENGINE_CRASHED, DISPOSED */
  async #arrival(deadlineMs: number | null, signal?: AbortSignal): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    let abort!: () => void
    let waiting!: Waiting<void>
    const arrival = new Promise<void>((resolve, reject) => {
      waiting = { resolve, reject }
      abort = () => reject(aborted(signal))
      if (deadlineMs !== null)
        timer = setTimeout(() => reject(waitedTooLong(this.#supervision.waitMs)), deadlineMs - performance.now())
    })
    this.#arrivals.add(waiting)
    signal?.addEventListener('abort', abort, { once: true })
    try {
      await this.#keepAlive(arrival)
    } finally {
      this.#arrivals.delete(waiting)
      clearTimeout(timer)
      signal?.removeEventListener('abort', abort)
    }
  }

  #refuseArrivals(error: () => KvasirError): void {
    for (const { reject } of this.#arrivals) reject(error())
    this.#arrivals.clear()
  }

  async #call<C extends Call>(call: C, signal?: AbortSignal): Promise<CallResults[C['kind']]> {
    if (signal?.aborted) throw aborted(signal)
    const child = this.#running() ?? (await this.#restarted(signal))
    const id = this.#nextId++
    const abort = () => {
      this.#calls.get(id)?.reject(aborted(signal))
      this.#send(child, { kind: 'cancel', id })
    }
    signal?.addEventListener('abort', abort, { once: true })
    try {
      if (signal?.aborted) throw aborted(signal)
      if (call.kind === 'embed') this.#ids.sent(1)
      return await this.#keepAlive(
        new Promise<CallResults[C['kind']]>((resolve, reject) => {
          this.#calls.set(id, { resolve: resolve as (value: CallResults[Call['kind']]) => void, reject })
          this.#send(child, { kind: 'call', id, call })
        }),
      )
    } finally {
      signal?.removeEventListener('abort', abort)
      this.#calls.delete(id)
    }
  }

  /** @throws KvasirError INVALID_ARGUMENT for what cannot travel */
  #send(child: Child, message: ClientMessage): void {
    try {
      child.send(message)
    } catch (error) {
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `options and requests must be plain data, because the engine runs in another process: ${(error as Error).message}`,
        {},
        error,
      )
    }
  }

  async #keepAlive<T>(promise: Promise<T>): Promise<T> {
    if (this.#awaited++ === 0) this.#setAlive(true)
    try {
      return await promise
    } finally {
      if (--this.#awaited === 0) this.#setAlive(false)
    }
  }

  #setAlive(alive: boolean): void {
    this.#child?.keep(alive)
    if (this.#state.kind === 'pause') alive ? this.#state.timer.ref() : this.#state.timer.unref()
  }

  // ---- events ----

  #wantEvents(wanted: boolean): void {
    if (this.#state.kind === 'up') this.#state.child.send({ kind: 'events', wanted })
  }

  #tell(event: Logged<EngineEvent>): void {
    this.#lastEvent = { id: event.id, atMs: event.atMs, seenMs: performance.now() }
    for (const listener of this.#listeners)
      try {
        listener(event)
      } catch (error) {
        // The listener's bug must surface, and must not lose the rest of a batch.
        queueMicrotask(() => {
          throw error
        })
      }
  }

  /** Who follows the blocks must not believe that they are still there. */
  #tellCacheIsGone(): void {
    const last = this.#lastEvent
    if (!last) return
    const atMs = last.atMs + performance.now() - last.seenMs
    this.#eventOffset = last.id + 2
    this.#tell({ kind: 'AllBlocksCleared', id: last.id + 1, atMs })
  }
}

/** Fields that differ and that answers depend on; how much memory there was at the start may differ. */
function changes(before: EngineInfo, after: EngineInfo): string[] {
  const { kvMemory: _, weights: __, ...fixed } = before ?? {}
  return Object.entries(fixed)
    .filter(([key, value]) => !isDeepStrictEqual(value, after[key as keyof EngineInfo]))
    .map(([key]) => key)
}

/** Only what a prompt is made of: a whole request may be given, and its signal cannot travel. */
function promptOf({ messages, tools, templateOptions, prompt, addSpecial, tokens }: PromptRequest): PromptRequest {
  const all = { messages, tools, templateOptions, prompt, addSpecial, tokens }
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined))
}

function aborted(signal?: AbortSignal): KvasirError {
  return new KvasirError('ABORTED', 'stopped by the caller', {}, signal?.reason)
}

function disposed(): KvasirError {
  return new KvasirError('DISPOSED', 'this engine was disposed of')
}

function waitedTooLong(waitMs: number): KvasirError {
  return new KvasirError(
    'ENGINE_CRASHED',
    `the engine process is being restarted, and was not ready after ${waitMs / 1000} s. The request was not begun: it is ` +
      'safe to send it again',
    { retrySafe: true, signal: null, exitCode: null, generatedTokens: 0 },
  )
}

function crashed(death: Death, { given, givenTokens } = { given: 0, givenTokens: 0 }): KvasirError {
  const retrySafe = given === 0
  const retry = retrySafe
    ? 'Nothing of an answer had been given out: it is safe to send the request again'
    : `${givenTokens} tokens of the answer had been given out: sent again, the request may get another answer`
  return new KvasirError(
    'ENGINE_CRASHED',
    `the engine process ${describe(death)} while it worked on this request. ${retry}; the process is being ` +
      `restarted${lastLines(death, 3)}`,
    { retrySafe, ...deathDetails(death), generatedTokens: givenTokens },
  )
}

function startFailed(death: Death): KvasirError {
  return new KvasirError(
    'ENGINE_CRASHED',
    `the engine process ${describe(death)} while it was loading${lastLines(death, 20)}`,
    { retrySafe: true, ...deathDetails(death), generatedTokens: 0 },
  )
}

function gaveUp(times: number, death: Death, failure: KvasirError | null): KvasirError {
  return new KvasirError(
    'ENGINE_CRASHED',
    `the engine process could not be started again: ${times} tries failed, the last because ` +
      (failure ? failure.message : `it ${describe(death)}${lastLines(death, 20)}`),
    { retrySafe: true, ...deathDetails(death), generatedTokens: 0 },
    failure ?? undefined,
  )
}

function deathDetails({ signal, exitCode, stderr }: Death): Record<string, unknown> {
  return { signal, exitCode, stderr }
}

function describe({ signal, exitCode }: Death): string {
  if (signal === 'SIGKILL') return 'was killed (SIGKILL: by hand, or by the system for want of memory)'
  if (signal) return `ended by ${signal}`
  return exitCode === null ? 'could not be started' : `ended with exit code ${exitCode}`
}

/** What ggml says before it ends a process, without the backtrace below it; else the end of what was said. */
function lastLines({ stderr }: Death, most: number): string {
  if (!stderr) return ''
  const lines = stderr.split('\n')
  const assertion = lines.findLast((line) => /GGML_ASSERT|ggml.*(fatal|abort)/i.test(line))
  return `. Its last words:\n${assertion ?? lines.slice(-most).join('\n')}`
}
