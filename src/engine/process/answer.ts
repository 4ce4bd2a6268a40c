/** What has come of one generation and was not yet read. */
import type { KvasirError } from '../../contract/errors.ts'
import type { GeneratePart } from '../request.ts'

export class Answer {
  #parts: GeneratePart[] = []
  #read = 0
  /** After the parts that are there: the end, or an error. */
  #end: { readonly error: KvasirError | null } | null = null
  #wake: (() => void) | null = null
  /** Parts that were given out. */
  given = 0
  /** Tokens among them. */
  givenTokens = 0

  /** No more will come from the engine. */
  get over(): boolean {
    return this.#end !== null
  }

  /** Whether {@link take} has something to say. */
  get ready(): boolean {
    return this.#read < this.#parts.length || this.over
  }

  add(parts: readonly GeneratePart[]): void {
    if (this.over) return
    // The window of credits bounds what lies here.
    this.#parts = this.#read === this.#parts.length ? [...parts] : [...this.#parts.slice(this.#read), ...parts]
    this.#read = 0
    this.#wake?.()
  }

  /** The engine came to an end with it; what is there can still be read. */
  end(error: KvasirError | null): void {
    this.#end ??= { error }
    this.#wake?.()
  }

  /** Nothing more is given out. */
  stop(error: KvasirError): void {
    this.#parts = []
    this.#read = 0
    this.#end = { error }
    this.#wake?.()
  }

  /** The next part, null after the last; only when {@link ready}. @throws KvasirError that ended it */
  take(): GeneratePart | null {
    const part = this.#parts[this.#read]
    if (!part) {
      if (this.#end?.error) throw this.#end.error
      return null
    }
    this.#read++
    this.given++
    if (part.kind === 'token') this.givenTokens++
    return part
  }

  /** Resolves when {@link ready}. */
  async wait(): Promise<void> {
    while (!this.ready)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
  }
}
