/** `/metrics` of a server that listens, on the house model: the numbers are those of the traffic that was sent. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import type { EngineApi } from '../../engine/api.ts'
import type { Server } from '../server.ts'
import type { Exposition } from './exposition.fixture.ts'
import { type Answer, chat, model, post, start, type Usage, until } from './server.fixture.ts'

describe('metrics of a server', () => {
  let server: Server
  const engines: EngineApi[] = []
  const answers: Answer[] = []
  let metrics: Exposition
  const sumOf = (of: (u: Usage) => number) => answers.reduce((total, a) => total + of(a.usage), 0)

  before(async () => {
    server = await start({ metricsCompat: 'vllm' }, { engines })
    answers.push(await chat(server, { max_tokens: 12 }))
    answers.push(await chat(server, { max_tokens: 9 }))
    answers.push(await chat(server, { max_tokens: 5, n: 3, temperature: 1 }))
    answers.push(await chat(server, { messages: [{ role: 'user', content: 'What is 2 + 2?' }], max_tokens: 200 }))
    const streamed = await post(server, { max_tokens: 7, stream: true, stream_options: { include_usage: true } })
    const lines = (await streamed.text()).split('\n').filter((l) => l.startsWith('data: {'))
    answers.push({ ...(JSON.parse(lines.at(-1)!.slice(6)) as Answer), choices: [{ finish_reason: 'length' }] })
    assert.equal((await post(server, { max_tokens: -1 })).status, 400)
    assert.equal((await post(server, { model: 'other' })).status, 404)
    assert.equal((await fetch(`${server.url}/nowhere`)).status, 404)
    metrics = await until(server, (m) => m.sum('kvasir_http_requests_total') >= 8)
  })
  after(() => server.close())

  it('counts tokens as usage does', async () => {
    assert.equal(
      metrics.value('kvasir_prompt_tokens_total', { model }),
      sumOf((u) => u.prompt_tokens),
    )
    assert.equal(
      metrics.value('kvasir_generation_tokens_total', { model }),
      sumOf((u) => u.completion_tokens),
    )
    const cached = sumOf((u) => u.prompt_tokens_details.cached_tokens)
    assert.ok(cached > 0)
    assert.equal(metrics.value('kvasir_prefix_cache_hits_total', { model }), cached)
    assert.equal(
      metrics.value('kvasir_prefix_cache_queries_total', { model }),
      sumOf((u) => u.prompt_tokens),
    )
    assert.equal(metrics.value('kvasir_cached_tokens_total', { model, source: 'device' }), cached)
    assert.equal(metrics.sum('kvasir_cached_tokens_total', { model }), cached)
    const { totals } = await engines[0]!.status()
    assert.equal(metrics.value('kvasir_generation_tokens_total', { model }), totals.generatedTokens)
  })

  it('counts answers by reason', () => {
    const reasons = answers.flatMap((a) => a.choices.map((c) => c.finish_reason))
    assert.equal(reasons.length, 7)
    for (const reason of ['stop', 'length'])
      assert.equal(
        metrics.value('kvasir_request_success_total', { model, finished_reason: reason }),
        reasons.filter((r) => r === reason).length,
      )
    assert.equal(metrics.sum('kvasir_request_success_total', { model }), 7)
  })

  it('measures each answer, each request and each token once', () => {
    for (const name of ['e2e_request_latency', 'request_queue_time', 'request_prefill_time', 'request_decode_time'])
      assert.equal(metrics.value(`kvasir_${name}_seconds_count`, { model }), 7, name)
    assert.equal(metrics.value('kvasir_time_to_first_token_seconds_count', { model }), 5)
    assert.equal(metrics.value('kvasir_request_params_n_sum', { model }), 7)
    assert.equal(metrics.value('kvasir_request_params_max_tokens_sum', { model }), 12 + 9 + 5 + 200 + 7)
    const generated = metrics.value('kvasir_request_generation_tokens_sum', { model })
    assert.equal(
      generated,
      sumOf((u) => u.completion_tokens),
    )
    // A first token has none before it; the token that ends an answer is not handed out.
    const stops = metrics.value('kvasir_request_success_total', { model, finished_reason: 'stop' })
    assert.equal(metrics.value('kvasir_inter_token_latency_seconds_count', { model }), generated - 7 - stops)
  })

  it('has times that fit into each other', () => {
    const seconds = (name: string) => metrics.value(`kvasir_${name}_seconds_sum`, { model })
    const inference = seconds('request_prefill_time') + seconds('request_decode_time')
    assert.ok(Math.abs(inference - seconds('request_inference_time')) < 1e-9)
    assert.ok(seconds('request_queue_time') + inference <= seconds('e2e_request_latency'))
    assert.ok(seconds('time_to_first_token') < seconds('e2e_request_latency'))
    const compute = metrics.value('kvasir_step_compute_seconds_total', { model })
    assert.ok(compute > 0 && compute <= metrics.value('kvasir_step_seconds_sum', { model }))
  })

  it('counts the rows of steps', () => {
    const rows = metrics.sum('kvasir_step_rows_total', { model })
    assert.equal(metrics.value('kvasir_iteration_tokens_total_sum', { model }), rows)
    const computed = sumOf((u) => u.prompt_tokens - u.prompt_tokens_details.cached_tokens)
    assert.equal(metrics.value('kvasir_step_rows_total', { model, kind: 'prefill' }), computed)
    assert.equal(
      metrics.value('kvasir_step_rows_total', { model, kind: 'decode' }),
      sumOf((u) => u.completion_tokens) - 7,
    )
  })

  it('counts requests of each route by status', () => {
    const of = (route: string, status: string) => metrics.sum('kvasir_http_requests_total', { route, status })
    assert.equal(of('/v1/chat/completions', '200'), 5)
    assert.equal(of('/v1/chat/completions', '400'), 1)
    assert.equal(of('/v1/chat/completions', '404'), 1)
    assert.equal(of('unmatched', '404'), 1)
    assert.equal(metrics.value('kvasir_http_request_duration_seconds_count', { route: '/v1/chat/completions' }), 7)
  })

  it('tells how things stand', async () => {
    const { kv } = await engines[0]!.status()
    const bytes = (state: string) => metrics.value('kvasir_kv_bytes', { model, tier: 'device', type: 'f16', state })
    assert.equal(bytes('allocated'), kv.allocatedBytes)
    assert.equal(bytes('used'), kv.usedBytes)
    assert.ok(kv.prefixBytes > 0)
    assert.equal(bytes('prefix'), kv.prefixBytes)
    assert.equal(metrics.value('kvasir_num_requests_running', { model }), 0)
    assert.equal(metrics.value('kvasir_kv_cache_usage_perc', { model }), 0)
    const [config] = metrics.samples('kvasir_cache_config_info')
    const { block_size, num_gpu_blocks, cache_dtype } = config!.labels
    assert.equal(cache_dtype, 'f16')
    assert.equal(Number(block_size) * Number(num_gpu_blocks) * engines[0]!.info.kvBytesPerToken, kv.allocatedBytes)
    assert.ok(metrics.value('kvasir_process_resident_memory_bytes') > 2 ** 20)
    assert.ok(Math.abs(metrics.value('kvasir_process_start_time_seconds') - Date.now() / 1000) < 600)
  })

  it("says the same in vLLM's words", () => {
    const theirs = [...metrics.families.values()].filter((f) => f.name.startsWith('vllm:'))
    assert.ok(theirs.length >= 25)
    const old: Readonly<Record<string, string>> = {
      time_per_output_token_seconds: 'inter_token_latency_seconds',
      gpu_cache_usage_perc: 'kv_cache_usage_perc',
      gpu_prefix_cache_queries_total: 'prefix_cache_queries_total',
      gpu_prefix_cache_hits_total: 'prefix_cache_hits_total',
    }
    for (const { name, type, samples } of theirs) {
      const suffix = name.slice('vllm:'.length)
      const ours = metrics.families.get(`kvasir_${old[suffix] ?? suffix}`)!
      assert.equal(type, ours.type)
      assert.deepEqual(
        samples.map((s) => s.value),
        ours.samples.map((s) => s.value),
        name,
      )
      for (const { labels } of samples) {
        assert.equal(labels['model_name'], model)
        assert.equal(labels['engine'], '0')
        assert.ok(!('model' in labels))
      }
    }
  })
})
