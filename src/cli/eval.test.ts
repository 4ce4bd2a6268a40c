import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
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
      /^task +length +n +accuracy +TTFT +decode +KV cache\npet +512 +3 +\d+ % +\d+ ms +\d+ tok\/s +[\d.]+ MiB\n$/,
    )
  })

  it('names file and line of what it cannot read', async () => {
    const bad = join(folder, 'bad.jsonl')
    writeFileSync(bad, '{"task": "a"}\n')
    const done = await kvasir(['eval', '--data', bad, '-t', '1'])
    assert.equal(done.code, 1)
    assert.match(done.stderr, /bad\.jsonl:1: "length" must be a number/)
  })
})
