/** The server as a whole: its start and end, several models, who may call, and what it says of itself. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import { connect } from 'node:net'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { LocalEngine } from '../engine/local.ts'
import { eventsOf, post, SMALL, startHouse } from './server.fixture.ts'
import { startServer } from './server.ts'

const messages = [{ role: 'user', content: 'Vera Marlow keeps a rabbit. Which animal does Vera Marlow keep?' }]

/** Status of a GET with headers that fetch would not send. */
const get = (url: string, headers: Record<string, string>) =>
  new Promise<number>((resolve, reject) => {
    httpRequest(url, { headers }, (response) => {
      response.resume()
      resolve(response.statusCode!)
    })
      .on('error', reject)
      .end()
  })

describe('the server', () => {
  it('documents every route that it has, from the schemas that check the bodies', async () => {
    await using server = await startHouse()
    const document = (await (await fetch(`${server.url}/openapi.json`)).json()) as {
      openapi: string
      paths: Record<
        string,
        Record<string, { summary?: string; requestBody?: { content: Record<string, { schema: object }> } }>
      >
    }
    assert.match(document.openapi, /^3\./)
    const expected = [
      '/v1/chat/completions',
      '/v1/completions',
      '/v1/responses',
      '/v1/messages',
      '/v1/embeddings',
      '/v1/models',
    ]
    for (const path of [...expected, '/tokenize', '/detokenize', '/health', '/ready', '/version', '/metrics'])
      assert.ok(document.paths[path], `${path} is not documented`)
    for (const [path, methods] of Object.entries(document.paths))
      for (const [method, { summary, requestBody }] of Object.entries(methods)) {
        assert.ok(summary, `${method} ${path} has no summary`)
        if (method === 'post') assert.ok(requestBody?.content['application/json']?.schema, `${path} has no body`)
      }
  })

  it('loads a second model when it is asked for, and unloads what is idle', async () => {
    const loads: string[] = []
    const models = ['one', 'two'].map((id) => ({ id, path: 'house', engine: { ...SMALL, contextLength: 512 } }))
    await using server = await startServer(
      { port: 0, models, idleUnloadMs: 1500 },
      {
        load: (path, options) => {
          loads.push(path)
          return LocalEngine.load(path, options)
        },
      },
    )
    const states = async () => {
      const { data } = (await (await fetch(`${server.url}/v1/models`)).json()) as {
        data: { id: string; kvasir: { state: string } }[]
      }
      return data.map((m) => `${m.id} ${m.kvasir.state}`)
    }
    assert.deepEqual(await states(), ['one loaded', 'two unloaded'])
    const ask = (model: string) => post(`${server.url}/v1/chat/completions`, { model, messages, max_tokens: 2 })
    const [a, b] = await Promise.all([ask('two'), ask('two')])
    assert.deepEqual([a.status, b.status], [200, 200])
    assert.equal(loads.length, 2)
    for (let i = 0; i < 300 && (await states()).join() !== 'one unloaded,two unloaded'; i++) await sleep(30)
    assert.deepEqual(await states(), ['one unloaded', 'two unloaded'])
    assert.equal((await ask('one')).status, 200)
    assert.equal(loads.length, 3)
  })

  it('lets running answers end when it closes, and takes no new ones', async () => {
    const server = await startHouse({ drainMs: 20_000 })
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      ...{ method: 'POST', headers: { 'content-type': 'application/json' } },
      body: JSON.stringify({ messages, stream: true, max_tokens: 400, ignore_eos: true }),
    })
    const events = eventsOf(response)
    await events.next()
    const closed = server.close()
    const late = await post(`${server.url}/v1/chat/completions`, { messages }).then(
      ({ status }) => status,
      () => 'refused' as const,
    )
    assert.ok(late === 503 || late === 'refused', `a new request got ${late}`)
    let last = ''
    for await (const { data } of events) last = data
    assert.equal(last, '[DONE]')
    await closed
  })

  it('does not wait for a connection on which nothing was asked', async () => {
    const server = await startHouse({ drainMs: 20_000 })
    const socket = connect(Number(new URL(server.url).port), '127.0.0.1')
    await once(socket, 'connect')
    const began = performance.now()
    await server.close()
    assert.ok(performance.now() - began < 10_000, 'it waited for the whole time to drain')
    socket.destroy()
  })

  it('ends what does not end in time', async () => {
    const server = await startHouse({ drainMs: 50 })
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      ...{ method: 'POST', headers: { 'content-type': 'application/json' } },
      body: JSON.stringify({ messages, stream: true, max_tokens: 1900, ignore_eos: true }),
    })
    const events = eventsOf(response)
    await events.next()
    await server.close()
    const rest: string[] = []
    for await (const { data } of events) rest.push(data)
    assert.match(rest.at(-1)!, /"error".*shutting down/)
  })

  it('answers to names of this machine only, unless it is told others', async () => {
    await using server = await startHouse()
    assert.equal(await get(`${server.url}/health`, { host: 'localhost:9' }), 200)
    assert.equal(await get(`${server.url}/health`, { host: '[::1]' }), 200)
    assert.equal(await get(`${server.url}/health`, { host: 'rebound.example' }), 403)
    await using open = await startHouse({ allowedHosts: ['box.lan'] })
    assert.equal(await get(`${open.url}/health`, { host: 'box.lan:80' }), 200)
    assert.equal(await get(`${open.url}/health`, { host: 'rebound.example' }), 403)
  })

  it('lets web pages of allowed origins call, and no others', async () => {
    await using server = await startHouse({ corsOrigins: ['https://app.example'] })
    const preflight = (origin: string) =>
      fetch(`${server.url}/v1/chat/completions`, {
        method: 'OPTIONS',
        headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'content-type' },
      })
    const allowed = await preflight('https://app.example')
    assert.equal(allowed.status, 204)
    assert.equal(allowed.headers.get('access-control-allow-origin'), 'https://app.example')
    const other = await preflight('https://evil.example')
    assert.equal(other.headers.get('access-control-allow-origin'), null)
  })

  it('gives up on an answer that has not begun in its time', async () => {
    await using server = await startHouse({ answerTimeoutMs: 1 })
    const long = [{ role: 'user', content: 'A quiet afternoon by the lake. '.repeat(150) }]
    const { status, body } = await post(`${server.url}/v1/chat/completions`, { messages: long, max_tokens: 1 })
    assert.equal(status, 504, JSON.stringify(body))
  })

  it('refuses a port that is taken, with a word on how to mend it', async () => {
    await using server = await startHouse()
    const { port } = new URL(server.url)
    await assert.rejects(startHouse({ port: Number(port) }), { code: 'INVALID_ARGUMENT', message: /--port/ })
  })

  it('names options that are wrong', async () => {
    const wrong: readonly [object, RegExp][] = [
      [{ port: 70_000 }, /port is 70000/],
      [{ hots: 'x' }, /did you mean "host"/],
      [{ apiKeys: ['with space'] }, /API key/],
      [{ metricsCompat: 'x' }, /metricsCompat/],
      [{ models: [] }, /at least one model/],
    ]
    for (const [options, message] of wrong)
      await assert.rejects(startHouse(options), { code: 'INVALID_ARGUMENT', message }, JSON.stringify(options))
  })
})
