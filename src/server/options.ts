/** What a server can be told, its defaults, and the checks. */
import { isIP } from 'node:net'
import { KvasirError, nearest } from '../contract/errors.ts'
import type { ModelSpec } from './models.ts'

export interface ServerOptions {
  /** The first one answers requests that name no model. */
  readonly models: readonly ModelSpec[]
  /** Address to listen on. Default 127.0.0.1: this machine only. */
  readonly host?: string
  /** Default 8080; 0 takes any that is free. */
  readonly port?: number
  /** Each of them opens every route; without any, no key is asked for. Callers with different keys share no cached prefix. */
  readonly apiKeys?: readonly string[]
  /** Names by which the server may be called beside its address, as in the `Host` header; `*` allows all. */
  readonly allowedHosts?: readonly string[]
  /** Web pages of these origins may call the server; `*` allows all. Default: none but its own. */
  readonly corsOrigins?: readonly string[]
  /** Largest body of a request in bytes. Default 32 MiB. */
  readonly bodyLimit?: number
  /** A request must have arrived as a whole within this time, in milliseconds. Default 30 s. */
  readonly receiveTimeoutMs?: number
  /** Answers must have begun within this time, in milliseconds, when the request does not say. Default: never mind. */
  readonly answerTimeoutMs?: number
  /** Unload a model that nobody used for so long, in milliseconds. Default: never. */
  readonly idleUnloadMs?: number
  /** Load all models at the start rather than the first alone. Default false. */
  readonly preload?: boolean
  /** On shutdown, running answers get this long to end, in milliseconds. Default 30 s. */
  readonly drainMs?: number
  /** `/metrics` also speaks vLLM's names. */
  readonly metricsCompat?: 'vllm'
  /** Serve the page at `/`. Default true. */
  readonly page?: boolean
  /** Where OpenTelemetry spans go: the base URL of an OTLP/HTTP receiver. Default: nowhere. */
  readonly otlpEndpoint?: string
}

export interface CompleteServerOptions {
  readonly models: readonly ModelSpec[]
  readonly host: string
  readonly port: number
  readonly apiKeys: readonly string[]
  readonly allowedHosts: readonly string[]
  readonly corsOrigins: readonly string[]
  readonly bodyLimit: number
  readonly receiveTimeoutMs: number
  readonly answerTimeoutMs: number | null
  readonly idleUnloadMs: number | null
  readonly preload: boolean
  readonly drainMs: number
  readonly metricsCompat: 'vllm' | null
  readonly page: boolean
  readonly otlpEndpoint: string | null
}

/** Largest delay that a timer can have. */
const LONGEST_MS = 2 ** 31 - 1
const KNOWN = [
  ...['models', 'host', 'port', 'apiKeys', 'allowedHosts', 'corsOrigins', 'bodyLimit', 'receiveTimeoutMs'],
  ...['answerTimeoutMs', 'idleUnloadMs', 'preload', 'drainMs', 'metricsCompat', 'page', 'otlpEndpoint'],
]

/** @throws KvasirError INVALID_ARGUMENT that names the option, what was got and what is allowed. */
export function completeServerOptions(o: ServerOptions): CompleteServerOptions {
  for (const key of Object.keys(o))
    if (!KNOWN.includes(key)) {
      const guess = nearest(key, KNOWN)
      throw invalid(
        key,
        `unknown option "${key}"${guess ? `; did you mean "${guess}"?` : `. Known: ${KNOWN.join(', ')}`}`,
      )
    }
  const whole = (name: keyof ServerOptions, fallback: number, from: number, to: number): number => {
    const value = o[name] ?? fallback
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < from || value > to)
      throw invalid(name, `${name} is ${String(value)}; it must be a whole number from ${from} to ${to}`)
    return value
  }
  const apiKeys = o.apiKeys ?? []
  if (apiKeys.some((key) => !/^[\x21-\x7e]+$/.test(key)))
    throw invalid('apiKeys', 'an API key must be printable ASCII without spaces, and not empty: it travels in a header')
  if (o.metricsCompat !== undefined && o.metricsCompat !== 'vllm')
    throw invalid('metricsCompat', `metricsCompat is "${o.metricsCompat}"; it must be vllm`)
  return {
    models: o.models,
    host: o.host ?? '127.0.0.1',
    port: whole('port', 8080, 0, 65_535),
    apiKeys,
    allowedHosts: o.allowedHosts ?? [],
    corsOrigins: o.corsOrigins ?? [],
    bodyLimit: whole('bodyLimit', 32 * 2 ** 20, 1024, 2 ** 30),
    receiveTimeoutMs: whole('receiveTimeoutMs', 30_000, 100, LONGEST_MS),
    answerTimeoutMs: o.answerTimeoutMs === undefined ? null : whole('answerTimeoutMs', 0, 1, LONGEST_MS),
    idleUnloadMs: o.idleUnloadMs === undefined ? null : whole('idleUnloadMs', 0, 1, LONGEST_MS),
    preload: o.preload ?? false,
    drainMs: whole('drainMs', 30_000, 0, LONGEST_MS),
    metricsCompat: o.metricsCompat ?? null,
    page: o.page ?? true,
    otlpEndpoint: o.otlpEndpoint ?? null,
  }
}

/** Whether an address is reached from this machine only. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
}

function invalid(field: string, what: string): KvasirError {
  return new KvasirError('INVALID_ARGUMENT', what, { field })
}
