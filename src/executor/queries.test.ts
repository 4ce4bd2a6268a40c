/** Rotated queries as an output: with the cached keys they give the attention that was observed. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { readRows } from '../cache/rows.ts'
import { KvStore } from '../cache/store.ts'
import type { WorkOutputs } from '../contract/work-item.ts'
import { Backend, SingleRunner } from '../ggml/backend.ts'
import { cpuDevice } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import { Model } from '../model/model.ts'
import { Executor } from './run.ts'
import { storeShape } from './store-shape.ts'

const HOUSE = fileURLToPath(new URL('../../models/house-5m/house-5m-q8_0.gguf', import.meta.url))
const ROWS = 50
const tokens = Int32Array.from({ length: ROWS }, (_, i) => 300 + ((i * 7919) % 3000))

let model: Model
let store: KvStore
let executor: Executor
before(async () => {
  await loadNative()
  model = await Model.load(HOUSE, () => ({ device: cpuDevice(), contextLength: 256 }))
  const kv = { cells: 256, keyType: 'f32', valueType: 'f32', lowering: 'auto' } as const
  store = new KvStore(storeShape(model.config, kv, model.device), model.device)
  executor = new Executor(model, store, { threads: 1, lowering: 'auto' })
})
after(() => {
  executor[Symbol.dispose]()
  store[Symbol.dispose]()
  model[Symbol.dispose]()
})

async function run(outputs: WorkOutputs) {
  const rows = store.create(ROWS)
  const positions = Int32Array.from(tokens, (_, i) => i)
  store.append(rows, positions)
  const { items } = await executor.run({
    items: [
      {
        sequence: rows.id,
        positions,
        store: { kind: 'tail' },
        layers: { from: 0, to: model.config.layers },
        input: { kind: 'tokens', tokens },
        outputs,
        mask: { kind: 'causal' },
      },
    ],
  })
  return { rows, result: items[0]! }
}

const logits = [ROWS - 1]

test('queries and cached keys give the observed probabilities', async () => {
  const { heads: H, kvHeads, headDim: d, layers, attentionScale } = model.config
  const observe = { rows: { from: ROWS - 1, to: ROWS }, statistics: ['sum'] } as const
  const { rows, result } = await run({ logits, hidden: false, queries: true, observe })
  using backend = new Backend(cpuDevice(), 1)
  using runner = new SingleRunner(backend)
  const cells = [...tokens.keys()]
  assert.equal(result.queries!.length, layers)
  for (let layer = 0; layer < layers; layer++) {
    const queries = result.queries![layer]!
    assert.equal(queries.length, d * H * ROWS)
    const { keys } = readRows(runner, store, rows, layer, 'all', cells)
    for (let h = 0; h < H; h++) {
      const q = queries.subarray(((ROWS - 1) * H + h) * d, ((ROWS - 1) * H + h + 1) * d)
      const first = Math.floor(h / (H / kvHeads)) * ROWS
      const e = cells.map((j) => {
        const score = q.reduce((sum, x, i) => sum + x * keys[(first + j) * d + i]!, 0)
        return Math.exp(score * attentionScale)
      })
      const sum = e.reduce((a, b) => a + b, 0)
      const seen = result.observed![layer]!.statistics.sum!.subarray(h * ROWS, (h + 1) * ROWS)
      for (const j of cells)
        assert.ok(
          Math.abs(e[j]! / sum - seen[j]!) < 1e-4,
          `layer ${layer}, head ${h}, key ${j}: ${e[j]! / sum}, ${seen[j]}`,
        )
    }
  }
  store.free(rows)
})

test('they change nothing else', async () => {
  const plain = await run({ logits, hidden: false })
  assert.equal(plain.result.queries, null)
  const want = plain.result.logits!.slice()
  store.free(plain.rows)
  const asked = await run({ logits, hidden: false, queries: true })
  assert.deepEqual(asked.result.logits!.slice(), want)
  store.free(asked.rows)
})
