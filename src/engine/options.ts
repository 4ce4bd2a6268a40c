/** What an engine can be told, its defaults, and the checks. */

import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CACHE_TYPES, type CacheType } from '../cache/arena.ts'
import { KvasirError, nearest } from '../contract/errors.ts'
import { LOWERINGS, type LoweringName } from '../executor/lower/lowering.ts'
import type { LoadProgress } from '../model/weights/load.ts'
import { DEFAULT_SCHEDULER_OPTIONS, type SchedulerName, schedulerNamed } from '../scheduler/index.ts'

export interface EngineOptions {
  /** Tokens of prompt and answer together. Default: what the model was trained for, but no more than 8192. */
  readonly contextLength?: number
  /** Compute threads on the CPU. Default: the cores there are. Use 1 where something else wants them: threads spin. */
  readonly threads?: number
  /** A device by name, e.g. `CPU` or `CUDA0`. Default: the first GPU when a GPU build is installed, else the CPU. */
  readonly device?: string
  /** Type of cached keys. Default f16. */
  readonly keyType?: CacheType
  /** Type of cached values. Default f16. */
  readonly valueType?: CacheType
  /** How attention is computed; `flash` gives libllama's logits bit for bit. Default `auto`. */
  readonly lowering?: LoweringName
  /**
   * Bytes that KV caches may take, all requests and stored prefixes together. A promise: it is never exceeded. Default: four
   * times `contextLength`, but no more than an eighth of the free memory, and no less than one `contextLength`.
   */
  readonly kvMemory?: number
  /** Which work runs next. Default `sarathi-serve`. */
  readonly scheduler?: SchedulerName
  /** Most rows of a step: tokens of prompts, and one for each running answer. Default 512. */
  readonly tokenBudget?: number
  /** Most sequences that run at once. Default 16. */
  readonly maxSequences?: number
  /** Requests that may wait; more are refused with QUEUE_FULL. Default 256. */
  readonly maxWaiting?: number
  /** Folder in which computed blocks are kept, to be found again after a restart. Default: none. */
  readonly diskCache?: string
  /** Most bytes in `diskCache`. Default 8 GiB. */
  readonly diskCacheBytes?: number
  /** Bytes of ordinary memory for blocks that had to leave the cache; part of `kvMemory`. Default 0. */
  readonly hostCacheBytes?: number
  /** Files with cache policies of your own: modules whose default export is what `definePolicy` gives. Default: none. */
  readonly policyModules?: readonly string[]
  /** Called while weights are loaded. */
  readonly onProgress?: LoadProgress
}

export interface CompleteOptions {
  /** Null: as the model says. */
  readonly contextLength: number | null
  readonly threads: number
  readonly device: string | null
  readonly keyType: CacheType
  readonly valueType: CacheType
  readonly lowering: LoweringName
  /** Null: see {@link EngineOptions}. */
  readonly kvMemory: number | null
  readonly scheduler: SchedulerName
  readonly tokenBudget: number
  readonly maxSequences: number
  readonly maxWaiting: number
  readonly diskCache: string | null
  readonly diskCacheBytes: number
  readonly hostCacheBytes: number
  readonly policyModules: readonly string[]
  readonly onProgress: LoadProgress | null
}

export const DEFAULT_CONTEXT = 8192
/** Default of `kvMemory`, in contexts, and the most of the free memory that it takes then. */
export const DEFAULT_CONTEXTS = 4
export const DEFAULT_SHARE = 1 / 8
const DEFAULT_DISK_BYTES = 8 * 2 ** 30

const KNOWN = [
  ...['contextLength', 'threads', 'device', 'keyType', 'valueType', 'lowering', 'kvMemory', 'scheduler', 'tokenBudget'],
  ...['maxSequences', 'maxWaiting', 'diskCache', 'diskCacheBytes', 'hostCacheBytes', 'policyModules', 'onProgress'],
]

/** @throws KvasirError INVALID_ARGUMENT that names the field, what was got and what is allowed. */
export function completeOptions(o: EngineOptions): CompleteOptions {
  for (const key of Object.keys(o))
    if (!KNOWN.includes(key)) {
      const guess = nearest(key, KNOWN)
      throw invalid(`unknown option "${key}"${guess ? `; did you mean "${guess}"?` : `. Known: ${KNOWN.join(', ')}`}`)
    }
  const whole = (name: string, value: number | undefined, fallback: number, max: number): number => {
    if (value === undefined) return fallback
    if (!Number.isSafeInteger(value) || value < 1 || value > max)
      throw invalid(`${name} is ${value}; it must be a whole number from 1 to ${max}`)
    return value
  }
  const oneOf = <T extends string>(name: string, value: T | undefined, fallback: T, all: readonly T[]): T => {
    if (value === undefined) return fallback
    if (!all.includes(value)) throw invalid(`${name} is "${value}"; it must be one of ${all.join(', ')}`)
    return value
  }
  const paths = (name: string, value: readonly string[] | undefined): readonly string[] => {
    if (value === undefined) return []
    if (!(Array.isArray(value) && value.every((p) => typeof p === 'string')))
      throw invalid(`${name} must be a list of paths`)
    return value
  }
  return {
    contextLength: o.contextLength === undefined ? null : whole('contextLength', o.contextLength, 0, 2 ** 24),
    threads: whole('threads', o.threads, availableParallelism(), 512),
    device: o.device ?? null,
    keyType: oneOf('keyType', o.keyType, 'f16', CACHE_TYPES),
    valueType: oneOf('valueType', o.valueType, 'f16', CACHE_TYPES),
    lowering: oneOf('lowering', o.lowering, 'auto', LOWERINGS),
    kvMemory: o.kvMemory === undefined ? null : whole('kvMemory', o.kvMemory, 0, 2 ** 50),
    scheduler: schedulerNamed(o.scheduler).name as SchedulerName,
    tokenBudget: whole('tokenBudget', o.tokenBudget, DEFAULT_SCHEDULER_OPTIONS.tokenBudget, 2 ** 16),
    maxSequences: whole('maxSequences', o.maxSequences, DEFAULT_SCHEDULER_OPTIONS.maxSequences, 256),
    maxWaiting: whole('maxWaiting', o.maxWaiting, 256, 2 ** 20),
    diskCache: o.diskCache ?? null,
    diskCacheBytes: whole('diskCacheBytes', o.diskCacheBytes, DEFAULT_DISK_BYTES, 2 ** 50),
    hostCacheBytes: o.hostCacheBytes === 0 ? 0 : whole('hostCacheBytes', o.hostCacheBytes, 0, 2 ** 50),
    policyModules: paths('policyModules', o.policyModules),
    onProgress: o.onProgress ?? null,
  }
}

function invalid(what: string): KvasirError {
  return new KvasirError('INVALID_ARGUMENT', what)
}

/** Names of models that the package carries. */
const EMBEDDED: Readonly<Record<string, string>> = { house: 'models/house-5m/house-5m-q8_0.gguf' }

/** A path, or the name of an embedded model (`house`), to the path of a GGUF file. */
export function modelPath(model: string): string {
  const embedded = EMBEDDED[model]
  return embedded && !existsSync(model) ? join(packageRoot(), embedded) : model
}

/** The folder of this package, from the sources or from the build. */
function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder)
  return folder
}
