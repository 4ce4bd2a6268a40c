/**
 * How many threads a step gets. Between any two nodes of a graph the threads wait for each other, so a short step can be
 * slower with more of them: on a 2-core virtual machine a decode step of the 5 M house model took 0.7 ms with one thread
 * and 1.3 ms with two. Steps that are short are therefore tried with fewer threads, and what was fastest is kept.
 *
 * Only for steps whose result does not depend on the thread count: the `flash` lowering splits long keys over threads.
 */

/** Longer steps get all threads without a trial: waiting is a small part of them. Milliseconds. */
const TRIAL_BELOW_MS = 50
/** Runs of each count before the first choice; the first is not counted (page faults, sleeping workers). */
const TRIALS = 3
/** After so many runs each other count is tried once more: the machine may be busier, or idler, than it was. */
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

  /** Starts anew, for a graph of another shape: times of the old one say nothing about it. */
  reset(): void {
    for (const c of this.#candidates) c.runs = 0
    this.#best = null
    this.#current = this.#candidates[0]!
    this.#sinceTrial = 0
  }

  /** Tells how long the step took that ran with {@link threads}. */
  report(ms: number): void {
    const c = this.#current
    c.runs++
    // A retry counts as it is: what was smoothed before tells of a machine that may have changed.
    const fresh = c.runs === 2 || c !== this.#best
    if (c.runs > 1) c.ms = fresh ? ms : 0.7 * c.ms + 0.3 * ms
    this.#current = this.#next(ms)
  }

  #next(ms: number): Candidate {
    const [all] = this.#candidates
    if (ms > TRIAL_BELOW_MS) return all!
    const untried = this.#candidates.find((c) => c.runs < TRIALS)
    if (untried) return untried
    if (++this.#sinceTrial % RETRY_AFTER === 0)
      return this.#candidates[(this.#sinceTrial / RETRY_AFTER) % this.#candidates.length]!
    this.#best = this.#candidates.reduce((a, b) => (b.ms < a.ms ? b : a))
    return this.#best
  }
}
