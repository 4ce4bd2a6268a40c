/** The one log of what happens in an engine: ids only grow, so that whoever falls behind sees the gap. */
import type { EngineEvent, Logged } from '../contract/events.ts'

/** Events that can still be read after they happened. */
const KEPT = 4096

export class EventLog {
  readonly #kept: Logged<EngineEvent>[] = []
  readonly #listeners = new Set<(event: Logged<EngineEvent>) => void>()
  #nextId = 1

  /** Id of the last event; 0: none yet. */
  get lastId(): number {
    return this.#nextId - 1
  }

  add(event: EngineEvent): void {
    const logged = { ...event, id: this.#nextId++, atMs: Date.now() } as Logged<EngineEvent>
    this.#kept.push(logged)
    if (this.#kept.length > 2 * KEPT) this.#kept.splice(0, this.#kept.length - KEPT)
    for (const listener of this.#listeners) listener(logged)
  }

  /** Calls `listener` with every event from now on; the function it gives ends it. A listener must not throw. */
  on(listener: (event: Logged<EngineEvent>) => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Events behind `id` that are still kept, oldest first; when the first is not `id + 1`, some are gone. */
  since(id: number): readonly Logged<EngineEvent>[] {
    return this.#kept.filter((e) => e.id > id)
  }
}
