import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { houseExample } from '../../test/fixtures/house-tasks.ts'
import { json, kvasir } from './process.fixture.ts'

describe('kvasir eval', () => {
  let folder: string
  let data: string
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'kvasir-cli-eval-'))
    data = join(folder, 'pets.jsonl')
    writeFileSync(data, [0, 1, 2].map((seed) => JSON.stringify(houseExample('pet', 512, seed))).join('\n'))
  })
  after(() => rmSync(folder, { recursive: true }))

  it('prints one object with --json', async () => {
    const { rows } = json(await kvasir(['eval', '--data', data, '--limit', '2', '-t', '1', '--json']))
    assert.equal(rows.length, 1)
    const { policy, budget, task, length, mode, n, seed, accuracy, kv_bytes } = rows[0]
    assert.deepEqual([policy, budget, task, length, mode, n, seed], ['full', 1, 'pet', 512, 'multi-turn', 2, null])
    assert.ok([0, 0.5, 1].includes(accuracy) && kv_bytes > 1e6)
  })

  it('runs generated tasks, and goes on where it ended with --out', async () => {
    const out = join(folder, 'rows.jsonl')
    const args = ['eval', '--lengths', '512', '--limit', '1', '-t', '1', '--out', out, '--json']
    const first = json(await kvasir([...args, '--tasks', 'niah_single']))
    const second = json(await kvasir([...args, '--tasks', 'niah_single,scbench_mf']))
    assert.deepEqual(second.rows[0], first.rows[0])
    assert.equal(readFileSync(out, 'utf8').trim().split('\n').length, 2)
    assert.deepEqual(
      second.rows.map((r: { task: string }) => r.task),
      ['niah_single', 'scbench_mf'],
    )
  })

  it('compares a policy of one’s own with others', async () => {
    const args = ['eval', '--tasks', 'niah_single', '--lengths', '512', '--limit', '1', '-t', '1', '--budgets', '0.5']
    const own = ['--policy-module', 'examples/policies/passages.ts', '--policies', 'full,passages?size=8']
    const { rows } = json(await kvasir([...args, ...own, '--json'], { source: true }))
    assert.deepEqual(
      rows.map((r: { policy: string }) => r.policy),
      ['full', 'passages?size=8'],
    )
    assert.ok(rows[1].kv_bytes < 0.7 * rows[1].kv_bytes_full)
  })

  it('names the nearest task when one is misspelt', async () => {
    const done = await kvasir(['eval', '--tasks', 'niah_singel'])
    assert.equal(done.code, 1)
    assert.match(done.stderr, /Did you mean niah_single\?/)
  })

  it('prints a table without', async () => {
    const done = await kvasir(['eval', '--data', data, '-t', '1'])
    assert.equal(done.code, 0, done.stderr)
    assert.match(
      done.stdout,
      /^policy +budget +seen +task +mode +length +n +accuracy +KL +top 1 +TTFT +decode +KV cache +held\nfull +1 +- +pet +multi-turn +512 +3 +\d+ % +- +- +\d+ ms +\d+ tok\/s +[\d.]+ MiB +100 %\n$/,
    )
  })

  it('compares policies, says who refused and why, and makes a page of the rows', async () => {
    const out = join(folder, 'policies.jsonl')
    const args = ['eval', '--tasks', 'niah_single,prose', '--lengths', '512', '--limit', '1', '-t', '1', '--out', out]
    const done = await kvasir([
      ...args,
      '--policies',
      'full,cake?gamma=100',
      '--budgets',
      '0.25,16b',
      '--shared-prompts',
    ])
    assert.equal(done.code, 0, done.stderr)
    assert.match(done.stdout, /\ncake\?gamma=100 +0\.25 +question +niah_single .* \d+ %\n/)
    assert.match(done.stdout, /\ncake\?gamma=100 16B, niah_single of 512, multi-turn {2}refused\n/)
    assert.match(done.stderr, /refused: cake\?gamma=100 16B, prose of 512, forced: .*does not hold one token/)
    const rows = readFileSync(out, 'utf8').trim().split('\n')
    assert.equal(rows.length, 4)
    const keys = rows.map((line) => Object.keys(JSON.parse(line)).join())
    assert.equal(new Set(keys).size, 1, 'all rows have all keys')

    const page = join(folder, 'page')
    const { files, panels } = json(await kvasir(['report', out, '--out', page, '--json']))
    assert.deepEqual(
      files.map((file: string) => existsSync(file)),
      [true, true, true, true],
    )
    assert.equal(panels[0].series[0].policy, 'cake?gamma=100')
    const none = await kvasir(['report', join(folder, 'none.jsonl')])
    assert.deepEqual([none.code, /none\.jsonl/.test(none.stderr)], [1, true])
  })

  it('names the policy, the mode and the moment that were misspelt', async () => {
    for (const [flag, name, text] of [
      ['--policies', 'snapvk', /Did you mean 'snapkv'\?/],
      ['--mode', 'multi-trun', /Did you mean multi-turn\?/],
      ['--compress-at', 'contxt', /Did you mean context\?/],
    ] as const) {
      const done = await kvasir(['eval', flag, name, '--tasks', 'kv'])
      assert.equal(done.code, 1)
      assert.match(done.stderr, text)
    }
  })

  it('names file and line of what it cannot read', async () => {
    const bad = join(folder, 'bad.jsonl')
    writeFileSync(bad, '{"task": "a"}\n')
    const done = await kvasir(['eval', '--data', bad, '-t', '1'])
    assert.equal(done.code, 1)
    assert.match(done.stderr, /bad\.jsonl:1: "length" must be a number/)
  })
})
