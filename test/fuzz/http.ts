/**
 * Random requests against a real server: every answer is a 2xx or a 4xx with OpenAI's error object, the server lives, its
 * memory does not grow.
 *
 * ```sh
 * npx tsx --expose-gc test/fuzz/http.ts --requests 100000 --seed 1 --json
 * ```
 */
import { Agent, request as httpRequest } from 'node:http'
import { parseArgs } from 'node:util'
import { startHouse } from '../../src/server/server.fixture.ts'
import { BAD_REQUESTS } from '../server/bad-input.fixture.ts'

const { values } = parseArgs({
  options: {
    requests: { type: 'string', default: '100000' },
    seed: { type: 'string', default: '1' },
    json: { type: 'boolean', default: false },
  },
})
const COUNT = Number(values.requests)
const AT_ONCE = 8
/** Requests before memory is measured: caches and pools are full then. */
const WARM = Math.min(5000, Math.floor(COUNT / 4))

/** Mulberry32. */
function randomOf(seed: number): () => number {
  let a = seed >>> 0
  return () => {
    a = (a + 0x6d2b79f5) >>> 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}
const random = randomOf(Number(values.seed))
const below = (n: number) => Math.floor(random() * n)
const pick = <T>(list: readonly T[]): T => list[below(list.length)]!

const message = () => ({
  role: pick(['user', 'system', 'assistant', 'tool']),
  content: pick(['hi', '', 'é\u0000x', '<|im_end|>', '🦊'.repeat(5)]),
})
const VALID: readonly [string, () => object][] = [
  [
    '/v1/chat/completions',
    () => ({ messages: [message(), { role: 'user', content: 'x' }], max_tokens: 1, temperature: random() }),
  ],
  [
    '/v1/chat/completions',
    () => ({ messages: [{ role: 'user', content: 'x' }], max_tokens: 2, n: 2, stream: true, logprobs: true }),
  ],
  [
    '/v1/chat/completions',
    () => ({
      messages: [{ role: 'user', content: 'x' }],
      max_tokens: 2,
      tools: [
        {
          type: 'function',
          function: { name: 'f', parameters: { type: 'object', properties: { a: { type: 'string' } } } },
        },
      ],
    }),
  ],
  [
    '/v1/chat/completions',
    () => ({
      messages: [{ role: 'user', content: 'x' }],
      max_tokens: 2,
      response_format: {
        type: 'json_schema',
        json_schema: {
          name: 'x',
          schema: { type: 'object', properties: { a: { type: 'integer', minimum: below(9) } } },
        },
      },
    }),
  ],
  [
    '/v1/completions',
    () => ({ prompt: pick<unknown>(['a', ['a', 'b'], [1, 2, 3], [[1], [2]]]), max_tokens: 1, logprobs: below(3) }),
  ],
  ['/v1/responses', () => ({ input: pick<unknown>(['a', [{ role: 'user', content: 'x' }]]), max_output_tokens: 1 })],
  ['/v1/messages', () => ({ messages: [{ role: 'user', content: 'x' }], max_tokens: 1, system: 'be brief' })],
  ['/v1/embeddings', () => ({ input: pick<unknown>(['a', ['a', 'b'], [1, 2]]) })],
  ['/tokenize', () => ({ prompt: 'abc def' })],
  ['/detokenize', () => ({ tokens: [1, 2, below(4096)] })],
]

const ODD: readonly unknown[] = [
  ...[
    null,
    true,
    false,
    0,
    -0,
    -1,
    1,
    0.5,
    1e308,
    -1e308,
    2 ** 31,
    2 ** 53,
    '',
    'x',
    '\u0000',
    '\ud800',
    'é',
    [],
    {},
    [[]],
  ],
  ...[{ a: 1 }, [null], 'a'.repeat(5000), Array.from({ length: 300 }, (_, i) => i), { __proto__: null, toString: 1 }],
]

/** The same value with one place changed, dropped, doubled or added. */
function mutated(value: unknown, depth = 0): unknown {
  if (depth > 6 || random() < 0.25) return pick(ODD)
  if (Array.isArray(value)) {
    if (value.length === 0) return [pick(ODD)]
    const at = below(value.length)
    const kind = below(4)
    if (kind === 0) return value.filter((_, i) => i !== at)
    if (kind === 1) return [...value, value[at]]
    return value.map((v, i) => (i === at ? mutated(v, depth + 1) : v))
  }
  if (typeof value !== 'object' || value === null) return pick(ODD)
  const keys = Object.keys(value)
  const kind = below(5)
  const key =
    kind === 0 || keys.length === 0 ? pick(['x', 'model', 'stop', 'n', 'grammar', 'logit_bias', '']) : pick(keys)
  if (kind === 1) return Object.fromEntries(Object.entries(value).filter(([k]) => k !== key))
  return { ...value, [key]: mutated((value as Record<string, unknown>)[key], depth + 1) }
}

/** JSON text with a few bytes changed. */
function broken(text: string): Buffer {
  const bytes = Buffer.from(text)
  for (let i = below(4); i >= 0 && bytes.length > 0; i--) bytes[below(bytes.length)] = below(256)
  return random() < 0.3 ? bytes.subarray(0, below(bytes.length + 1)) : bytes
}

function next(): { path: string; body: Buffer; headers: Record<string, string> } {
  const kind = random()
  if (kind < 0.1) {
    const bad = pick(BAD_REQUESTS.filter((b) => !/limit|beyond|many messages|100,000/.test(b.name)))
    return {
      path: bad.path,
      body: Buffer.from(typeof bad.body === 'string' ? bad.body : JSON.stringify(bad.body)),
      headers: { ...bad.headers },
    }
  }
  const [path, make] = pick(VALID)
  let body: unknown = make()
  for (let i = below(3); i >= 0; i--) body = mutated(body)
  // Whatever came of it, the answer stays short.
  if (typeof body === 'object' && body !== null && !Array.isArray(body) && random() < 0.9)
    body = {
      ...body,
      ...(path.startsWith('/v1/') && !path.includes('embed')
        ? { [path === '/v1/responses' ? 'max_output_tokens' : 'max_tokens']: 16 }
        : {}),
    }
  const text = JSON.stringify(body) ?? 'undefined'
  return {
    path,
    body: random() < 0.15 ? broken(text) : Buffer.from(text),
    headers:
      random() < 0.02 ? { 'content-type': pick(['', 'x', 'text/plain', 'application/json; charset=latin1']) } : {},
  }
}

const agent = new Agent({ keepAlive: true, maxSockets: AT_ONCE })
function send(
  port: number,
  { path, body, headers }: ReturnType<typeof next>,
): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(
      {
        port,
        host: '127.0.0.1',
        path,
        method: 'POST',
        agent,
        headers: { 'content-type': 'application/json', 'content-length': body.length, ...headers },
      },
      (response) => {
        const parts: Buffer[] = []
        response.on('data', (d: Buffer) => parts.push(d))
        response.on('end', () => resolve({ status: response.statusCode!, text: Buffer.concat(parts).toString() }))
        response.on('error', reject)
      },
    )
    request.on('error', reject)
    request.end(body)
  })
}

const server = await startHouse({}, { contextLength: 512, threads: 1, maxSequences: AT_ONCE })
const port = Number(new URL(server.url).port)
const statuses: Record<number, number> = {}
const failures: string[] = []
let sent = 0
let warmRss = 0
const rss = () => {
  ;(globalThis as { gc?: () => void }).gc?.()
  return process.memoryUsage().rss
}

async function worker(): Promise<void> {
  while (sent < COUNT && failures.length < 20) {
    if (++sent === WARM) warmRss = rss()
    const asked = next()
    const { status, text } = await send(port, asked)
    statuses[status] = (statuses[status] ?? 0) + 1
    const refused = status >= 400 && status < 500 && /"error":\s*\{/.test(text) && /"message":\s*"[^"]/.test(text)
    if (status !== 200 && !refused)
      failures.push(`${asked.path} ${asked.body.toString('latin1').slice(0, 500)} -> ${status} ${text.slice(0, 500)}`)
    if (!values.json && sent % 5000 === 0) console.error(`${sent} of ${COUNT}`)
  }
}

await Promise.all(Array.from({ length: AT_ONCE }, worker))
const { running, waiting, kv } = await server.engineOf().status()
if (running || waiting) failures.push(`${running} running and ${waiting} waiting at the end`)
if (kv.usedBytes !== kv.prefixBytes) failures.push(`${kv.usedBytes - kv.prefixBytes} bytes of pages are still held`)
const grownMiB = (rss() - warmRss) / 2 ** 20
if (grownMiB > 100) failures.push(`${grownMiB.toFixed(0)} MiB more than after ${WARM} requests`)
await server.close()
agent.destroy()
const report = { requests: sent, seed: Number(values.seed), statuses, grown_mib: Math.round(grownMiB), failures }
console.log(values.json ? JSON.stringify(report) : report)
process.exitCode = failures.length ? 1 : 0
