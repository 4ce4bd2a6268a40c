/**
 * Pools the states of a text's rows, chunk by chunk, in float64. Rows below `next` are pooled already, or not asked for: only
 * these may be taken from the cache, since a cached row has keys and values and no state.
 */
import type { EmbedTask } from './task.ts'

export class Pooler implements Disposable {
  readonly kind = 'pooler'
  readonly generated = 0
  readonly #task: EmbedTask
  readonly #sum: Float64Array
  readonly #first: number
  /** The row whose state is wanted next. */
  #next: number

  /** @param width D */
  constructor(task: EmbedTask, width: number) {
    this.#task = task
    this.#sum = new Float64Array(width)
    this.#first = task.pooling === 'mean' ? 0 : task.prompt.length - 1
    this.#next = this.#first
  }

  /** Rows, from the text's beginning on, that may be taken from the cache. */
  get reusableRows(): number {
    return this.#next
  }

  /** Which of the rows [from, to) are wanted, counted from `from` on. */
  wanted(from: number, to: number): number[] {
    const first = Math.max(from, this.#next)
    return Array.from({ length: Math.max(0, to - first) }, (_, i) => first - from + i)
  }

  /** Takes the states of wanted rows, f32 [D, rows]; true when they were the last: the result is with the task then. */
  add(states: Float32Array): boolean {
    const { prompt } = this.#task
    const sum = this.#sum
    const D = sum.length
    for (let at = 0; at < states.length; at += D) for (let i = 0; i < D; i++) sum[i]! += states[at + i]!
    this.#next += states.length / D
    if (this.#next < prompt.length) return false
    this.#task.parts.push({
      vector: this.#vector(),
      tokens: prompt.length,
      pooling: this.#task.pooling,
      request: this.#task.id,
    })
    return true
  }

  #vector(): Float32Array {
    const { normalize = true } = this.#task.request
    const length = Math.sqrt(this.#sum.reduce((sum, x) => sum + x * x, 0))
    // A length of 0 cannot be made 1.
    const divisor = normalize ? length || 1 : this.#next - this.#first
    return Float32Array.from(this.#sum, (x) => x / divisor)
  }

  /** It owns nothing native. */
  [Symbol.dispose](): void {}
}
