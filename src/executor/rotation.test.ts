/** Quantised rows lie rotated in the store, and attention does not notice. Heads of 128: values are rotated half by half. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { writeRandomModel } from '../../bench/random-model.ts'
import type { CacheType } from '../cache/arena.ts'
import { rotate } from '../cache/rotation.ts'
import { readRows } from '../cache/rows.ts'
import { KvStore } from '../cache/store.ts'
import type { WorkItem, WorkResult } from '../contract/work-item.ts'
import { cpuDevice } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import { Model } from '../model/model.ts'
import { LOWERINGS, type LoweringName } from './lower/lowering.ts'
import { Executor } from './run.ts'
import { storeShape } from './store-shape.ts'

const [D, LAYERS, ROWS] = [128, 2, 40]
const folder = mkdtempSync(join(tmpdir(), 'kvasir-rotation-'))
let natives: Record<string, number>
let model: Model

before(async () => {
  await loadNative()
  natives = liveNatives()
  await writeRandomModel(join(folder, 'wide.gguf'), {
    ...{ name: 'wide', architecture: 'llama', layers: LAYERS, width: 128, heads: 4, kvHeads: 2, headDim: D },
    ...{ ffWidth: 256, vocab: 512, type: 'f16', tied: false },
  })
  model = await Model.load(join(folder, 'wide.gguf'), () => ({ device: cpuDevice(), contextLength: 256 }))
})
after(() => {
  model[Symbol.dispose]()
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

interface Read {
  readonly results: readonly WorkResult[]
  readonly keys: readonly Float32Array[]
  readonly values: readonly Float32Array[]
}

/** A prompt and two tokens one by one: what came out, and what lies in the store. */
async function read(keyType: CacheType, valueType: CacheType, lowering: LoweringName = 'auto'): Promise<Read> {
  const shape = storeShape(model.config, { cells: 256, keyType, valueType, lowering }, model.device)
  using store = new KvStore(shape, model.device)
  using executor = new Executor(model, store, { threads: 1, lowering })
  const s = store.create(256)
  const results: WorkResult[] = []
  const whole = { store: { kind: 'tail' }, layers: { from: 0, to: LAYERS }, mask: { kind: 'causal' } } as const
  for (const [from, to] of [
    [0, ROWS - 2],
    [ROWS - 2, ROWS - 1],
    [ROWS - 1, ROWS],
  ] as const) {
    const positions = Int32Array.from({ length: to - from }, (_, i) => from + i)
    store.append(s, positions)
    const item: WorkItem = {
      ...{ ...whole, sequence: s.id, positions, outputs: { logits: [to - from - 1], hidden: false, queries: true } },
      input: { kind: 'tokens', tokens: positions.map((i) => 3 + ((i * 7919) % 500)) },
    }
    const { logits, queries, ...rest } = (await executor.run({ items: [item] })).items[0]!
    results.push({ ...rest, logits: logits!.slice(), queries: queries! })
  }
  const cells = Array.from({ length: ROWS }, (_, i) => i)
  const rows = Array.from({ length: LAYERS }, (_, layer) => readRows(executor.rowRunner, store, s, layer, 'all', cells))
  return { results, keys: rows.map((r) => r.keys), values: rows.map((r) => r.values) }
}

function difference(a: Float32Array, b: Float32Array): number {
  const square = (f: (i: number) => number) => a.reduce((sum, _, i) => sum + f(i) ** 2, 0)
  return Math.sqrt(square((i) => a[i]! - b[i]!) / square((i) => b[i]!))
}

for (const [keyType, valueType] of [
  ['q8_0', 'q8_0'],
  ['q8_0', 'f32'],
  ['f32', 'q8_0'],
] as const)
  for (const lowering of LOWERINGS)
    test(`${keyType} keys, ${valueType} values, ${lowering}`, async () => {
      const [want, got] = [await read('f32', 'f32'), await read(keyType, valueType, lowering)]
      for (const what of ['keys', 'values'] as const) {
        const isRotated = (what === 'keys' ? keyType : valueType) === 'q8_0'
        const off = difference(got[what][0]!, want[what][0]!)
        assert.ok(off > 0.5 === isRotated, `${what} as they lie there: ${off}`)
        for (let layer = 0; layer < LAYERS; layer++) {
          const rows = got[what][layer]!
          if (isRotated) rotate(rows, what === 'keys' ? D : 64)
          const off = difference(rows, want[what][layer]!)
          assert.ok(off < 2e-2, `${what} of layer ${layer}: ${off}`)
        }
      }
      for (const [i, { logits, queries }] of got.results.entries()) {
        const off = difference(logits!, want.results[i]!.logits!)
        assert.ok(off < 3e-2, `logits ${i}: ${off}`)
        for (const [layer, own] of queries!.entries()) {
          const off = difference(own, want.results[i]!.queries![layer]!)
          assert.ok(off < 2e-2, `queries ${i}, layer ${layer}: ${off}`)
        }
      }
    })
