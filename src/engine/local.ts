/**
 * The engine: a model, a cache and a loop from request to tokens.
 *
 * ```ts
 * using engine = await LocalEngine.load('house')
 * for await (const part of engine.generate({ messages: [{ role: 'user', content: 'Hello' }] })) process.stdout.write(part.text)
 * ```
 */
import { setImmediate } from 'node:timers/promises'
import { type CacheShape, cacheBytes, UniformCache } from '../cache/uniform.ts'
import { KvasirError } from '../contract/errors.ts'
import { wantsTransposed } from '../executor/lower/choose.ts'
import { Executor, scratchBytes } from '../executor/run.ts'
import { deviceNamed, devices } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import type { ModelConfig } from '../model/config.ts'
import { Model } from '../model/model.ts'
import { Sampler } from '../model/sampling/sampler.ts'
import { ChatTemplate } from '../model/template/template.ts'
import { StopMatcher } from '../model/tokenizer/stop.ts'
import { TextStream } from '../model/tokenizer/stream.ts'
import type { WeightReport } from '../model/weights/load.ts'
import { type CompleteOptions, completeOptions, DEFAULT_CONTEXT, type EngineOptions, modelPath } from './options.ts'
import type { FinishReason, GeneratePart, GenerateRequest, Timings } from './request.ts'
import { Sequence } from './sequence.ts'
import { Turns } from './turn.ts'

/** Quick steps run on the calling thread; at least this often, in milliseconds, the event loop gets its turn. */
const YIELD_MS = 10

export class LocalEngine implements Disposable {
  readonly model: Model
  readonly options: CompleteOptions
  /** Tokens of prompt and answer together that fit. */
  readonly contextLength: number
  readonly #cache: UniformCache
  readonly #executor: Executor
  readonly #sequence: Sequence
  #template: ChatTemplate | null = null
  readonly #turns = new Turns()
  #disposed = false

  private constructor(model: Model, cache: UniformCache, options: CompleteOptions, contextLength: number) {
    this.model = model
    this.options = options
    this.contextLength = contextLength
    this.#cache = cache
    this.#executor = new Executor(model, cache, options)
    this.#sequence = new Sequence(this.#executor)
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
    let contextLength = 0
    const shape = (config: ModelConfig): CacheShape => ({
      layers: config.layers,
      headDim: config.headDim,
      kvHeads: config.kvHeads,
      cells: contextLength,
      keyType: complete.keyType,
      valueType: complete.valueType,
      valuesTransposed: wantsTransposed(complete.lowering, complete.valueType, device),
    })
    const loaded = await Model.load(modelPath(model), (config) => {
      contextLength = complete.contextLength ?? Math.min(config.contextLength, DEFAULT_CONTEXT)
      return {
        device,
        contextLength,
        alsoNeeds: [
          { what: `KV cache of ${contextLength} tokens`, bytes: cacheBytes(shape(config)) },
          { what: 'intermediate results', bytes: scratchBytes(config, complete.chunk, contextLength) },
        ],
        ...(complete.onProgress ? { onProgress: complete.onProgress } : {}),
      }
    })
    let cache: UniformCache | undefined
    try {
      cache = new UniformCache(shape(loaded.config), device)
      return new LocalEngine(loaded, cache, complete, contextLength)
    } catch (error) {
      cache?.[Symbol.dispose]()
      loaded[Symbol.dispose]()
      throw error
    }
  }

  /**
   * Generates one answer. Requests are served one after the other. The prompt is never shortened.
   * @throws KvasirError INVALID_ARGUMENT, CONTEXT_OVERFLOW, TEMPLATE_FAILED, GRAMMAR_INVALID, ABORTED
   */
  async *generate(request: GenerateRequest): AsyncGenerator<GeneratePart, void, undefined> {
    const arrived = performance.now()
    this.#checkAlive()
    checkRequest(request)
    const prompt = this.encodePrompt(request)
    const room = this.contextLength - prompt.length
    if (room < 1)
      throw new KvasirError(
        'CONTEXT_OVERFLOW',
        `the prompt has ${prompt.length} tokens, and the context holds ${this.contextLength}, at least one of them for the ` +
          'answer. Shorten the prompt, or load the model with a larger contextLength (--context)',
        { promptTokens: prompt.length, contextLength: this.contextLength },
      )
    using sampler = new Sampler(this.model.tokenizer, request.sampling ?? {})
    const endTurn = await this.#turns.take(request.signal)
    try {
      this.#checkAlive()
      yield* this.#answer(request, prompt, sampler, room, arrived)
    } finally {
      endTurn()
    }
  }

  async *#answer(
    request: GenerateRequest,
    prompt: Int32Array,
    sampler: Sampler,
    room: number,
    arrived: number,
  ): AsyncGenerator<GeneratePart, void, undefined> {
    const { tokenizer } = this.model
    const sequence = this.#sequence
    const stream = new TextStream(tokenizer)
    const stops = new StopMatcher(typeof request.stop === 'string' ? [request.stop] : (request.stop ?? []))
    const stopTokens = new Set(request.stopTokens)
    const most = Math.min(request.maxTokens ?? room, room)

    const start = performance.now()
    const cached = sequence.keepPrefix(prompt)
    let logits = await sequence.append(prompt.subarray(cached), this.options.chunk, request.signal)
    sampler.acceptPrompt(prompt)
    const promptEnd = performance.now()
    let firstToken = promptEnd
    let lastYield = promptEnd
    let generated = 0

    const end = (reason: FinishReason, text: string): GeneratePart => ({
      kind: 'end',
      text,
      reason,
      seed: sampler.seed,
      timings: {
        prompt_tokens: prompt.length,
        cached_tokens: cached,
        prompt_ms: promptEnd - start,
        generated_tokens: generated,
        generated_ms: performance.now() - promptEnd,
        ttft_ms: firstToken - arrived,
        compute_ms: sequence.computeMs,
      } satisfies Timings,
    })

    for (;;) {
      const { token, logprob, top } = sampler.sample(logits)
      generated++
      if (generated === 1) firstToken = performance.now()
      const held = () => stops.flush()
      if (tokenizer.isEndOfGeneration(token)) {
        yield end({ kind: 'end-of-answer', token }, finish(stream, stops))
        return
      }
      if (stopTokens.has(token)) {
        yield end({ kind: 'stop', stop: token }, finish(stream, stops))
        return
      }
      sampler.accept(token)
      const { emit, stopped } = stops.feed(stream.push(token))
      yield {
        kind: 'token',
        token,
        text: emit,
        ...(logprob === undefined ? {} : { logprob }),
        ...(top === undefined ? {} : { top }),
      }
      if (stopped !== null) {
        yield end({ kind: 'stop', stop: stopped }, '')
        return
      }
      if (generated >= most) {
        const last = stops.feed(stream.flush())
        const full = most === room && request.maxTokens !== room
        yield end({ kind: full ? 'context-full' : 'max-tokens' }, last.emit + held())
        return
      }
      if (performance.now() - lastYield > YIELD_MS) {
        await setImmediate()
        lastYield = performance.now()
      }
      logits = await sequence.append(Int32Array.of(token), 1, request.signal)
    }
  }

  /** The tokens of a request's prompt. @throws KvasirError INVALID_ARGUMENT, TEMPLATE_FAILED */
  encodePrompt(request: Pick<GenerateRequest, 'messages' | 'prompt' | 'tokens'>): Int32Array {
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

  /** The model's chat template; ChatML for a model that has none. @throws KvasirError TEMPLATE_FAILED for a broken one. */
  get chatTemplate(): ChatTemplate {
    return (this.#template ??= ChatTemplate.of(this.model.tokenizer))
  }

  /** Where the weights lie. */
  get weights(): readonly WeightReport[] {
    return this.model.weights.report
  }

  /** Bytes of the KV cache: as allocated, and what its used cells stand for. */
  get kvBytes(): { readonly allocated: number; readonly used: number } {
    return { allocated: this.#cache.bytes, used: this.#cache.usedBytes }
  }

  /** Bytes held for intermediate results. */
  get scratchBytes(): number {
    return this.#executor.scratchBytes
  }

  #checkAlive(): void {
    if (this.#disposed) throw new KvasirError('DISPOSED', 'this engine was disposed of')
  }

  /** @throws KvasirError INVALID_ARGUMENT while a request is being served: abort it and wait for its end first. */
  dispose(): void {
    if (this.#disposed) return
    if (this.#turns.busy)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        'a request is being served: abort it and wait for its end before dispose',
      )
    this.#disposed = true
    this.#executor[Symbol.dispose]()
    this.#cache[Symbol.dispose]()
    this.model[Symbol.dispose]()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

function finish(stream: TextStream, stops: StopMatcher): string {
  return stops.feed(stream.flush()).emit + stops.flush()
}

const FIELDS = ['messages', 'prompt', 'tokens', 'sampling', 'maxTokens', 'stop', 'stopTokens', 'signal']

function checkRequest(request: GenerateRequest): void {
  const unknown = Object.keys(request).find((k) => !FIELDS.includes(k))
  if (unknown) throw new KvasirError('INVALID_ARGUMENT', `unknown field "${unknown}". Known: ${FIELDS.join(', ')}`)
  const given = (['messages', 'prompt', 'tokens'] as const).filter((k) => request[k] !== undefined)
  if (given.length !== 1)
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `a request needs one of messages, prompt and tokens; it has ${given.join(' and ') || 'none'}`,
    )
  const { maxTokens } = request
  if (maxTokens !== undefined && (!Number.isSafeInteger(maxTokens) || maxTokens < 1))
    throw new KvasirError('INVALID_ARGUMENT', `maxTokens is ${maxTokens}; it must be a whole number from 1 up`)
}
