/**
 * Stop strings in a text that arrives in pieces. A stop string may be split over any number of pieces, so text is held
 * back while it could still become one: the longest suffix that is a proper prefix of some stop string, and no more.
 */
import { KvasirError } from '../../contract/errors.ts'

export interface StopResult {
  /** Text that is certain to be before any stop string. */
  readonly emit: string
  /** The stop string that ended the text. It and everything behind it is never emitted. */
  readonly stopped: string | null
}

/**
 * The stop string that *ends* first counts; of several that end at the same place, the longest. This rule does not
 * depend on how the text was cut into pieces.
 */
export class StopMatcher {
  readonly #stops: readonly string[]
  #held = ''
  #stopped: string | null = null

  /**
   * @param stops any number of strings, compared by UTF-16 code unit; none means that nothing is ever held back.
   * @throws KvasirError INVALID_ARGUMENT for an empty string or one with half a surrogate pair.
   */
  constructor(stops: readonly string[]) {
    for (const [i, stop] of stops.entries()) {
      const bad = typeof stop !== 'string' ? 'not a string' : stop === '' ? 'empty' : null
      const half = typeof stop === 'string' && /\p{Surrogate}/u.test(stop) ? 'half of a surrogate pair' : null
      if (bad ?? half)
        throw new KvasirError('INVALID_ARGUMENT', `stop[${i}] is ${bad ?? half}; allowed are non-empty strings`, { i })
    }
    this.#stops = [...new Set(stops)]
  }

  /** The text held back now. */
  get held(): string {
    return this.#held
  }

  /** After a stop string was found, every further call gives `{ emit: '', stopped }` again. */
  feed(text: string): StopResult {
    if (this.#stopped !== null) return { emit: '', stopped: this.#stopped }
    const all = this.#held + text
    const match = this.#firstToEnd(all)
    if (match) {
      this.#held = ''
      this.#stopped = match.stop
      return { emit: all.slice(0, match.from), stopped: match.stop }
    }
    const keep = this.#prefixAtEnd(all)
    this.#held = all.slice(all.length - keep)
    return { emit: all.slice(0, all.length - keep), stopped: null }
  }

  /** The text has ended by itself: gives what was held back. */
  flush(): string {
    const text = this.#held
    this.#held = ''
    return text
  }

  #firstToEnd(text: string): { stop: string; from: number } | null {
    let best: { stop: string; from: number } | null = null
    for (const stop of this.#stops) {
      const from = text.indexOf(stop)
      if (from < 0) continue
      const difference = best ? from + stop.length - (best.from + best.stop.length) : -1
      if (!best || difference < 0 || (difference === 0 && from < best.from)) best = { stop, from }
    }
    return best
  }

  #prefixAtEnd(text: string): number {
    let longest = 0
    for (const stop of this.#stops)
      for (let n = Math.min(stop.length - 1, text.length); n > longest; n--)
        if (text.endsWith(stop.slice(0, n))) longest = n
    return longest
  }
}
