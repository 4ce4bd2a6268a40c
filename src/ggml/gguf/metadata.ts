/**
 * A file's keys, asked for by type. A missing key or a wrong type is MODEL_INVALID: the file can be read, but it is not
 * the model that the caller needs.
 */
import { KvasirError, nearest } from '../../contract/errors.ts'
import { ARRAY_TYPES, type GgufValue, quote } from './format.ts'

/** What `getNumberArray` gives: the array as stored, or 64-bit integers as doubles. */
export type NumberArray =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array

export class GgufMetadata {
  readonly #file: string
  readonly #values: ReadonlyMap<string, GgufValue>

  /** @param file named in errors */
  constructor(file: string, values: ReadonlyMap<string, GgufValue>) {
    this.#file = file
    this.#values = values
  }

  get size(): number {
    return this.#values.size
  }

  has(key: string): boolean {
    return this.#values.has(key)
  }

  keys(): IterableIterator<string> {
    return this.#values.keys()
  }

  entries(): IterableIterator<[string, GgufValue]> {
    return this.#values.entries()
  }

  /** The value with its type, undefined when the key is absent. The only way to 64-bit integers past 2^53. */
  raw(key: string): GgufValue | undefined {
    return this.#values.get(key)
  }

  /** Any number type, not bool. @throws also for a 64-bit integer that a number cannot hold exactly. */
  getNumber(key: string, otherwise?: number): number {
    const found = this.#find(key, otherwise)
    if (!found) return otherwise!
    if (found.type === 'bool' || found.type === 'string' || found.type === 'array')
      throw this.#wrong(key, 'a number', show(found))
    if (typeof found.value === 'bigint') throw this.#wrong(key, 'a number up to 2^53', String(found.value))
    return found.value
  }

  /** Bytes that are not UTF-8 read as U+FFFD; `raw` has them as they are. */
  getString(key: string, otherwise?: string): string {
    const found = this.#find(key, otherwise)
    if (!found) return otherwise!
    if (found.type !== 'string') throw this.#wrong(key, 'a string', show(found))
    return found.value
  }

  getBool(key: string, otherwise?: boolean): boolean {
    const found = this.#find(key, otherwise)
    if (!found) return otherwise!
    if (found.type !== 'bool') throw this.#wrong(key, 'a bool', show(found))
    return found.value
  }

  getNumberArray(key: string, otherwise?: NumberArray): NumberArray {
    const found = this.#find(key, otherwise)
    if (!found) return otherwise!
    if (found.type !== 'array' || !(found.of in ARRAY_TYPES)) throw this.#wrong(key, 'an array of numbers', show(found))
    if (found.of !== 'u64' && found.of !== 'i64') return found.value as NumberArray
    return Float64Array.from(found.value as BigUint64Array, (x) => {
      if (!Number.isSafeInteger(Number(x))) throw this.#wrong(key, 'an array of numbers up to 2^53', String(x))
      return Number(x)
    })
  }

  getStringArray(key: string, otherwise?: readonly string[]): readonly string[] {
    const found = this.#find(key, otherwise)
    if (!found) return otherwise!
    if (found.type !== 'array' || found.of !== 'string') throw this.#wrong(key, 'an array of strings', show(found))
    return found.value
  }

  getBoolArray(key: string, otherwise?: readonly boolean[]): readonly boolean[] {
    const found = this.#find(key, otherwise)
    if (!found) return otherwise!
    if (found.type !== 'array' || found.of !== 'bool') throw this.#wrong(key, 'an array of bools', show(found))
    return Array.from(found.value, Boolean)
  }

  #find(key: string, otherwise: unknown): GgufValue | undefined {
    const found = this.#values.get(key)
    if (found || otherwise !== undefined) return found
    // keys come from the file: long or countless ones would make the comparison slow
    const near =
      this.#values.size > 1000
        ? null
        : nearest(
            key,
            [...this.#values.keys()].filter((k) => k.length < 128),
          )
    throw new KvasirError(
      'MODEL_INVALID',
      `${this.#file}: key ${quote(key)} is missing${near === null ? '' : `; the nearest is ${quote(near)}`}`,
      { file: this.#file, field: `key ${quote(key)}`, key },
    )
  }

  #wrong(key: string, wanted: string, got: string): KvasirError {
    return new KvasirError('MODEL_INVALID', `${this.#file}: key ${quote(key)} must be ${wanted}, is ${got}`, {
      file: this.#file,
      field: `key ${quote(key)}`,
      key,
    })
  }
}

function show(value: GgufValue): string {
  if (value.type === 'array') return `an array of ${value.value.length} ${value.of}`
  return `${value.type} ${value.type === 'string' ? quote(value.value) : value.value}`
}
