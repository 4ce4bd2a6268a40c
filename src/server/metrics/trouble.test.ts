/** What `/metrics` says of answers that break off, of refusals, and of memory that runs out. */
import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { EngineApi } from '../../engine/api.ts'
import { Engine } from '../../engine/engine.ts'
import { startServer } from '../server.ts'
import { chat, endless, house, model, post, scrape, start, until } from './server.fixture.ts'

let forbidden: object
before(async () => {
  forbidden = await endless()
})

describe('metrics of what goes wrong', () => {
  it('counts an answer whose client went away, and the tokens until then', async () => {
    await using server = await start()
    const abort = new AbortController()
    const response = await post(server, { max_tokens: 1500, stream: true, ...forbidden }, { signal: abort.signal })
    const reader = response.body!.getReader()
    for (let i = 0; i < 5; i++) await reader.read()
    const during = await scrape(server)
    assert.equal(during.value('kvasir_num_requests_running', { model }), 1)
    assert.ok(during.value('kvasir_kv_cache_usage_perc', { model }) > 0)
    assert.ok(during.value('kvasir_generation_tokens_total', { model }) > 0)
    abort.abort()
    const aborted = { model, finished_reason: 'abort' }
    const metrics = await until(server, (m) => m.value('kvasir_request_success_total', aborted) === 1)
    assert.equal(metrics.sum('kvasir_http_requests_total', { status: '499' }), 1)
    assert.equal(metrics.samples('kvasir_e2e_request_latency_seconds_count').length, 0)
    const generated = metrics.value('kvasir_generation_tokens_total', { model })
    assert.ok(generated >= 4 && generated < 1500, `${generated} tokens`)
  })

  it('counts what the engine refuses, and a refused request is no answer', async () => {
    await using server = await start({
      models: [{ ...house, engine: { ...house.engine, maxWaiting: 1, maxSequences: 1 } }],
    })
    const all = await Promise.all(
      Array.from({ length: 6 }, () => post(server, { max_tokens: 60, ...forbidden }).then((r) => r.status)),
    )
    const refused = all.filter((s) => s === 429).length
    assert.ok(refused > 0 && refused < 6, `${all}`)
    const metrics = await until(server, (m) => m.sum('kvasir_http_requests_total', { status: '429' }) === refused)
    assert.equal(metrics.value('kvasir_requests_refused_total', { model, code: 'QUEUE_FULL' }), refused)
    assert.equal(metrics.sum('kvasir_request_success_total', { model }), 6 - refused)
  })

  it('counts evictions, tiers and preemptions as the engine does', async () => {
    const engines: EngineApi[] = []
    const small = { threads: 1, contextLength: 512, kvMemory: 3 * 2 ** 20, hostCacheBytes: 2 ** 20 }
    await using server = await start({ models: [{ ...house, engine: small }] }, { engines })
    const story = (i: number) => [{ role: 'user', content: `Story ${i}. `.repeat(40) }]
    for (const i of [1, 2, 3, 4, 5, 6, 1, 2]) await chat(server, { messages: story(i), max_tokens: 8 })
    await Promise.all([11, 12, 13, 14].map((i) => chat(server, { messages: story(i), max_tokens: 150, ...forbidden })))
    const metrics = await scrape(server)
    const { totals } = await engines[0]!.status()
    const { kvBytesPerToken } = engines[0]!.info
    const evicted = (cause: string) => metrics.value('kvasir_evicted_pages_total', { model, cause })
    assert.ok(evicted('admission') > 0)
    // The engine's total is of those that made room for requests.
    assert.equal(evicted('admission') + evicted('growth'), totals.evictedPages)
    const pages = metrics.sum('kvasir_evicted_pages_total', { model })
    assert.equal(metrics.value('kvasir_evicted_bytes_total', { model }), pages * 32 * kvBytesPerToken)
    assert.equal(metrics.value('kvasir_num_preemptions_total', { model }), totals.preemptions)
    assert.ok(metrics.value('kvasir_offloaded_bytes_total', { model, to: 'host' }) > 0)
    assert.equal(metrics.value('kvasir_prompt_tokens_total', { model }), totals.promptTokens)
    assert.equal(metrics.value('kvasir_prefix_cache_hits_total', { model }), totals.cachedTokens)
    assert.equal(metrics.sum('kvasir_cached_tokens_total', { model }), totals.cachedTokens)
    assert.ok(metrics.sum('kvasir_load_decisions_total', { model }) > 0)
    assert.ok(metrics.sum('kvasir_kv_bytes', { model, tier: 'host' }) > 0)
  })

  it('needs the key where there are keys, and no gauges are left of a model that was unloaded', async () => {
    await using server = await start({ apiKeys: ['secret'], idleUnloadMs: 50 })
    assert.equal((await fetch(`${server.url}/metrics`)).status, 401)
    const headers = { authorization: 'Bearer secret' }
    await sleep(100)
    const metrics = await scrape(server, headers)
    assert.deepEqual(metrics.samples('kvasir_num_requests_running'), [])
    assert.equal(metrics.value('kvasir_prompt_tokens_total', { model }), 0)
  })

  it('counts a crash of the engine process, and goes on counting behind it', async () => {
    await using server = await startServer({ models: [house], port: 0 })
    const { engine } = server.pool.loaded()[0]!
    assert.ok(engine instanceof Engine)
    const first = await chat(server, { max_tokens: 5 })
    const response = await post(server, { max_tokens: 1500, stream: true, ...forbidden })
    const reader = response.body!.getReader()
    await reader.read()
    process.kill(engine.pid!, 'SIGKILL')
    while (!(await reader.read()).done);
    const failed = await scrape(server)
    assert.equal(failed.value('kvasir_request_success_total', { model, finished_reason: 'error' }), 1)
    const second = await chat(server, { max_tokens: 5 })
    const metrics = await until(server, (m) => m.samples('kvasir_engine_restarts_total').length === 1)
    assert.equal(metrics.value('kvasir_engine_restarts_total', { model }), 1)
    const prompts = first.usage.prompt_tokens + second.usage.prompt_tokens
    // The prompt of the one that broke off counts too; it is the same text.
    assert.equal(metrics.value('kvasir_prompt_tokens_total', { model }), prompts + first.usage.prompt_tokens)
    const before = failed.value('kvasir_generation_tokens_total', { model })
    assert.equal(metrics.value('kvasir_generation_tokens_total', { model }), before + 5)
  })
})
