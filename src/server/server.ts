/**
 * A server that listens: engines in processes of their own behind an OpenAI-compatible HTTP application.
 *
 * ```ts
 * const server = await startServer({ models: [{ id: 'house', path: 'house', engine: {} }] })
 * console.log(server.url)
 * await server.close()
 * ```
 */
import type { Server as HttpServer, IncomingMessage } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger, FastifyInstance } from 'fastify'
import { KvasirError } from '../contract/errors.ts'
import type { EngineApi } from '../engine/api.ts'
import { Engine } from '../engine/engine.ts'
import type { EngineOptions } from '../engine/options.ts'
import { packageVersion } from '../version.ts'
import { makeApp } from './app.ts'
import { Observer } from './metrics/observer.ts'
import { ModelPool } from './models.ts'
import { completeServerOptions, type ServerOptions } from './options.ts'
import { openTracing } from './tracing.ts'

/** Between looks for idle connections during a shutdown. */
const IDLE_CHECK_MS = 100

/** For the last words on connections that are still open. */
const FAREWELL_MS = 500

export interface ServerParts {
  /** Makes an engine. Default: one in a process of its own. */
  readonly load?: (path: string, options: EngineOptions) => Promise<EngineApi>
  /** Default: silent. */
  readonly logger?: FastifyBaseLogger
}

export interface Server extends AsyncDisposable {
  /** `http://127.0.0.1:8080` */
  readonly url: string
  readonly app: FastifyInstance
  readonly pool: ModelPool
  /** Takes no more requests, lets running answers end (for at most `drainMs`), then frees everything. */
  close(): Promise<void>
}

/**
 * Loads the first model (all with `preload`), then listens.
 * @throws KvasirError INVALID_ARGUMENT, what loading a model throws; INVALID_ARGUMENT for an address that cannot be had
 */
export async function startServer(options: ServerOptions, parts: ServerParts = {}): Promise<Server> {
  const complete = completeServerOptions(options)
  const version = packageVersion()
  const { otlpEndpoint, metricsCompat } = complete
  const pool = new ModelPool(complete.models, {
    load: parts.load ?? ((path, o) => Engine.load(path, o)),
    idleUnloadMs: complete.idleUnloadMs,
    onLoad: (id, engine) => observer.onLoad(id, engine),
  })
  const tracing = otlpEndpoint === null ? null : await openTracing(otlpEndpoint, version)
  const observer = new Observer({ version, metricsCompat, tracing })
  let accepting = true
  const app = await makeApp({
    ...{ pool, options: complete, version, accepting: () => accepting, observer },
    logger: parts.logger ?? null,
  })
  const unused = unusedConnections(app.server)
  let closing: Promise<void> | null = null
  const close = async () => {
    accepting = false
    const drained = app.close()
    const tidy = setInterval(() => {
      // What falls idle meanwhile would else be waited for as long as its client keeps it, and Node takes a connection that
      // never sent a request for a busy one.
      app.server.closeIdleConnections()
      for (const socket of unused) socket.destroy()
    }, IDLE_CHECK_MS)
    await Promise.race([drained, sleep(complete.drainMs, undefined, { ref: false })])
    clearInterval(tidy)
    // What still runs ends with ABORTED; its client is told, if it reads.
    await pool.close()
    await Promise.race([drained, sleep(FAREWELL_MS, undefined, { ref: false })])
    app.server.closeAllConnections()
    await drained
    await observer.close()
  }
  const server: Server = {
    url: '',
    app,
    pool,
    close: () => (closing ??= close()),
    [Symbol.asyncDispose]: () => server.close(),
  }
  try {
    for (const { id } of complete.preload ? pool.list() : pool.list().slice(0, 1))
      (await pool.lease(id))[Symbol.dispose]()
    await app.listen({ host: complete.host, port: complete.port })
  } catch (error) {
    await server.close()
    throw cannotListen(error, complete.host, complete.port)
  }
  const { address, port, family } = app.server.address() as AddressInfo
  return Object.assign(server, { url: `http://${family === 'IPv6' ? `[${address}]` : address}:${port}` })
}

/** Connections on which no request has come yet. */
function unusedConnections(server: HttpServer): ReadonlySet<Socket> {
  const unused = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    unused.add(socket)
    socket.once('close', () => unused.delete(socket))
  })
  server.on('request', ({ socket }: IncomingMessage) => unused.delete(socket))
  return unused
}

function cannotListen(error: unknown, host: string, port: number): unknown {
  const { code } = error as { code?: string }
  const mend: Readonly<Record<string, string>> = {
    EADDRINUSE: `port ${port} is in use: take another one with --port, or 0 for any`,
    EACCES: `port ${port} may not be used: take one from 1024 up with --port`,
    EADDRNOTAVAIL: `${host} is no address of this machine (--host)`,
    ENOTFOUND: `${host} is no address of this machine (--host)`,
  }
  return code && mend[code] ? new KvasirError('INVALID_ARGUMENT', mend[code], { host, port }, error) : error
}
