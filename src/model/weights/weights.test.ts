/** Where weights lie, and which of them are stacked. */
import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import { modelPath } from '../../engine/options.ts'
import { cpuDevice } from '../../ggml/device.ts'
import type { GgufTensor } from '../../ggml/gguf/index.ts'
import { loadNative } from '../../ggml/library.ts'
import { liveNatives } from '../../ggml/owned.ts'
import { type GgmlType, rowBytes } from '../../ggml/types.ts'
import { Model } from '../model.ts'
import { placedBytes, placementOf } from './load.ts'
import { PlaceChooser, type PlacedWeight, placeWeights } from './place.ts'
import { stackWeights } from './stack.ts'

before(() => loadNative())

const tensor = (name: string, type: GgmlType, ...sizes: number[]): GgufTensor => {
  const ne = [sizes[0]!, sizes[1] ?? 1, 1, 1] as const
  return { name, type, ne, nDims: sizes.length, bytes: rowBytes(type, ne[0]) * ne[1], part: 0, offset: 0 }
}

/** A layer in plain memory, `types` by key. */
function layer(types: Record<string, GgmlType>): PlacedWeight[] {
  const chooser = new PlaceChooser(cpuDevice(), true)
  return Object.entries(types).map(([key, type]) => {
    const bias = key.endsWith('Bias')
    const t = bias ? tensor(key, type, 64) : tensor(key, type, 256, 64)
    const role = bias ? 'vector' : 'matrix'
    return { key, layer: 0, parts: [t], role, ...chooser.choose(t.type, t.ne, role) }
  })
}

const keysOf = (types: Record<string, GgmlType>) =>
  stackWeights([layer(types)], new PlaceChooser(cpuDevice(), true)).map((p) => p.key)

describe('stacks', () => {
  const qkv = { q: 'q8_0', k: 'q8_0', v: 'q8_0' } as const
  const biases = { qBias: 'f32', kBias: 'f32', vBias: 'f32' } as const

  it('join weights of one type', () => {
    assert.deepEqual(keysOf({ ...qkv, o: 'q8_0', gate: 'f16', up: 'f16' }), ['o', 'qkv', 'gateUp'])
    assert.deepEqual(keysOf({ ...qkv, ...biases }), ['qkv', 'qkvBias'])
  })

  it('leave weights of several types, and those with some biases only, as they are', () => {
    assert.deepEqual(keysOf({ ...qkv, v: 'q6_K' }), ['q', 'k', 'v'])
    assert.deepEqual(keysOf({ ...qkv, qBias: 'f32' }), ['q', 'k', 'v', 'qBias'])
    assert.deepEqual(keysOf({ gate: 'q4_0', up: 'q8_0' }), ['gate', 'up'])
  })

  it('are not made where the copies would be too large', () => {
    const big = { ...layer({ gate: 'f16' })[0]!, place: 'mapped file' as const }
    const part = { ...tensor('w', 'f16', 8192, 65600) }
    const weights = ['gate', 'up'].map((key) => ({ ...big, key, parts: [part], bytes: part.bytes }))
    const chooser = {
      choose: () => ({ place: 'mapped file' as const, bytes: 2 * part.bytes }),
    } as unknown as PlaceChooser
    assert.deepEqual(
      stackWeights([weights], chooser).map((p) => p.key),
      ['gate', 'up'],
    )
  })
})

describe('the house model', () => {
  it('takes the bytes of its tensors, tied embeddings once', () => {
    const { file, architecture, config } = Model.describe(modelPath('house'))
    const placed = placeWeights(file, architecture, config, cpuDevice(), true)
    // Packed copies can be larger, and where tied embeddings are packed there are two of them.
    const bytes = [...file.tensors.values()].reduce((sum, t) => sum + t.bytes, 0)
    assert.ok(placedBytes(placed) >= bytes && placedBytes(placed) < 1.5 * bytes, `${placedBytes(placed)} of ${bytes}`)
    assert.equal(
      placementOf(placed).reduce((sum, p) => sum + p.bytes, 0),
      placedBytes(placed),
    )
  })

  it('loads with progress to the end, and frees all', async () => {
    const natives = liveNatives()
    const seen: [number, number][] = []
    const onProgress = (done: number, total: number) => void seen.push([done, total])
    const model = await Model.load(modelPath('house'), () => ({ device: cpuDevice(), contextLength: 512, onProgress }))
    assert.ok(seen.length > 10 && seen.every(([done], i) => i === 0 || done > seen[i - 1]![0]))
    assert.equal(seen.at(-1)![0], seen.at(-1)![1])
    model[Symbol.dispose]()
    assert.deepEqual(liveNatives(), natives)
  })
})
