/** Turns values into GGUF bytes, and checks on the way what the reader would check. */
import type { KvasirError } from '../../contract/errors.ts'
import { ARRAY_TYPES, type GgufArray, type GgufValue, LIMITS, quote, VALUE_IDS } from './format.ts'

/** Bytes appended to a buffer that grows. */
export class ByteSink {
  #bytes = Buffer.alloc(64 * 1024)
  #size = 0

  get size(): number {
    return this.#size
  }

  /** A view, valid until the next write. */
  get bytes(): Buffer {
    return this.#bytes.subarray(0, this.#size)
  }

  u8(value: number): void {
    this.#bytes.writeUInt8(value, this.#grow(1))
  }

  u32(value: number): void {
    const at = this.#grow(4) // first: it may replace the buffer
    this.#bytes.writeUInt32LE(value, at)
  }

  u64(value: number | bigint): void {
    const at = this.#grow(8)
    this.#bytes.writeBigUInt64LE(BigInt(value), at)
  }

  raw(bytes: Uint8Array): void {
    const at = this.#grow(bytes.length)
    this.#bytes.set(bytes, at)
  }

  /** Length and bytes. */
  string(bytes: Uint8Array): void {
    this.u64(bytes.length)
    this.raw(bytes)
  }

  #grow(n: number): number {
    const at = this.#size
    this.#size += n
    if (this.#size > this.#bytes.length) {
      const larger = Buffer.alloc(Math.max(this.#size, this.#bytes.length * 2))
      this.#bytes.copy(larger, 0, 0, at)
      this.#bytes = larger
    }
    return at
  }
}

type Complain = (text: string) => KvasirError

/** UTF-8, refused when the text holds half a surrogate pair: it would come back as U+FFFD. */
export function utf8(text: unknown, complain: Complain): Buffer {
  if (typeof text !== 'string') throw complain(`must be a string, got ${typeof text}`)
  const bytes = Buffer.from(text, 'utf8')
  if (bytes.includes('\ufffd') && bytes.toString('utf8') !== text)
    throw complain('holds half of a surrogate pair, which UTF-8 cannot store')
  return bytes
}

/** Type and value, as they follow a key. */
export function encodeValue(sink: ByteSink, value: GgufValue, complain: Complain): void {
  const id = VALUE_IDS[value?.type]
  if (id === undefined) throw complain(`has the unknown value type ${quote(String(value?.type))}`)
  sink.u32(id)
  if (value.type === 'array') encodeArray(sink, value, complain, 1)
  else if (value.type === 'string') sink.string(value.bytes ?? utf8(value.value, complain))
  else if (value.type === 'bool') sink.u8(boolByte(value.value, complain))
  else sink.raw(numberBytes(value.type, value.value, complain))
}

function boolByte(value: unknown, complain: Complain): number {
  if (typeof value !== 'boolean') throw complain(`must be true or false, got ${quote(String(value))}`)
  return value ? 1 : 0
}

/** A number through its typed array, which wraps around silently: so what comes out must be what went in. */
function numberBytes(type: keyof typeof ARRAY_TYPES, value: number | bigint, complain: Complain): Uint8Array {
  const wrong = () => complain(`must be a ${type}, got ${typeof value} ${String(value)}`)
  if (type === 'u64' || type === 'i64') {
    if (typeof value === 'number' ? !Number.isSafeInteger(value) : typeof value !== 'bigint') throw wrong()
    const array = new ARRAY_TYPES[type]([BigInt(value)])
    if (array[0] !== BigInt(value)) throw wrong()
    return new Uint8Array(array.buffer)
  }
  if (typeof value !== 'number') throw wrong()
  const array = new ARRAY_TYPES[type]([value])
  const exact =
    type === 'f32' || type === 'f64' ? Number.isFinite(array[0]) || !Number.isFinite(value) : array[0] === value
  if (!exact) throw wrong()
  return new Uint8Array(array.buffer)
}

function encodeArray(sink: ByteSink, array: GgufArray, complain: Complain, depth: number): void {
  if (depth > LIMITS.arrayDepth) throw complain(`nests arrays deeper than ${LIMITS.arrayDepth}`)
  const { of } = array
  if (VALUE_IDS[of] === undefined) throw complain(`has the unknown element type ${quote(String(of))}`)
  if (of in ARRAY_TYPES || of === 'bool' ? !(array.value instanceof arrayType(of)) : !Array.isArray(array.value))
    throw complain(
      `must hold its ${of} values in ${of === 'string' || of === 'array' ? 'an Array' : arrayType(of).name}`,
    )
  sink.u32(VALUE_IDS[of])
  sink.u64(array.value.length)
  if (of === 'string')
    for (const [i, text] of array.value.entries())
      sink.string(array.bytes?.get(i) ?? utf8(text, (t) => complain(`element ${i} ${t}`)))
  else if (of === 'array') for (const inner of array.value) encodeArray(sink, inner, complain, depth + 1)
  else {
    const { buffer, byteOffset, byteLength } = array.value
    const bytes = new Uint8Array(buffer, byteOffset, byteLength)
    if (of === 'bool' && bytes.some((b) => b > 1)) throw complain('must hold bools as 0 or 1')
    sink.raw(bytes)
  }
}

function arrayType(of: GgufArray['of']) {
  return ARRAY_TYPES[of === 'bool' || of === 'string' || of === 'array' ? 'u8' : of]
}
