/** Progress on stderr: a bar on terminals, now and then a line elsewhere. */
import { SingleBar } from 'cli-progress'
import { showBytes } from '../contract/errors.ts'

/** Nothing is shown for what is over sooner, in milliseconds. */
const PATIENCE_MS = 500
/** Between the lines of a log, in milliseconds. */
const LINE_EVERY_MS = 10_000
/** The speed shown is that of about the last so many milliseconds. */
const SPEED_WINDOW_MS = 5000

export interface Progress {
  /** Bytes, or pieces of the work. */
  update(done: number, total: number): void
  end(): void
}

/** For loading weights: no bar unless a person looks on and waits. Works while the event loop is blocked. */
export function loadingBar(): Progress {
  const start = performance.now()
  let bar: SingleBar | null = null
  return {
    update(done, total) {
      if (!process.stderr.isTTY || performance.now() - start < PATIENCE_MS) return
      bar ??= startBar('loading weights {bar} {percentage}% of {size}', total, { size: showBytes(total) })
      bar.update(done)
    },
    end: () => bar?.stop(),
  }
}

/** For downloads: with speed and time left. */
export function downloadBar(name: string): Progress {
  const speed = new Speed()
  let bar: SingleBar | null = null
  let lastLine = performance.now()
  return {
    update(done, total) {
      const perSecond = speed.at(done)
      const facts = {
        done: showBytes(done),
        size: showBytes(total),
        speed: perSecond === null ? '-' : showBytes(perSecond),
        left: perSecond ? showSeconds((total - done) / perSecond) : '-',
      }
      if (process.stderr.isTTY) {
        bar ??= startBar('{bar} {percentage}% | {done} of {size} | {speed}/s | {left} left', total, facts)
        bar.update(done, facts)
      } else if (performance.now() - lastLine > LINE_EVERY_MS) {
        lastLine = performance.now()
        process.stderr.write(`${name}: ${facts.done} of ${facts.size}, ${facts.speed}/s, ${facts.left} left\n`)
      }
    },
    end: () => bar?.stop(),
  }
}

/** For work that is counted in pieces. */
export function countBar(unit: string): Progress {
  let bar: SingleBar | null = null
  let lastLine = performance.now()
  return {
    update(done, total) {
      if (process.stderr.isTTY) {
        bar ??= startBar(`{bar} {value} of {total} ${unit} | {eta_formatted} left`, total, {})
        bar.update(done)
      } else if (performance.now() - lastLine > LINE_EVERY_MS) {
        lastLine = performance.now()
        process.stderr.write(`${done} of ${total} ${unit}\n`)
      }
    },
    end: () => bar?.stop(),
  }
}

export const noProgress: Progress = { update: () => {}, end: () => {} }

function startBar(format: string, total: number, facts: object): SingleBar {
  // Its own handling of Ctrl-C would keep the process alive; so nothing is done to the terminal that must be undone.
  const bar = new SingleBar({
    format,
    stream: process.stderr,
    barsize: 30,
    clearOnComplete: true,
    gracefulExit: false,
    hideCursor: false,
    linewrap: true,
  })
  bar.start(total, 0, facts)
  return bar
}

/** Bytes per second over a sliding window. */
class Speed {
  readonly #samples: { ms: number; done: number }[] = []

  /** Null until there is something to measure. */
  at(done: number, ms = performance.now()): number | null {
    const samples = this.#samples
    // A few samples a second are enough for a window of seconds.
    if (ms - (samples.at(-1)?.ms ?? Number.NEGATIVE_INFINITY) > 200) samples.push({ ms, done })
    while (samples.length > 1 && ms - samples[0]!.ms > SPEED_WINDOW_MS) samples.shift()
    const first = samples[0]!
    return ms - first.ms < 200 ? null : ((done - first.done) / (ms - first.ms)) * 1000
  }
}

/** `4:05`, `1:02:03` */
export function showSeconds(seconds: number): string {
  const s = Math.ceil(seconds)
  const two = (n: number) => String(n).padStart(2, '0')
  const h = Math.floor(s / 3600)
  const m = Math.floor(s / 60) % 60
  return h > 0 ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`
}
