/** Brings placed weights into memory. */
import { Buffer } from '../../ggml/buffer.ts'
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
      const total = placed.reduce((sum, p) => sum + p.bytes, 0)
      const byKey = { global: {}, layers: Array.from({ length: layers }, () => ({})) } as {
        global: Record<string, Tensor>
        layers: Record<string, Tensor>[]
      }
      const report: WeightReport[] = []
      let loaded = 0
      for (const group of groupByPlace(placed)) {
        const tensors = allocate(group, source, owned, (p) => onProgress?.((loaded += p.bytes), total))
        for (const [i, p] of group.entries()) (p.layer < 0 ? byKey.global : byKey.layers[p.layer]!)[p.key] = tensors[i]!
        report.push(...placementOf(group))
      }
      return new Weights(byKey.global, byKey.layers, report, owned)
    } catch (error) {
      for (const o of owned.reverse()) o[Symbol.dispose]()
      throw error
    }
  }

  [Symbol.dispose](): void {
    for (const o of [...this.#owned].reverse()) o[Symbol.dispose]()
  }
}

const placeName = (p: PlacedWeight) =>
  p.place === 'mapped file' ? p.place : p.place.isHost ? 'host memory' : p.place.name

/** Tensors and bytes by where they lie, most bytes first. A tensor that is used twice counts once. */
export function placementOf(placed: readonly PlacedWeight[]): WeightReport[] {
  const places = new Map<string, Map<string, number>>()
  for (const p of placed) {
    const where = placeName(p)
    if (!places.has(where)) places.set(where, new Map())
    places.get(where)!.set(p.parts.map((t) => t.name).join(), p.bytes)
  }
  return [...places]
    .map(([where, sizes]) => ({
      where,
      tensors: sizes.size,
      bytes: [...sizes.values()].reduce((sum, n) => sum + n, 0),
    }))
    .sort((a, b) => b.bytes - a.bytes)
}

/** Bytes that all of them take together. */
export function placedBytes(placed: readonly PlacedWeight[]): number {
  return placementOf(placed).reduce((sum, p) => sum + p.bytes, 0)
}

function groupByPlace(placed: readonly PlacedWeight[]): PlacedWeight[][] {
  const groups = new Map<string, PlacedWeight[]>()
  for (const p of placed) {
    const where = p.place === 'mapped file' ? p.place : p.place.name
    if (!groups.has(where)) groups.set(where, [])
    groups.get(where)!.push(p)
  }
  return [...groups.values()]
}

/** Tensors of one place, in the order of `group`; equal ones (tied embeddings) are one tensor. */
function allocate(
  group: readonly PlacedWeight[],
  source: WeightSource,
  owned: Disposable[],
  onLoaded: (p: PlacedWeight) => void,
): Tensor[] {
  const c = new Context({ tensors: group.length })
  owned.push(c)
  const made = new Map<string, Tensor>()
  const isNew: boolean[] = []
  const tensors = group.map((p) => {
    const name = p.parts.map((t) => t.name).join('+')
    const known = made.get(name)
    isNew.push(!known)
    if (known) return known
    const { ne, type } = p.parts[0]!
    const along = p.role === 'vector' ? 0 : 1
    const sizes = ne.map((n, i) => (i === along ? p.parts.reduce((sum, t) => sum + t.ne[along], 0) : n))
    const tensor = c.tensor(type, ...sizes)
    if (p.parts.length === 1) tensor.named(name)
    made.set(name, tensor)
    return tensor
  })

  const { place } = group[0]!
  if (place === 'mapped file') {
    const buffers = source.mappings.map((m) => Buffer.overMemory(m.ptr, m.bytes).holdsWeights())
    owned.push(...buffers)
    for (const [i, p] of group.entries()) {
      const [part] = p.parts
      if (isNew[i]) buffers[part!.part]!.bind(tensors[i]!, source.address(part!))
      onLoaded(p)
    }
    return tensors
  }
  owned.push(Buffer.forContext(c, place).holdsWeights())
  for (const [i, p] of group.entries()) {
    if (isNew[i]) fill(tensors[i]!, p, source)
    onLoaded(p)
  }
  return tensors
}

/** Packed weights must be set whole: the rows of a stack are brought together first. */
function fill(tensor: Tensor, { parts }: PlacedWeight, source: WeightSource): void {
  if (parts.length === 1) {
    ffi.ggml_backend_tensor_set(tensor.ptr, source.data(parts[0]!), 0, parts[0]!.bytes)
    return
  }
  const whole = new Uint8Array(parts.reduce((sum, t) => sum + t.bytes, 0))
  let at = 0
  for (const part of parts) {
    whole.set(source.bytes(part), at)
    at += part.bytes
  }
  tensor.set(whole)
}
