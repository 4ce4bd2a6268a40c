/**
 * The one sequence of an engine: which tokens its cells hold, and how more of them get there. Every prompt chunk and every
 * decode step is a work item.
 */
import type { UniformCache } from '../cache/uniform.ts'
import type { SequenceId } from '../contract/units.ts'
import type { Executor } from '../executor/run.ts'

export class Sequence {
  readonly #executor: Executor
  readonly #cache: UniformCache
  /** Token in each used cell. */
  #tokens: number[] = []
  /** Milliseconds inside ggml since the last {@link keepPrefix}. */
  computeMs = 0

  constructor(executor: Executor) {
    this.#executor = executor
    this.#cache = executor.cache
  }

  get length(): number {
    return this.#tokens.length
  }

  /** Keeps the longest common prefix of what is cached and `prompt`, but not all of `prompt`; returns its length. */
  keepPrefix(prompt: Int32Array): number {
    const most = Math.min(this.#tokens.length, prompt.length - 1)
    let n = 0
    while (n < most && this.#tokens[n] === prompt[n]) n++
    this.truncate(n)
    this.computeMs = 0
    return n
  }

  /** Appends tokens in chunks of at most `chunk`; the logits of the last one, valid until the next call. */
  async append(tokens: Int32Array, chunk: number, signal?: AbortSignal): Promise<Float32Array> {
    let logits: Float32Array | null = null
    for (let at = 0; at < tokens.length; at += chunk) {
      const part = tokens.subarray(at, Math.min(at + chunk, tokens.length))
      logits = await this.#step(part, at + part.length === tokens.length, signal)
    }
    return logits!
  }

  async #step(tokens: Int32Array, wantLogits: boolean, signal?: AbortSignal): Promise<Float32Array | null> {
    const position = this.length
    const cells = this.#cache.append(position, tokens.length)
    try {
      const result = await this.#executor.run(
        {
          items: [
            {
              sequence: 0 as SequenceId,
              positions: Int32Array.from(tokens, (_, i) => position + i),
              cells,
              layers: { from: 0, to: this.#executor.model.config.layers },
              input: { kind: 'tokens', tokens },
              outputs: { logits: wantLogits ? [tokens.length - 1] : [], hidden: false },
              mask: { kind: 'causal' },
            },
          ],
        },
        signal,
      )
      for (const t of tokens) this.#tokens.push(t)
      this.computeMs += result.computeMs
      return result.items[0]!.logits
    } catch (error) {
      // What the step wrote is not to be trusted.
      this.#cache.truncate(position)
      throw error
    }
  }

  /** Forgets the tokens from `length` on. */
  truncate(length: number): void {
    this.#cache.truncate(length)
    this.#tokens.length = Math.min(length, this.#tokens.length)
  }
}
