/**
 * A prompt on its way through the layers in stages: all rows pass the layers of one stage before the next begins, so that a
 * policy can shorten what is behind them, and choose who goes on. Between stages rows wait as numbers, f32 [D, rows].
 */
import type { Range } from '../contract/units.ts'
import type { WorkInput } from '../contract/work-item.ts'

export class StagedPrompt {
  readonly #tokens: Int32Array
  readonly #layers: number
  readonly #width: number
  readonly #firsts: readonly number[]
  #stage = 0
  /** Rows of the stage that were computed. */
  #done = 0
  /** Positions of the rows of this stage. */
  #rows: Int32Array
  /** [D, rows]: as they enter the stage; null: as tokens. */
  #entering: Float32Array | null = null
  /** [D, rows]: as they leave it; null behind the last layer, and before the first rows. */
  #leaving: Float32Array | null = null

  /** @param firsts first layers of the stages, ascending from 0 */
  constructor(tokens: Int32Array, layers: number, width: number, firsts: readonly number[]) {
    this.#tokens = tokens
    this.#layers = layers
    this.#width = width
    this.#firsts = firsts
    this.#rows = Int32Array.from(tokens.keys())
  }

  /** Layers of the stage at hand. */
  get layers(): Range {
    return { from: this.#firsts[this.#stage]!, to: this.#firsts[this.#stage + 1] ?? this.#layers }
  }

  /** Positions of its rows. */
  get rows(): Int32Array {
    return this.#rows
  }

  get isLast(): boolean {
    return this.layers.to === this.#layers
  }

  /** All rows have passed the stage. */
  get isStageDone(): boolean {
    return this.#done === this.#rows.length
  }

  /** How far the prompt is, counted in rows through all layers; all of them only when {@link isStageDone} in the last stage. */
  get progress(): number {
    const { from, to } = this.layers
    if (this.isLast && this.isStageDone) return this.#tokens.length
    const layers = from + ((to - from) * this.#done) / this.#rows.length
    return Math.min(this.#tokens.length - 1, Math.floor((this.#tokens.length * layers) / this.#layers))
  }

  /** Rows of this stage that cost as much as `rows` rows through all layers, at most `most`, and no more than there are. */
  rowsFor(rows: number, most: number): number {
    const { from, to } = this.layers
    const equal = Math.ceil((rows * this.#layers) / (to - from))
    return Math.min(this.#rows.length - this.#done, equal, Math.max(rows, most))
  }

  /** Positions of the next rows. */
  next(rows: number): Int32Array {
    return this.#rows.subarray(this.#done, this.#done + rows)
  }

  /** What rows [from, to) of the stage enter it as. */
  input(from: number, to: number): WorkInput {
    if (this.#entering) return { kind: 'hidden', rows: this.#entering.subarray(from * this.#width, to * this.#width) }
    return { kind: 'tokens', tokens: this.#tokens.subarray(from, to) }
  }

  /** What single rows of the stage enter it as. */
  inputOf(rows: Int32Array): WorkInput {
    const D = this.#width
    if (!this.#entering) return { kind: 'tokens', tokens: rows.map((row) => this.#tokens[row]!) }
    const out = new Float32Array(D * rows.length)
    for (const [i, row] of rows.entries()) out.set(this.#entering.subarray(row * D, (row + 1) * D), i * D)
    return { kind: 'hidden', rows: out }
  }

  /** The input of the next rows. */
  nextInput(rows: number): WorkInput {
    return this.input(this.#done, this.#done + rows)
  }

  /** The next rows were computed. @param hidden f32 [D, rows]; null behind the last layer */
  passed(rows: number, hidden: Float32Array | null): void {
    // No room is taken before it is used: those that wait have none.
    if (hidden)
      (this.#leaving ??= new Float32Array(this.#width * this.#rows.length)).set(hidden, this.#done * this.#width)
    this.#done += rows
  }

  /** The next stage. @param next which rows go on, by index; null: all */
  advance(next: Int32Array | null): void {
    const all = this.#leaving!
    const D = this.#width
    if (next) {
      const rows = new Float32Array(D * next.length)
      for (const [i, row] of next.entries()) rows.set(all.subarray(row * D, (row + 1) * D), i * D)
      this.#entering = rows
      this.#rows = Int32Array.from(next, (row) => this.#rows[row]!)
    } else this.#entering = all
    this.#leaving = null
    this.#stage++
    this.#done = 0
  }
}
