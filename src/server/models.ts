/** The models that a server answers for: loaded on demand, unloaded when idle or when another one needs their memory. */
import { KvasirError, nearest } from '../contract/errors.ts'
import type { EngineApi } from '../engine/api.ts'
import type { EngineOptions } from '../engine/options.ts'
import { ApiError } from './errors.ts'

export interface ModelSpec {
  /** Name in requests. */
  readonly id: string
  /** A GGUF file, or the name of an embedded model. */
  readonly path: string
  readonly engine: EngineOptions
}

export type ModelState = 'unloaded' | 'loading' | 'loaded' | 'unloading'

/** A model in use: it is not unloaded before the lease ends. */
export interface Lease extends Disposable {
  readonly id: string
  readonly engine: EngineApi
}

export interface PoolOptions {
  readonly load: (path: string, options: EngineOptions) => Promise<EngineApi>
  /** Unload a model that nobody used for so long, in milliseconds. Null: never. */
  readonly idleUnloadMs: number | null
  /** Told of each engine that is loaded; the function that it gives is called before the engine is disposed of. */
  readonly onLoad?: (id: string, engine: EngineApi) => () => void
}

interface Entry {
  readonly spec: ModelSpec
  /** Unix seconds, as in OpenAI's list. */
  readonly created: number
  state: ModelState
  engine: EngineApi | null
  loading: Promise<EngineApi> | null
  unloading: Promise<void> | null
  leases: number
  lastUsedMs: number
  timer: NodeJS.Timeout | null
  ended: (() => void) | null
}

export class ModelPool {
  readonly #options: PoolOptions
  readonly #entries: ReadonlyMap<string, Entry>
  #closed = false

  /** @throws KvasirError INVALID_ARGUMENT for no models, or two of one name */
  constructor(specs: readonly ModelSpec[], options: PoolOptions) {
    const ids = specs.map((s) => s.id)
    const twice = ids.find((id, i) => ids.indexOf(id) !== i)
    if (twice !== undefined || specs.length === 0)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        twice === undefined
          ? 'a server needs at least one model'
          : `two models are called "${twice}": give one of them another name, as in other=${twice}`,
      )
    this.#options = options
    this.#entries = new Map(
      specs.map((spec): [string, Entry] => [
        spec.id,
        {
          ...{ spec, created: Math.floor(Date.now() / 1000), state: 'unloaded', engine: null, loading: null },
          ...{ unloading: null, leases: 0, lastUsedMs: 0, timer: null, ended: null },
        },
      ]),
    )
  }

  /** The first model: the one meant when a request names none. */
  get defaultId(): string {
    return [...this.#entries.keys()][0]!
  }

  list(): readonly { id: string; created: number; state: ModelState; path: string; engine: EngineApi | null }[] {
    return [...this.#entries.values()].map(({ spec, created, state, engine }) => ({
      ...{ id: spec.id, created, state, path: spec.path, engine },
    }))
  }

  /** Engines that are loaded now. */
  loaded(): readonly { readonly id: string; readonly engine: EngineApi }[] {
    return [...this.#entries.values()].flatMap(({ spec, engine }) => (engine ? [{ id: spec.id, engine }] : []))
  }

  /**
   * Loads the model if it is not.
   * @throws ApiError 404 that names the models there are; KvasirError what loading throws
   */
  async lease(id = this.defaultId): Promise<Lease> {
    const entry = this.#find(id)
    entry.leases++
    const end = once(() => this.#release(entry))
    try {
      const engine = await this.#engine(entry)
      return { id, engine, [Symbol.dispose]: end }
    } catch (error) {
      end()
      throw error
    }
  }

  #find(id: string): Entry {
    const entry = this.#entries.get(id)
    if (entry) return entry
    const ids = [...this.#entries.keys()]
    const guess = nearest(id, ids)
    const mend = guess ? `Did you mean '${guess}'?` : `There are: ${ids.join(', ')}.`
    throw new ApiError(404, `The model '${id}' does not exist here. ${mend}`, {
      code: 'model_not_found',
      param: 'model',
    })
  }

  async #engine(entry: Entry): Promise<EngineApi> {
    if (entry.unloading) await entry.unloading
    if (this.#closed) throw new ApiError(503, 'the server is shutting down', { code: 'shutting_down' })
    if (entry.engine) return entry.engine
    entry.loading ??= this.#load(entry).finally(() => {
      entry.loading = null
    })
    return await entry.loading
  }

  async #load(entry: Entry): Promise<EngineApi> {
    entry.state = 'loading'
    try {
      const engine = await this.#loadInto(entry.spec)
      entry.engine = engine
      entry.ended = this.#options.onLoad?.(entry.spec.id, engine) ?? null
      entry.state = 'loaded'
      return engine
    } catch (error) {
      entry.state = 'unloaded'
      throw error
    }
  }

  /** Where memory is short, idle models make room, the one first that was not used for longest. */
  async #loadInto({ path, engine }: ModelSpec): Promise<EngineApi> {
    for (;;) {
      try {
        return await this.#options.load(path, engine)
      } catch (error) {
        const short = error instanceof KvasirError && error.code === 'OUT_OF_MEMORY'
        const idle = [...this.#entries.values()].filter((e) => e.engine && e.leases === 0 && !e.unloading)
        const victim = idle.sort((a, b) => a.lastUsedMs - b.lastUsedMs)[0]
        if (!short || !victim) throw error
        await this.#unload(victim)
      }
    }
  }

  #release(entry: Entry): void {
    entry.leases--
    entry.lastUsedMs = performance.now()
    if (entry.leases > 0 || this.#options.idleUnloadMs === null || !entry.engine) return
    if (entry.timer) clearTimeout(entry.timer)
    entry.timer = setTimeout(() => void (entry.leases === 0 && this.#unload(entry)), this.#options.idleUnloadMs)
    entry.timer.unref()
  }

  #unload(entry: Entry): Promise<void> {
    const { engine } = entry
    if (!engine) return Promise.resolve()
    entry.state = 'unloading'
    entry.engine = null
    if (entry.timer) clearTimeout(entry.timer)
    entry.ended?.()
    entry.ended = null
    entry.unloading ??= engine.dispose().finally(() => {
      entry.unloading = null
      entry.state = 'unloaded'
    })
    return entry.unloading
  }

  /** Disposes of all engines; requests that still run end with ABORTED. */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.all(
      [...this.#entries.values()].map(async (entry) => {
        await entry.loading?.catch(() => {})
        await (entry.unloading ?? this.#unload(entry))
      }),
    )
  }
}

function once(f: () => void): () => void {
  let done = false
  return () => {
    if (!done) f()
    done = true
  }
}
