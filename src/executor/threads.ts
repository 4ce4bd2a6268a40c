/**
 * How many threads a step gets. Between any two nodes of a graph the threads wait for each other, spinning, so a step can be
 * slower with more of them: on an idle 2-core virtual machine a decode step of the 5 M house model took 0.7 ms with one thread
 * and 1.3 ms with two, and a hundred times as long when another process wanted a core. So counts are tried from the top
 * down for as long as fewer threads are not clearly slower, and what was fastest is kept.
 *
 * Only for steps whose result does not depend on the thread count: the `flash` lowering splits long keys over threads.
 */

/** Runs of each count before it is judged; the first does not count (page faults, sleeping workers, a new graph). */
const TRIALS = 2
/** Half the threads being slower than all by this much, quarters are not tried. */
const CLEARLY_SLOWER = 1.25
/** After so many runs another count is tried once more: the machine may be busier, or idler, than it was. */
const RETRY_AFTER = 256

interface Candidate {
  readonly threads: number
  runs: number
  /** Recent milliseconds, smoothed. */
  ms: number
}

export class ThreadChooser {
  readonly #candidates: readonly Candidate[]
  #current: Candidate
  /** The choice after the trials; null before. */
  #best: Candidate | null = null
  #sinceTrial = 0

  /** Tries `most` threads first, then halves of it down to one. */
  constructor(most: number) {
    const counts: number[] = []
    for (let n = most; n >= 1; n = Math.floor(n / 2)) counts.push(n)
    this.#candidates = counts.map((threads) => ({ threads, runs: 0, ms: 0 }))
    this.#current = this.#candidates[0]!
  }

  /** For the next step. */
  get threads(): number {
    return this.#current.threads
  }

  /** Tells how long the step took that ran with {@link threads}, in milliseconds a row. */
  report(ms: number): void {
    const c = this.#current
    c.runs++
    // A retry counts as it is: what was smoothed before tells of a machine that may have changed.
    const fresh = c.runs === TRIALS || c !== this.#best
    if (c.runs >= TRIALS) c.ms = fresh ? ms : 0.7 * c.ms + 0.3 * ms
    this.#current = this.#next()
  }

  #next(): Candidate {
    const tried = this.#candidates.filter((c) => c.runs >= TRIALS)
    const last = tried.at(-1)
    const best = tried.reduce<Candidate | null>((a, b) => (a && a.ms <= b.ms ? a : b), null)
    const descends = !last || !best || last.ms <= CLEARLY_SLOWER * best.ms
    const untried = this.#candidates.find((c) => c.runs < TRIALS)
    if (untried && descends) return untried
    this.#best = best
    if (++this.#sinceTrial % RETRY_AFTER === 0) return tried[(this.#sinceTrial / RETRY_AFTER) % tried.length]!
    return best!
  }
}
