/** Who may call: API keys, and guards against web pages that call a server which trusts its machine. */
import { createHash, timingSafeEqual } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { ApiError } from './errors.ts'
import { type CompleteServerOptions, isLoopback } from './options.ts'
import type { Caller } from './request.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Needs no API key: probes, and the page, which asks for one. */
    readonly open?: boolean
    /** Tells of all tenants: where there are several keys, only the first one opens it. */
    readonly operator?: boolean
  }
}

/** Puts the guards on all routes; tells who called. */
export function guard(app: FastifyInstance, options: CompleteServerOptions): (request: FastifyRequest) => Caller {
  const keys = options.apiKeys.map((key) => digest(key))
  const callers = new WeakMap<FastifyRequest, Caller>()
  const caller = (tenant: string): Caller => ({ tenant, deadlineMs: options.answerTimeoutMs })
  app.addHook('onRequest', async (request, reply) => {
    checkHost(request, options)
    const origin = request.headers.origin
    if (origin && (options.corsOrigins.includes('*') || options.corsOrigins.includes(origin))) {
      reply.header('access-control-allow-origin', origin).header('vary', 'origin')
      reply.header('access-control-expose-headers', 'x-request-id, retry-after')
      if (request.method === 'OPTIONS') {
        reply.header('access-control-allow-methods', 'GET, POST, OPTIONS')
        reply.header('access-control-allow-headers', request.headers['access-control-request-headers'] ?? '*')
        reply.header('access-control-max-age', '600')
        return reply.code(204).send()
      }
    }
    if (keys.length === 0) {
      callers.set(request, caller(''))
      return
    }
    if (request.routeOptions.config.open) return
    const given = keyOf(request)
    const hash = given === null ? null : digest(given)
    const known = hash !== null && keys.filter((key) => timingSafeEqual(key, hash)).length > 0
    if (!known) throw refused(given)
    if (request.routeOptions.config.operator && !timingSafeEqual(hash, keys[0]!))
      throw new ApiError(403, 'this tells of all tenants: only the first API key of the server opens it', {
        code: 'operator_only',
      })
    callers.set(request, caller(hash.toString('hex').slice(0, 16)))
  })
  return (request) => callers.get(request) ?? caller('')
}

function keyOf({ headers }: FastifyRequest): string | null {
  const bearer = /^Bearer\s+(\S+)$/i.exec(headers.authorization ?? '')?.[1]
  const header = headers['x-api-key']
  return bearer ?? (typeof header === 'string' ? header : null)
}

function refused(given: string | null): ApiError {
  const text =
    given === null
      ? "no API key was given. Send it in the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
      : 'this API key is not known here'
  return new ApiError(401, text, { code: 'invalid_api_key' })
}

function digest(key: string): Buffer {
  return createHash('sha256').update(key).digest()
}

/**
 * A page in a browser can be made to reach this machine under its own name (DNS rebinding). A server that asks for no key
 * and trusts its machine answers only to names of this machine.
 */
function checkHost({ headers }: FastifyRequest, { host, apiKeys, allowedHosts }: CompleteServerOptions): void {
  if (apiKeys.length > 0 || !isLoopback(host) || allowedHosts.includes('*')) return
  const name = (headers.host ?? '')
    .replace(/:\d+$/, '')
    .replace(/^\[|\]$/g, '')
    .toLowerCase()
  if (isLoopback(name) || allowedHosts.includes(name)) return
  throw new ApiError(403, `this server does not answer to the name '${name}' (--allowed-host ${name} lets it)`, {
    code: 'host_not_allowed',
  })
}
