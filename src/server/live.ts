/**
 * What people who watch an engine are sent. Nothing is asked of an engine, and nothing is subscribed to, while nobody
 * watches it; however many do, it is asked once. A viewer who reads slowly gets the newest state and is told how many
 * events it missed: what waits for it is bounded.
 */
import type { EngineEvent, Logged } from '../contract/events.ts'
import type { CacheMap, EngineApi } from '../engine/api.ts'
import type { LiveEvent, LiveMessage, LiveMessages } from './live-messages.ts'
import type { ModelPool } from './models.ts'

/** Events go out this often at most, in milliseconds. */
const TICK_MS = 100
/** Status and cache are read on every so many ticks: twice a second. */
const TICKS_PER_STATUS = 5
/** Events that wait for one viewer at most. */
const MOST_EVENTS = 2000

/** A place for each kind of state, of which the newest counts, and a list of events. */
class Mailbox {
  #hello: LiveMessages['hello'] | null = null
  #status: LiveMessages['status'] | null = null
  #cache: LiveMessages['cache'] | null = null
  #events: LiveEvent[] = []
  #dropped = 0
  #closed = false
  #wake: () => void = () => {}

  putHello(hello: LiveMessages['hello']): void {
    this.#hello = hello
    this.#wake()
  }

  putStatus(status: LiveMessages['status']): void {
    this.#status = status
    this.#wake()
  }

  putCache(cache: LiveMessages['cache']): void {
    this.#cache = cache
    this.#wake()
  }

  putEvents(events: readonly LiveEvent[]): void {
    this.#events.push(...events)
    const over = this.#events.length - MOST_EVENTS
    if (over > 0) {
      this.#events.splice(0, over)
      this.#dropped += over
    }
    this.#wake()
  }

  close(): void {
    this.#closed = true
    this.#wake()
  }

  /** Everything that waits, oldest kind first. Ends when it is closed. */
  async *read(): AsyncGenerator<LiveMessage> {
    while (!this.#closed) {
      yield* this.#take()
      if (this.#isEmpty && !this.#closed)
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
    }
  }

  get #isEmpty(): boolean {
    return !this.#hello && !this.#status && !this.#cache && this.#events.length === 0
  }

  #take(): LiveMessage[] {
    const messages: LiveMessage[] = [
      ...(this.#hello ? [{ kind: 'hello' as const, ...this.#hello }] : []),
      ...(this.#events.length ? [{ kind: 'events' as const, dropped: this.#dropped, events: this.#events }] : []),
      ...(this.#status ? [{ kind: 'status' as const, ...this.#status }] : []),
      ...(this.#cache ? [{ kind: 'cache' as const, ...this.#cache }] : []),
    ]
    this.#hello = this.#status = this.#cache = null
    this.#events = []
    this.#dropped = 0
    return messages
  }
}

/** One model that somebody watches. It follows the engine as the model is loaded and unloaded, and loads nothing itself. */
class Watch {
  readonly viewers = new Set<Mailbox>()
  readonly #id: string
  readonly #version: string
  readonly #pool: ModelPool
  readonly #timer: NodeJS.Timeout
  #engine: EngineApi | null = null
  #unsubscribe: () => void = () => {}
  #events: LiveEvent[] = []
  #ticks = 0
  #asking = false
  #states = ''
  #cache: CacheMap | null = null
  #status: LiveMessages['status'] | null = null

  constructor(pool: ModelPool, id: string, version: string) {
    this.#pool = pool
    this.#id = id
    this.#version = version
    this.#timer = setInterval(() => this.#tick(), TICK_MS)
    this.#timer.unref()
    this.#follow()
  }

  add(viewer: Mailbox): void {
    this.viewers.add(viewer)
    viewer.putHello(this.#hello())
    if (this.#status) viewer.putStatus(this.#status)
    if (this.#cache) viewer.putCache({ cache: this.#cache })
  }

  end(): void {
    clearInterval(this.#timer)
    this.#unsubscribe()
    for (const viewer of this.viewers) viewer.close()
  }

  #tick(): void {
    this.#follow()
    this.#flush()
    if (this.#ticks++ % TICKS_PER_STATUS === 0) void this.#ask()
  }

  /** Looks which engine there is now, and tells viewers when a model's state changed. */
  #follow(): void {
    const models = this.#pool.list()
    const engine = models.find(({ id }) => id === this.#id)?.engine ?? null
    if (engine !== this.#engine) {
      this.#unsubscribe()
      this.#engine = engine
      this.#cache = this.#status = null
      this.#unsubscribe =
        engine?.onEvent((event) => void (isLiveEvent(event) && this.#events.push(event))) ?? (() => {})
    }
    const states = models.map(({ state }) => state).join()
    if (states !== this.#states && this.#states !== '')
      for (const viewer of this.viewers) viewer.putHello(this.#hello())
    this.#states = states
  }

  #flush(): void {
    if (this.#events.length === 0) return
    const events = this.#events
    this.#events = []
    for (const viewer of this.viewers) viewer.putEvents(events)
  }

  /** An engine that is being restarted or unloaded cannot answer; the next turn asks again. */
  async #ask(): Promise<void> {
    const engine = this.#engine
    if (!engine || this.#asking) return
    this.#asking = true
    try {
      const [status, cache] = await Promise.all([engine.status(), engine.cacheMap()])
      if (engine === this.#engine) this.#tell({ nowMs: Date.now(), status }, cache)
    } catch {
    } finally {
      this.#asking = false
    }
  }

  #tell(status: LiveMessages['status'], cache: CacheMap): void {
    const changed = this.#cache === null || differs(this.#cache, cache)
    this.#status = status
    if (changed) this.#cache = cache
    for (const viewer of this.viewers) {
      viewer.putStatus(status)
      if (changed) viewer.putCache({ cache })
    }
  }

  #hello(): LiveMessages['hello'] {
    const models = this.#pool.list().map(({ id, state, engine }) => {
      if (!engine) return { id, state, info: null }
      const { file: _file, weights: _weights, ...info } = engine.info
      return { id, state, info }
    })
    return { version: this.#version, watched: this.#id, models }
  }
}

function isLiveEvent(event: Logged<EngineEvent>): event is LiveEvent {
  return /^(request|pages|load|step)-/.test(event.kind)
}

/** Ages grow by themselves: only one that fell is news. */
function differs(before: CacheMap, now: CacheMap): boolean {
  if (before.arenas.length !== now.arenas.length) return true
  if (before.tiers.some((tier, i) => tier.blocks !== now.tiers[i]?.blocks || tier.bytes !== now.tiers[i]?.bytes))
    return true
  return now.arenas.some((arena, i) => {
    const old = before.arenas[i]!
    return (
      arena.states !== old.states ||
      arena.owners.some((owner, page) => owner !== old.owners[page]) ||
      arena.agesMs.some((age, page) => age < old.agesMs[page]!)
    )
  })
}

export class LiveFeed {
  readonly #pool: ModelPool
  readonly #version: string
  readonly #watches = new Map<string, Watch>()

  constructor(pool: ModelPool, version: string) {
    this.#pool = pool
    this.#version = version
  }

  /** How many watch now. */
  get viewers(): number {
    return [...this.#watches.values()].reduce((sum, { viewers }) => sum + viewers.size, 0)
  }

  /** Messages about one model until `signal` or {@link close} ends them. */
  async *watch(model: string, signal: AbortSignal): AsyncGenerator<LiveMessage> {
    const watch = this.#watches.get(model) ?? new Watch(this.#pool, model, this.#version)
    this.#watches.set(model, watch)
    const viewer = new Mailbox()
    const leave = () => viewer.close()
    signal.addEventListener('abort', leave)
    if (signal.aborted) leave()
    watch.add(viewer)
    try {
      yield* viewer.read()
    } finally {
      signal.removeEventListener('abort', leave)
      watch.viewers.delete(viewer)
      if (watch.viewers.size === 0) {
        watch.end()
        if (this.#watches.get(model) === watch) this.#watches.delete(model)
      }
    }
  }

  /** Sends everybody away. */
  close(): void {
    for (const watch of this.#watches.values()) watch.end()
    this.#watches.clear()
  }
}
