/**
 * A small server of the OpenAI API whose every answer is programmed: how long it waits, how it breaks. Its tokenizer takes
 * words, with the space before them, as tokens; words of more than four letters are two. A text begins with BOS.
 */
import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text as readAll } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'

export type Behaviour =
  | {
      readonly kind: 'answer'
      /** Before the first token, and between tokens. */
      readonly firstMs?: number
      readonly gapMs?: number
      /** Default: as many as the request allows. */
      readonly tokens?: number
      /** Tell the usage. Default true. */
      readonly usage?: boolean
      readonly cachedTokens?: number
      /** Bytes of a write: events are cut anywhere. Default: one event a write. */
      readonly writeBytes?: number
    }
  | { readonly kind: 'refuse'; readonly status: number; readonly headers?: Readonly<Record<string, string>> }
  /** The connection goes after so many tokens. */
  | { readonly kind: 'cut'; readonly tokens: number }
  /** The stream ends in order after so many tokens, but not the answer. */
  | { readonly kind: 'stop'; readonly tokens: number }
  /** Sent after one token, as an event. */
  | { readonly kind: 'event'; readonly data: string }

export interface Body {
  readonly model: string
  readonly prompt?: string | number[]
  readonly messages?: readonly { readonly role: string; readonly content: string }[]
  readonly max_tokens?: number
  readonly max_completion_tokens?: number
  readonly stream?: boolean
  readonly stream_options?: { readonly include_usage?: boolean }
  readonly ignore_eos?: boolean
  readonly temperature?: number
}

export interface FakeOptions {
  /** What to do with the nth request, from 0. Default: answer at once. */
  readonly behave?: (n: number, body: Body) => Behaviour
  /** Default `prompt`: vLLM's form of /tokenize; `content`: llama.cpp's; null: there is none. */
  readonly tokenizeField?: 'prompt' | 'content' | null
}

const BOS = 1

export class FakeServer implements AsyncDisposable {
  readonly url: string
  /** Of generation, in the order in which they came. */
  readonly requests: { readonly body: Body; readonly headers: IncomingMessage['headers']; readonly ms: number }[] = []
  /** Requests that are being answered, the most at once. */
  mostAtOnce = 0
  readonly #server: Server
  #now = 0

  private constructor(server: Server) {
    this.#server = server
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  }

  static async start(options: FakeOptions = {}): Promise<FakeServer> {
    const server = createServer()
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const fake = new FakeServer(server)
    server.on('request', (request, reply) => void fake.#handle(request, reply, options))
    return fake
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, 'close')
  }

  async #handle(request: IncomingMessage, reply: ServerResponse, options: FakeOptions): Promise<void> {
    const { url } = request
    const text = await readAll(request)
    if (url === '/v1/models') json(reply, 200, { object: 'list', data: [{ id: 'fake-model', object: 'model' }] })
    else if (url === '/tokenize') tokenizeRoute(reply, JSON.parse(text), options)
    else if (url?.endsWith('/completions')) {
      const n = this.requests.length
      const body: Body = JSON.parse(text)
      this.requests.push({ body, headers: request.headers, ms: performance.now() })
      this.mostAtOnce = Math.max(this.mostAtOnce, ++this.#now)
      await answer(reply, body, options.behave?.(n, body) ?? { kind: 'answer' })
      this.#now--
    } else json(reply, 404, { error: { message: `no route ${url}` } })
  }
}

export function tokensOf(text: string): number[] {
  const words = text.match(/ ?[^ ]+/g) ?? []
  return [BOS, ...words.flatMap((w) => (w.trim().length > 4 ? [idOf(w.slice(0, 3)), idOf(w.slice(3))] : [idOf(w)]))]
}

/** Base 27, shorter words only: no two have the same. */
function idOf(word: string): number {
  return [...word].reduce((id, c) => id * 29 + (c === ' ' ? 1 : c.charCodeAt(0) - 95), 2)
}

function tokenizeRoute(reply: ServerResponse, body: Record<string, string>, options: FakeOptions): void {
  const { tokenizeField: field = 'prompt' } = options
  const text = field === null ? undefined : body[field]
  if (text !== undefined) json(reply, 200, { tokens: tokensOf(text), count: tokensOf(text).length })
  else if (field === 'content') json(reply, 200, { tokens: [] })
  else json(reply, field === null ? 404 : 400, { error: { message: 'no such route, or no prompt' } })
}

async function answer(reply: ServerResponse, body: Body, behaviour: Behaviour): Promise<void> {
  const most = body.max_tokens ?? body.max_completion_tokens ?? 16
  if (behaviour.kind === 'refuse') {
    reply.writeHead(behaviour.status, { 'content-type': 'application/json', ...behaviour.headers })
    reply.end(JSON.stringify({ error: { message: `refused with ${behaviour.status}`, code: 'refused' } }))
    return
  }
  reply.writeHead(200, { 'content-type': 'text/event-stream' })
  reply.flushHeaders()
  if (behaviour.kind === 'cut') {
    for (let i = 0; i < behaviour.tokens; i++) reply.write(event(body, ` t${i}`))
    // What was written goes out before the connection does.
    await sleep(20)
    reply.destroy()
  } else if (behaviour.kind === 'stop') {
    for (let i = 0; i < behaviour.tokens; i++) reply.write(event(body, ` t${i}`))
    reply.end()
  } else if (behaviour.kind === 'event') {
    reply.end(`${event(body, ' t0')}data: ${behaviour.data}\n\n`)
  } else await stream(reply, body, behaviour, behaviour.tokens ?? most)
}

async function stream(
  reply: ServerResponse,
  body: Body,
  { firstMs = 0, gapMs = 0, usage = true, cachedTokens, writeBytes }: Extract<Behaviour, { kind: 'answer' }>,
  tokens: number,
): Promise<void> {
  const write = (text: string) => {
    const bytes = Buffer.from(text)
    const step = writeBytes ?? bytes.length
    for (let i = 0; i < bytes.length; i += step) reply.write(bytes.subarray(i, i + step))
  }
  // A chat tells the role at once, long before the first token.
  if (body.messages) write(data({ choices: [{ delta: { role: 'assistant', content: '' }, finish_reason: null }] }))
  write(': a comment\n\n')
  for (let i = 0; i < tokens; i++) {
    const ms = i === 0 ? firstMs : gapMs
    if (ms > 0) await sleep(ms)
    write(event(body, ` é${i}`))
  }
  write(data({ choices: [{ ...(body.messages ? { delta: {} } : { text: '' }), finish_reason: 'length' }] }))
  if (usage && body.stream_options?.include_usage)
    write(data({ choices: [], usage: usageOf(body, tokens, cachedTokens) }))
  write('data: [DONE]\n\n')
  reply.end()
}

function usageOf({ prompt, messages }: Body, completion: number, cached: number | undefined): object {
  const text = messages ? messages.map((m) => m.content).join('') : prompt
  return {
    prompt_tokens: Array.isArray(text) ? text.length : tokensOf(text ?? '').length,
    completion_tokens: completion,
    ...(cached === undefined ? {} : { prompt_tokens_details: { cached_tokens: cached } }),
  }
}

function event({ messages }: Body, text: string): string {
  return data({ choices: [{ ...(messages ? { delta: { content: text } } : { text }), finish_reason: null }] })
}

function data(value: object): string {
  return `data: ${JSON.stringify(value)}\n\n`
}

function json(reply: ServerResponse, status: number, value: object): void {
  reply.writeHead(status, { 'content-type': 'application/json' })
  reply.end(JSON.stringify(value))
}
