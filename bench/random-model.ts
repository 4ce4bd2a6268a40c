/**
 * Writes GGUF files of a given shape with random weights: the parity and speed benches need every architecture and
 * realistic sizes, and random weights exercise the arithmetic as well as trained ones. Seeded: one shape, one file.
 */
import { mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import {
  bool,
  f32,
  f32s,
  GgufMetadata,
  type GgufTensorSource,
  type GgufValue,
  i32s,
  str,
  strings,
  u32,
  writeGguf,
} from '../src/ggml/gguf/index.ts'
import { loadNative } from '../src/ggml/library.ts'
import { fromFloats } from '../src/ggml/numbers.ts'
import { four } from '../src/ggml/tensor.ts'
import { GGML_TYPES, type GgmlType, rowBytes } from '../src/ggml/types.ts'
import { globalWeights } from '../src/model/architecture.ts'
import { architectureNamed } from '../src/model/architectures/index.ts'

export interface RandomModel {
  readonly name: string
  readonly architecture: string
  readonly layers: number
  readonly width: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly ffWidth: number
  readonly vocab: number
  /** Type of all matrices. */
  readonly type: GgmlType
  /** Types of some matrices, by the end of their name, as mixed quantisations have them. */
  readonly mixed?: Readonly<Record<string, GgmlType>>
  /** Whether the output matrix is the token embeddings. */
  readonly tied: boolean
  readonly contextLength?: number
  /** Further keys, without the architecture's prefix. */
  readonly keys?: Readonly<Record<string, GgufValue>>
  /** Optional weights to write, by GGUF name, e.g. `rope_freqs.weight`. */
  readonly optional?: readonly string[]
  readonly seed?: number
}

/** Rows that are random on their own; taller matrices repeat them in random order, to be written in seconds. */
const DISTINCT_ROWS = 1024

export async function writeRandomModel(path: string, m: RandomModel): Promise<void> {
  await loadNative()
  mkdirSync(dirname(path), { recursive: true })
  const metadata = metadataOf(m)
  const architecture = architectureNamed(m.architecture, path)
  const embeddings = { name: 'token_embd.weight', type: m.type, ne: four([m.width, m.vocab]) }
  const config = architecture.configure({
    path,
    version: 3,
    alignment: 32,
    metadata: new GgufMetadata(path, metadata),
    tensors: new Map([['token_embd.weight', { ...embeddings, nDims: 2, bytes: 0, part: 0, offset: 0 }]]),
    parts: [],
    totalBytes: 0,
  })
  const random = new Random(m.seed ?? 1)
  const wanted = new Set([...(m.optional ?? []), ...(m.tied ? [] : ['output.weight'])])
  const tensors: GgufTensorSource[] = []
  const add = (specs: Record<string, { name: string; ne: readonly number[]; optional: boolean }>, prefix: string) => {
    for (const spec of Object.values(specs))
      if (!spec.optional || wanted.has(spec.name))
        tensors.push(randomTensor(prefix + spec.name, spec.ne, m.mixed?.[spec.name] ?? m.type, random))
  }
  add(globalWeights(config), '')
  for (let layer = 0; layer < m.layers; layer++) add(architecture.layerWeights(config), `blk.${layer}.`)
  writeGguf(path, { metadata, tensors })
}

function metadataOf(m: RandomModel): Map<string, GgufValue> {
  const a = m.architecture
  const pieces = vocabulary(m.vocab)
  return new Map<string, GgufValue>([
    ['general.architecture', str(a)],
    // Not the model's name: libllama treats vocabularies of files with certain names (phi-3, ...) in ways of their own.
    ['general.name', str('random weights')],
    [`${a}.block_count`, u32(m.layers)],
    [`${a}.context_length`, u32(m.contextLength ?? 32768)],
    [`${a}.embedding_length`, u32(m.width)],
    [`${a}.feed_forward_length`, u32(m.ffWidth)],
    [`${a}.attention.head_count`, u32(m.heads)],
    [`${a}.attention.head_count_kv`, u32(m.kvHeads)],
    [`${a}.attention.key_length`, u32(m.headDim)],
    [`${a}.attention.value_length`, u32(m.headDim)],
    [`${a}.attention.layer_norm_rms_epsilon`, f32(1e-6)],
    [`${a}.rope.dimension_count`, u32(m.headDim)],
    [`${a}.rope.freq_base`, f32(500000)],
    ...Object.entries(m.keys ?? {}).map(([k, v]) => [`${a}.${k}`, v] as const),
    ['tokenizer.ggml.model', str('llama')],
    ['tokenizer.ggml.tokens', strings(pieces)],
    ['tokenizer.ggml.scores', f32s(Float32Array.from(pieces, (_, i) => -i))],
    ['tokenizer.ggml.token_type', i32s(Int32Array.from(pieces, (_, i) => (i === 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1)))],
    ['tokenizer.ggml.bos_token_id', u32(1)],
    ['tokenizer.ggml.eos_token_id', u32(2)],
    ['tokenizer.ggml.add_bos_token', bool(true)],
  ])
}

/** Unknown, begin, end, the 256 bytes, then made-up words. */
function vocabulary(size: number): string[] {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`)
  const words = Array.from({ length: Math.max(0, size - 259) }, (_, i) => `\u2581w${i}`)
  return ['<unk>', '<s>', '</s>', ...bytes, ...words].slice(0, size)
}

function randomTensor(name: string, ne: readonly number[], type: GgmlType, random: Random): GgufTensorSource {
  const seed = random.next()
  if (ne.length === 1) {
    const make = name.includes('rope') ? (r: Random) => 1 + 3 * r.uniform() : (r: Random) => 1 + 0.2 * r.normal()
    const offset = name.endsWith('.bias') ? 1 : 0
    const data = () => {
      const r = new Random(seed)
      return new Uint8Array(Float32Array.from({ length: ne[0]! }, () => make(r) - offset).buffer)
    }
    return { name, type: 'f32', ne, data }
  }
  return { name, type, ne, data: () => randomMatrix(ne[0]!, ne[1]!, type, new Random(seed)) }
}

function randomMatrix(columns: number, rows: number, type: GgmlType, r: Random): Uint8Array {
  if (columns % GGML_TYPES[type].block) throw new Error(`rows of ${columns} do not fit ${type}`)
  const distinct = Math.min(rows, DISTINCT_ROWS)
  const deviation = 1 / Math.sqrt(columns)
  const floats = Float32Array.from({ length: distinct * columns }, () => deviation * r.normal())
  const source = fromFloats(type, floats, columns)
  if (rows === distinct) return source
  const bytes = rowBytes(type, columns)
  const out = new Uint8Array(rows * bytes)
  for (let i = 0; i < rows; i++) {
    const from = Math.floor(r.uniform() * distinct) * bytes
    out.set(source.subarray(from, from + bytes), i * bytes)
  }
  return out
}

/** Mulberry32: small, seeded, good enough for weights. */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** Whole, [0, 2^32). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let t = this.#state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return (t ^ (t >>> 14)) >>> 0
  }

  /** [0, 1) */
  uniform(): number {
    return this.next() / 2 ** 32
  }

  /** Mean 0, deviation 1. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform())
  }
}
