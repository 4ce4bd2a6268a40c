/**
 * libllama's own engine, from the same package and in the same process: the oracle for exactness and the peer for speed.
 * It gets what Kvasir has: the same thread count, a kept thread pool, logits only where they are asked for.
 */
import koffi from 'koffi'
import { KvasirError } from '../src/contract/errors.ts'
import type { Pooling } from '../src/engine/embed.ts'
import type { Pointer } from '../src/ggml/declare.ts'
import { captureLog, loggedErrors } from '../src/ggml/log.ts'
import { Owned } from '../src/ggml/owned.ts'
import { ThreadPool } from '../src/ggml/threadpool.ts'
import { GGML_TYPES, type GgmlType } from '../src/ggml/types.ts'
import { llama, loadLlama } from '../src/model/libllama/library.ts'

export interface PeerOptions {
  readonly contextLength: number
  /** Tokens per llama_decode call, and its micro-batch. */
  readonly chunk: number
  readonly threads: number
  /** Fused attention; libllama's own default on the CPU. */
  readonly flash?: boolean
  readonly keyType?: GgmlType
  readonly valueType?: GgmlType
  /** Sequences that run at once, each of `contextLength`. Default 1. */
  readonly sequences?: number
  /** Whether all sequences share one buffer of cells, or have one each. */
  readonly unified?: boolean
  /** For {@link Peer.embed} instead of logits. */
  readonly pooling?: Pooling
}

/** enum llama_pooling_type. */
const POOLING_TYPES: Readonly<Record<Pooling, number>> = { mean: 1, last: 3 }

export class Peer extends Owned {
  readonly options: PeerOptions
  readonly vocab: number
  readonly width: number
  readonly #context: Pointer
  readonly #pool: ThreadPool | null
  readonly #tokens: Pointer
  readonly #wanted: Pointer
  /** Positions, counts, addresses of sequence ids, and these ids: for batches of several sequences. */
  readonly #batch: readonly Pointer[]

  private constructor(model: Pointer, context: Pointer, options: PeerOptions) {
    super('peer', model)
    this.options = options
    this.#context = context
    this.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    this.width = llama.llama_model_n_embd(model)
    this.#pool = options.threads > 1 ? new ThreadPool(options.threads) : null
    if (this.#pool) llama.llama_attach_threadpool(context, this.#pool.ptr, this.#pool.ptr)
    this.#tokens = koffi.alloc('int32_t', options.chunk) as Pointer
    this.#wanted = koffi.alloc('int8_t', options.chunk) as Pointer
    const sequences = options.sequences ?? 1
    this.#batch = ['int32_t', 'int32_t', 'uint64_t', 'int32_t'].map((t) => koffi.alloc(t, sequences) as Pointer)
  }

  static async load(path: string, options: PeerOptions): Promise<Peer> {
    await loadLlama()
    const params = { ...llama.llama_model_default_params(), n_gpu_layers: 0 }
    const load = () => llama.llama_model_load_from_file(path, params)
    const { result: model, lines } = captureLog(load, llama.llama_log_set)
    if (!model) throw new KvasirError('NATIVE_FAILED', `libllama could not load ${path}${loggedErrors(lines)}`)
    const context = llama.llama_init_from_model(model, {
      ...llama.llama_context_default_params(),
      n_ctx: options.contextLength * (options.sequences ?? 1),
      n_seq_max: options.sequences ?? 1,
      kv_unified: options.unified ?? false,
      n_batch: options.chunk,
      n_ubatch: options.chunk,
      n_threads: options.threads,
      n_threads_batch: options.threads,
      flash_attn_type: options.flash === false ? 0 : 1,
      type_k: GGML_TYPES[options.keyType ?? 'f16'].id,
      type_v: GGML_TYPES[options.valueType ?? 'f16'].id,
      ...(options.pooling ? { embeddings: true, pooling_type: POOLING_TYPES[options.pooling] } : {}),
    })
    if (!context) {
      llama.llama_model_free(model)
      throw new KvasirError('NATIVE_FAILED', `libllama could not make a context for ${path}`)
    }
    return new Peer(model, context, options)
  }

  /** Uses `threads` of its threads. */
  useThreads(threads: number): void {
    llama.llama_set_n_threads(this.#context, threads, threads)
  }

  /** Forgets everything. */
  clear(): void {
    llama.llama_memory_clear(llama.llama_get_memory(this.#context), true)
  }

  /** Forgets what lies at position `from` and behind. */
  truncate(from: number): void {
    // -1: every sequence
    llama.llama_memory_seq_rm(llama.llama_get_memory(this.#context), -1, from, -1)
  }

  /** Runs tokens behind what is cached, in chunks; the logits of the last one, copied. */
  eval(tokens: Int32Array): Float32Array {
    this.run(tokens)
    return this.logits()
  }

  run(tokens: Int32Array): void {
    for (let at = 0; at < tokens.length; at += this.options.chunk) {
      const part = tokens.subarray(at, Math.min(at + this.options.chunk, tokens.length))
      new Int32Array(koffi.view(this.#tokens, part.byteLength)).set(part)
      const wanted = new Int8Array(koffi.view(this.#wanted, part.length)).fill(0)
      if (at + part.length === tokens.length) wanted[part.length - 1] = 1
      const status = llama.llama_decode(this.#context, {
        n_tokens: part.length,
        token: this.#tokens,
        embd: null,
        pos: null,
        n_seq_id: null,
        seq_id: null,
        logits: this.#wanted,
      })
      if (status !== 0) throw new KvasirError('NATIVE_FAILED', `llama_decode returned ${status}`)
    }
    llama.llama_synchronize(this.#context)
  }

  /** Pools the states of tokens, of one chunk at most: libllama pools each of its batches by itself. f32 [D], as they are. */
  embed(tokens: Int32Array): Float32Array {
    if (tokens.length > this.options.chunk)
      throw new KvasirError('INVALID_ARGUMENT', `${tokens.length} tokens in a batch of ${this.options.chunk}`)
    this.clear()
    this.run(tokens)
    const address = llama.llama_get_embeddings_seq(this.#context, 0)
    if (!address) throw new KvasirError('NATIVE_FAILED', 'libllama has no embedding')
    return new Float32Array(koffi.view(address, this.width * 4)).slice()
  }

  /** Gives every sequence what sequence 0 has cached. */
  copyToAll(): void {
    const state = this.#state()
    for (let s = 1; s < (this.options.sequences ?? 1); s++)
      if (Number(llama.llama_state_seq_set_data(this.#context, state, state.length, s)) === 0)
        throw new KvasirError('NATIVE_FAILED', 'libllama did not take the state of a sequence')
  }

  /** The one sequence's context becomes `rows` zeros that nobody computed: what one row is saved as, repeated. */
  fill(rows: number): void {
    this.clear()
    if (rows === 0) return
    this.run(Int32Array.of(0))
    const state = zeroRows(this.#state(), rows)
    this.clear()
    if (Number(llama.llama_state_seq_set_data(this.#context, state, state.length, 0)) !== state.length)
      throw new KvasirError('NATIVE_FAILED', 'libllama did not take a context of zeros')
  }

  /** What sequence 0 has cached. */
  #state(): Buffer {
    const bytes = Number(llama.llama_state_seq_get_size(this.#context, 0))
    const state = Buffer.allocUnsafeSlow(bytes)
    if (Number(llama.llama_state_seq_get_data(this.#context, state, bytes, 0)) !== bytes)
      throw new KvasirError('NATIVE_FAILED', 'libllama did not give the state of a sequence')
    return state
  }

  /** One token for each sequence, at `position`; their logits, f32 [V] each, as views that the next run overwrites. */
  step(tokens: Int32Array, position: number): Float32Array[] {
    const n = tokens.length
    const [pos, counts, lists, ids] = this.#batch as [Pointer, Pointer, Pointer, Pointer]
    new Int32Array(koffi.view(this.#tokens, 4 * n)).set(tokens)
    new Int32Array(koffi.view(pos, 4 * n)).fill(position)
    new Int32Array(koffi.view(counts, 4 * n)).fill(1)
    new Int32Array(koffi.view(ids, 4 * n)).set(tokens.map((_, i) => i))
    const addresses = new BigUint64Array(koffi.view(lists, 8 * n))
    for (let i = 0; i < n; i++) addresses[i] = BigInt(ids) + BigInt(4 * i)
    new Int8Array(koffi.view(this.#wanted, n)).fill(1)
    const batch = { token: this.#tokens, embd: null, pos, n_seq_id: counts, seq_id: lists, logits: this.#wanted }
    const status = llama.llama_decode(this.#context, { n_tokens: n, ...batch })
    if (status !== 0) throw new KvasirError('NATIVE_FAILED', `llama_decode returned ${status}`)
    llama.llama_synchronize(this.#context)
    return Array.from(tokens, (_, i) => {
      const address = llama.llama_get_logits_ith(this.#context, i)
      if (!address) throw new KvasirError('NATIVE_FAILED', `libllama has no logits of row ${i}`)
      return new Float32Array(koffi.view(address, this.vocab * 4))
    })
  }

  /** The last wanted logits, f32 [V], copied. */
  logits(): Float32Array {
    const address = llama.llama_get_logits_ith(this.#context, -1)
    if (!address) throw new KvasirError('NATIVE_FAILED', 'libllama has no logits')
    return new Float32Array(koffi.view(address, this.vocab * 4)).slice()
  }

  protected override free(model: Pointer): void {
    llama.llama_free(this.#context)
    llama.llama_model_free(model)
    this.#pool?.dispose()
    koffi.free(this.#tokens)
    koffi.free(this.#wanted)
    for (const p of this.#batch) koffi.free(p)
  }
}

/**
 * The state of `rows` rows of zeros, from that of one row. Its layout at the pinned version: 8 bytes of head; numbers of streams
 * and of rows, u32; of each row its position, the number of its sequences, 1, and that sequence, u32; whether values lie
 * transposed and the number of layers, u32; then of each layer's keys, and of each layer's values, the type, u32, the bytes of a
 * row, u64, and the rows.
 * @throws KvasirError NATIVE_FAILED when it looks otherwise
 */
export function zeroRows(one: Buffer, rows: number): Buffer {
  const [streams, count, , sequences, , transposed, layers] = Array.from({ length: 7 }, (_, i) =>
    one.readUInt32LE(8 + 4 * i),
  )
  if (streams !== 1 || count !== 1 || sequences !== 1 || transposed !== 0)
    throw new KvasirError('NATIVE_FAILED', 'libllama saves a row in another form than was expected')
  const heads: Buffer[] = []
  const sizes: number[] = []
  for (let at = 36; at < one.length; at += 12 + sizes.at(-1)!) {
    heads.push(one.subarray(at, at + 12))
    sizes.push(Number(one.readBigUInt64LE(at + 4)))
  }
  if (heads.length !== 2 * layers! || 36 + sizes.reduce((sum, size) => sum + 12 + size, 0) !== one.length)
    throw new KvasirError('NATIVE_FAILED', 'libllama saves a layer in another form than was expected')
  const out = Buffer.alloc(36 + 12 * (rows - 1) + sizes.reduce((sum, size) => sum + 12 + rows * size, 0))
  one.copy(out, 0, 0, 16)
  out.writeUInt32LE(rows, 12)
  for (let i = 0; i < rows; i++) {
    one.copy(out, 16 + 12 * i, 16, 28)
    out.writeUInt32LE(i, 16 + 12 * i)
  }
  let at = 16 + 12 * rows
  at += one.copy(out, at, 28, 36)
  for (const [i, head] of heads.entries()) at += head.copy(out, at) + rows * sizes[i]!
  return out
}
