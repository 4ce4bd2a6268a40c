/** What a GGUF header tells, also of models that do not run here: for those only as far as the usual keys are there. */
import { arenaBytes, type CacheType, pagesFor } from '../cache/arena.ts'
import { KvasirError } from '../contract/errors.ts'
import { type Device, deviceNamed, devices } from '../ggml/device.ts'
import { type GgufFile, type GgufMetadata, readGguf } from '../ggml/gguf/index.ts'
import { loadNative } from '../ggml/library.ts'
import { canMap } from '../ggml/mapping.ts'
import { GGML_TYPES } from '../ggml/types.ts'
import type { Architecture } from '../model/architecture.ts'
import { architectureNamed } from '../model/architectures/index.ts'
import type { ModelConfig } from '../model/config.ts'
import { placementOf } from '../model/weights/load.ts'
import { type PlacedWeight, placeWeights } from '../model/weights/place.ts'

/** Names are those of the CLI's JSON. Null: the file does not say. */
export interface Description {
  readonly file: string
  readonly bytes: number
  readonly gguf_version: number
  readonly parts: number
  readonly name: string | null
  readonly architecture: string | null
  readonly size_label: string | null
  readonly supported: boolean
  readonly unsupported_reason: string | null
  readonly parameters: number
  readonly tensors: number
  /** Largest first. */
  readonly types: readonly { readonly type: string; readonly tensors: number; readonly bytes: number }[]
  readonly context_length: number | null
  readonly layers: number | null
  readonly width: number | null
  readonly ff_width: number | null
  readonly heads: number | null
  readonly kv_heads: number | null
  readonly head_dim: number | null
  readonly rope: {
    readonly base: number
    readonly dims: number | null
    /** `none`, or the name in the file; `longrope` also where only its factors are there. */
    readonly scaling: string
    readonly scaling_factor: number | null
    readonly original_context: number | null
  } | null
  readonly window: { readonly size: number; readonly period: number } | null
  readonly vocab: { readonly size: number | null; readonly kind: string | null }
  readonly chat_template: boolean
  /** Device that the weights would go to, and where there; null when the model does not run here. */
  readonly device: string | null
  readonly placement: readonly { readonly where: string; readonly tensors: number; readonly bytes: number }[] | null
  readonly memory: readonly MemoryRow[] | null
  readonly tensor_list: readonly { name: string; type: string; ne: readonly number[]; bytes: number; part: number }[]
}

interface MemoryRow {
  readonly context: number
  readonly weights_bytes: number
  /** By cache type, keys and values of the same; a type that does not fit the heads is left out. */
  readonly kv_bytes: Readonly<Partial<Record<CacheType, number>>>
  readonly total_bytes: Readonly<Partial<Record<CacheType, number>>>
}

const CONTEXTS = [2048, 8192, 32768]

/** @throws KvasirError MODEL_NOT_FOUND, GGUF_INVALID, GGUF_IO; not for models that are merely unsupported. */
export async function describe(path: string, deviceName?: string): Promise<Description> {
  const file = readGguf(path)
  const runnable = await tryToPlace(file, deviceName)
  const fields = fieldsOf(file, 'config' in runnable ? runnable.config : null)
  const tensors = [...file.tensors.values()]
  const places = 'config' in runnable ? placementOf(runnable.placed) : null
  return {
    file: path,
    bytes: file.totalBytes,
    gguf_version: file.version,
    parts: file.parts.length,
    ...fields,
    supported: 'config' in runnable,
    unsupported_reason: 'config' in runnable ? null : runnable.reason,
    // RoPE factors are tables, not parameters.
    parameters: tensors
      .filter((t) => !t.name.startsWith('rope_'))
      .reduce((n, t) => n + t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3], 0),
    tensors: tensors.length,
    types: countBy(tensors.map((t) => ({ key: t.type, bytes: t.bytes }))).map(({ key, ...rest }) => ({
      type: key,
      ...rest,
    })),
    device: 'config' in runnable ? runnable.device.name : null,
    placement: places,
    memory:
      'config' in runnable && places
        ? memory(
            runnable.config,
            places.reduce((n, p) => n + p.bytes, 0),
          )
        : null,
    tensor_list: tensors.map(({ name, type, ne, nDims, bytes, part }) => ({
      name,
      type,
      ne: ne.slice(0, nDims),
      bytes,
      part,
    })),
  }
}

/** The one that an engine takes. @throws KvasirError INVALID_ARGUMENT */
export function engineDevice(name?: string | null): Device {
  if (name) return deviceNamed(name)
  return devices().find((d) => d.kind === 'gpu' || d.kind === 'igpu') ?? deviceNamed('CPU')
}

type Runnable = { config: ModelConfig; device: Device; placed: PlacedWeight[] }

/** What `Model.load` does before it allocates. */
async function tryToPlace(file: GgufFile, deviceName?: string): Promise<Runnable | { reason: string }> {
  let architecture: Architecture
  let config: ModelConfig
  try {
    architecture = architectureNamed(file.metadata.getString('general.architecture'), file.path)
    config = architecture.configure(file)
  } catch (error) {
    return { reason: reasonOf(error, file) }
  }
  await loadNative()
  const device = engineDevice(deviceName)
  try {
    return { config, device, placed: placeWeights(file, architecture, config, device, canMap) }
  } catch (error) {
    return { reason: reasonOf(error, file) }
  }
}

function reasonOf(error: unknown, file: GgufFile): string {
  if (!(error instanceof KvasirError) || !error.code.startsWith('MODEL_')) throw error
  return error.message.replace(/^\w+: /, '').replace(`${file.path}: `, '')
}

/** Keys of the file; for supported models what the engine makes of them. */
function fieldsOf({ metadata, tensors }: GgufFile, config: ModelConfig | null) {
  const architecture = text(metadata, 'general.architecture')
  const key = (name: string) => number(metadata, `${architecture}.${name}`)
  const tokens = metadata.raw('tokenizer.ggml.tokens')
  const heads = key('attention.head_count')
  const width = key('embedding_length')
  const base = config?.rope.base ?? key('rope.freq_base')
  const longrope = tensors.has('rope_factors_long.weight')
  const fromFactors = longrope ? 'longrope' : tensors.has('rope_freqs.weight') ? 'llama3' : 'none'
  return {
    name: text(metadata, 'general.name'),
    architecture,
    size_label: text(metadata, 'general.size_label'),
    context_length: config?.contextLength ?? key('context_length'),
    layers: config?.layers ?? key('block_count'),
    width: config?.width ?? width,
    ff_width: config?.ffWidth ?? key('feed_forward_length'),
    heads: config?.heads ?? heads,
    kv_heads: config?.kvHeads ?? key('attention.head_count_kv') ?? heads,
    head_dim: config?.headDim ?? key('attention.key_length') ?? (width && heads ? width / heads : null),
    rope:
      base === null
        ? null
        : {
            base,
            dims: config?.rope.dims ?? key('rope.dimension_count'),
            scaling: text(metadata, `${architecture}.rope.scaling.type`) ?? fromFactors,
            scaling_factor: key('rope.scaling.factor'),
            original_context: key('rope.scaling.original_context_length'),
          },
    window: config?.window ? { size: config.window.size, period: config.window.period } : null,
    vocab: {
      size: tokens?.type === 'array' ? tokens.value.length : key('vocab_size'),
      kind: text(metadata, 'tokenizer.ggml.model'),
    },
    chat_template: metadata.has('tokenizer.chat_template'),
  }
}

/** A key of another type is as good as none here. */
function text(metadata: GgufMetadata, key: string): string | null {
  const value = metadata.raw(key)
  return value?.type === 'string' ? value.value : null
}

function number(metadata: GgufMetadata, key: string): number | null {
  const value = metadata.raw(key)?.value
  return typeof value === 'number' ? value : null
}

/** Cache types whose sizes are told. */
export const SHOWN_TYPES = ['f16', 'f32', 'q8_0', 'q4_0'] as const satisfies readonly CacheType[]

function memory(config: ModelConfig, weights: number): MemoryRow[] {
  const contexts = [...CONTEXTS.filter((c) => c < config.contextLength), config.contextLength]
  const types = SHOWN_TYPES.filter((type) => config.headDim % GGML_TYPES[type].block === 0)
  return contexts.map((context) => {
    const { layers, headDim, kvHeads } = config
    const shape = { layers, headDim, kvHeads, pages: pagesFor(context), valuesTransposed: false }
    const kv = types.map((type) => [type, arenaBytes({ ...shape, keyType: type, valueType: type })] as const)
    return {
      context,
      weights_bytes: weights,
      kv_bytes: Object.fromEntries(kv),
      total_bytes: Object.fromEntries(kv.map(([type, bytes]) => [type, bytes + weights])),
    }
  })
}

/** Number and bytes by key, most bytes first. */
function countBy(items: readonly { key: string; bytes: number }[]) {
  const groups = new Map<string, { key: string; tensors: number; bytes: number }>()
  for (const { key, bytes } of items) {
    const group = groups.get(key) ?? { key, tensors: 0, bytes: 0 }
    groups.set(key, { key, tensors: group.tensors + 1, bytes: group.bytes + bytes })
  }
  return [...groups.values()].sort((a, b) => b.bytes - a.bytes)
}
