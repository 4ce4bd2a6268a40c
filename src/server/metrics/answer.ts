/** Measures of one answer, with all its samples, taken as its events pass by. */
import { KvasirError } from '../../contract/errors.ts'
import type { Timings } from '../../engine/request.ts'
import type { AnswerEvent } from '../answer.ts'
import { refusalOf } from '../errors.ts'
import type { Families } from './families.ts'

export type EndEvent = Extract<AnswerEvent, { kind: 'end' }>

/** What a request asks for, as far as it is measured. */
export interface Params {
  readonly n: number
  readonly maxTokens: number | null
}

export class AnswerMeter {
  readonly model: string
  /** Of the clock of `performance.now()`: when its request arrived, and when work on it began. */
  readonly arrivedMs: number
  readonly startedMs = performance.now()
  firstTokenMs: number | null = null
  readonly ends: EndEvent[] = []
  /** Tokens that were seen of samples that have not ended, and of those that have. */
  generated = 0
  readonly #families: Families
  readonly params: Params
  /** By sample: when its last token came, and how many there were. */
  readonly #samples = new Map<number, { lastMs: number; tokens: number }>()

  constructor(families: Families, model: string, arrivedMs: number, params: Params) {
    this.#families = families
    this.model = model
    this.arrivedMs = arrivedMs
    this.params = params
  }

  get timings(): Timings | null {
    return this.ends[0]?.timings ?? null
  }

  token(sample: number): void {
    const { model } = this
    const now = performance.now()
    const before = this.#samples.get(sample)
    if (this.firstTokenMs === null) {
      this.firstTokenMs = now
      this.#families.firstToken.observe({ model }, (now - this.arrivedMs) / 1000)
    }
    if (before) {
      this.#families.interToken.observe({ model }, (now - before.lastMs) / 1000)
      before.lastMs = now
      before.tokens++
    } else this.#samples.set(sample, { lastMs: now, tokens: 1 })
    this.#count(1)
  }

  end(event: EndEvent): void {
    const { model } = this
    const f = this.#families
    const { timings, finish, sample } = event
    this.ends.push(event)
    // The token that ends an answer is generated, and not shown.
    this.#count(timings.generated_tokens - (this.#samples.get(sample)?.tokens ?? 0))
    const { queue_ms: queue, prompt_ms: prefill, generated_ms: decode } = timings
    f.queueTime.observe({ model }, queue / 1000)
    f.prefillTime.observe({ model }, prefill / 1000)
    f.decodeTime.observe({ model }, decode / 1000)
    f.inferenceTime.observe({ model }, (prefill + decode) / 1000)
    f.endToEnd.observe({ model }, (performance.now() - this.arrivedMs) / 1000)
    f.requestPrompt.observe({ model }, timings.prompt_tokens)
    f.requestGenerated.observe({ model }, timings.generated_tokens)
    if (timings.generated_tokens > 1)
      f.perOutputToken.observe({ model }, decode / 1000 / (timings.generated_tokens - 1))
    f.success.inc({ model, finished_reason: finish === 'length' ? 'length' : 'stop' })
  }

  /** @param error what it broke off with; undefined when it is complete, or its reader went away */
  close(error?: unknown): void {
    const { model } = this
    const { n, maxTokens } = this.params
    const f = this.#families
    if (this.ends.length) {
      f.requestMostGenerated.observe({ model }, Math.max(...this.ends.map((e) => e.timings.generated_tokens)))
      f.paramN.observe({ model }, n)
      if (maxTokens !== null) f.paramMaxTokens.observe({ model }, maxTokens)
    }
    const open = n - this.ends.length
    if (open > 0 && !this.#wasRefused(error))
      f.success.inc({ model, finished_reason: isAbort(error) ? 'abort' : 'error' }, open)
  }

  /** It never ran: that is counted as a status, not as an answer. */
  #wasRefused(error: unknown): boolean {
    return this.generated === 0 && !isAbort(error) && refusalOf(error).status < 500
  }

  #count(tokens: number): void {
    this.generated += tokens
    this.#families.generatedTokens.inc({ model: this.model }, tokens)
  }
}

function isAbort(error: unknown): boolean {
  return error === undefined || (error instanceof KvasirError && error.code === 'ABORTED')
}

/** The APIs' names for the same two things. @param body that its route has checked */
export function paramsOf(body: unknown): Params {
  const fields = (body ?? {}) as Readonly<Record<string, unknown>>
  const numbers = ['max_completion_tokens', 'max_output_tokens', 'max_tokens'].map((name) => fields[name])
  const maxTokens = numbers.find((v) => typeof v === 'number')
  const { n } = fields
  return { n: typeof n === 'number' ? n : 1, maxTokens: typeof maxTokens === 'number' ? maxTokens : null }
}
