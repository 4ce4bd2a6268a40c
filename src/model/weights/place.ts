/**
 * Decides where each weight lies: in the first buffer type that can run its matrix product, best first: the GPU, AMX,
 * CPU_REPACK; else in plain memory, where the mapped file is used as it is.
 */
import { KvasirError } from '../../contract/errors.ts'
import { type BufferType, supportsWeight } from '../../ggml/buffer.ts'
import { Context } from '../../ggml/context.ts'
import { cpuDevice, type Device } from '../../ggml/device.ts'
import type { GgufFile, GgufTensor } from '../../ggml/gguf/index.ts'
import { mulMat } from '../../ggml/ops/index.ts'
import { type Four, four } from '../../ggml/tensor.ts'
import { type GgmlType, isQuantized } from '../../ggml/types.ts'
import { type Architecture, globalWeights, type WeightSpec, type WeightSpecs } from '../architecture.ts'
import type { ModelConfig } from '../config.ts'

/** What a weight is used for decides where it may lie. */
export type Role = 'lookup' | 'matrix' | 'vector'

export interface PlacedWeight {
  /** `tokenEmbeddings`, or `q` of a layer: the key in its spec table. */
  readonly key: string
  /** Layer, or -1 for a global weight. */
  readonly layer: number
  readonly tensor: GgufTensor
  readonly role: Role
  /** Null: plain host memory. */
  readonly type: BufferType | null
  /** Bytes it takes there; 0 when the mapped file itself is used. */
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
  const chooser = new TypeChooser(device)
  const placed: PlacedWeight[] = []
  const used = new Set<string>()
  const take = (specs: WeightSpecs, layer: number, prefix: string) => {
    for (const [key, spec] of Object.entries(specs)) {
      const tensor = find(file, prefix + spec.name, spec)
      if (!tensor) continue
      used.add(tensor.name)
      const role: Role = key === 'tokenEmbeddings' ? 'lookup' : spec.ne.length === 2 ? 'matrix' : 'vector'
      placed.push(place(file, key, layer, tensor, role, chooser, mapped))
    }
  }
  take(globalWeights(config), -1, '')
  for (let layer = 0; layer < config.layers; layer++) take(architecture.layerWeights(config), layer, `blk.${layer}.`)
  refuseUnknown(file, used)

  if (!placed.some((p) => p.key === 'output')) {
    const embeddings = file.tensors.get('token_embd.weight')!
    placed.push(place(file, 'output', -1, embeddings, 'matrix', chooser, mapped))
  }
  return placed
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

function place(
  file: GgufFile,
  key: string,
  layer: number,
  tensor: GgufTensor,
  role: Role,
  chooser: TypeChooser,
  mapped: boolean,
): PlacedWeight {
  const plain = mapped ? 0 : tensor.bytes
  if (role === 'vector' && tensor.type !== 'f32')
    throw new KvasirError(
      'MODEL_UNSUPPORTED',
      `${file.path}: "${tensor.name}" is ${tensor.type}; only f32 is known here`,
    )
  if (role === 'matrix' && !isQuantized(tensor.type) && !['f32', 'f16', 'bf16'].includes(tensor.type))
    throw new KvasirError('MODEL_UNSUPPORTED', `${file.path}: "${tensor.name}" is ${tensor.type}: not a weight type`)
  const found = role === 'lookup' ? null : chooser.choose(tensor.type, tensor.ne, role)
  return found
    ? { key, layer, tensor, role, type: found.type, bytes: found.bytes }
    : { key, layer, tensor, role, type: null, bytes: plain }
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

class TypeChooser {
  readonly #candidates: { device: Device; type: BufferType }[]
  readonly #known = new Map<string, { type: BufferType; bytes: number } | null>()

  constructor(device: Device) {
    const cpu = cpuDevice()
    const packing = cpu.packingBufferTypes().map((type) => ({ device: cpu, type }))
    this.#candidates = device.kind === 'cpu' ? packing : [{ device, type: device.bufferType }, ...packing]
  }

  choose(type: GgmlType, ne: Four, role: Role): { type: BufferType; bytes: number } | null {
    const id = `${role} ${type} ${ne}`
    if (!this.#known.has(id)) this.#known.set(id, this.#ask(type, ne, role))
    return this.#known.get(id)!
  }

  #ask(type: GgmlType, ne: Four, role: Role): { type: BufferType; bytes: number } | null {
    using c = new Context({ tensors: 3 })
    const weight = c.tensor(type, ...ne)
    const op = mulMat(c, weight, c.tensor('f32', ne[0], 512))
    for (const candidate of this.#candidates) {
      if (role === 'vector') {
        if (!candidate.type.isPacking) return { type: candidate.type, bytes: candidate.type.allocBytes(weight) }
      } else if (supportsWeight(candidate.device.ptr, candidate.type, weight, op))
        return { type: candidate.type, bytes: candidate.type.allocBytes(weight) }
    }
    return null
  }
}
