import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
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
    const { accuracy, kv_bytes, ...rest } = rows[0]
    assert.deepEqual(rest, { policy: 'full', budget: 1, task: 'pet', length: 512, n: 2 })
    assert.ok([0, 0.5, 1].includes(accuracy) && kv_bytes > 1e6)
  })

  it('prints a table without', async () => {
    const done = await kvasir(['eval', '--data', data, '-t', '1'])
    assert.equal(done.code, 0, done.stderr)
    assert.match(done.stdout, /^task +length +n +accuracy +KV cache\npet +512 +3 +\d+ % +[\d.]+ MiB\n$/)
  })

  it('names file and line of what it cannot read', async () => {
    const bad = join(folder, 'bad.jsonl')
    writeFileSync(bad, '{"task": "a"}\n')
    const done = await kvasir(['eval', '--data', bad, '-t', '1'])
    assert.equal(done.code, 1)
    assert.match(done.stderr, /bad\.jsonl:1: "length" must be a number/)
  })
})
