/** Serves callers one after the other, in the order in which they came. */
import { KvasirError } from '../contract/errors.ts'

export class Turns {
  #last: Promise<void> = Promise.resolve()
  #waiting = 0

  /** Callers that wait or work. */
  get busy(): boolean {
    return this.#waiting > 0
  }

  /** Resolves when it is the caller's turn; the function it gives ends the turn. @throws KvasirError ABORTED */
  async take(signal?: AbortSignal): Promise<() => void> {
    const before = this.#last
    let end!: () => void
    this.#last = new Promise((resolve) => {
      end = resolve
    })
    this.#waiting++
    const done = () => {
      this.#waiting--
      end()
    }
    try {
      await orAborted(before, signal)
    } catch (error) {
      // Gives up its place: whoever waits behind it waits for the one before instead.
      void before.then(done)
      throw error
    }
    return done
  }
}

async function orAborted(promise: Promise<void>, signal?: AbortSignal): Promise<void> {
  if (!signal) return promise
  let onAbort!: () => void
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(new KvasirError('ABORTED', 'stopped by the caller while waiting', {}, signal.reason))
    if (signal.aborted) onAbort()
    signal.addEventListener('abort', onAbort, { once: true })
  })
  try {
    await Promise.race([promise, aborted])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}
