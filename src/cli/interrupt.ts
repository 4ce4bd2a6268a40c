/** Ctrl-C while something asynchronous runs. */

const SIGNALS = { SIGINT: 130, SIGTERM: 143 } as const

/**
 * Runs `work` with a signal that Ctrl-C aborts; a second Ctrl-C ends the process at once. Handlers are there only for as
 * long as `work` runs: elsewhere (loading weights blocks the event loop) Ctrl-C must do what it does by default.
 */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController()
  const before = process.exitCode
  const onSignal = (name: keyof typeof SIGNALS) => {
    process.exitCode = SIGNALS[name]
    if (controller.signal.aborted) process.exit()
    controller.abort(new Error(name))
  }
  for (const name of Object.keys(SIGNALS)) process.on(name, onSignal)
  try {
    const result = await work(controller.signal)
    // A signal that came too late to stop anything.
    process.exitCode = before
    return result
  } finally {
    for (const name of Object.keys(SIGNALS)) process.off(name, onSignal)
  }
}
