/** What this machine was measured to do, for decisions such as to load a block or to compute it. Averages that forget. */

/** Weight of the newest measurement. */
const NEWEST = 0.2

export class Rates {
  #prefillMsPerRow = 0
  #stepMs = 0

  /** Tells of a step. Only steps that are mostly prompt say what a prompt's row costs. */
  step(prefillRows: number, decodeRows: number, ms: number): void {
    this.#stepMs = average(this.#stepMs, ms)
    if (prefillRows >= 16 && prefillRows > 4 * decodeRows)
      this.#prefillMsPerRow = average(this.#prefillMsPerRow, ms / (prefillRows + decodeRows))
  }

  /** Milliseconds that `rows` rows of a prompt will take; null: nothing was measured yet. */
  prefillMs(rows: number): number | null {
    return this.#prefillMsPerRow === 0 ? null : rows * this.#prefillMsPerRow
  }

  /** Milliseconds of a step, on average; 0: none was run yet. */
  get stepMs(): number {
    return this.#stepMs
  }
}

function average(old: number, now: number): number {
  return old === 0 ? now : (1 - NEWEST) * old + NEWEST * now
}
