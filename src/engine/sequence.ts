/**
 * One sequence by itself, fed token by token: for measuring, and for whatever needs a model without a loop around it.
 */
import type { KvSequence } from '../cache/sequence.ts'
import type { Executor } from '../executor/run.ts'

export class Sequence implements Disposable {
  readonly #executor: Executor
  readonly #rows: KvSequence
  /** Milliseconds inside ggml. */
  computeMs = 0

  constructor(executor: Executor, expectedRows: number) {
    this.#executor = executor
    this.#rows = executor.store.create(expectedRows)
  }

  get length(): number {
    return this.#rows.columns[0]!.end
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
    const { store, model } = this.#executor
    const positions = Int32Array.from(tokens, (_, i) => this.length + i)
    store.append(this.#rows, positions)
    try {
      const result = await this.#executor.run(
        {
          items: [
            {
              sequence: this.#rows.id,
              positions,
              store: { kind: 'tail' },
              layers: { from: 0, to: model.config.layers },
              input: { kind: 'tokens', tokens },
              outputs: { logits: wantLogits ? [tokens.length - 1] : [], hidden: false },
              mask: { kind: 'causal' },
            },
          ],
        },
        signal,
      )
      this.computeMs += result.computeMs
      return result.items[0]!.logits
    } catch (error) {
      // What the step wrote is not to be trusted.
      store.takeBack(this.#rows, tokens.length)
      throw error
    }
  }

  /** Forgets the tokens from `length` on. */
  truncate(length: number): void {
    this.#executor.store.truncate(this.#rows, length)
  }

  [Symbol.dispose](): void {
    this.#executor.store.free(this.#rows)
  }
}
