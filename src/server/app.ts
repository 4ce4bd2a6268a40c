/**
 * The HTTP application: guards, validation, errors and routes around a pool of models. It does not listen; `server.ts`
 * does, and tests need not.
 */
import { isUtf8 } from 'node:buffer'
import { STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import swagger from '@fastify/swagger'
import Fastify, { type FastifyBaseLogger, type FastifyInstance, type FastifyRequest, LogController } from 'fastify'
import { guard } from './access.ts'
import { newId } from './answer.ts'
import { ApiError, anthropicError, openAiError, type Refusal, refusalOf } from './errors.ts'
import type { Observer } from './metrics/observer.ts'
import type { ModelPool } from './models.ts'
import type { CompleteServerOptions } from './options.ts'
import type { Route, RouteContext } from './route.ts'
import { chatRoute } from './routes/chat.ts'
import { completionsRoute } from './routes/completions.ts'
import { embeddingsRoute } from './routes/embeddings.ts'
import { healthRoutes } from './routes/health.ts'
import { liveRoute } from './routes/live.ts'
import { messagesRoutes } from './routes/messages.ts'
import { metricsRoute } from './routes/metrics.ts'
import { modelsRoutes } from './routes/models.ts'
import { pageRoutes } from './routes/page.ts'
import { responsesRoute } from './routes/responses.ts'
import { tokenRoutes } from './routes/tokens.ts'
import { parseJson, validationError, withoutNulls } from './validation.ts'

export interface AppParts {
  readonly pool: ModelPool
  readonly options: CompleteServerOptions
  readonly version: string
  /** False from the moment at which a shutdown begins. */
  readonly accepting: () => boolean
  readonly observer: Observer
  /** Null: silent. */
  readonly logger: FastifyBaseLogger | null
}

const ROUTES: readonly Route[] = [
  ...[chatRoute, completionsRoute, responsesRoute, messagesRoutes, embeddingsRoute],
  ...[modelsRoutes, tokenRoutes, liveRoute],
]

/** Most bytes of a request's headers. */
const MAX_HEADER = 16 * 1024
const MAX_URL = 2048

export async function makeApp(parts: AppParts): Promise<FastifyInstance> {
  const { options, logger } = parts
  const app = Fastify({
    ...(logger ? { loggerInstance: logger } : { logger: false }),
    // One line per request is written when it is over, with what came of it.
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: options.bodyLimit,
    requestTimeout: options.receiveTimeoutMs,
    connectionTimeout: 0,
    keepAliveTimeout: 75_000,
    forceCloseConnections: 'idle',
    http: {
      headersTimeout: options.receiveTimeoutMs,
      maxHeaderSize: MAX_HEADER,
      connectionsCheckingInterval: Math.min(5_000, options.receiveTimeoutMs),
    },
    routerOptions: { maxParamLength: 512, ignoreTrailingSlash: true },
    genReqId: (request) => requestId(request.headers['x-request-id']),
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false, useDefaults: false, verbose: true } },
    clientErrorHandler: refuseBytes,
  })
  await app.register(swagger, {
    openapi: {
      info: {
        title: 'Kvasir',
        version: parts.version,
        description: 'OpenAI-compatible server with a programmable KV cache.',
      },
      components: { securitySchemes: { key: { type: 'http', scheme: 'bearer' } } },
      ...(options.apiKeys.length ? { security: [{ key: [] }] } : {}),
    },
  })
  acceptJson(app)
  // Before all other hooks, so that it sees what they refuse.
  parts.observer.watch(app, (request) => callerOf(request))
  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id)
    if (request.url.length > MAX_URL) throw new ApiError(414, `the URL is longer than ${MAX_URL} characters`)
  })
  const callerOf = guard(app, options)
  app.setErrorHandler((error, request, reply) => {
    const invalid = (error as { validation?: Parameters<typeof validationError>[0] }).validation
    const refusal = refusalOf(invalid ? validationError(invalid, request.body) : error)
    if (refusal.status >= 500) request.log.error({ err: error }, 'request failed')
    // Its connection is gone or of no use: nothing more is read from it.
    if (refusal.status === 413) reply.header('connection', 'close')
    if (refusal.retryAfter !== null) reply.header('retry-after', String(refusal.retryAfter))
    reply.code(refusal.status).send(shaped(refusal, request.url))
  })
  app.setNotFoundHandler((request, reply) => {
    const known = ['/v1/chat/completions', '/v1/completions', '/v1/models', '/openapi.json']
    const message = `there is no ${request.method} ${request.url.split('?')[0]} here. Routes: ${known.join(', ')}, ...`
    const refusal = { status: 404, message, code: 'route_not_found', param: null, retryAfter: null }
    reply.code(404).send(shaped(refusal, request.url))
  })
  const context: RouteContext = { pool: parts.pool, callerOf, track: parts.observer.track }
  healthRoutes(app, parts)
  metricsRoute(app, parts.observer)
  if (options.page) pageRoutes(app)
  app.register(async (api) => {
    api.addHook('onRequest', async () => {
      if (!parts.accepting()) throw new ApiError(503, 'the server is shutting down', { code: 'shutting_down' })
    })
    for (const route of ROUTES) route(api, context)
  })
  return app
}

/** Bodies are JSON in UTF-8, nothing else; nulls at the top stand for absent fields. */
function acceptJson(app: FastifyInstance): void {
  app.removeAllContentTypeParsers()
  app.addContentTypeParser(
    ['application/json', 'application/*+json'],
    { parseAs: 'buffer' },
    async (request: FastifyRequest, body: Buffer) => {
      const encoding = request.headers['content-encoding']
      if (encoding !== undefined && encoding !== 'identity')
        throw new ApiError(415, `bodies in Content-Encoding '${encoding}' are not taken; send it as it is`)
      if (body.length === 0)
        throw new ApiError(400, 'the body is empty; it must be a JSON object', { code: 'invalid_json' })
      if (!isUtf8(body)) throw new ApiError(400, 'the body is not UTF-8', { code: 'invalid_json' })
      return withoutNulls(parseJson(body.toString('utf8').replace(/^\ufeff/, '')))
    },
  )
}

function requestId(given: string | string[] | undefined): string {
  return typeof given === 'string' && /^[\w.:-]{1,128}$/.test(given) ? given : newId('req_')
}

function shaped(refusal: Refusal, url: string): object {
  return url.startsWith('/v1/messages') ? anthropicError(refusal) : openAiError(refusal)
}

/** Bytes that are no HTTP, headers that are too large, requests that arrive too slowly. */
function refuseBytes(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed || !socket.writable) {
    socket.destroy()
    return
  }
  const [status, message] = CLIENT_ERRORS[error.code ?? ''] ?? [400, 'this is not a valid HTTP request']
  const refusal = { status, message, code: null, param: null, retryAfter: null }
  const body = JSON.stringify(openAiError(refusal))
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n` +
      `Connection: close\r\n\r\n${body}`,
  )
}

const CLIENT_ERRORS: Readonly<Record<string, readonly [number, string]>> = {
  HPE_HEADER_OVERFLOW: [431, `the headers are larger than ${MAX_HEADER} bytes`],
  ERR_HTTP_REQUEST_TIMEOUT: [408, 'the request did not arrive as a whole in time'],
}
