/**
 * Decides where each weight lies: in the first buffer type that can run its matrix product, best first: the GPU, AMX,
 * CPU_REPACK; else in plain memory, where the mapped file is used as it is.
 */
import { KvasirError } from '../../contract/errors.ts'
import { type BufferType, hostBufferType, supportsWeight } from '../../ggml/buffer.ts'
import { Context } from '../../ggml/context.ts'
import { cpuDevice, type Device } from '../../ggml/device.ts'
import type { GgufFile, GgufTensor } from '../../ggml/gguf/index.ts'
import { mulMat } from '../../ggml/ops/index.ts'
import { type Four, four } from '../../ggml/tensor.ts'
import { type GgmlType, isQuantized } from '../../ggml/types.ts'
import { type Architecture, globalWeights, type WeightSpec, type WeightSpecs } from '../architecture.ts'
import type { ModelConfig } from '../config.ts'
import { stackWeights } from './stack.ts'

/** What a weight is used for decides where it may lie. */
export type Role = 'lookup' | 'matrix' | 'vector'

/** The mapped file itself, or a buffer of some type. */
export type Place = 'mapped file' | BufferType

export interface PlacedWeight {
  /** `tokenEmbeddings`, or `q` of a layer: the key in its spec table; or the name of a stack. */
  readonly key: string
  /** Layer, or -1 for a global weight. */
  readonly layer: number
  /** Tensors of the file whose rows follow each other; one, but for stacks. */
  readonly parts: readonly GgufTensor[]
  readonly role: Role
  readonly place: Place
  /** Bytes that it takes there. */
  readonly bytes: number
}

/**
 * @throws KvasirError MODEL_INVALID for a missing weight or a wrong shape, MODEL_UNSUPPORTED for weights or types that the
 *   architecture does not know (running without them would be silently wrong).
 */
export function placeWeights(
  file: GgufFile,
  architecture: Architecture,
  config: ModelConfig,
  device: Device,
  mapped: boolean,
): PlacedWeight[] {
  const chooser = new PlaceChooser(device, mapped)
  const used = new Set<string>()
  const take = (specs: WeightSpecs, layer: number, prefix: string): PlacedWeight[] =>
    Object.entries(specs).flatMap(([key, spec]) => {
      const tensor = find(file, prefix + spec.name, spec)
      if (!tensor) return []
      used.add(tensor.name)
      const role: Role = key === 'tokenEmbeddings' ? 'lookup' : spec.ne.length === 2 ? 'matrix' : 'vector'
      checkType(file, tensor, role)
      return [{ key, layer, parts: [tensor], role, ...chooser.choose(tensor.type, tensor.ne, role) }]
    })
  const global = take(globalWeights(config), -1, '')
  const layers = Array.from({ length: config.layers }, (_, layer) =>
    take(architecture.layerWeights(config), layer, `blk.${layer}.`),
  )
  refuseUnknown(file, used)

  if (!global.some((p) => p.key === 'output')) {
    const embeddings = file.tensors.get('token_embd.weight')!
    const choice = chooser.choose(embeddings.type, embeddings.ne, 'matrix')
    global.push({ key: 'output', layer: -1, parts: [embeddings], role: 'matrix', ...choice })
  }
  // Stacks save CPU threads from waiting; other devices have no use for them.
  return [...global, ...(device.kind === 'cpu' ? stackWeights(layers, chooser) : layers.flat())]
}

function find(file: GgufFile, name: string, spec: WeightSpec): GgufTensor | null {
  const tensor = file.tensors.get(name)
  const details = { file: file.path, tensor: name }
  if (!tensor) {
    if (spec.optional) return null
    throw new KvasirError('MODEL_INVALID', `${file.path}: there is no tensor "${name}"`, details)
  }
  const want = four(spec.ne)
  if (tensor.ne.some((n, i) => n !== want[i]))
    throw new KvasirError(
      'MODEL_INVALID',
      `${file.path}: tensor "${name}" is [${tensor.ne}], the metadata makes it [${want}]`,
      details,
    )
  return tensor
}

function checkType(file: GgufFile, tensor: GgufTensor, role: Role): void {
  if (role === 'vector' && tensor.type !== 'f32')
    throw new KvasirError(
      'MODEL_UNSUPPORTED',
      `${file.path}: "${tensor.name}" is ${tensor.type}; only f32 is known here`,
    )
  if (role === 'matrix' && !isQuantized(tensor.type) && !['f32', 'f16', 'bf16'].includes(tensor.type))
    throw new KvasirError('MODEL_UNSUPPORTED', `${file.path}: "${tensor.name}" is ${tensor.type}: not a weight type`)
}

/** Tensors that files carry and nothing needs. */
const IGNORED = /^(blk\.\d+\.attn\.rot_embd|rope_freqs\.weight|.*\.attn_rot_embd)$/

function refuseUnknown(file: GgufFile, used: ReadonlySet<string>): void {
  const unknown = [...file.tensors.keys()].filter((name) => !used.has(name) && !IGNORED.test(name))
  if (unknown.length)
    throw new KvasirError(
      'MODEL_UNSUPPORTED',
      `${file.path}: ${unknown.length} tensors are not known for this architecture and would be left out silently: ` +
        unknown.slice(0, 4).join(', '),
      { file: file.path, unknown },
    )
}

/** Where a weight of some type and shape lies best. */
export class PlaceChooser {
  readonly #candidates: { device: Device; type: BufferType }[]
  readonly #plain: Place
  readonly #known = new Map<string, { place: Place; bytes: number }>()

  constructor(device: Device, mapped: boolean) {
    const cpu = cpuDevice()
    const packing = cpu.packingBufferTypes().map((type) => ({ device: cpu, type }))
    this.#candidates = device.kind === 'cpu' ? packing : [{ device, type: device.bufferType }, ...packing]
    this.#plain = mapped ? 'mapped file' : hostBufferType()
  }

  choose(type: GgmlType, ne: Four, role: Role): { place: Place; bytes: number } {
    const id = `${role} ${type} ${ne}`
    let choice = this.#known.get(id)
    if (!choice) this.#known.set(id, (choice = this.#ask(type, ne, role)))
    return choice
  }

  #ask(type: GgmlType, ne: Four, role: Role): { place: Place; bytes: number } {
    using c = new Context({ tensors: 3 })
    const weight = c.tensor(type, ...ne)
    const op = role === 'matrix' ? mulMat(c, weight, c.tensor('f32', ne[0], 512)) : null
    const found = this.#candidates.find((candidate) =>
      op
        ? supportsWeight(candidate.device.ptr, candidate.type, weight, op)
        : role === 'vector' && !candidate.type.isPacking,
    )
    return found
      ? { place: found.type, bytes: found.type.allocBytes(weight) }
      : { place: this.#plain, bytes: weight.bytes }
  }
}
