/** Writes one answer: logits in, parts out. It samples, reads tokens as text, and knows when to stop. */
import { Sampler } from '../model/sampling/sampler.ts'
import { StopMatcher } from '../model/tokenizer/stop.ts'
import { TextStream } from '../model/tokenizer/stream.ts'
import type { Tokenizer } from '../model/tokenizer/tokenizer.ts'
import type { FinishReason, TokenText } from './request.ts'
import type { GenerateTask } from './task.ts'

/** Bytes of a sequence's keys and values, and what they would be had everything been kept. */
export interface HeldBytes {
  readonly bytes: number
  readonly fullBytes: number
}

export class Writer implements Disposable {
  readonly kind = 'writer'
  readonly sampler: Sampler
  readonly #task: GenerateTask
  readonly #sample: number
  readonly #tokenizer: Tokenizer
  readonly #stream: TextStream
  readonly #stops: StopMatcher
  readonly #stopTokens: ReadonlySet<number>
  generated = 0

  /**
   * @param sample which of the task's samples it is
   * @param from the first sample's, of which this one forks off
   */
  constructor(task: GenerateTask, tokenizer: Tokenizer, sample: number, from?: Writer) {
    this.#task = task
    this.#sample = sample
    this.#tokenizer = tokenizer
    const { sampling = {}, stop, stopTokens } = task.request
    const seed = from ? (from.sampler.seed + sample) % 2 ** 32 : sampling.seed
    this.#stops = new StopMatcher(typeof stop === 'string' ? [stop] : (stop ?? []))
    this.#stream = new TextStream(tokenizer)
    this.#stopTokens = new Set(stopTokens)
    this.sampler = new Sampler(tokenizer, seed === undefined ? sampling : { ...sampling, seed })
  }

  /** An answer needs the keys and values of its prompt, however they come. */
  get reusableRows(): number {
    return Number.POSITIVE_INFINITY
  }

  /**
   * Chooses the next token; why it was the last, or null. Parts go to the task.
   * @param tokens the text so far: the token joins it, unless it only ends it
   * @param held what its cache takes, asked for at the end
   */
  next(logits: Float32Array, tokens: number[], held: () => HeldBytes): FinishReason | null {
    const task = this.#task
    const forced = task.request.forced?.[this.generated]
    const { token, logprob, top } = this.sampler.sample(logits, forced)
    this.generated++
    const finish = () => this.#stops.feed(this.#stream.flush()).emit + this.#stops.flush()
    if (!task.request.ignoreEnd && forced === undefined && this.#tokenizer.isEndOfGeneration(token))
      return this.#end({ kind: 'end-of-answer', token }, finish(), held())
    if (this.#stopTokens.has(token)) return this.#end({ kind: 'stop', stop: token }, finish(), held())
    this.sampler.accept(token)
    tokens.push(token)
    const { emit, stopped } = this.#stops.feed(this.#stream.push(token))
    task.parts.push({
      kind: 'token',
      token,
      text: emit,
      ...(task.samples > 1 ? { sample: this.#sample } : {}),
      ...(logprob === undefined ? {} : { logprob, bytes: this.#bytes(token) }),
      ...(top === undefined ? {} : { top: top.map((t): TokenText => ({ ...t, bytes: this.#bytes(t.token) })) }),
    })
    if (stopped !== null) return this.#end({ kind: 'stop', stop: stopped }, '', held())
    if (this.generated < task.maxTokens) return null
    return this.#end({ kind: task.endsContext ? 'context-full' : 'max-tokens' }, finish(), held())
  }

  #bytes(token: number): number[] {
    return [...this.#tokenizer.piece(token, { special: true })]
  }

  #end(reason: FinishReason, text: string, held: HeldBytes): FinishReason {
    const task = this.#task
    const now = performance.now()
    task.parts.push({
      kind: 'end',
      text,
      ...(task.samples > 1 ? { sample: this.#sample } : {}),
      reason,
      seed: this.sampler.seed,
      request: task.id,
      timings: {
        queue_ms: task.startedMs - task.arrivedMs,
        prompt_tokens: task.prompt.length,
        cached_tokens: task.cachedTokens,
        prompt_ms: task.promptEndMs - task.startedMs,
        generated_tokens: this.generated,
        generated_ms: now - task.promptEndMs,
        ttft_ms: task.firstTokenMs - task.arrivedMs,
        compute_ms: task.computeMs,
        policy_ms: task.policyMs,
        kv_bytes: held.bytes,
        kv_bytes_full: held.fullBytes,
      },
    })
    return reason
  }

  [Symbol.dispose](): void {
    this.sampler[Symbol.dispose]()
  }
}
