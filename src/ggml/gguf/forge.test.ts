/**
 * Makes GGUF bytes, valid or not, without the writer; not a test itself, but kept out of the build by its name.
 * `fields` says where each number and text ended up, for mutations that know the format.
 */
import { KvasirError } from '../../contract/errors.ts'

type Text = string | Uint8Array

export interface ForgedTensor {
  readonly name: Text
  readonly dims: readonly (number | bigint)[]
  /** ggml's id; 0 is f32. */
  readonly type: number
  readonly offset: number | bigint
  /** When it shall differ from the length of `dims`. */
  readonly nDims?: number
}

export interface Forged {
  readonly magic?: Text
  readonly version?: number
  readonly tensorCount?: number | bigint
  readonly keyCount?: number | bigint
  /** Key, type id, and the bytes of the value. */
  readonly keys?: readonly (readonly [key: Text, type: number, value: Uint8Array])[]
  readonly tensors?: readonly ForgedTensor[]
  readonly alignment?: number
  readonly dataBytes?: number
}

export interface Field {
  readonly kind: 'magic' | 'version' | 'count' | 'length' | 'text' | 'type' | 'value' | 'dim' | 'offset'
  readonly at: number
  readonly size: number
}

const encode = (text: Text) => (typeof text === 'string' ? Buffer.from(text, 'utf8') : Buffer.from(text))

export const le32 = (n: number): Buffer => {
  const b = Buffer.alloc(4)
  b.writeUInt32LE(n >>> 0)
  return b
}

export const le64 = (n: number | bigint): Buffer => {
  const b = Buffer.alloc(8)
  b.writeBigUInt64LE(BigInt.asUintN(64, BigInt(n)))
  return b
}

export const leString = (text: Text): Buffer => {
  const bytes = encode(text)
  return Buffer.concat([le64(bytes.length), bytes])
}

/** Value bytes of an array: element type id, count, and the elements' bytes. */
export const leArray = (of: number, count: number | bigint, ...elements: Uint8Array[]): Buffer =>
  Buffer.concat([le32(of), le64(count), ...elements])

export function forge(spec: Forged): { bytes: Buffer; fields: Field[] } {
  const chunks: Buffer[] = []
  const fields: Field[] = []
  let size = 0
  const put = (kind: Field['kind'], bytes: Buffer) => {
    fields.push({ kind, at: size, size: bytes.length })
    chunks.push(bytes)
    size += bytes.length
  }
  const putText = (text: Text) => {
    const bytes = encode(text)
    put('length', le64(bytes.length))
    put('text', bytes)
  }
  const { keys = [], tensors = [], alignment = 32 } = spec
  put('magic', encode(spec.magic ?? 'GGUF'))
  put('version', le32(spec.version ?? 3))
  put('count', le64(spec.tensorCount ?? tensors.length))
  put('count', le64(spec.keyCount ?? keys.length))
  for (const [key, type, value] of keys) {
    putText(key)
    put('type', le32(type))
    if (type === 8 || type === 9) {
      // what stands in front of the value: a string's length, an array's element type and count
      const head = type === 8 ? 0 : 4
      if (head) put('type', Buffer.from(value.subarray(0, 4)))
      put('length', Buffer.from(value.subarray(head, head + 8)))
      put('value', Buffer.from(value.subarray(head + 8)))
    } else put('value', Buffer.from(value))
  }
  for (const t of tensors) {
    putText(t.name)
    put('count', le32(t.nDims ?? t.dims.length))
    for (const d of t.dims) put('dim', le64(d))
    put('type', le32(t.type))
    put('offset', le64(t.offset))
  }
  const padding = tensors.length > 0 || spec.dataBytes ? (alignment - (size % alignment)) % alignment : 0
  chunks.push(Buffer.alloc(padding + (spec.dataBytes ?? 0)))
  return { bytes: Buffer.concat(chunks), fields }
}

/** The KvasirError that `act` throws; anything else fails the test. */
export function thrown(act: () => unknown): KvasirError {
  try {
    act()
  } catch (error) {
    if (error instanceof KvasirError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}
