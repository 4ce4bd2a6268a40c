/** `GET /live` and the page's files, without a browser. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import { LocalEngine } from '../engine/local.ts'
import { LiveFeed } from './live.ts'
import type { LiveKind, LiveMessage, LiveMessages } from './live-messages.ts'
import { ModelPool } from './models.ts'
import { pageRoutes } from './routes/page.ts'
import { eventsOf, post, SMALL, startHouse } from './server.fixture.ts'

const QUESTION = { messages: [{ role: 'user', content: 'Tell me a story about a ship. '.repeat(20) }] }

async function* liveOf(response: Response): AsyncGenerator<LiveMessage> {
  for await (const { event, data } of eventsOf(response)) yield { kind: event, ...JSON.parse(data) } as LiveMessage
}

describe('GET /live', () => {
  it('tells of models, status, cache and events while an answer is made', async () => {
    await using server = await startHouse()
    const abort = new AbortController()
    const response = await fetch(`${server.url}/live`, { signal: abort.signal })
    const seen: { [K in LiveKind]: LiveMessages[K][] } = { hello: [], status: [], cache: [], events: [] }
    let asked: Promise<unknown> | null = null
    for await (const { kind, ...message } of liveOf(response)) {
      ;(seen[kind] as object[]).push(message)
      if (kind === 'cache')
        asked ??= post(`${server.url}/v1/chat/completions`, { ...QUESTION, max_tokens: 30, ignore_eos: true })
      assert.ok(seen.status.length < 60, 'the answer was not seen')
      if (seen.cache.length > 1 && seen.status.at(-1)!.status.totals.generatedTokens === 30) break
    }
    abort.abort()
    await asked
    const { info } = seen.hello[0]!.models[0]!
    assert.equal(seen.hello[0]!.watched, 'house')
    assert.equal(info!.contextLength, 2048)
    assert.ok(!('file' in info!), 'a path of this machine was told')
    assert.ok(seen.cache.at(-1)!.cache.arenas[0]!.states.includes('p'))
    const kinds = seen.events.flatMap(({ events }) => events.map((e) => e.kind))
    for (const kind of ['request-arrive', 'request-admit', 'step-end', 'request-first-token', 'request-end'] as const)
      assert.ok(kinds.includes(kind), kind)
    assert.ok(!kinds.some((kind) => kind.startsWith('Block')), 'tokens of prompts were told')
  })

  it('asks the engine nothing while nobody watches, and once for several who do', async () => {
    let asked = 0
    let listeners = 0
    const load = async () => {
      const engine = await LocalEngine.load('house', SMALL)
      const [status, onEvent] = [engine.status.bind(engine), engine.onEvent.bind(engine)]
      engine.status = async () => {
        asked++
        return await status()
      }
      engine.onEvent = (listener) => {
        listeners++
        const end = onEvent(listener)
        return () => {
          listeners--
          end()
        }
      }
      return engine
    }
    const pool = new ModelPool([{ id: 'house', path: 'house', engine: {} }], { load, idleUnloadMs: null })
    using _lease = await pool.lease()
    const feed = new LiveFeed(pool, '0')
    await sleep(700)
    assert.deepEqual([asked, listeners, feed.viewers], [0, 0, 0])
    const aborts = [new AbortController(), new AbortController()]
    const done = aborts.map(async ({ signal }) => {
      let messages = 0
      for await (const _ of feed.watch('house', signal)) messages++
      return messages
    })
    await sleep(1700)
    assert.equal(listeners, 1)
    assert.equal(feed.viewers, 2)
    assert.ok(asked >= 2 && asked <= 4, `asked ${asked} times in 1.7 s`)
    for (const abort of aborts) abort.abort()
    for (const messages of await Promise.all(done)) assert.ok(messages >= 3)
    assert.deepEqual([listeners, feed.viewers], [0, 0])
    const before = asked
    await sleep(700)
    assert.equal(asked, before)
    await pool.close()
  })

  it('gives one who reads slowly the newest state, and says how many events were dropped', async () => {
    const pool = new ModelPool([{ id: 'house', path: 'house', engine: SMALL }], {
      ...{ load: (path, o) => LocalEngine.load(path, o), idleUnloadMs: null },
    })
    using lease = await pool.lease()
    const feed = new LiveFeed(pool, '0')
    const abort = new AbortController()
    const messages = feed.watch('house', abort.signal)
    assert.equal((await messages.next()).value!.kind, 'hello')
    for (let i = 0; i < 5; i++)
      for await (const part of lease.engine.generate({ prompt: 'The ship', maxTokens: 600, ignoreEnd: true }))
        if (part.kind === 'end') break
    await sleep(300)
    let [dropped, events] = [0, 0]
    for await (const message of messages) {
      if (message.kind === 'events') {
        dropped += message.dropped
        events += message.events.length
      }
      if (message.kind === 'status') break
    }
    assert.ok(dropped > 900, `${dropped} were dropped`)
    assert.equal(events, 2000)
    await pool.close()
  })

  it('needs a key where there are keys, and knows no other models', async () => {
    await using server = await startHouse({ apiKeys: ['secret'] })
    assert.equal((await fetch(`${server.url}/live`)).status, 401)
    const headers = { authorization: 'Bearer secret' }
    assert.equal((await fetch(`${server.url}/live?model=other`, { headers })).status, 404)
    // The page itself needs none, built or not.
    assert.notEqual((await fetch(`${server.url}/`)).status, 401)
  })

  it('does not keep a server that shuts down', async () => {
    const server = await startHouse({ drainMs: 20_000 })
    const messages = liveOf(await fetch(`${server.url}/live`))
    await messages.next()
    const start = performance.now()
    await server.close()
    assert.ok(performance.now() - start < 3000)
    let left = 0
    for await (const _ of messages) left++
    assert.ok(left < 20)
  })
})

it('a page that is not built says how to build it', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'kvasir-page-'))
  const app = Fastify()
  pageRoutes(app, folder)
  const answer = await app.inject('/')
  assert.equal(answer.statusCode, 404)
  assert.match(answer.body, /npm run build/)
  assert.match(String(answer.headers['content-type']), /^text\/plain/)
  await app.close()
  rmSync(folder, { recursive: true })
})
