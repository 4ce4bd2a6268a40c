/**
 * Does a model fit, before anything is loaded: what `LocalEngine.load` works out, how many sequences of what length that is
 * good for, and what would mend it. The same figures as there; `fit.test.ts` holds the two against each other.
 */
import { arenaBytes, CACHE_TYPES, type CacheType, PAGE_CELLS, pageBytes, pagesFor } from '../cache/arena.ts'
import { KvasirError } from '../contract/errors.ts'
import { type CompleteOptions, DEFAULT_CONTEXT, DEFAULT_CONTEXTS, DEFAULT_SHARE } from '../engine/options.ts'
import { scratchBytes } from '../executor/run.ts'
import { storeShape } from '../executor/store-shape.ts'
import type { Device } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import { canMap } from '../ggml/mapping.ts'
import { GGML_TYPES, rowBytes } from '../ggml/types.ts'
import type { ModelConfig } from '../model/config.ts'
import { freeHostBytes } from '../model/memory.ts'
import { Model } from '../model/model.ts'
import { placedBytes } from '../model/weights/load.ts'
import { placeWeights } from '../model/weights/place.ts'
import { typedBytes } from './bytes.ts'
import { engineDevice } from './describe.ts'

/** Where a model would be loaded. */
export interface Place {
  readonly config: ModelConfig
  readonly device: Device
  readonly weightsBytes: number
  /** Of a weight in the file, mean. */
  readonly bitsPerWeight: number
  readonly freeBytes: number
}

export type FitOptions = Pick<
  CompleteOptions,
  'contextLength' | 'keyType' | 'valueType' | 'kvMemory' | 'hostCacheBytes' | 'tokenBudget' | 'maxSequences'
>

/** Why an engine would be refused, or would not be what was asked for. */
type Problem =
  | { readonly kind: 'memory'; readonly needed_bytes: number; readonly free_bytes: number }
  | { readonly kind: 'kv-memory'; readonly needed_bytes: number; readonly kv_memory_bytes: number }
  | { readonly kind: 'index'; readonly tokens: number; readonly most_tokens: number }

/** One of these is enough; `flags` can be typed as they are. */
export type Mend =
  | { readonly kind: 'flags'; readonly flags: string }
  | { readonly kind: 'quantisation'; readonly type: string; readonly weights_bytes: number }

/** Names are those of the CLI's JSON. */
export interface Plan {
  readonly context: number
  readonly weights_bytes: number
  /** What is taken for `kv_memory_bytes`, which goes down to whole pages. */
  readonly kv_bytes: number
  readonly scratch_bytes: number
  readonly needed_bytes: number
  readonly free_bytes: number
  /** As asked for, or the default. */
  readonly kv_memory_bytes: number
  readonly kv_bytes_per_token: number
  readonly page_tokens: number
  readonly pages: number
  /** Tokens of all sequences together. */
  readonly kv_tokens: number
  readonly sequences_of_context: number
  readonly problem: Problem | null
}

export interface Capacity {
  readonly sequences: number
  /** Tokens that each of so many sequences can have; no more than the model was trained for. */
  readonly context: number
  /** The same if all free memory were used, and the `--kv-memory` for that. */
  readonly most_context: number
  readonly most_kv_memory_bytes: number
}

export interface Judgement extends Plan {
  readonly fits: boolean
  readonly capacity: readonly Capacity[]
  /** Empty when it fits, or when nothing here would help. */
  readonly mends: readonly Mend[]
}

export interface Fit extends Judgement {
  readonly file: string
  readonly device: string
  readonly model_context: number
  readonly cache_type_k: CacheType
  readonly cache_type_v: CacheType
  readonly token_budget: number
  readonly max_sequences: number
}

/** @throws KvasirError MODEL_NOT_FOUND, GGUF_INVALID, MODEL_INVALID, MODEL_UNSUPPORTED, INVALID_ARGUMENT */
export async function fit(path: string, o: CompleteOptions): Promise<Fit> {
  const { file, architecture, config } = Model.describe(path)
  await loadNative()
  const device = engineDevice(o.device)
  const tensors = [...file.tensors.values()]
  const weights = tensors.reduce((n, t) => n + t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3], 0)
  const place: Place = {
    config,
    device,
    weightsBytes: placedBytes(placeWeights(file, architecture, config, device, canMap)),
    bitsPerWeight: (8 * tensors.reduce((n, t) => n + t.bytes, 0)) / weights,
    freeBytes: device.kind === 'cpu' ? freeHostBytes() : device.memory().free,
  }
  const { keyType, valueType, tokenBudget, maxSequences } = o
  return {
    file: path,
    device: device.name,
    model_context: config.contextLength,
    cache_type_k: keyType,
    cache_type_v: valueType,
    token_budget: tokenBudget,
    max_sequences: maxSequences,
    ...judge(place, o),
  }
}

/** The figures, without a file. */
export function judge(place: Place, o: FitOptions): Judgement {
  const plan = planFor(place, o)
  const room = capacity(place, o, plan)
  if (plan.problem === null) return { fits: true, ...plan, capacity: room, mends: [] }
  const single = mends(place, o, plan)
  const { most_context, most_kv_memory_bytes } = room[0]!
  const both = `--context ${most_context} --kv-memory ${typedBytes(most_kv_memory_bytes)}`
  const list: Mend[] = single.length === 0 && most_context > 0 ? [{ kind: 'flags', flags: both }] : single
  return { fits: false, ...plan, capacity: room, mends: list }
}

/** @throws KvasirError INVALID_ARGUMENT for cache types that do not fit the heads */
function planFor({ config, device, weightsBytes, freeBytes }: Place, o: FitOptions): Plan {
  const { headDim, kvHeads } = config
  const misfit = [o.keyType, o.valueType].find((type) => !fitsHeads(type, config))
  if (misfit)
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `cache type ${misfit} needs heads of a multiple of ${GGML_TYPES[misfit].block}; they are ${headDim}`,
    )
  const store = storeShape(config, { ...o, cells: 1, lowering: 'auto' }, device)
  const arena = { ...store, ...store.arenas[0]! }
  const [perPage, step] = [pageBytes(arena), arena.pages]
  const asked = o.contextLength ?? Math.min(config.contextLength, DEFAULT_CONTEXT)
  const contextBytes = arenaBytes({ ...arena, pages: pagesFor(asked) })
  const byDefault = Math.max(contextBytes, Math.min(DEFAULT_CONTEXTS * contextBytes, freeBytes * DEFAULT_SHARE))
  const kvMemory = o.kvMemory ?? Math.floor(byDefault)
  const pages = Math.max(0, Math.floor((kvMemory - o.hostCacheBytes) / perPage / step) * step)
  const tokens = pages * PAGE_CELLS
  // An engine takes less context when there is no room for it; that is no answer to who asked for more.
  const context = o.contextLength === null ? Math.min(asked, tokens) : asked
  const kvBytes = arenaBytes({ ...arena, pages }) + o.hostCacheBytes
  const kvNeeded = o.hostCacheBytes + (o.contextLength === null ? step * perPage : contextBytes)
  const scratch = scratchBytes(config, o.tokenBudget, asked)
  const needed = weightsBytes + kvBytes + scratch
  const mostTokens = Math.ceil(2 ** 31 / (headDim * kvHeads)) - 1
  const problem: Problem | null =
    needed > freeBytes
      ? { kind: 'memory', needed_bytes: needed, free_bytes: freeBytes }
      : pages < step || tokens < context
        ? { kind: 'kv-memory', needed_bytes: kvNeeded, kv_memory_bytes: kvMemory }
        : tokens > mostTokens
          ? { kind: 'index', tokens, most_tokens: mostTokens }
          : null
  return {
    context,
    weights_bytes: weightsBytes,
    kv_bytes: kvBytes,
    scratch_bytes: scratch,
    needed_bytes: needed,
    free_bytes: freeBytes,
    kv_memory_bytes: kvMemory,
    kv_bytes_per_token: perPage / PAGE_CELLS,
    page_tokens: PAGE_CELLS,
    pages,
    kv_tokens: tokens,
    sequences_of_context: context > 0 ? Math.floor(pages / Math.ceil(context / PAGE_CELLS)) : 0,
    problem,
  }
}

function capacity(place: Place, o: FitOptions, plan: Plan): Capacity[] {
  const counts = new Set([1, 2, 4, 8, 16].filter((n) => n < o.maxSequences))
  const most = Math.max(place.config.contextLength, o.contextLength ?? 0)
  return [...counts.add(o.maxSequences)].map((sequences) => {
    const memoryFor = (context: number) => {
      const pages = sequences * Math.ceil(context / PAGE_CELLS)
      const bytes = pagesFor(pages * PAGE_CELLS) * PAGE_CELLS * plan.kv_bytes_per_token
      // As it can be typed; rounded up, so that it holds as many.
      return Math.ceil((bytes + o.hostCacheBytes) / MIB) * MIB
    }
    const works = (contextLength: number) => fits(place, { ...o, contextLength, kvMemory: memoryFor(contextLength) })
    const context = largest(most, PAGE_CELLS, works)
    return {
      sequences,
      context: Math.min(most, Math.floor(plan.pages / sequences) * PAGE_CELLS),
      most_context: context,
      most_kv_memory_bytes: context === 0 ? 0 : memoryFor(context),
    }
  })
}

const MIB = 2 ** 20
/** Contexts that are offered instead of a larger one. */
const CONTEXT_STEP = 256
/** Quantisations of the usual files, most exact first. */
const QUANTISATIONS = ['q8_0', 'q6_K', 'q5_K', 'q4_K', 'q3_K', 'q2_K'] as const

/** Each by itself makes it fit. */
function mends(place: Place, o: FitOptions, plan: Plan): Mend[] {
  const list: Mend[] = []
  const flags = (text: string) => list.push({ kind: 'flags', flags: text })

  const asked = o.contextLength ?? Math.min(place.config.contextLength, DEFAULT_CONTEXT)
  const holds = o.hostCacheBytes + pagesFor(asked) * PAGE_CELLS * plan.kv_bytes_per_token
  const context = largest(below(asked, CONTEXT_STEP), CONTEXT_STEP, (n) => fits(place, { ...o, contextLength: n }))
  if (context > 0) flags(`--context ${context}`)

  const types = CACHE_TYPES.filter((t) => fitsHeads(t, place.config))
    .map((type) => ({ type, bytes: 2 * rowBytes(type, place.config.headDim) }))
    .filter(
      ({ bytes }) => bytes < rowBytes(o.keyType, place.config.headDim) + rowBytes(o.valueType, place.config.headDim),
    )
    .sort((a, b) => b.bytes - a.bytes)
  const small = types.find(({ type }) => fits(place, { ...o, keyType: type, valueType: type }))
  if (small) flags(`--cache-type-k ${small.type} --cache-type-v ${small.type}`)

  // Too little does not hold the context, too much does not fit.
  const least = MIB * Math.ceil((plan.problem?.kind === 'kv-memory' ? plan.problem.needed_bytes : holds) / MIB)
  const withMemory = (more: number) => fits(place, { ...o, kvMemory: least + more })
  const more = plan.kv_memory_bytes > least ? largest(below(plan.kv_memory_bytes - least, MIB), MIB, withMemory) : 0
  if (more > 0 || withMemory(0)) flags(`--kv-memory ${typedBytes(least + more)}`)

  const budget = [256, 128, 64, 32].find((n) => n < o.tokenBudget && fits(place, { ...o, tokenBudget: n }))
  if (budget) flags(`--token-budget ${budget}`)

  for (const type of QUANTISATIONS) {
    const bits = (8 * GGML_TYPES[type].bytes) / GGML_TYPES[type].block
    const weightsBytes = Math.ceil((place.weightsBytes * bits) / place.bitsPerWeight)
    if (weightsBytes >= place.weightsBytes || !fits({ ...place, weightsBytes }, o)) continue
    list.push({ kind: 'quantisation', type, weights_bytes: weightsBytes })
    break
  }
  return list
}

function fits(place: Place, o: FitOptions): boolean {
  return planFor(place, o).problem === null
}

/** Blocks of quantised types lie along a row. */
function fitsHeads(type: CacheType, { headDim }: ModelConfig): boolean {
  return headDim % GGML_TYPES[type].block === 0
}

/** The largest of `most` and the multiples of `step` below it that works, where all below one that works do too; else 0. */
function largest(most: number, step: number, works: (n: number) => boolean): number {
  if (most > 0 && works(most)) return most
  let [low, high] = [0, Math.ceil(most / step)]
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (works(middle * step)) low = middle
    else high = middle
  }
  return low * step
}

/** The largest multiple of `step` below `n`. */
function below(n: number, step: number): number {
  return Math.floor((n - 1) / step) * step
}
