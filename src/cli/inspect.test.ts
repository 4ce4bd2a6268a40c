import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { str, u32, writeGguf } from '../ggml/gguf/index.ts'
import { json, kvasir } from './process.fixture.ts'

describe('kvasir inspect', () => {
  let folder: string
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'kvasir-inspect-'))
  })
  after(() => rmSync(folder, { recursive: true }))

  it('describes the house model', async () => {
    const done = await kvasir(['inspect', '--json'])
    const d = json(done)
    assert.equal(d.architecture, 'llama')
    assert.equal(d.supported, true)
    assert.equal(d.unsupported_reason, null)
    assert.equal(d.context_length, 8192)
    assert.equal(d.tensors, 56)
    assert.ok(d.parameters > 5e6 && d.parameters < 6e6)
    assert.equal(
      d.types.reduce((n: number, t: { tensors: number }) => n + t.tensors, 0),
      56,
    )
    assert.ok(d.placement.length > 0)
    assert.deepEqual(
      d.memory.map((row: { context: number }) => row.context),
      [2048, 8192],
    )
    // 6 layers, 2 heads of 64, keys and values, 2 bytes each.
    assert.equal(d.memory[1].kv_bytes.f16, 8192 * 6 * 2 * 64 * 2 * 2)
    assert.equal(d.memory[1].total_bytes.f16, d.memory[1].kv_bytes.f16 + d.memory[1].weights_bytes)
    assert.ok(!('tensor_list' in d))
  })

  it('lists tensors, and is readable', async () => {
    const d = json(await kvasir(['inspect', 'house', '--json', '--tensors']))
    assert.equal(d.tensor_list.length, 56)
    assert.deepEqual(Object.keys(d.tensor_list[0]), ['name', 'type', 'ne', 'bytes', 'part'])
    const text = await kvasir(['inspect', '--tensors'])
    assert.match(text.stdout, /supported +yes/)
    assert.match(text.stdout, /blk\.5\.ffn_down\.weight +q8_0 +\[704, 256\]/)
  })

  it('says why a model does not run here, and what is known all the same', async () => {
    const path = join(folder, 'strange.gguf')
    const metadata = {
      'general.architecture': str('lama'),
      'lama.context_length': u32(4096),
      'lama.block_count': u32(2),
    }
    const data = new Uint8Array(32 * 4)
    const tensors = [{ name: 'token_embd.weight', type: 'f32', ne: [8, 4], data: () => data }] as const
    writeGguf(path, { metadata: new Map(Object.entries(metadata)), tensors })
    const done = await kvasir(['inspect', path, '--json'])
    assert.equal(done.code, 0, done.stderr)
    const d = json(done)
    assert.equal(d.supported, false)
    assert.match(d.unsupported_reason, /^architecture "lama" is not known here \(the nearest is llama\)/)
    assert.equal(d.context_length, 4096)
    assert.equal(d.placement, null)
    const text = await kvasir(['inspect', path])
    assert.match(text.stdout, /supported +no: architecture "lama"/)
  })

  it('--fit: says what fits, by its exit code too', async () => {
    const good = await kvasir([
      'inspect',
      '--fit',
      '-c',
      '2048',
      '--kv-memory',
      '16MiB',
      '--max-sequences',
      '4',
      '--json',
    ])
    assert.equal(good.code, 0, good.stderr)
    const f = json(good)
    assert.equal(f.fits, true)
    assert.equal(f.problem, null)
    assert.equal(f.context, 2048)
    assert.equal(f.needed_bytes, f.weights_bytes + f.kv_bytes + f.scratch_bytes)
    assert.deepEqual(
      f.capacity.map((c: { sequences: number }) => c.sequences),
      [1, 2, 4],
    )
    // Flags that mean nothing without it stand for it.
    const bad = await kvasir(['inspect', 'house', '-c', '16000000'])
    assert.equal(bad.code, 1)
    assert.equal(bad.stderr, '')
    assert.match(bad.stdout, /\ndoes not fit: needs [^\n]* are free\. /)
    const both = await kvasir(['inspect', '--fit', '--tensors'])
    assert.equal(both.code, 2)
    const wrong = await kvasir(['inspect', '/no/such.gguf', '--fit', '--json'])
    assert.equal(wrong.code, 1)
    assert.equal(json(wrong).error.code, 'MODEL_NOT_FOUND')
  })
})
