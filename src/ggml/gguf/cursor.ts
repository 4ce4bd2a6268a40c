/**
 * Reads a header front to back through a window, so that a file of many GB costs the bytes of its header and a little
 * more. Nothing is allocated for a claim (a length, a count) before the file is known to be long enough for it.
 */
import { KvasirError } from '../../contract/errors.ts'
import { LIMITS } from './format.ts'

export interface ByteSource {
  readonly name: string
  /** Bytes of the whole file. */
  readonly size: number
  /** Fills `target` with the bytes from `at` on, as far as there are any; returns how many. */
  read(target: Uint8Array, at: number): number
  /** What it means when `read` gives less than `size` promises. */
  readonly whenShort: string
}

const FIRST_CHUNK = 64 * 1024
const LARGEST_CHUNK = 4 * 2 ** 20

export class Cursor {
  /** What is being read, for errors: `key "general.name"`. */
  label = ''
  /** Element of an array, -1 outside one. Kept apart from the label: a text for each of 150K tokens would be slow. */
  index = -1
  readonly #source: ByteSource
  /** End of what may be read: the file's end or the largest header. */
  readonly #limit: number
  #window: Buffer = Buffer.alloc(0)
  /** File offset of the window's first byte. */
  #base = 0
  #position = 0
  /** File offset of the value read last, for errors. */
  #mark = 0
  #chunk = FIRST_CHUNK

  constructor(source: ByteSource) {
    this.#source = source
    this.#limit = Math.min(source.size, LIMITS.headerBytes)
  }

  get offset(): number {
    return this.#base + this.#position
  }

  /** `key "tokenizer.ggml.tokens"[7]` */
  get field(): string {
    return this.index < 0 ? this.label : `${this.label}[${this.index}]`
  }

  /** The error for the field just read. */
  invalid(text: string, field = this.field): KvasirError {
    const { name } = this.#source
    return new KvasirError('GGUF_INVALID', `${name}: ${field} ${text}`, { file: name, field, offset: this.#mark })
  }

  u8(): number {
    return this.#window[this.#take(1)]!
  }

  u16(): number {
    const at = this.#take(2) // first: it may replace the window
    return this.#window.readUInt16LE(at)
  }

  u32(): number {
    const at = this.#take(4)
    return this.#window.readUInt32LE(at)
  }

  i32(): number {
    return this.u32() | 0
  }

  f32(): number {
    const at = this.#take(4)
    return this.#window.readFloatLE(at)
  }

  f64(): number {
    const at = this.#take(8)
    return this.#window.readDoubleLE(at)
  }

  /** A bigint only where a number would not be exact. */
  u64(): number | bigint {
    const at = this.#take(8)
    const high = this.#window.readUInt32LE(at + 4)
    return high < 2 ** 21 ? high * 2 ** 32 + this.#window.readUInt32LE(at) : this.#window.readBigUInt64LE(at)
  }

  i64(): number | bigint {
    const at = this.#take(8)
    const value = this.#window.readBigInt64LE(at)
    const exact = Number(value)
    return Number.isSafeInteger(exact) ? exact : value
  }

  /**
   * A count of things that take at least `bytesEach` each: refused when they cannot all follow.
   * @param what ends the sentence's subject, e.g. `length`
   */
  count(what: string, bytesEach: number): number {
    const n = this.u64()
    this.checkFit(n, what, bytesEach)
    return Number(n)
  }

  checkFit(n: number | bigint, what: string, bytesEach: number): void {
    const left = this.#source.size - this.offset
    if (Number(n) * bytesEach > left)
      throw this.invalid(
        `${what} is ${n}, but the ${left} bytes left in the file hold at most ${Math.floor(left / bytesEach)}: ` +
          'the file is damaged or its download incomplete; pull it again',
      )
    if (Number(n) * bytesEach > this.#limit - this.offset) throw this.#headerTooLarge(`${what} is ${n}`)
  }

  /**
   * A string: its length, then UTF-8 without a NUL at the end.
   * @param onInvalid gets a copy of the bytes when they are not UTF-8; the text then has U+FFFD in their place
   */
  text(onInvalid: (bytes: Uint8Array) => void): string {
    const length = this.count('length', 1)
    const from = this.#take(length)
    const text = this.#window.toString('utf8', from, from + length)
    // decoding never fails, it puts U+FFFD; which may also stand in the file
    if (text.includes('\ufffd')) {
      const bytes = this.#window.subarray(from, from + length)
      if (!bytes.equals(Buffer.from(text, 'utf8'))) onInvalid(Uint8Array.from(bytes))
    }
    return text
  }

  /** A key or a tensor name: must be UTF-8, because programs look it up. */
  name(): string {
    return this.text(() => {
      throw this.invalid('is not valid UTF-8')
    })
  }

  /** The next bytes in memory of their own. The caller has checked with `count` that they can follow. */
  copy(length: number): ArrayBuffer {
    this.#mark = this.offset
    if (this.offset + length > this.#limit) throw this.#ended(length)
    const target = new Uint8Array(new ArrayBuffer(length))
    const here = Math.min(length, this.#window.length - this.#position)
    target.set(this.#window.subarray(this.#position, this.#position + here))
    this.#position += here
    if (here < length) {
      const got = this.#source.read(target.subarray(here), this.offset)
      if (got < length - here) throw this.invalid(this.#source.whenShort)
      this.#base = this.offset + got
      this.#position = 0
      this.#window = this.#window.subarray(0, 0)
    }
    return target.buffer
  }

  /** Window position of the next `n` bytes, read if need be, and moves past them. */
  #take(n: number): number {
    this.#mark = this.offset
    if (this.#position + n > this.#window.length) this.#refill(n)
    const at = this.#position
    this.#position += n
    return at
  }

  #refill(n: number): void {
    const from = this.offset
    if (from + n > this.#limit) throw this.#ended(n)
    const size = Math.min(Math.max(n, this.#chunk), this.#limit - from)
    this.#chunk = Math.min(this.#chunk * 2, LARGEST_CHUNK)
    const next = Buffer.allocUnsafe(size)
    const kept = this.#window.copy(next, 0, this.#position)
    const got = this.#source.read(next.subarray(kept), from + kept)
    this.#window = next.subarray(0, kept + got)
    this.#base = from
    this.#position = 0
    if (kept + got < n) throw this.invalid(this.#source.whenShort)
  }

  #ended(n: number): KvasirError {
    const { size } = this.#source
    if (this.offset + n <= size) return this.#headerTooLarge(`needs ${n} bytes`)
    return this.invalid(
      `needs ${n} bytes at byte ${this.offset}, but the file ends at byte ${size}: its download is incomplete; pull it again`,
    )
  }

  #headerTooLarge(what: string): KvasirError {
    return this.invalid(`${what}: the header would pass ${LIMITS.headerBytes} bytes, more than any model needs`)
  }
}
