/**
 * The list of tokens that libllama's samplers work on: a `llama_token_data_array` in native memory, seen through typed
 * arrays. Sampling is synchronous, so all samplers of one vocabulary size share one list (1.8 MB for 152,000 tokens).
 */
import koffi from 'koffi'
import { KvasirError } from '../../contract/errors.ts'
import type { Pointer } from '../../ggml/declare.ts'
import { count } from '../../ggml/owned.ts'

/** llama_token_data: { i32 id, f32 logit, f32 p }; llama_token_data_array: { data 0, size 8, selected 16, sorted 24 }. */
const ENTRY_BYTES = 12
const HEADER_BYTES = 32
/** Larger logits are a defect of the model, and libllama's bucket sort would misplace them. */
const LARGEST_LOGIT = 1e8

const shared = new Map<number, { list: Candidates; users: number }>()

export class Candidates {
  readonly #memory: Pointer
  readonly #ids: Int32Array
  readonly #logits: Float32Array
  readonly #header: DataView
  readonly #capacity: number

  private constructor(capacity: number) {
    const bytes = HEADER_BYTES + capacity * ENTRY_BYTES
    this.#memory = koffi.alloc('uint8_t', bytes) as unknown as Pointer
    count('alloc', 1)
    const buffer = koffi.view(this.#memory, bytes) as ArrayBuffer
    this.#header = new DataView(buffer, 0, HEADER_BYTES)
    this.#ids = new Int32Array(buffer, HEADER_BYTES)
    this.#logits = new Float32Array(buffer, HEADER_BYTES)
    this.#capacity = capacity
  }

  /** Every borrow needs one {@link giveBack}. */
  static borrow(vocabSize: number): Candidates {
    let entry = shared.get(vocabSize)
    if (!entry) shared.set(vocabSize, (entry = { list: new Candidates(vocabSize), users: 0 }))
    entry.users++
    return entry.list
  }

  giveBack(): void {
    const entry = shared.get(this.#capacity)
    if (!entry || --entry.users > 0) return
    shared.delete(this.#capacity)
    koffi.free(this.#memory)
    count('alloc', -1)
  }

  /** Address of the `llama_token_data_array`. */
  get ptr(): Pointer {
    return this.#memory
  }

  get size(): number {
    return Number(this.#header.getBigUint64(8, true))
  }

  /** Token id of the `i`-th of the list. */
  token(i: number): number {
    return this.#ids[3 * (this.#first() + i)]!
  }

  logit(i: number): number {
    return this.#logits[3 * (this.#first() + i) + 1]!
  }

  /** The place in the list that a sampler picked, -1 for none. */
  get selected(): number {
    return Number(this.#header.getBigInt64(16, true))
  }

  /** The whole vocabulary. @throws KvasirError NATIVE_FAILED when the logits cannot be sampled from. */
  fill(logits: Float32Array): void {
    const ids = this.#ids
    const values = this.#logits
    let highest = -Infinity
    let broken = false
    for (let i = 0, at = 0; i < logits.length; i++, at += 3) {
      const x = logits[i]!
      ids[at] = i
      values[at + 1] = x
      values[at + 2] = 0
      if (x > highest) highest = x
      else if (Number.isNaN(x)) broken = true
    }
    checkHighest(highest, broken)
    this.#reset(logits.length)
  }

  /** One token only, to ask a grammar about it. */
  fillOne(token: number): void {
    this.#ids[0] = token
    this.#logits[1] = 0
    this.#logits[2] = 0
    this.#reset(1)
  }

  /** Leaves only entries that `keep` accepts, in their order. */
  retain(keep: (token: number, logit: number) => boolean): void {
    const from = this.#first()
    const n = this.size
    let kept = 0
    for (let i = 0; i < n; i++) {
      const at = 3 * (from + i)
      if (!keep(this.#ids[at]!, this.#logits[at + 1]!)) continue
      this.#ids[3 * kept] = this.#ids[at]!
      this.#logits[3 * kept + 1] = this.#logits[at + 1]!
      kept++
    }
    const sorted = this.#header.getUint8(24)
    this.#reset(kept)
    this.#header.setUint8(24, sorted)
  }

  /** Place of the highest logit; the first of equals, as libllama's greedy sampler. */
  highest(): number {
    const first = this.#first()
    let best = 0
    let highest = -Infinity
    for (let i = 0, n = this.size; i < n; i++) {
      const x = this.#logits[3 * (first + i) + 1]!
      if (x > highest) {
        highest = x
        best = i
      }
    }
    return best
  }

  #reset(size: number): void {
    this.#header.setBigUint64(0, this.#memory + BigInt(HEADER_BYTES), true)
    this.#header.setBigUint64(8, BigInt(size), true)
    this.#header.setBigInt64(16, -1n, true)
    this.#header.setUint8(24, 0)
  }

  /** XTC moves the start of the list instead of its entries. */
  #first(): number {
    return Number(this.#header.getBigUint64(0, true) - this.#memory - BigInt(HEADER_BYTES)) / ENTRY_BYTES
  }
}

/** Token of the highest logit, the lowest id of equals. @throws KvasirError NATIVE_FAILED */
export function argmax(logits: Float32Array): number {
  const x = logits
  let best = 0
  let highest = -Infinity
  let broken = false
  const scan = (from: number, to: number): void => {
    for (let i = from; i < to; i++) {
      if (x[i]! > highest) {
        highest = x[i]!
        best = i
      } else if (Number.isNaN(x[i])) broken = true
    }
  }
  // Eight at a time, which takes half the time: hardly ever does one of them beat the highest so far, or is NaN.
  const whole = x.length - (x.length % 8)
  for (let i = 0; i < whole; i += 8) {
    const h = highest
    if (
      !(
        x[i]! <= h &&
        x[i + 1]! <= h &&
        x[i + 2]! <= h &&
        x[i + 3]! <= h &&
        x[i + 4]! <= h &&
        x[i + 5]! <= h &&
        x[i + 6]! <= h &&
        x[i + 7]! <= h
      )
    )
      scan(i, i + 8)
  }
  scan(whole, x.length)
  checkHighest(highest, broken)
  return best
}

function checkHighest(highest: number, hasNaN: boolean): void {
  if (!hasNaN && highest >= -LARGEST_LOGIT && highest <= LARGEST_LOGIT) return
  const got = hasNaN ? 'NaN among them' : `a highest one of ${highest}`
  throw new KvasirError('NATIVE_FAILED', `the model gave logits with ${got}; the weights or a kernel are broken`)
}
