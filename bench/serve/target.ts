/**
 * The server under test. Node's own HTTP client with connections that are kept: per piece of an answer it costs a callback and
 * a `JSON.parse`, where `fetch` would add a web stream with its promises; and one timestamp is taken per read of a socket.
 */
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from 'node:http'
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https'
import { text as readAll } from 'node:stream/consumers'
import { KvasirError } from '../../src/contract/errors.ts'
import { AnswerReader } from './answer-reader.ts'

/** What became of one request. Times are milliseconds; `startMs` is on the clock of `performance.now()`, the others count from it. */
export interface Outcome {
  /** Null: all went well. */
  readonly error: string | null
  /** Of HTTP; null: there was no reply. */
  readonly status: number | null
  /** What the server said with a 429; null: nothing. */
  readonly retryAfterMs: number | null
  readonly startMs: number
  readonly ttftMs: number
  /** To the last event of the answer. */
  readonly latencyMs: number
  readonly gapsMs: readonly number[]
  /** As the server counts; null: it has not said. */
  readonly promptTokens: number | null
  readonly cachedTokens: number | null
  readonly outputTokens: number | null
  /** Events that held a token or several. */
  readonly pieces: number
  readonly text: string
}

export interface TargetOptions {
  readonly baseUrl: string
  readonly apiKey?: string | undefined
  /** Most silence on a connection, in milliseconds. Default six hours, as in vLLM. */
  readonly timeoutMs?: number | undefined
}

const TIMEOUT_MS = 6 * 3600 * 1000
/** For questions that are not measured; a model may have to be loaded first. */
const JSON_TIMEOUT_MS = 600_000
/** Characters kept of an error's body. */
const ERROR_TEXT = 500

export class Target implements Disposable {
  readonly #base: string
  readonly #agent: HttpAgent
  readonly #secure: boolean
  readonly #headers: Readonly<Record<string, string>>
  readonly #timeoutMs: number

  /** @throws KvasirError INVALID_ARGUMENT */
  constructor({ baseUrl, apiKey, timeoutMs = TIMEOUT_MS }: TargetOptions) {
    this.#base = baseUrl.replace(/\/+$/, '')
    if (!URL.canParse(this.#base) || !/^https?:$/.test(new URL(this.#base).protocol))
      throw new KvasirError('INVALID_ARGUMENT', `--base-url is "${baseUrl}"; it must be like http://127.0.0.1:8080`, {
        field: '--base-url',
      })
    this.#secure = this.#base.startsWith('https:')
    this.#agent = new (this.#secure ? HttpsAgent : HttpAgent)({ keepAlive: true })
    this.#headers = {
      'content-type': 'application/json',
      ...(apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }),
    }
    this.#timeoutMs = timeoutMs
  }

  /** @throws Error with the status and what the server said */
  async json(method: 'GET' | 'POST', path: string, body?: object): Promise<unknown> {
    const reply = await fetch(this.#base + path, {
      method,
      headers: this.#headers,
      signal: AbortSignal.timeout(JSON_TIMEOUT_MS),
      ...(body ? { body: JSON.stringify(body) } : {}),
    })
    const text = await reply.text()
    if (!reply.ok) throw new Error(`HTTP ${reply.status} from ${path}: ${errorText(text)}`)
    return JSON.parse(text)
  }

  /** The first model that the server lists. @throws KvasirError INVALID_ARGUMENT when there is no server, or it names none */
  async firstModel(): Promise<string> {
    const mend = 'start the server, give its address as --base-url, or name the model with --model'
    let list: { readonly data?: readonly { readonly id?: unknown }[] }
    try {
      list = (await this.json('GET', '/v1/models')) as typeof list
    } catch (cause) {
      const why = (cause as Error).cause instanceof Error ? ((cause as Error).cause as Error).message : String(cause)
      throw new KvasirError('INVALID_ARGUMENT', `${this.#base}/v1/models: ${why}; ${mend}`, {}, cause)
    }
    const id = list.data?.[0]?.id
    if (typeof id !== 'string')
      throw new KvasirError('INVALID_ARGUMENT', `${this.#base}/v1/models lists no model; ${mend}`)
    return id
  }

  /** Sends one request and reads its stream to the end. Never throws: what goes wrong is an outcome too. */
  async stream(path: string, body: object, signal?: AbortSignal): Promise<Outcome> {
    const bytes = Buffer.from(JSON.stringify(body))
    const startMs = performance.now()
    const reader = new AnswerReader()
    let reply: IncomingMessage | null = null
    let error: string | null = null
    try {
      reply = await this.#send(path, bytes, signal)
      if (reply.statusCode === 200) await read(reply, reader, startMs)
      else error = `HTTP ${reply.statusCode}: ${errorText(await readAll(reply)) || (reply.statusMessage ?? '')}`
    } catch (cause) {
      error = errorName(cause)
    }
    error ??= reader.error ?? (reader.complete ? null : 'the stream ended before the answer did')
    const { usage } = reader
    return {
      ...{ error, startMs, status: reply?.statusCode ?? null, retryAfterMs: retryAfter(reply) },
      ...{ ttftMs: reader.firstMs ?? 0, latencyMs: reader.lastMs, gapsMs: reader.gapsMs, pieces: reader.pieces },
      ...{ promptTokens: usage?.prompt_tokens ?? null, outputTokens: usage?.completion_tokens ?? null },
      ...{ cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? null, text: reader.text },
    }
  }

  [Symbol.dispose](): void {
    this.#agent.destroy()
  }

  async #send(path: string, body: Buffer, signal?: AbortSignal): Promise<IncomingMessage> {
    try {
      return await this.#post(path, body, signal)
    } catch (error) {
      // The server closed a kept connection just when it was used again: it has not seen the request.
      const { code, reused } = error as { code?: unknown; reused?: unknown }
      if (code !== 'ECONNRESET' || !reused || signal?.aborted) throw error
      return await this.#post(path, body, signal)
    }
  }

  #post(path: string, body: Buffer, signal?: AbortSignal): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const request = (this.#secure ? httpsRequest : httpRequest)(this.#base + path, {
        ...{ method: 'POST', agent: this.#agent, timeout: this.#timeoutMs },
        headers: { ...this.#headers, accept: 'text/event-stream', 'content-length': body.length },
        ...(signal ? { signal } : {}),
      })
      request.on('response', resolve)
      request.on('timeout', () => request.destroy(new Error(`nothing came for ${this.#timeoutMs} ms`)))
      request.on('error', (error) => reject(Object.assign(error, { reused: request.reusedSocket })))
      request.end(body)
    })
  }
}

function read(reply: IncomingMessage, reader: AnswerReader, startMs: number): Promise<void> {
  return new Promise((resolve, reject) => {
    reply.setEncoding('utf8')
    reply.on('data', (text: string) => reader.feed(text, performance.now() - startMs))
    reply.on('end', () => {
      // The last line may come without its end.
      reader.feed('\n', performance.now() - startMs)
      resolve()
    })
    reply.on('error', reject)
  })
}

/** Seconds or a date (RFC 9110), or OpenAI's own header in milliseconds. */
function retryAfter(reply: IncomingMessage | null): number | null {
  const { 'retry-after-ms': ms, 'retry-after': after } = reply?.headers ?? {}
  if (typeof ms === 'string' && Number(ms) >= 0) return Number(ms)
  if (after === undefined) return null
  const wait = Number.isNaN(Number(after)) ? Date.parse(after) - Date.now() : 1000 * Number(after)
  return Number.isNaN(wait) ? null : Math.max(0, wait)
}

/** What an error's body says, in OpenAI's form or any other. */
function errorText(body: string): string {
  try {
    const { error } = JSON.parse(body) as { readonly error?: { readonly message?: unknown } | string }
    const message = typeof error === 'string' ? error : error?.message
    if (typeof message === 'string') return message.slice(0, ERROR_TEXT)
  } catch {
    // Not JSON: the text itself.
  }
  return body.trim().slice(0, ERROR_TEXT)
}

function errorName(cause: unknown): string {
  if (!(cause instanceof Error)) return String(cause)
  const { code } = cause as NodeJS.ErrnoException
  return code && !cause.message.includes(code) ? `${code}: ${cause.message}` : cause.message || (code ?? cause.name)
}
