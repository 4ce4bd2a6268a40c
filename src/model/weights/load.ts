/** Brings placed weights into memory. */
import { Buffer, hostBufferType } from '../../ggml/buffer.ts'
import { Context } from '../../ggml/context.ts'
import type { GgufFile } from '../../ggml/gguf/index.ts'
import { ffi } from '../../ggml/library.ts'
import type { Tensor } from '../../ggml/tensor.ts'
import type { PlacedWeight } from './place.ts'
import { WeightSource } from './source.ts'

export type LoadProgress = (loadedBytes: number, totalBytes: number) => void

export interface WeightReport {
  /** Buffer type, e.g. `CPU_REPACK`, or `mapped file`. */
  readonly where: string
  readonly tensors: number
  readonly bytes: number
}

export class Weights implements Disposable {
  /** By key; see {@link PlacedWeight.key}. */
  readonly global: Readonly<Record<string, Tensor>>
  readonly layers: readonly Readonly<Record<string, Tensor>>[]
  readonly report: readonly WeightReport[]
  readonly #owned: readonly Disposable[]

  private constructor(
    global: Record<string, Tensor>,
    layers: Record<string, Tensor>[],
    report: WeightReport[],
    owned: Disposable[],
  ) {
    this.global = global
    this.layers = layers
    this.report = report
    this.#owned = owned
  }

  static load(file: GgufFile, placed: readonly PlacedWeight[], layers: number, onProgress?: LoadProgress): Weights {
    const owned: Disposable[] = []
    try {
      const source = new WeightSource(file)
      owned.push(source)
      const total = placed.reduce((sum, p) => sum + p.tensor.bytes, 0)
      const byKey = { global: {}, layers: Array.from({ length: layers }, () => ({})) } as {
        global: Record<string, Tensor>
        layers: Record<string, Tensor>[]
      }
      const report: WeightReport[] = []
      let loaded = 0
      for (const group of groupByPlace(placed)) {
        const { context, where } = allocate(group, source, owned)
        for (const p of group) {
          const t = context.get(p.tensor.name)!
          ;(p.layer < 0 ? byKey.global : byKey.layers[p.layer]!)[p.key] = t
          onProgress?.((loaded += p.tensor.bytes), total)
        }
        const tensors = [...context.values()]
        const bytes = (t: Tensor) => group[0]!.type?.allocBytes(t) ?? t.bytes
        report.push({ where, tensors: tensors.length, bytes: tensors.reduce((sum, t) => sum + bytes(t), 0) })
      }
      return new Weights(byKey.global, byKey.layers, report, owned)
    } catch (error) {
      for (const o of owned.reverse()) o[Symbol.dispose]()
      throw error
    }
  }

  /** Bytes by where they lie, largest first. */
  [Symbol.dispose](): void {
    for (const o of [...this.#owned].reverse()) o[Symbol.dispose]()
  }
}

function groupByPlace(placed: readonly PlacedWeight[]): PlacedWeight[][] {
  const groups = new Map<string, PlacedWeight[]>()
  for (const p of placed) {
    const where = p.type?.name ?? ''
    if (!groups.has(where)) groups.set(where, [])
    groups.get(where)!.push(p)
  }
  return [...groups.values()]
}

function allocate(group: PlacedWeight[], source: WeightSource, owned: Disposable[]) {
  const names = new Map(group.map((p) => [p.tensor.name, p.tensor]))
  const c = new Context({ tensors: names.size })
  owned.push(c)
  const context = new Map([...names].map(([name, t]) => [name, c.tensor(t.type, ...t.ne).named(name)]))
  const type = group[0]!.type
  if (!type && source.mappings.length) {
    const buffers = source.mappings.map((m) => Buffer.overMemory(m.ptr, m.bytes).holdsWeights())
    owned.push(...buffers)
    for (const [name, t] of context) buffers[names.get(name)!.part]!.bind(t, source.address(names.get(name)!))
    return { context, where: 'mapped file' }
  }
  owned.push(Buffer.forContext(c, type ?? hostBufferType()).holdsWeights())
  for (const [name, t] of context) {
    const file = names.get(name)!
    ffi.ggml_backend_tensor_set(t.ptr, source.data(file), 0, file.bytes)
  }
  return { context, where: type?.name ?? 'host memory' }
}
