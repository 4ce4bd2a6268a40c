/** The policy of docs/writing-a-policy.md, as anyone would use it: by its file. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { choosePolicy, Engine, type GenerateRequest, type ObservedLayer } from '../../src/index.ts'
import { makeDocument } from '../document.ts'
import passages from './passages.ts'

const FILE = 'examples/policies/passages.ts'
const model = { layers: 1, heads: 2, kvHeads: 1, headDim: 8 }

describe('a policy of one’s own', () => {
  it('is fewer than 60 lines, and the guide shows them', () => {
    const text = readFileSync(FILE, 'utf8').trimEnd()
    assert.ok(text.split('\n').length < 60)
    const shown = text.replace("'../../src/index.ts'", "'kvasir'")
    assert.ok(
      readFileSync('docs/writing-a-policy.md', 'utf8').includes(shown),
      'docs/writing-a-policy.md has another text',
    )
  })

  it('keeps the passage that is looked at, whole, and the newest rows, to the row', () => {
    const n = 40
    const sum = new Float32Array(2 * n)
    sum[13] = 1 // row 13, first query head
    sum[n + 30] = 0.5 // row 30, second one
    const layer: ObservedLayer = { keys: [n], positions: [Int32Array.from(new Array(n).keys())], statistics: { sum } }
    const keep = (budget: number, spec = {}) => {
      const options = { size: 8, window: 4, ...spec }
      const state = { model, seen: n, positions: () => layer.positions[0]!, budget, seed: 0 }
      const plan = passages.afterPrefill({ window: [layer] }, state, options)
      return plan.kind === 'keep' ? [...plan.rows[0]![0]!] : 'all'
    }
    assert.deepEqual(keep(12), [8, 9, 10, 11, 12, 13, 14, 15, 36, 37, 38, 39])
    assert.deepEqual(keep(14), [8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 36, 37, 38, 39])
    assert.deepEqual(keep(2), [38, 39])
    assert.deepEqual(keep(6, { window: 2, size: 1 }), [0, 1, 13, 30, 38, 39])
  })

  it('runs in the engine’s process, by its name and options, to its budget', async () => {
    const { text, questions } = makeDocument(1, 40)
    await using engine = await Engine.load('house', { threads: 1, contextLength: 2048, policyModules: [FILE] })
    const ask = async (request: Partial<GenerateRequest>) => {
      let answer = ''
      const messages = [{ role: 'user', content: `Here is some text. ${text}\n${questions[0]!.text}` }]
      for await (const part of engine.generate({ messages, sampling: { temperature: 0 }, maxTokens: 24, ...request })) {
        answer += part.text
        if (part.kind === 'end') return { answer, ...part.timings }
      }
      throw new Error('no end')
    }
    const full = await ask({})
    const all = await ask({ policy: 'passages', budget: 4000 })
    assert.equal(all.answer, full.answer)
    const half = await ask({ policy: 'passages?size=32', budget: 0.5 })
    assert.ok(half.kv_bytes < 0.6 * full.kv_bytes, `${half.kv_bytes} of ${full.kv_bytes}`)
    await assert.rejects(ask({ policy: 'passages?siez=32', budget: 0.5 }), {
      code: 'INVALID_ARGUMENT',
      message: /'size'/,
    })
    await assert.rejects(Engine.load('house', { policyModules: ['examples/hello.ts.missing'] }), {
      code: 'INVALID_ARGUMENT',
      message: /policy module .*missing/,
    })
  })

  it('is unknown where nobody named its file', () => {
    assert.throws(() => choosePolicy('passages'), { code: 'INVALID_ARGUMENT' })
  })
})
