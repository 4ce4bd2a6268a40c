/** The keys of a header and their values. */
import type { Cursor } from './cursor.ts'
import {
  ARRAY_TYPES,
  type GgufArray,
  type GgufScalar,
  type GgufValue,
  type GgufValueType,
  LIMITS,
  quote,
  VALUE_BYTES,
  valueTypeFromId,
} from './format.ts'
import { type Complain, checkKey } from './rules.ts'

/** What is left of the {@link LIMITS} that count over a whole file. */
type Budget = { strings: number; nestedArrays: number; invalidStrings: number }

export function readKeys(cursor: Cursor, count: number, complain: Complain): Map<string, GgufValue> {
  const values = new Map<string, GgufValue>()
  const budget: Budget = {
    strings: LIMITS.strings,
    nestedArrays: LIMITS.nestedArrays,
    invalidStrings: LIMITS.invalidStrings,
  }
  for (let i = 0; i < count; i++) {
    cursor.label = `key ${i} name`
    const key = cursor.name()
    checkKey(key, Buffer.byteLength(key), cursor.label, complain)
    if (values.has(key)) throw cursor.invalid(`is ${quote(key)} again: keys must be unique`)
    cursor.label = `key ${quote(key)}`
    const type = readValueType(cursor)
    values.set(key, type === 'array' ? readArray(cursor, budget, 1) : readScalar(cursor, type, budget))
  }
  return values
}

function readValueType(cursor: Cursor, what = 'type'): GgufValueType {
  const id = cursor.u32()
  const type = valueTypeFromId(id)
  if (!type) throw cursor.invalid(`has ${what} ${id}, must be 0 to 12`)
  return type
}

/** @throws when more was spent than {@link LIMITS} has */
function spend(cursor: Cursor, budget: Budget, what: keyof Budget, n: number, text: string): void {
  budget[what] -= n
  if (budget[what] < 0) throw cursor.invalid(`makes more than ${LIMITS[what]} ${text}, more than any model needs`)
}

function readScalar(cursor: Cursor, type: Exclude<GgufValueType, 'array'>, budget: Budget): GgufScalar {
  switch (type) {
    case 'u8':
      return { type, value: cursor.u8() }
    case 'i8':
      return { type, value: (cursor.u8() << 24) >> 24 }
    case 'u16':
      return { type, value: cursor.u16() }
    case 'i16':
      return { type, value: (cursor.u16() << 16) >> 16 }
    case 'u32':
      return { type, value: cursor.u32() }
    case 'i32':
      return { type, value: cursor.i32() }
    case 'f32':
      return { type, value: cursor.f32() }
    case 'f64':
      return { type, value: cursor.f64() }
    case 'u64':
      return { type, value: cursor.u64() }
    case 'i64':
      return { type, value: cursor.i64() }
    case 'bool': {
      const byte = cursor.u8()
      if (byte > 1) throw cursor.invalid(`is the bool ${byte}, must be 0 or 1`)
      return { type, value: byte === 1 }
    }
    case 'string': {
      let bytes: Uint8Array | undefined
      const value = cursor.text((b) => {
        spend(cursor, budget, 'invalidStrings', 1, 'strings that are not UTF-8')
        bytes = b
      })
      return bytes ? { type, value, bytes } : { type, value }
    }
    default:
      throw new TypeError(type satisfies never)
  }
}

function readArray(cursor: Cursor, budget: Budget, depth: number): GgufArray {
  if (depth > LIMITS.arrayDepth) throw cursor.invalid(`nests arrays deeper than ${LIMITS.arrayDepth}`)
  const of = readValueType(cursor, 'element type')
  const count = cursor.count('element count', VALUE_BYTES[of])
  if (of === 'string') return readStrings(cursor, count, budget)
  if (of === 'array') {
    spend(cursor, budget, 'nestedArrays', count, 'nested arrays')
    const value: GgufArray[] = []
    for (let i = 0; i < count; i++) value.push(readArray(cursor, budget, depth + 1))
    return { type: 'array', of, value }
  }
  const buffer = cursor.copy(count * VALUE_BYTES[of])
  if (of !== 'bool') return { type: 'array', of, value: new ARRAY_TYPES[of](buffer) } as GgufArray
  const value = new Uint8Array(buffer)
  const wrong = value.findIndex((byte) => byte > 1)
  if (wrong >= 0) throw cursor.invalid(`is the bool ${value[wrong]}, must be 0 or 1`, `${cursor.label}[${wrong}]`)
  return { type: 'array', of, value }
}

function readStrings(cursor: Cursor, count: number, budget: Budget): GgufArray {
  spend(cursor, budget, 'strings', count, 'strings')
  const value = new Array<string>(count)
  const bytes = new Map<number, Uint8Array>()
  const keep = (b: Uint8Array) => {
    spend(cursor, budget, 'invalidStrings', 1, 'strings that are not UTF-8')
    bytes.set(cursor.index, b)
  }
  for (let i = 0; i < count; i++) {
    cursor.index = i
    value[i] = cursor.text(keep)
  }
  cursor.index = -1
  return bytes.size > 0 ? { type: 'array', of: 'string', value, bytes } : { type: 'array', of: 'string', value }
}
