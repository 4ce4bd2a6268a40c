import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { json, kvasir } from './process.fixture.ts'

describe('kvasir bench', () => {
  it('parity: a table for people, rows for programs', async () => {
    const table = await kvasir(['bench', 'parity', '--model', 'house', '-t', '1'])
    assert.equal(table.code, 0, table.stderr)
    assert.match(table.stdout, /^model +type +cache +max \|logit diff\| .*\nhouse +q8_0 +f16 .* 32\/32\n$/)
    const { rows, ...rest } = json(await kvasir(['bench', 'parity', '--model', 'house', '-t', '1', '--json']))
    assert.deepEqual(rest, {})
    assert.equal(rows.length, 1)
    assert.equal(rows[0].model, 'house')
    assert.equal(rows[0].greedy_agree, 32)
  })

  it('speed: prefill and decode for each context', async () => {
    const args = ['bench', 'speed', '--shape', 'house', '--context', '256,300', '--rounds', '1', '-t', '1', '--json']
    const { rows } = json(await kvasir(args))
    assert.deepEqual(
      rows.map((r: { metric: string; context: number }) => [r.metric, r.context]),
      [
        ['prefill', 256],
        ['decode', 256],
        ['prefill', 300],
        ['decode', 300],
      ],
    )
  })

  it('exactness: every lowering beside libllama', async () => {
    const args = ['bench', 'exactness', '--keys', '512', '--queries', '1', '--cache-types', 'f16', '-t', '1', '--json']
    const { rows } = json(await kvasir(args))
    assert.ok(rows.length > 0)
    for (const row of rows) {
      assert.equal(row.keys, 512)
      assert.equal(row.cache_type, 'f16')
      assert.ok(row.rms_rel_error >= 0 && row.rms_rel_error < 0.1, JSON.stringify(row))
    }
    assert.ok(rows.some((r: { lowering: string }) => r.lowering === 'libllama'))
  })

  it('refuses what it does not know', async () => {
    for (const [args, says] of [
      [['parity', '--model', 'hous'], /there is no "hous"; did you mean house\?/],
      [['parity', '--type', 'q9'], /--type: there is no "q9"/],
      [['speed', '--context', 'x'], /--context is NaN; it must be a whole number/],
    ] as const) {
      const failed = await kvasir(['bench', ...args])
      assert.equal(failed.code, 1)
      assert.match(failed.stderr, says)
    }
    assert.equal((await kvasir(['bench', 'spede'])).code, 2)
  })
})
