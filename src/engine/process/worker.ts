/**
 * The program of an engine process: loads an engine, serves the messages of `messages.ts`, ends when its parent is gone.
 *
 * Started by `child.ts` with the engine's module as argument: a file URL of a module that exports
 * `load(model, options): Promise<EngineApi>`. Without one it is `LocalEngine`.
 */
import { Worker } from 'node:worker_threads'
import { KvasirError } from '../../contract/errors.ts'
import type { EngineApi } from '../api.ts'
import type { EngineOptions } from '../options.ts'
import type { GeneratePart } from '../request.ts'
import {
  type Call,
  type CallResults,
  type ClientMessage,
  type Item,
  type MessageId,
  type PlainRequest,
  PROTOCOL,
  toPlain,
  type WorkerMessage,
} from './messages.ts'

/** An engine with quick steps may not give the event loop a turn for a while; parts wait no longer than this. */
const FLUSH_MS = 2

type LoadEngine = (model: string, options: EngineOptions) => Promise<EngineApi>

function send(message: WorkerMessage, sent: () => void = () => {}): void {
  // An error here means that the parent is gone; `disconnect` says so too.
  process.send!(message, undefined, undefined, sent)
}

/** Collects what goes out, one message per turn of the event loop. */
class Outbox {
  #items: Item[] = []
  /** Parts of this batch by request. */
  readonly #parts = new Map<MessageId, GeneratePart[]>()
  #openedMs = 0

  part(id: MessageId, part: GeneratePart): void {
    const parts = this.#parts.get(id)
    if (parts) parts.push(part)
    else {
      const first = [part]
      this.#parts.set(id, first)
      this.#items.push({ kind: 'parts', id, parts: first })
    }
    this.#added()
  }

  add(item: Item): void {
    this.#items.push(item)
    this.#added()
  }

  #added(): void {
    const now = performance.now()
    if (this.#openedMs === 0) {
      this.#openedMs = now
      setImmediate(() => this.#flush())
    } else if (now - this.#openedMs > FLUSH_MS) this.#flush()
  }

  #flush(): void {
    if (this.#items.length === 0) return
    send({ kind: 'batch', items: this.#items })
    this.#items = []
    this.#parts.clear()
    this.#openedMs = 0
  }
}

/** A request that is being served. */
class Generation {
  readonly #cancel = new AbortController()
  #credits: number
  #wake: (() => void) | null = null
  readonly ended: Promise<void>

  constructor(engine: EngineApi, id: MessageId, request: PlainRequest, credits: number, outbox: Outbox) {
    this.#credits = credits
    this.ended = this.#run(engine, id, request, outbox)
  }

  grant(parts: number): void {
    this.#credits += parts
    this.#wake?.()
  }

  cancel(): void {
    this.#cancel.abort()
    this.#wake?.()
  }

  /** Asks the engine for a part only when the client has room for it: a slow reader stops its own request, no other. */
  async #run(engine: EngineApi, id: MessageId, request: PlainRequest, outbox: Outbox): Promise<void> {
    const { signal } = this.#cancel
    try {
      const parts = engine.generate({ ...request, signal })
      try {
        while (await this.#mayGoOn()) {
          const next = await parts.next()
          if (signal.aborted) return
          if (next.done) {
            outbox.add({ kind: 'done', id })
            return
          }
          this.#credits--
          outbox.part(id, next.value)
        }
      } finally {
        await parts.return(undefined)
      }
    } catch (error) {
      if (!signal.aborted) outbox.add({ kind: 'refused', id, error: toPlain(error) })
    }
  }

  async #mayGoOn(): Promise<boolean> {
    while (this.#credits === 0 && !this.#cancel.signal.aborted)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    this.#wake = null
    return !this.#cancel.signal.aborted
  }
}

/** An engine that was loaded, and those who use it. */
class Server {
  readonly #engine: EngineApi
  readonly #outbox = new Outbox()
  readonly #generations = new Map<MessageId, Generation>()
  /** Calls that can be cancelled. */
  readonly #calls = new Map<MessageId, AbortController>()
  #endEvents: (() => void) | null = null

  constructor(engine: EngineApi) {
    this.#engine = engine
  }

  generate(id: MessageId, request: PlainRequest, credits: number): void {
    const generation = new Generation(this.#engine, id, request, credits, this.#outbox)
    this.#generations.set(id, generation)
    void generation.ended.then(() => this.#generations.delete(id))
  }

  credit(id: MessageId, parts: number): void {
    this.#generations.get(id)?.grant(parts)
  }

  cancel(id: MessageId): void {
    this.#generations.get(id)?.cancel()
    this.#calls.get(id)?.abort()
  }

  async call(id: MessageId, call: Call): Promise<void> {
    const abort = new AbortController()
    this.#calls.set(id, abort)
    try {
      const run = this.#answers[call.kind] as (call: Call, signal: AbortSignal) => Promise<CallResults[Call['kind']]>
      this.#outbox.add({ kind: 'result', id, result: await run(call, abort.signal) })
    } catch (error) {
      if (!abort.signal.aborted) this.#outbox.add({ kind: 'refused', id, error: toPlain(error) })
    } finally {
      this.#calls.delete(id)
    }
  }

  readonly #answers: {
    readonly [K in Call['kind']]: (call: Extract<Call, { kind: K }>, signal: AbortSignal) => Promise<CallResults[K]>
  } = {
    embed: ({ request }, signal) => this.#engine.embed({ ...request, signal }),
    tokenize: async ({ prompt }) => this.#engine.tokenize(prompt),
    detokenize: async ({ tokens }) => this.#engine.detokenize(tokens),
    status: async () => this.#engine.status(),
    cacheMap: () => this.#engine.cacheMap(),
    snapshot: () => this.#engine.snapshot(),
    clearCache: async () => {
      await this.#engine.clearCache()
      return null
    },
    saveSession: async ({ path, prompt }) => this.#engine.saveSession(path, prompt),
    loadSession: async ({ path }) => this.#engine.loadSession(path),
  }

  events(wanted: boolean): void {
    this.#endEvents?.()
    this.#endEvents = wanted ? this.#engine.onEvent((event) => this.#outbox.add({ kind: 'event', event })) : null
  }

  async dispose(): Promise<void> {
    const generations = [...this.#generations.values()]
    for (const generation of generations) generation.cancel()
    await Promise.all(generations.map(({ ended }) => ended))
    await this.#engine.dispose()
  }
}

async function load(message: Extract<ClientMessage, { kind: 'load' }>): Promise<Server> {
  if (message.version !== PROTOCOL)
    throw new KvasirError(
      'NOT_SUPPORTED',
      `the client speaks version ${message.version} of the engine's messages, this engine version ${PROTOCOL}. ` +
        'Use the same version of Kvasir on both sides',
    )
  const module = process.argv[2]
  // Imported here, so that what goes wrong in it is reported as any other failure to load.
  const loadEngine: LoadEngine = module
    ? ((await import(module)) as { readonly load: LoadEngine }).load
    : async (model, options) => (await import('../local.ts')).LocalEngine.load(model, options)
  const engine = await loadEngine(message.model, {
    ...message.options,
    ...(message.progress
      ? { onProgress: (loadedBytes, totalBytes) => send({ kind: 'progress', loadedBytes, totalBytes }) }
      : {}),
  })
  send({ kind: 'ready', info: engine.info })
  return new Server(engine)
}

let server: Server | null = null

async function receive(message: ClientMessage): Promise<void> {
  switch (message.kind) {
    case 'load':
      try {
        server = await load(message)
      } catch (error) {
        send({ kind: 'failed', error: toPlain(error) }, () => process.exit())
      }
      return
    case 'generate':
      return server?.generate(message.id, message.request, message.credits)
    case 'credit':
      return server?.credit(message.id, message.parts)
    case 'cancel':
      return server?.cancel(message.id)
    case 'call':
      return server?.call(message.id, message.call)
    case 'events':
      return server?.events(message.wanted)
    case 'dispose':
      await server?.dispose()
      process.exit()
      break
    default:
      message satisfies never
  }
}

/** Nobody is left to talk to, and nothing here must outlive it: no hook, no native thread may delay the end. */
function end(): void {
  process.kill(process.pid, 'SIGKILL')
}

/**
 * `disconnect` needs the event loop. Should native code never come back to it, this thread still sees that the parent is
 * gone: the process then has another one, or on Windows none.
 */
function watchParent(): void {
  // Read here: when the thread has started, the parent may have gone, and another one taken its place.
  const watch = `
    const parent = ${process.ppid}
    setInterval(() => {
      try {
        process.kill(parent, 0)
        if (process.ppid === parent) return
      } catch (error) {
        if (error.code === 'EPERM') return
      }
      process.kill(process.pid, 'SIGKILL')
    }, 1000)`
  new Worker(watch, { eval: true, execArgv: [], env: {} }).unref()
}

// Ctrl-C, a closed terminal and systemd signal the whole group; the client decides what they mean.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {})
process.on('disconnect', end)
// It may have gone while this program was being loaded.
if (!process.connected) end()
watchParent()
process.on('message', (message: ClientMessage) => void receive(message))
send({ kind: 'hello', version: PROTOCOL })
