/**
 * What a request is while it is being served. A *task* is one request. A *branch* is one sequence of it, the unit that is
 * scheduled: first there is one, for the prompt; with `samples` more of them fork off when the prompt is done.
 */
import type { KvSequence } from '../cache/store.ts'
import { KvasirError } from '../contract/errors.ts'
import type { RequestView } from '../contract/schedule.ts'
import type { RequestId } from '../contract/units.ts'
import { Sampler } from '../model/sampling/sampler.ts'
import { StopMatcher } from '../model/tokenizer/stop.ts'
import { TextStream } from '../model/tokenizer/stream.ts'
import type { Tokenizer } from '../model/tokenizer/tokenizer.ts'
import type { PartQueue } from './parts.ts'
import type { FinishReason, GeneratePart, GenerateRequest } from './request.ts'

export interface Task {
  readonly request: GenerateRequest
  readonly prompt: Int32Array
  readonly tenant: string
  /** Root of its blocks' names in the prefix index. */
  readonly root: string
  /** Most tokens of the answer; and whether that is the context's end rather than the caller's wish. */
  readonly maxTokens: number
  readonly endsContext: boolean
  readonly samples: number
  readonly arrivedMs: number
  readonly deadlineMs: number | null
  readonly parts: PartQueue<GeneratePart>
  /** Set when the caller has left. */
  cancelled: unknown
  startedMs: number
  promptEndMs: number
  firstTokenMs: number
  cachedTokens: number
  computeMs: number
  /** Branches that have not ended. */
  open: number
}

export class Branch implements Disposable {
  readonly id: RequestId
  readonly task: Task
  /** Which of the task's samples it is. */
  readonly sample: number
  readonly sampler: Sampler
  readonly #tokenizer: Tokenizer
  readonly #stream: TextStream
  readonly #stops: StopMatcher
  readonly #stopTokens: ReadonlySet<number>
  /** Prompt, and answer so far. */
  readonly tokens: number[]
  sequence: KvSequence | null = null
  generated = 0
  /** Names of its full blocks, as far as they are known. */
  readonly hashes: string[] = []
  /** Blocks of it that the prefix index has. */
  published = 0
  /** It waits for stored blocks to be loaded. */
  loading = false
  /** Rows that were in memory when blocks were loaded last: from there, it is not tried again. */
  loadedFrom = -1

  constructor(id: RequestId, task: Task, tokenizer: Tokenizer, sample: number, from?: Branch) {
    this.id = id
    this.task = task
    this.sample = sample
    this.#tokenizer = tokenizer
    const { sampling = {}, stop, stopTokens } = task.request
    const seed = from ? (from.sampler.seed + sample) % 2 ** 32 : sampling.seed
    this.#stops = new StopMatcher(typeof stop === 'string' ? [stop] : (stop ?? []))
    this.#stream = new TextStream(tokenizer)
    this.#stopTokens = new Set(stopTokens)
    this.sampler = new Sampler(tokenizer, seed === undefined ? sampling : { ...sampling, seed })
    this.tokens = from ? [...from.tokens] : [...task.prompt]
    if (!from) return
    this.hashes.push(...from.hashes)
    this.published = from.published
  }

  /** Rows that are in the cache. */
  get computed(): number {
    return this.sequence ? this.sequence.columns[0]!.end : 0
  }

  /** @param cached of a waiting branch: rows that it would find */
  view(cached: number, ownPages: number): RequestView {
    const { task } = this
    const computed = this.sequence ? this.computed : cached
    return {
      id: this.id,
      tenant: task.tenant,
      priority: task.request.priority ?? 0,
      arrivalMs: task.arrivedMs,
      deadlineMs: task.deadlineMs,
      phase: this.generated > 0 && this.tokens.length - computed === 1 && this.sequence ? 'decode' : 'prefill',
      rows: this.tokens.length,
      computed,
      generated: this.generated,
      maxTokens: task.maxTokens,
      samples: this.generated > 0 ? 1 : task.samples,
      ownPages,
    }
  }

  /** Chooses the next token; why it was the last, or null. Parts go to the task. */
  next(logits: Float32Array): FinishReason | null {
    const { task } = this
    const { token, logprob, top } = this.sampler.sample(logits)
    this.generated++
    const finish = () => this.#stops.feed(this.#stream.flush()).emit + this.#stops.flush()
    if (this.#tokenizer.isEndOfGeneration(token)) return this.#end({ kind: 'end-of-answer', token }, finish())
    if (this.#stopTokens.has(token)) return this.#end({ kind: 'stop', stop: token }, finish())
    this.sampler.accept(token)
    this.tokens.push(token)
    const { emit, stopped } = this.#stops.feed(this.#stream.push(token))
    task.parts.push({
      kind: 'token',
      token,
      text: emit,
      ...(task.samples > 1 ? { sample: this.sample } : {}),
      ...(logprob === undefined ? {} : { logprob }),
      ...(top === undefined ? {} : { top }),
    })
    if (stopped !== null) return this.#end({ kind: 'stop', stop: stopped }, '')
    if (this.generated < task.maxTokens) return null
    return this.#end({ kind: task.endsContext ? 'context-full' : 'max-tokens' }, finish())
  }

  #end(reason: FinishReason, text: string): FinishReason {
    const { task } = this
    const now = performance.now()
    task.parts.push({
      kind: 'end',
      text,
      ...(task.samples > 1 ? { sample: this.sample } : {}),
      reason,
      seed: this.sampler.seed,
      timings: {
        prompt_tokens: task.prompt.length,
        cached_tokens: task.cachedTokens,
        prompt_ms: task.promptEndMs - task.startedMs,
        generated_tokens: this.generated,
        generated_ms: now - task.promptEndMs,
        ttft_ms: task.firstTokenMs - task.arrivedMs,
        compute_ms: task.computeMs,
      },
    })
    return reason
  }

  [Symbol.dispose](): void {
    this.sampler[Symbol.dispose]()
  }
}

/** Why a task that the caller left is over. */
export function stoppedByCaller(reason: unknown): KvasirError {
  return new KvasirError('ABORTED', 'stopped by the caller', {}, reason)
}
