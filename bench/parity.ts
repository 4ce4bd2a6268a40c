/**
 * `kvasir bench parity`: are our logits libllama's? The same file, prompt, cache types, batch shape and thread count, the `flash`
 * lowering, a prompt of 600 tokens in chunks of 512, then 32 greedy steps along libllama's tokens.
 */
import type { CacheType } from '../src/cache/arena.ts'
import { KvStore } from '../src/cache/store.ts'
import { modelPath } from '../src/engine/options.ts'
import { Sequence } from '../src/engine/sequence.ts'
import type { LoweringName } from '../src/executor/lower/lowering.ts'
import { Executor } from '../src/executor/run.ts'
import { storeShape } from '../src/executor/store-shape.ts'
import { cpuDevice } from '../src/ggml/device.ts'
import { f32, type GgufValue, str, u32 } from '../src/ggml/gguf/index.ts'
import { loadNative } from '../src/ggml/library.ts'
import type { GgmlType } from '../src/ggml/types.ts'
import { Model } from '../src/model/model.ts'
import { argmax } from '../src/model/sampling/candidates.ts'
import { randomModelFile } from './cache-folder.ts'
import { Peer } from './peer.ts'
import { Random, type RandomModel } from './random-model.ts'

export interface ParityRow {
  readonly model: string
  readonly type: string
  /** Of keys and values. */
  readonly cache_type: CacheType
  /** Largest absolute difference of any logit, over the prompt's last row and all greedy steps. */
  readonly max_abs_logit_diff: number
  /** Largest minus smallest logit of libllama. */
  readonly logit_range: number
  readonly greedy_agree: number
  readonly greedy_of: number
}

export const PROMPT_TOKENS = 600
export const GREEDY_STEPS = 32
const CHUNK = 512
const CONTEXT = 1024

type Shape = Omit<RandomModel, 'name' | 'type'>
const small = { layers: 3, width: 256, heads: 8, kvHeads: 2, headDim: 32, ffWidth: 512, vocab: 1024, tied: false }

/** One shape per architecture and per thing that can differ in it. K-quants need rows of a multiple of 256. */
export const PARITY_SHAPES: Readonly<Record<string, Shape>> = {
  llama: { ...small, architecture: 'llama' },
  'llama-tied-mha': { ...small, architecture: 'llama', kvHeads: 8, tied: true },
  'llama-mqa-d128': { ...small, architecture: 'llama', heads: 4, kvHeads: 1, headDim: 128 },
  // As Q4_K_M files are: q, k and v of two types cannot be stacked.
  'llama-mixed': {
    ...small,
    architecture: 'llama',
    mixed: { 'attn_v.weight': 'q6_K', 'ffn_down.weight': 'q6_K' },
  },
  'llama3-factors': { ...small, architecture: 'llama', headDim: 64, heads: 4, optional: ['rope_freqs.weight'] },
  'llama-linear': { ...small, architecture: 'llama', keys: scaling('linear', 4) },
  'llama-yarn': {
    ...small,
    architecture: 'llama',
    keys: { ...scaling('yarn', 4), 'rope.scaling.original_context_length': u32(256) },
  },
  qwen2: { ...small, architecture: 'qwen2', heads: 12, headDim: 64, width: 768, tied: true },
  qwen3: { ...small, architecture: 'qwen3', heads: 4, kvHeads: 2, headDim: 128 },
  phi3: { ...small, architecture: 'phi3', heads: 4, kvHeads: 4, headDim: 64 },
  'phi3-longrope': {
    ...small,
    architecture: 'phi3',
    heads: 4,
    headDim: 64,
    tied: true,
    keys: {
      'rope.dimension_count': u32(48),
      'rope.scaling.original_context_length': u32(512),
      'rope.scaling.attn_factor': f32(1.19),
    },
    optional: ['rope_factors_long.weight', 'rope_factors_short.weight'],
  },
  gemma2: {
    ...small,
    architecture: 'gemma2',
    heads: 4,
    headDim: 64,
    tied: true,
    keys: {
      'attention.sliding_window': u32(256),
      attn_logit_softcapping: f32(50),
      final_logit_softcapping: f32(30),
    },
  },
  gemma3: {
    ...small,
    architecture: 'gemma3',
    layers: 7,
    heads: 4,
    kvHeads: 1,
    headDim: 64,
    tied: true,
    keys: { 'attention.sliding_window': u32(256) },
  },
}

function scaling(type: string, factor: number): Record<string, GgufValue> {
  return { 'rope.scaling.type': str(type), 'rope.scaling.factor': f32(factor) }
}

export const PARITY_TYPES: readonly GgmlType[] = ['f16', 'q8_0', 'q4_0', 'q4_K']

export interface ParityOptions {
  /** Names of {@link PARITY_SHAPES}, or `house`. Default: all. */
  readonly models?: readonly string[]
  readonly types?: readonly GgmlType[]
  /** Of keys and values. Default: f16. */
  readonly cacheTypes?: readonly CacheType[]
  readonly lowering?: LoweringName
  readonly threads?: number
  readonly onRow?: (row: ParityRow) => void
}

export async function parity(options: ParityOptions = {}): Promise<ParityRow[]> {
  const rows: ParityRow[] = []
  const report = (row: ParityRow) => {
    rows.push(row)
    options.onRow?.(row)
  }
  const { cacheTypes = ['f16'] } = options
  for (const name of options.models ?? ['house', ...Object.keys(PARITY_SHAPES)]) {
    if (name === 'house') {
      for (const cache of cacheTypes) report(await compare(modelPath('house'), name, 'q8_0', cache, options))
      continue
    }
    const shape = PARITY_SHAPES[name]
    if (!shape) throw new RangeError(`no parity model "${name}"`)
    for (const type of options.types ?? PARITY_TYPES) {
      const file = await randomModelFile({ ...shape, name: `parity-${name}`, type })
      for (const cache of cacheTypes) report(await compare(file, name, type, cache, options))
    }
  }
  return rows
}

async function compare(
  path: string,
  model: string,
  type: string,
  cacheType: CacheType,
  options: ParityOptions,
): Promise<ParityRow> {
  const threads = options.threads ?? 2
  const lowering = options.lowering ?? 'flash'
  await loadNative()
  using ours = await Model.load(path, () => ({ device: cpuDevice(), contextLength: CONTEXT }))
  const { vocab } = ours.config
  const cache = { keyType: cacheType, valueType: cacheType }
  const shape = { cells: CONTEXT, ...cache, lowering }
  using store = new KvStore(storeShape(ours.config, shape, ours.device), ours.device)
  using executor = new Executor(ours, store, { threads, lowering })
  using sequence = new Sequence(executor, CONTEXT)
  using peer = await Peer.load(path, { contextLength: CONTEXT, chunk: CHUNK, threads, ...cache })

  const random = new Random(7)
  const prompt = Int32Array.from({ length: PROMPT_TOKENS }, () => 3 + Math.floor(random.uniform() * (vocab - 3)))
  let theirs = peer.eval(prompt)
  let mine = await sequence.append(prompt, CHUNK)
  let worst = 0
  let agree = 0
  let low = Number.POSITIVE_INFINITY
  let high = Number.NEGATIVE_INFINITY
  for (let i = 0; ; i++) {
    for (let j = 0; j < vocab; j++) {
      const d = Math.abs(mine[j]! - theirs[j]!)
      // A NaN on either side must not pass for agreement.
      if (!(d <= worst)) worst = d
      low = Math.min(low, theirs[j]!)
      high = Math.max(high, theirs[j]!)
    }
    if (i === GREEDY_STEPS) break
    const next = Int32Array.of(argmax(theirs))
    if (argmax(mine) === next[0]) agree++
    theirs = peer.eval(next)
    mine = await sequence.append(next, CHUNK)
  }
  return {
    model,
    type,
    cache_type: cacheType,
    max_abs_logit_diff: worst,
    logit_range: high - low,
    greedy_agree: agree,
    greedy_of: GREEDY_STEPS,
  }
}
