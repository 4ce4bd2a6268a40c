/**
 * `kvasir bench exactness`: how far is attention from exact arithmetic? Every lowering, and the fused op as libllama calls
 * it, against a reference in f64 over the values as they are stored, so that only the arithmetic is judged.
 */
import type { CacheType } from '../src/cache/arena.ts'
import { chooseLowering, wantsTransposed } from '../src/executor/lower/choose.ts'
import { TILE_ROWS } from '../src/executor/lower/flash.ts'
import type { LoweringName } from '../src/executor/lower/lowering.ts'
import { Backend, SingleRunner } from '../src/ggml/backend.ts'
import { Buffer, hostBufferType } from '../src/ggml/buffer.ts'
import { Context } from '../src/ggml/context.ts'
import { cpuDevice } from '../src/ggml/device.ts'
import { Graph } from '../src/ggml/graph.ts'
import { loadNative } from '../src/ggml/library.ts'
import { fromFloats, toFloats } from '../src/ggml/numbers.ts'
import * as ops from '../src/ggml/ops/index.ts'
import type { Tensor } from '../src/ggml/tensor.ts'
import { Random } from './random-model.ts'

/** Cache types that are compared unless told otherwise. */
export const EXACTNESS_TYPES = ['f16', 'bf16', 'f32', 'q8_0'] as const satisfies readonly CacheType[]

export interface ExactnessRow {
  readonly lowering: LoweringName | 'libllama'
  /** Queries: 1 is a decode step, more a chunk of a prompt. */
  readonly rows: number
  readonly keys: number
  readonly attention: AttentionKind
  readonly cache_type: CacheType
  /** Largest absolute error over the root mean square of the exact result. */
  readonly max_rel_error: number
  /** Root mean square of the error over that of the exact result. */
  readonly rms_rel_error: number
  /** rms error of libllama with the same cache type, over ours: above 1 where we are more exact. */
  readonly better_than_libllama: number
}

export interface ExactnessOptions {
  readonly keys?: readonly number[]
  readonly rows?: readonly number[]
  readonly cacheTypes?: readonly CacheType[]
  /** The fused op splits the keys of a decode step over threads, which shortens its sums: more threads, less error. */
  readonly threads?: number
  readonly onRow?: (row: ExactnessRow) => void
}

/**
 * `flat`: all keys weigh about the same, scores deviate by 0.5: long sums of small terms. `peaked`: scores deviate by 6, so
 * that a handful of keys take nearly all the weight.
 */
export type AttentionKind = 'flat' | 'peaked'
const SCORE_DEVIATION: Readonly<Record<AttentionKind, number>> = { flat: 0.5, peaked: 6 }

/** Values deviate by 1 around this: real values are not centred, and then sums grow with the number of keys. */
const VALUE_MEAN = 0.5

const d = 64
const H = 14
const Hkv = 2
const G = H / Hkv
const SCALE = 1 / Math.sqrt(d)

export async function exactness(options: ExactnessOptions = {}): Promise<ExactnessRow[]> {
  await loadNative()
  const rows: ExactnessRow[] = []
  using backend = new Backend(cpuDevice(), options.threads ?? 1)
  for (const n of options.keys ?? [512, 8192, 32768]) {
    const stored = randomCache(n)
    for (const type of options.cacheTypes ?? EXACTNESS_TYPES) {
      using cache = new StoredCache(stored, type, n)
      for (const T of options.rows ?? [1, TILE_ROWS])
        for (const attention of ['flat', 'peaked'] as const) {
          const q = queries(T, attention)
          const probes = T === 1 ? each(H, (h) => ({ t: 0, h })) : CHUNK_PROBES.filter(({ t }) => t < T)
          const exact = probes.map(({ t, h }) => reference(q, cache, n, t, h))
          const judge = (lowering: ExactnessRow['lowering']) =>
            errors(compute(backend, cache, q, T, n, lowering), exact, probes)
          const theirs = judge('libllama')
          for (const lowering of ['auto', 'flash', 'grouped', 'libllama'] as const) {
            if (lowering === 'grouped' && !cache.transposable) continue
            const e = lowering === 'libllama' ? theirs : judge(lowering)
            const row: ExactnessRow = {
              ...{ lowering, rows: T, keys: n, attention, cache_type: type },
              max_rel_error: e.max,
              rms_rel_error: e.rms,
              better_than_libllama: theirs.rms / e.rms,
            }
            rows.push(row)
            options.onRow?.(row)
          }
        }
    }
  }
  return rows
}

/** Rows and heads of a chunk that are checked: the reference in f64 takes longer than the work itself. */
const CHUNK_PROBES = [0, 21, 63].flatMap((t) => [0, 6, 13].map((h) => ({ t, h })))

interface FloatCache {
  /** [d, n, Hkv] */
  readonly keys: Float32Array
  /** [d, n, Hkv] */
  readonly values: Float32Array
}

function randomCache(n: number): FloatCache {
  const random = new Random(n)
  const keys = Float32Array.from({ length: d * n * Hkv }, () => random.normal())
  const values = Float32Array.from({ length: d * n * Hkv }, () => VALUE_MEAN + random.normal())
  return { keys, values }
}

/** f32 [d, H, T] */
function queries(T: number, attention: AttentionKind): Float32Array {
  const random = new Random(T)
  return Float32Array.from({ length: d * H * T }, () => random.normal() * SCORE_DEVIATION[attention])
}

/** Keys and values of one type, in our layouts and in libllama's. */
class StoredCache implements Disposable {
  /** What is stored, as numbers: [d, n, Hkv]. */
  readonly exact: FloatCache
  readonly type: CacheType
  readonly transposable: boolean
  /** [d, n, Hkv] */
  readonly keys: Tensor
  readonly values: Tensor
  /** [n, d, Hkv]; null for block types. */
  readonly valuesTransposed: Tensor | null
  /** [d, Hkv, n] */
  readonly tokenKeys: Tensor
  readonly tokenValues: Tensor
  readonly #context = new Context({ tensors: 5 })
  readonly #buffer: Buffer

  constructor(floats: FloatCache, type: CacheType, n: number) {
    this.type = type
    this.transposable = wantsTransposed('grouped', type, cpuDevice())
    const bytes = { keys: fromFloats(type, floats.keys, d), values: fromFloats(type, floats.values, d) }
    this.exact = {
      keys: toFloats(type, bytes.keys, floats.keys.length),
      values: toFloats(type, bytes.values, floats.values.length),
    }
    const c = this.#context
    this.keys = c.tensor(type, d, n, Hkv)
    this.values = c.tensor(type, d, n, Hkv)
    this.tokenKeys = c.tensor(type, d, Hkv, n)
    this.tokenValues = c.tensor(type, d, Hkv, n)
    this.valuesTransposed = this.transposable ? c.tensor(type, n, d, Hkv) : null
    this.#buffer = Buffer.forContext(c, hostBufferType())
    this.keys.set(bytes.keys)
    this.values.set(bytes.values)
    this.tokenKeys.set(fromFloats(type, byToken(floats.keys, n), d))
    this.tokenValues.set(fromFloats(type, byToken(floats.values, n), d))
    this.valuesTransposed?.set(fromFloats(type, turned(floats.values, n), n))
  }

  [Symbol.dispose](): void {
    this.#buffer.dispose()
    this.#context.dispose()
  }
}

/** [d, n, Hkv] -> [d, Hkv, n] */
function byToken(x: Float32Array, n: number): Float32Array {
  const out = new Float32Array(x.length)
  for (let h = 0; h < Hkv; h++)
    for (let j = 0; j < n; j++) out.set(x.subarray(d * (j + n * h), d * (j + n * h) + d), d * (h + Hkv * j))
  return out
}

/** [d, n, Hkv] -> [n, d, Hkv] */
function turned(x: Float32Array, n: number): Float32Array {
  const out = new Float32Array(x.length)
  for (let h = 0; h < Hkv; h++)
    for (let j = 0; j < n; j++) for (let i = 0; i < d; i++) out[j + n * (i + d * h)] = x[i + d * (j + n * h)]!
  return out
}

/** One head of one row in f64: [d]. */
function reference(q: Float32Array, cache: StoredCache, n: number, t: number, h: number): Float64Array {
  const { keys, values } = cache.exact
  const kv = Math.floor(h / G)
  const p = new Float64Array(n)
  let top = Number.NEGATIVE_INFINITY
  for (let j = 0; j < n; j++) {
    let s = 0
    for (let i = 0; i < d; i++) s += q[i + d * (h + H * t)]! * keys[i + d * (j + n * kv)]!
    p[j] = s * SCALE
    if (p[j]! > top) top = p[j]!
  }
  let total = 0
  for (let j = 0; j < n; j++) total += p[j] = Math.exp(p[j]! - top)
  const out = new Float64Array(d)
  for (let j = 0; j < n; j++) for (let i = 0; i < d; i++) out[i]! += (p[j]! / total) * values[i + d * (j + n * kv)]!
  return out
}

/** f32 [d * H, T] */
function compute(
  backend: Backend,
  cache: StoredCache,
  query: Float32Array,
  T: number,
  n: number,
  lowering: ExactnessRow['lowering'],
): Float32Array {
  using c = new Context({ tensors: 64, graphNodes: 128 })
  using runner = new SingleRunner(backend)
  const q = c.tensor('f32', d, H, T).asInput()
  const mask = c.tensor('f16', n, T).asInput()
  const graph = new Graph(c)
  const out = lowering === 'libllama' ? asLibllama(c, cache, q, mask) : asKvasir(c, cache, q, mask, lowering)
  graph.expand(out.asOutput())
  runner.allocate(graph)
  q.set(query)
  mask.set(new Uint16Array(n * T)) // every row sees every key
  runner.run(graph)
  return out.floats()
}

/** In the layout that values have in the engine with this lowering. */
function asKvasir(c: Context, cache: StoredCache, q: Tensor, mask: Tensor, name: LoweringName): Tensor {
  const transposed = wantsTransposed(name, cache.type, cpuDevice()) ? cache.valuesTransposed : null
  const lowering = chooseLowering(name, q.ne[2], H / cache.keys.ne[2], transposed !== null)
  return lowering.attend(c, {
    ...{ q, mask: lowering.mask(c, mask, H), scale: SCALE, softcap: 0 },
    parts: [{ keys: cache.keys, values: transposed ?? cache.values, valuesTransposed: transposed !== null }],
  }).out
}

/** llama-graph.cpp, build_attn_mha: the fused op on permuted views of token-major rows. */
function asLibllama(c: Context, cache: StoredCache, q: Tensor, mask: Tensor): Tensor {
  const byHead = (t: Tensor) => ops.permute(c, t, 0, 2, 1, 3)
  const o = ops.flashAttention(c, byHead(q), byHead(cache.tokenKeys), byHead(cache.tokenValues), mask, SCALE)
  return ops.reshape(c, o, d * H, q.ne[2])
}

function errors(got: Float32Array, exact: readonly Float64Array[], probes: readonly { t: number; h: number }[]) {
  let [max, squares, norm] = [0, 0, 0]
  probes.forEach(({ t, h }, at) => {
    for (let i = 0; i < d; i++) {
      const want = exact[at]![i]!
      const error = Math.abs(got[i + d * (h + H * t)]! - want)
      if (!(error <= max)) max = error // NaN must not pass for exact
      squares += error * error
      norm += want * want
    }
  })
  return { max: max / Math.sqrt(norm / (probes.length * d)), rms: Math.sqrt(squares / norm) }
}

function each<T>(n: number, make: (i: number) => T): T[] {
  return Array.from({ length: n }, (_, i) => make(i))
}
