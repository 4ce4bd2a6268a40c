/**
 * How many threads a step gets. Between any two nodes of a graph the threads wait for each other, spinning, so a step can be
 * slower with more of them: a small model's decode step gains little from a second thread on an idle machine, and takes a
 * hundred times as long when another process wants a core. So counts are tried from the top down for as long as fewer
 * threads are not clearly slower, and what was fastest is kept.
 *
 * Only for steps whose result does not depend on the thread count: the `flash` lowering splits long keys over threads.
 */

/** Runs of each count before it is judged, by the fastest of them: single runs are slowed by whatever else goes on. */
const TRIALS = 4
/** A count that is slower than the best by this much ends the descent: fewer threads are not tried. */
const CLEARLY_SLOWER = 1.25
/** After so many runs another count is tried once more: the machine may be busier, or idler, than it was. */
const RETRY_AFTER = 128

interface Candidate {
  readonly threads: number
  /** Milliseconds of its last runs, at most {@link TRIALS}. */
  recent: number[]
}

export class ThreadChooser {
  readonly #candidates: readonly Candidate[]
  #current: Candidate
  #runs = 0

  /** Tries `most` threads first, then halves of it down to one. */
  constructor(most: number) {
    const counts: number[] = []
    for (let n = most; n >= 1; n = Math.floor(n / 2)) counts.push(n)
    this.#candidates = counts.map((threads) => ({ threads, recent: [] }))
    this.#current = this.#candidates[0]!
  }

  /** For the next step. */
  get threads(): number {
    return this.#current.threads
  }

  /** Tells how long a row of the step took that ran with {@link threads}, in milliseconds. */
  report(ms: number): void {
    const { recent } = this.#current
    recent.push(ms)
    if (recent.length > TRIALS) recent.shift()
    this.#current = this.#next()
  }

  #next(): Candidate {
    const tried = this.#candidates.filter((c) => c.recent.length > 0)
    const last = tried.at(-1)!
    if (last.recent.length < TRIALS) return last
    const best = tried.reduce((a, b) => (fastest(b) < fastest(a) ? b : a))
    const next = this.#candidates[tried.length]
    if (next && fastest(last) <= CLEARLY_SLOWER * fastest(best)) return next
    if (++this.#runs % RETRY_AFTER) return best
    const again = tried[(this.#runs / RETRY_AFTER) % tried.length]!
    // What it took before tells of a machine that may have changed; the last place makes room for one run.
    if (again !== best) again.recent = Array(TRIALS - 1).fill(Number.POSITIVE_INFINITY)
    return again
  }
}

function fastest(c: Candidate): number {
  return Math.min(...c.recent)
}
