/** How a server is told to end: Ctrl-C, or SIGTERM as service managers send it. */

/** Exit codes: of an orderly end, and of one at once (128 + the signal's number). */
const SIGNALS = { SIGINT: { orderly: 130, atOnce: 130 }, SIGTERM: { orderly: 0, atOnce: 143 } } as const

/** One press of Ctrl-C can come twice, from the terminal and from npm, which passes it on. In milliseconds. */
const ECHO_MS = 300

export type StopSignal = keyof typeof SIGNALS

export interface Stop extends Disposable {
  readonly asked: Promise<StopSignal>
  /** Until this is called, the first signal ends the process at once; afterwards the second one. */
  prepared(): void
}

export function exitCodeOf(signal: StopSignal): number {
  return SIGNALS[signal].orderly
}

/** Engine processes end by themselves with the process that started them, however it ends. */
export function stopSignals(): Stop {
  const { promise, resolve } = withResolvers<StopSignal>()
  let patient = false
  let askedAtMs = Number.NEGATIVE_INFINITY
  const onSignal = (name: StopSignal) => {
    if (performance.now() - askedAtMs < ECHO_MS) return
    if (!patient) process.exit(SIGNALS[name].atOnce)
    patient = false
    askedAtMs = performance.now()
    resolve(name)
  }
  const names = Object.keys(SIGNALS) as StopSignal[]
  for (const name of names) process.on(name, onSignal)
  return {
    asked: promise,
    prepared: () => {
      patient = true
    },
    [Symbol.dispose]: () => {
      for (const name of names) process.off(name, onSignal)
    },
  }
}

function withResolvers<T>(): { readonly promise: Promise<T>; readonly resolve: (value: T) => void } {
  let resolve!: (value: T) => void
  const promise = new Promise<T>((r) => {
    resolve = r
  })
  return { promise, resolve }
}
