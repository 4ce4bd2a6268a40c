/** Servers on the house model in this process, requests to them, and their scrapes. */
import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import type { EngineApi } from '../../engine/api.ts'
import { LocalEngine } from '../../engine/local.ts'
import type { EngineOptions } from '../../engine/options.ts'
import type { ServerOptions } from '../options.ts'
import { type Server, startServer } from '../server.ts'
import { Exposition } from './exposition.fixture.ts'

const JSON_BODY = { 'content-type': 'application/json' }
/** Of the model that all servers here have. */
export const model = 'house'
export const house = { id: model, path: 'house', engine: { threads: 1, contextLength: 2048 } }

export interface Usage {
  readonly prompt_tokens: number
  readonly completion_tokens: number
  readonly prompt_tokens_details: { readonly cached_tokens: number }
}
export interface Answer {
  readonly usage: Usage
  readonly choices: readonly { readonly finish_reason: string }[]
}

/** Forbids the tokens by which the model would end its answer. */
export async function endless(): Promise<{ readonly logit_bias: Readonly<Record<string, number>> }> {
  await using engine = await LocalEngine.load('house', house.engine)
  const { tokenizer } = engine.model
  const ends = Array.from({ length: tokenizer.vocabSize }, (_, t) => t).filter((t) => tokenizer.isEndOfGeneration(t))
  return { logit_bias: Object.fromEntries(ends.map((t) => [t, -100])) }
}

/** @param engines where those that are loaded are put */
export function start(
  options: Partial<ServerOptions> = {},
  { engines = [], logger }: { readonly engines?: EngineApi[]; readonly logger?: FastifyBaseLogger } = {},
): Promise<Server> {
  const load = async (path: string, o: EngineOptions) => {
    const engine = await LocalEngine.load(path, o)
    engines.push(engine)
    return engine
  }
  return startServer({ models: [house], port: 0, ...options }, { load, ...(logger ? { logger } : {}) })
}

export function post(server: Server, body: object, init: RequestInit = {}): Promise<Response> {
  const messages = [{ role: 'user', content: 'Tell me a story about a ship and its captain. '.repeat(8) }]
  return fetch(`${server.url}/v1/chat/completions`, {
    ...{ method: 'POST', headers: JSON_BODY, body: JSON.stringify({ messages, temperature: 0, ...body }) },
    ...init,
  })
}

export async function chat(server: Server, body: object): Promise<Answer> {
  const response = await post(server, body)
  assert.equal(response.status, 200)
  return (await response.json()) as Answer
}

export async function scrape(server: Server, headers: Record<string, string> = {}): Promise<Exposition> {
  const response = await fetch(`${server.url}/metrics`, { headers })
  assert.equal(response.status, 200)
  assert.equal(response.headers.get('content-type'), 'text/plain; version=0.0.4; charset=utf-8')
  return new Exposition(await response.text())
}

/** Scrapes until it is so: what an answer leaves behind is counted when its connection has been served. */
export async function until(server: Server, so: (m: Exposition) => boolean): Promise<Exposition> {
  for (let i = 0; ; i++) {
    const metrics = await scrape(server)
    if (so(metrics)) return metrics
    assert.ok(i < 200, 'it did not come to that')
    await sleep(20)
  }
}
