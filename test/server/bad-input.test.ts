/** Whatever comes in: a 4xx that names what is wrong, a server that lives, memory that does not grow. */
import assert from 'node:assert/strict'
import { request as httpRequest } from 'node:http'
import { connect } from 'node:net'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { startHouse } from '../../src/server/server.fixture.ts'
import { BAD_REQUESTS, type BadRequest } from './bad-input.fixture.ts'

type House = Awaited<ReturnType<typeof startHouse>>
let server: House
let port: number

before(async () => {
  server = await startHouse({ bodyLimit: 2 ** 21, receiveTimeoutMs: 700 })
  port = Number(new URL(server.url).port)
})
after(() => server.close())

async function alive(): Promise<void> {
  const response = await fetch(`${server.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ messages: [{ role: 'user', content: 'hi' }], max_tokens: 2 }),
  })
  assert.equal(response.status, 200, await response.text())
}

/** Not fetch: it forbids some headers and mends paths. */
function send({ path, body, headers }: BadRequest): Promise<{ status: number; text: string }> {
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  return new Promise((resolve, reject) => {
    const options = { port, host: '127.0.0.1', path, method: 'POST' }
    const request = httpRequest(
      {
        ...options,
        headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), ...headers },
      },
      (response) => {
        const parts: Buffer[] = []
        response.on('data', (d: Buffer) => parts.push(d))
        response.on('end', () => resolve({ status: response.statusCode!, text: Buffer.concat(parts).toString() }))
      },
    )
    request.on('error', reject)
    request.end(text)
  })
}

/** Bytes to a socket; all that comes back until the server closes it. */
function speak(bytes: string | Buffer, { halfClose = false } = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
    let got = ''
    socket.on('data', (d) => (got += d.toString()))
    socket.on('end', () => socket.end())
    socket.on('close', () => resolve(got))
    socket.on('error', (e: NodeJS.ErrnoException) =>
      e.code === 'ECONNRESET' || e.code === 'EPIPE' ? resolve(got) : reject(e),
    )
    socket.write(bytes)
    if (halfClose) socket.end()
  })
}

describe('malformed requests', () => {
  it(`${BAD_REQUESTS.length} of them get a 4xx that says what is wrong`, async () => {
    assert.ok(BAD_REQUESTS.length >= 150, `${BAD_REQUESTS.length} requests`)
    const wrong: string[] = []
    for (const bad of BAD_REQUESTS) {
      const { status, text } = await send(bad)
      const { error } = JSON.parse(text) as { error?: { message: string; type: string; param: string | null } }
      const said = `${error?.message} (${error?.param})`
      if (status !== (bad.status ?? 400) || !error || !bad.says.test(said) || error.message.length > 2000)
        wrong.push(`${bad.name}: ${status} ${text.slice(0, 300)}`)
    }
    assert.deepEqual(wrong, [])
    await alive()
  })

  it('invalid UTF-8 is refused, not mended', async () => {
    const body = Buffer.concat([
      Buffer.from('{"messages":[{"role":"user","content":"'),
      Buffer.from([0xff, 0xfe]),
      Buffer.from('"}]}'),
    ])
    const head = `POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n`
    assert.match(await speak(Buffer.concat([Buffer.from(head), body])), /^HTTP\/1\.1 400[\s\S]*not UTF-8/)
  })

  it('bytes that are no HTTP', async () => {
    for (const bytes of [
      'hello\r\n\r\n',
      '\x16\x03\x01\x02\0\x01\0',
      'GET / HTTP/9.9\r\n\r\n',
      'GET\r\n\r\n',
      `${'A'.repeat(50_000)}\r\n\r\n`,
    ])
      assert.match(await speak(bytes), /^HTTP\/1\.1 4\d\d[\s\S]*"error"/, JSON.stringify(bytes.slice(0, 30)))
  })

  it('headers that are too large, too many, doubled or contradictory', async () => {
    const post = 'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n'
    const cases: readonly [string, RegExp][] = [
      [`${post}X: ${'a'.repeat(20_000)}\r\n\r\n`, /^HTTP\/1\.1 431/],
      [`${post}${Array.from({ length: 3000 }, (_, i) => `X${i}: y`).join('\r\n')}\r\n\r\n`, /^HTTP\/1\.1 4(00|31)/],
      [`${post}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}`, /^HTTP\/1\.1 400/],
      [`${post}Content-Length: -1\r\n\r\n`, /^HTTP\/1\.1 400/],
      [`${post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`, /^HTTP\/1\.1 400/],
      [`${post}Transfer-Encoding: chunked\r\n\r\nZZ\r\nxx\r\n`, /^HTTP\/1\.1 400/],
      [`${post}Bad Header: x\r\n\r\n`, /^HTTP\/1\.1 400/],
      ['GET / HTTP/1.1\r\n\r\n', /^HTTP\/1\.1 400/], // no Host
    ]
    for (const [bytes, expected] of cases) assert.match(await speak(bytes), expected, bytes.slice(0, 90))
  })

  it('a socket that is closed half way through a request', async () => {
    const head =
      'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"mess'
    assert.doesNotMatch(await speak(head, { halfClose: true }), /HTTP\/1\.1 [25]/)
    await alive()
  })

  it('slow loris: headers and bodies that never arrive are given up', async () => {
    const began = performance.now()
    const slow = [
      'POST /v1/chat/completions HTTP/1.1\r\nHost: local',
      'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{',
    ]
    const answers = await Promise.all(Array.from({ length: 20 }, (_, i) => speak(slow[i % 2]!)))
    for (const answer of answers) assert.match(answer, /^HTTP\/1\.1 408/)
    assert.ok(performance.now() - began < 10_000)
    await alive()
  })

  it('a client that leaves in the middle of an answer leaves nothing behind', async () => {
    for (let i = 0; i < 10; i++) {
      const abort = new AbortController()
      const response = await fetch(`${server.url}/v1/chat/completions`, {
        ...{ method: 'POST', headers: { 'content-type': 'application/json' }, signal: abort.signal },
        body: JSON.stringify({
          messages: [{ role: 'user', content: 'go on' }],
          stream: true,
          max_tokens: 1500,
          ignore_eos: true,
        }),
      })
      await response.body!.getReader().read()
      abort.abort()
    }
    for (let i = 0; i < 200 && (await server.engineOf().status()).running > 0; i++) await sleep(10)
    const { running, waiting, kv } = await server.engineOf().status()
    assert.deepEqual([running, waiting], [0, 0])
    assert.equal(kv.usedBytes, kv.prefixBytes, 'pages are still held')
  })

  it('does not grow', async () => {
    // Grammar and schema failures, unions, deep bodies: a few hundred of each before and after.
    const round = async () => {
      for (const bad of BAD_REQUESTS.filter((b) => !/beyond|many messages|100,000/.test(b.name))) await send(bad)
    }
    const rss = () => {
      ;(globalThis as { gc?: () => void }).gc?.()
      return process.memoryUsage().rss
    }
    await round()
    await round()
    const before = rss()
    for (let i = 0; i < 4; i++) await round()
    const grown = (rss() - before) / 2 ** 20
    assert.ok(grown < 40, `${grown.toFixed(1)} MiB more after ${4 * BAD_REQUESTS.length} requests`)
    await alive()
  })
})
