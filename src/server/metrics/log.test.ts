/** The log has one line for each request, and no texts and no keys. */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { endless, post, start } from './server.fixture.ts'

type Line = Readonly<Record<string, unknown>>

it('logs each request once: whole, streamed, refused, broken off', async () => {
  const forbidden = await endless()
  const text: string[] = []
  const logger = pino({ level: 'debug' }, { write: (line: string) => void text.push(line) })
  const lines = () => text.map((t) => JSON.parse(t) as Line).filter((l) => l['msg'] === 'request')
  const until = async (n: number) => {
    for (let i = 0; lines().length < n; i++) {
      assert.ok(i < 200, `${lines().length} lines`)
      await sleep(20)
    }
  }
  const key = 'a-very-secret-key'
  const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'
  await using server = await start({ apiKeys: [key] }, { logger })
  const headers = { 'content-type': 'application/json', authorization: `Bearer ${key}`, 'x-request-id': 'mine-1' }

  const whole = await post(server, { max_tokens: 4, user: 'u'.repeat(1000) }, { headers })
  const { usage } = (await whole.json()) as { usage: { prompt_tokens: number } }
  await until(1)
  const traceparent = `00-${traceId}-00f067aa0ba902b7-01`
  await (await post(server, { max_tokens: 4, stream: true }, { headers: { ...headers, traceparent } })).text()
  await until(2)
  await post(server, {}, { headers: { 'content-type': 'application/json' } })
  await until(3)
  const abort = new AbortController()
  const { signal } = abort
  const long = await post(server, { max_tokens: 1500, stream: true, ...forbidden }, { headers, signal })
  await long.body!.getReader().read()
  abort.abort()
  await until(4)
  await fetch(`${server.url}/health`)
  await until(5)

  const [first, streamed, refused, broken, probe] = lines()
  const level = { info: 30, debug: 20 }
  assert.equal(first!['reqId'], 'mine-1')
  const common = { method: 'POST', route: '/v1/chat/completions', level: level.info }
  const answered = { ...common, status: 200, model: 'house', generated_tokens: 4, prompt_tokens: usage.prompt_tokens }
  assert.deepEqual({ ...first, ...answered }, first)
  assert.deepEqual(first!['finish'], ['length'])
  assert.equal(first!['user'], 'u'.repeat(256))
  assert.match(String(first!['tenant']), /^[0-9a-f]{16}$/)
  assert.ok(Number(first!['ttft_ms']) > 0 && Number(first!['ttft_ms']) < Number(first!['ms']))
  assert.deepEqual({ ...streamed, ...answered, trace_id: traceId }, streamed)
  assert.deepEqual({ ...refused, ...common, status: 401, error: 'invalid_api_key' }, refused)
  assert.ok(!('model' in refused!))
  assert.deepEqual({ ...broken, ...common, status: 499, error: 'client_closed', model: 'house' }, broken)
  assert.deepEqual({ ...probe, route: '/health', status: 200, level: level.debug }, probe)
  assert.ok(!text.join('').includes(key) && !text.join('').includes('story about a ship'))
  assert.equal(lines().length, 5)
})
