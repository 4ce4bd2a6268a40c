/** The parts of an answer between the loop that makes them and the caller that reads them, at its own pace. */

/** A caller that has this many parts to read is slow: its request rests until it has caught up. */
const SLOW = 64

export class PartQueue<T> {
  readonly #parts: T[] = []
  #end: { readonly error: unknown } | null = null
  #wake: (() => void) | null = null
  readonly #onRead: () => void

  /** @param onRead called when a part was taken out */
  constructor(onRead: () => void) {
    this.#onRead = onRead
  }

  push(part: T): void {
    if (this.#end) return
    this.#parts.push(part)
    this.#notify()
  }

  /** No more parts; with an error, readers get it after what was pushed before. */
  end(error: unknown = null): void {
    this.#end ??= { error }
    this.#notify()
  }

  get isSlow(): boolean {
    return this.#parts.length >= SLOW
  }

  get ended(): boolean {
    return this.#end !== null
  }

  /** The next part; undefined at the end. @throws what {@link end} was given */
  async next(): Promise<T | undefined> {
    for (;;) {
      const part = this.#parts.shift()
      if (part !== undefined) {
        this.#onRead()
        return part
      }
      if (this.#end) {
        if (this.#end.error !== null) throw this.#end.error
        return undefined
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  #notify(): void {
    this.#wake?.()
    this.#wake = null
  }
}
