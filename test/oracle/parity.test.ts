/**
 * Logits against libllama: bit-identical for every architecture, in every weight type, prompt and greedy steps. What
 * `kvasir bench parity` reports, held. By default in two of the weight types; in all of them with KVASIR_LONG=1.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { PARITY_SHAPES, PARITY_TYPES, type ParityOptions, parity } from '../../bench/parity.ts'
import { CACHE_TYPES, type CacheType } from '../../src/cache/arena.ts'
import { isQuantized } from '../../src/ggml/types.ts'

const TYPES = process.env['KVASIR_LONG'] ? PARITY_TYPES : (['q8_0', 'q4_K'] as const)
const QUANTISED = CACHE_TYPES.filter((type) => isQuantized(type))
const CACHES: readonly CacheType[] = process.env['KVASIR_LONG'] ? QUANTISED : ['q8_0', 'q4_0']

describe('logits equal libllama bit for bit with the flash lowering', () => {
  const folder = mkdtempSync(join(tmpdir(), 'kvasir-parity-'))
  const saved = process.env['KVASIR_CACHE']
  before(() => {
    process.env['KVASIR_CACHE'] = folder
  })
  after(() => {
    if (saved === undefined) delete process.env['KVASIR_CACHE']
    else process.env['KVASIR_CACHE'] = saved
    rmSync(folder, { recursive: true })
  })

  // With two threads the fused op splits long keys between them: another order of summation, the same on both sides.
  it('house q8_0, one thread and two', async () => {
    await expectSame('house', 1, 1)
    await expectSame('house', 1, 2)
  })
  for (const model of Object.keys(PARITY_SHAPES))
    it(`${model}: ${TYPES.join(', ')}`, () => expectSame(model, TYPES.length, 1))

  // Heads of 64, of 128 (whose values libllama rotates half by half), and of 32, which it does not rotate; soft caps and windows.
  for (const model of ['house', 'qwen3', 'llama', 'gemma2'])
    it(`${model}, quantised caches: ${CACHES.join(', ')}`, () =>
      expectSame(model, CACHES.length, 1, { types: ['q8_0'], cacheTypes: CACHES }))
})

async function expectSame(model: string, rows: number, threads: number, options: ParityOptions = {}) {
  const got = await parity({ models: [model], types: TYPES, threads, ...options })
  assert.equal(got.length, rows)
  for (const row of got) {
    assert.equal(row.max_abs_logit_diff, 0, JSON.stringify(row))
    assert.equal(row.greedy_agree, row.greedy_of, JSON.stringify(row))
    assert.ok(row.logit_range > 1, `logits that hardly differ prove nothing: ${JSON.stringify(row)}`)
  }
}
