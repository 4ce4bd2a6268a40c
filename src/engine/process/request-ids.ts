/**
 * Ids of requests grow over restarts of the engine's process, each of which begins at 1. Nobody counts the ids that a process
 * gave out; but no request gets more than one for each of its samples, so what was sent is a bound.
 */
import type { EngineEvent, Logged } from '../../contract/events.ts'
import type { RequestId } from '../../contract/units.ts'
import type { CacheMap, EngineStatus } from '../api.ts'
import type { GeneratePart } from '../request.ts'

export class RequestIds {
  /** Added to the ids of the process at hand. */
  #offset = 0
  /** Ids that were given out, at most. */
  #used = 0

  /** A request of so many samples goes to the process. */
  sent(samples: number): void {
    this.#used += samples
  }

  /** Another process begins. */
  restarted(): void {
    this.#offset = this.#used
  }

  /** 0 is nobody's. */
  of(id: number): number {
    return id === 0 ? 0 : id + this.#offset
  }

  ofPart(part: GeneratePart): GeneratePart {
    return part.kind === 'end' ? { ...part, request: this.of(part.request) } : part
  }

  ofEvent(event: Logged<EngineEvent>): Logged<EngineEvent> {
    if (!('request' in event)) return event
    const mapped = { ...event, request: this.of(event.request) as RequestId }
    return mapped.kind === 'request-fork' ? { ...mapped, from: this.of(mapped.from) as RequestId } : mapped
  }

  ofStatus(status: EngineStatus): EngineStatus {
    return { ...status, requests: status.requests.map((r) => ({ ...r, id: this.of(r.id) })) }
  }

  ofCacheMap(map: CacheMap): CacheMap {
    return { ...map, arenas: map.arenas.map((a) => ({ ...a, owners: a.owners.map((id) => this.of(id)) })) }
  }
}
