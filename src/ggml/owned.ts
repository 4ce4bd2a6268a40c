/**
 * Explicit ownership of native things. Nothing in C is collected by the garbage collector: whoever makes one disposes
 * of it, best with `using`. Every live one is counted by kind, so that tests can tell a leak.
 */
import { KvasirError } from '../contract/errors.ts'
import type { Pointer } from './declare.ts'

const live = new Map<string, number>()

/** Living native objects by kind, e.g. `{ context: 2, buffer: 5 }`. Zero counts are left out. */
export function liveNatives(): Record<string, number> {
  return Object.fromEntries([...live].filter(([, n]) => n > 0).sort())
}

/** For natives that are not an {@link Owned}, such as plain allocations. */
export function count(kind: string, by: 1 | -1): void {
  live.set(kind, (live.get(kind) ?? 0) + by)
}

/** Holds all of them or none; the result releases them. */
export function holdAll(things: readonly Owned[]): () => void {
  const held: Owned[] = []
  const release = () => {
    for (const t of held) t.release()
  }
  try {
    for (const t of things) {
      t.hold()
      held.push(t)
    }
  } catch (error) {
    release()
    throw error
  }
  return release
}

export abstract class Owned implements Disposable {
  readonly kind: string
  #ptr: Pointer | null
  #held = false

  constructor(kind: string, ptr: Pointer | null, failure = `${kind}: native call returned NULL`) {
    if (ptr === null) throw new KvasirError('NATIVE_FAILED', failure)
    this.kind = kind
    this.#ptr = ptr
    count(kind, 1)
  }

  /** @throws KvasirError DISPOSED after dispose. */
  get ptr(): Pointer {
    if (this.#ptr === null) throw new KvasirError('DISPOSED', `this ${this.kind} was disposed of`)
    return this.#ptr
  }

  get disposed(): boolean {
    return this.#ptr === null
  }

  /** Takes it for a running graph: nobody else may run with it or dispose of it. @throws KvasirError NATIVE_FAILED */
  hold(): void {
    if (this.#held) throw new KvasirError('NATIVE_FAILED', `this ${this.kind} is already running a graph`)
    void this.ptr
    this.#held = true
  }

  release(): void {
    this.#held = false
  }

  /** Frees the native object. A second call does nothing. @throws KvasirError NATIVE_FAILED while a graph runs with it */
  [Symbol.dispose](): void {
    if (this.#ptr === null) return
    if (this.#held)
      throw new KvasirError('NATIVE_FAILED', `this ${this.kind} is running a graph: abort it and wait for its end`)
    const ptr = this.#ptr
    this.#ptr = null
    count(this.kind, -1)
    this.free(ptr)
  }

  dispose(): void {
    this[Symbol.dispose]()
  }

  protected abstract free(ptr: Pointer): void
}
