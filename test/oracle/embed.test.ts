/**
 * Embeddings against libllama's: the same file and text, in one batch, pooled there by its own graph. States agree bit for bit
 * with the `flash` lowering; what is left is the mean, f32 there and f64 here, and products of one row instead of all.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { randomModelFile } from '../../bench/cache-folder.ts'
import { PARITY_SHAPES } from '../../bench/parity.ts'
import { Peer } from '../../bench/peer.ts'
import { Random } from '../../bench/random-model.ts'
import { POOLINGS, type Pooling } from '../../src/engine/embed.ts'
import { LocalEngine } from '../../src/engine/local.ts'
import { modelPath } from '../../src/engine/options.ts'

/**
 * Largest difference of an element, relative to the largest element. Worst measured: 1.9e-7 for means; 2.7e-6 for the last of 33
 * rows (qwen3: another f16 kernel for one row than for many); 0 for the house model's last row.
 */
const TOLERANCE = 1e-5
const LENGTHS = [1, 7, 33, 300]

describe('embeddings equal libllama', () => {
  const folder = mkdtempSync(join(tmpdir(), 'kvasir-embed-'))
  const saved = process.env['KVASIR_CACHE']
  before(() => {
    process.env['KVASIR_CACHE'] = folder
  })
  after(() => {
    if (saved === undefined) delete process.env['KVASIR_CACHE']
    else process.env['KVASIR_CACHE'] = saved
    rmSync(folder, { recursive: true })
  })

  for (const pooling of POOLINGS) {
    it(`house q8_0, ${pooling}`, () => expectSame(modelPath('house'), pooling))
    // Gemma scales what it embeds, has norms behind its blocks and windows: another way to the last state.
    for (const name of ['gemma3', 'qwen3'])
      it(`${name} f16, ${pooling}`, async () => {
        const shape = PARITY_SHAPES[name]!
        await expectSame(await randomModelFile({ ...shape, name: `embed-${name}`, type: 'f16' }), pooling)
      })
  }
})

async function expectSame(path: string, pooling: Pooling): Promise<void> {
  await using engine = await LocalEngine.load(path, { threads: 1, contextLength: 512, lowering: 'flash' })
  using peer = await Peer.load(path, { contextLength: 512, chunk: 512, threads: 1, pooling })
  const random = new Random(11)
  for (const length of LENGTHS) {
    const tokens = Int32Array.from({ length }, () => 3 + Math.floor(random.uniform() * (engine.info.vocabSize - 3)))
    const { vector, ...rest } = await engine.embed({ tokens, pooling, normalize: false })
    assert.deepEqual([rest.tokens, rest.pooling, vector.length], [length, pooling, engine.info.width])
    const theirs = peer.embed(tokens)
    const largest = theirs.reduce((most, x) => Math.max(most, Math.abs(x)), 0)
    assert.ok(largest > 0.1, `states that are all but zero prove nothing: ${largest}`)
    const off = theirs.reduce((most, x, i) => Math.max(most, Math.abs(x - vector[i]!)), 0) / largest
    assert.ok(off <= TOLERANCE, `${pooling} of ${length} tokens: off by ${off}`)
  }
}
