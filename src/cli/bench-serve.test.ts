import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { FakeServer } from '../../bench/serve/fake-server.fixture.ts'
import { gone, json, knowsChildren, kvasir, Running } from './process.fixture.ts'
import { makeProgram } from './program.ts'

const SMALL = ['--num-prompts', '4', '--random-input-len', '16', '--random-output-len', '3']
const folder = mkdtempSync(join(tmpdir(), 'kvasir-bench-serve-'))
after(() => rmSync(folder, { recursive: true }))

describe('kvasir bench serve', () => {
  it('prints the table of vllm bench serve', async () => {
    await using server = await FakeServer.start()
    const args = ['bench', 'serve', '--base-url', server.url, ...SMALL, '--goodput', 'ttft:60000', 'tpot:60000']
    const { stdout, stderr, code } = await kvasir([...args, '--metric-percentiles', '50,99.9'])
    assert.equal(code, 0, stderr)
    const lines = stdout.trimEnd().split('\n')
    assert.equal(lines[0], '============ Serving Benchmark Result ============')
    assert.equal(lines.at(-1), '='.repeat(50))
    assert.ok(lines.includes('Successful requests:                     4'), stdout)
    assert.ok(lines.includes('Total input tokens:                      64'), stdout)
    assert.ok(lines.includes('Total generated tokens:                  12'), stdout)
    for (const line of [
      /^Request goodput \(req\/s\): +\d+\.\d\d$/m,
      /^-+Time to First Token-+$/m,
      /^P99\.9 TTFT \(ms\): +\d+\.\d\d$/m,
      /^Mean E2EL \(ms\): +\d+\.\d\d$/m,
      /^Generator CPU \(% of a core\): +\d+\.\d\d$/m,
    ])
      assert.match(stdout, line)
    assert.equal(server.requests[0]!.body.ignore_eos, true)
  })

  it('prints and saves one object for programs', async () => {
    await using server = await FakeServer.start()
    const file = join(folder, 'result.json')
    const args = ['bench', 'serve', '--base-url', server.url, ...SMALL, '--json', '--save-result']
    const result = json(await kvasir([...args, '--result-filename', file, '--percentile-metrics', 'ttft,e2el']))
    assert.deepEqual(JSON.parse(readFileSync(file, 'utf8')), result)
    assert.deepEqual([result.completed, result.num_prompts, result.request_rate], [4, 4, 'inf'])
    assert.ok(result.p99_e2el_ms >= result.mean_ttft_ms)
    assert.ok(!('mean_itl_ms' in result) && !('ttfts' in result))
  })

  it('takes prompts of a file, and lets their answers end', async () => {
    await using server = await FakeServer.start()
    const file = join(folder, 'prompts.jsonl')
    writeFileSync(file, '{"prompt": "Hello there", "output_tokens": 2}\n{"prompt": "Bye"}\n')
    const dataset = ['--dataset-name', 'custom', '--dataset-path', file, '--random-output-len', '5']
    const more = ['--model', 'named', '--extra-body', '{"top_k": 1}', '--save-detailed', '--json']
    const result = json(await kvasir(['bench', 'serve', '--base-url', server.url, ...dataset, ...more]))
    assert.deepEqual(result.output_lens, [2, 5])
    const body = server.requests.map((r) => r.body).find((b) => b.prompt === 'Hello there')
    assert.deepEqual(body, {
      ...{
        model: 'named',
        prompt: 'Hello there',
        max_tokens: 2,
        stream: true,
        stream_options: { include_usage: true },
      },
      top_k: 1,
    })
  })

  it('without a URL measures a server of ours; questions that follow find the ones before in its cache', async () => {
    const chat = ['--endpoint', '/v1/chat/completions', '--no-ignore-eos', '--temperature', '0']
    const dataset = ['--dataset-name', 'multi-turn', '--conversations', '2', '--turns', '2', '--random-input-len', '64']
    const args = ['bench', 'serve', ...chat, ...dataset, '--random-output-len', '4', '--json', '--', '-t', '1']
    const result = json(await kvasir(args))
    assert.deepEqual([result.completed, result.failed, result.model_id], [4, 0, 'house'], JSON.stringify(result))
    assert.ok(result.kvasir.cached_tokens >= 2 * 64, `${result.kvasir.cached_tokens}`)
    assert.ok(result.total_input_tokens >= 2 * (64 + 128))
  })

  it('says why a server of ours does not start', async () => {
    const { code, stderr } = await kvasir(['bench', 'serve', '--model', '/no/such/model.gguf'])
    assert.equal(code, 1)
    assert.match(stderr, /^error: MODEL_NOT_FOUND: /m)
  })

  it('Ctrl-C ends it and its server', { skip: !knowsChildren && 'needs /proc' }, async () => {
    const chat = ['--endpoint', '/v1/chat/completions', '--no-ignore-eos', '--request-rate', '0.01']
    const running = new Running(['bench', 'serve', ...chat, '--', '-t', '1'])
    // The server, and its engine.
    await running.until((r) => r.children().length >= 2)
    const children = running.children()
    running.child.kill('SIGINT')
    const { code, stderr } = await running.end()
    assert.equal(code, 130, stderr)
    await gone(children)
  })

  it('fails when every request does', async () => {
    await using server = await FakeServer.start({ behave: () => ({ kind: 'refuse', status: 503 }) })
    const { code, stdout } = await kvasir(['bench', 'serve', '--base-url', server.url, ...SMALL])
    assert.equal(code, 1)
    assert.match(stdout, /^failed, 4 times: HTTP 503: refused with 503$/m)
  })

  it('refuses what makes no sense', async () => {
    for (const [args, says] of [
      [['--num-prompts', '0'], /--num-prompts is 0; it must be a whole number from 1 up/],
      [['--random-range-ratio', '1'], /--random-range-ratio is 1/],
      [['--dataset-name', 'custom'], /--dataset-path is needed for custom/],
      [['--dataset-path', 'x'], /--dataset-path is of no use for random/],
      [['--dataset-name', 'mooncake-trace', '--dataset-path', 'x', '--request-rate', '2'], /--time-scale is/],
      [['--overhead'], /--overhead starts a server of its own/],
      [['--overhead', '--type', 'q9'], /--type is "q9"; there are f32/],
      [['--', '--threads', '1'], /--base-url no server is started/],
      [['--endpoint', '/v1/embeddings'], /--endpoint is "\/v1\/embeddings"/],
    ] as const) {
      const command = ['node', 'kvasir', 'bench', 'serve', '--base-url', 'http://127.0.0.1:9', ...args]
      await assert.rejects(makeProgram().parseAsync(command), says)
    }
  })

  it('refuses flags that cannot be read', async () => {
    const { code, stderr } = await kvasir(['bench', 'serve', '--goodput', 'itl:3'])
    assert.equal(code, 2)
    assert.match(stderr, /It must be like ttft:200/)
  })
})
