/** JSON schemas as data: reading references, joining two schemas into one that asks for both, telling them apart. */
import { isDeepStrictEqual } from 'node:util'
import { KvasirError, nearest } from '../../contract/errors.ts'

export type JsonSchema = boolean | SchemaObject
export interface SchemaObject {
  readonly [keyword: string]: unknown
}

export const TYPES = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null'] as const
export type SchemaType = (typeof TYPES)[number]

/** Keywords that change nothing about which values are valid. */
const NOTES =
  '$schema $id $comment $defs definitions title description default example examples deprecated readOnly writeOnly'.split(
    ' ',
  )
/** Which keywords speak of which type of value. */
const OF_TYPE: Readonly<Record<string, readonly SchemaType[]>> = {
  properties: ['object'],
  required: ['object'],
  additionalProperties: ['object'],
  minProperties: ['object'],
  maxProperties: ['object'],
  items: ['array'],
  prefixItems: ['array'],
  additionalItems: ['array'],
  minItems: ['array'],
  maxItems: ['array'],
  minLength: ['string'],
  maxLength: ['string'],
  pattern: ['string'],
  format: ['string'],
  minimum: ['number', 'integer'],
  maximum: ['number', 'integer'],
  exclusiveMinimum: ['number', 'integer'],
  exclusiveMaximum: ['number', 'integer'],
}
const KNOWN = [...NOTES, ...Object.keys(OF_TYPE), ...'type enum const anyOf oneOf allOf $ref'.split(' ')]

export class SchemaError extends KvasirError {
  constructor(path: string, keyword: string | null, what: string) {
    super('GRAMMAR_INVALID', `JSON schema at ${path}${keyword ? `, keyword "${keyword}"` : ''}: ${what}`, {
      path,
      keyword,
    })
  }
}

/** No value can satisfy the schema. */
export class Unsatisfiable extends SchemaError {}

/** A schema without notes, references and `allOf`; `anyOf` and `oneOf` may remain. */
export type Flat = SchemaObject | false

export class SchemaReader {
  readonly #root: JsonSchema

  constructor(root: JsonSchema) {
    this.#root = root
  }

  /** @throws SchemaError for a reference that leads nowhere or out of this schema. */
  follow(reference: unknown, path: string): JsonSchema {
    if (typeof reference !== 'string' || !/^#(?:\/|$)/.test(reference))
      throw new SchemaError(path, '$ref', `only references of the form "#/..." can be followed, not ${show(reference)}`)
    let at: unknown = this.#root
    for (const part of reference.split('/').slice(1)) {
      const key = decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~')
      at = typeof at === 'object' && at !== null && Object.hasOwn(at, key) ? (at as Record<string, unknown>)[key] : null
    }
    return this.check(at, `${path}/$ref (${reference})`)
  }

  /** Whether something is a schema with known keywords. */
  check(schema: unknown, path: string): JsonSchema {
    if (typeof schema === 'boolean') return schema
    if (typeof schema !== 'object' || schema === null || Array.isArray(schema))
      throw new SchemaError(path, null, `a schema is an object, true or false; this is ${show(schema)}`)
    for (const keyword of Object.keys(schema)) {
      if (KNOWN.includes(keyword) || keyword.startsWith('x-')) continue
      const near = nearest(keyword, KNOWN)
      throw new SchemaError(path, keyword, `not supported here${near ? `; did you mean "${near}"?` : ''}`)
    }
    return schema as SchemaObject
  }

  /** Reads references and joins what all of `allOf` ask. */
  flatten(schema: unknown, path: string, open: readonly unknown[] = []): Flat {
    const checked = this.check(schema, path)
    if (checked === false) return false
    if (checked === true) return {}
    if (open.includes(checked)) throw new SchemaError(path, '$ref', 'refers to itself without anything in between')
    const { $ref, allOf, ...rest } = checked
    const isNote = (keyword: string) => NOTES.includes(keyword) || keyword.startsWith('x-')
    let flat: Flat = Object.fromEntries(Object.entries(rest).filter(([keyword]) => !isNote(keyword)))
    const parts: [unknown, string][] = $ref === undefined ? [] : [[this.follow($ref, path), `${path}/$ref`]]
    if (allOf !== undefined)
      parts.push(...list(allOf, path, 'allOf').map((s, i): [unknown, string] => [s, `${path}/allOf/${i}`]))
    for (const [part, at] of parts) flat = merge(flat, this.flatten(part, at, [...open, checked]), path)
    return flat
  }

  /** Whether `value` satisfies `schema`. Formats and patterns are taken for satisfied when `lenient`. */
  accepts(schema: unknown, value: unknown, path: string, lenient = false): boolean {
    const s = this.flatten(schema, path)
    if (s === false) return false
    const sub = (inner: unknown, v: unknown) => this.accepts(inner, v, path, lenient)
    if ('const' in s && !isDeepStrictEqual(s['const'], value)) return false
    if (s['enum'] !== undefined && !list(s['enum'], path, 'enum').some((v) => isDeepStrictEqual(v, value))) return false
    if (s['anyOf'] !== undefined && !list(s['anyOf'], path, 'anyOf').some((b) => sub(b, value))) return false
    if (s['oneOf'] !== undefined && list(s['oneOf'], path, 'oneOf').filter((b) => sub(b, value)).length !== 1)
      return false
    if (s['type'] !== undefined && !typesOf(s, path).some((t) => isOfType(value, t))) return false
    if (typeof value === 'number') return numberFits(s, value)
    if (typeof value === 'string') {
      const length = [...value].length
      if (!lenient && (s['pattern'] !== undefined || s['format'] !== undefined))
        throw new SchemaError(path, null, 'enum or const beside pattern or format')
      return length >= Number(s['minLength'] ?? 0) && length <= Number(s['maxLength'] ?? Number.POSITIVE_INFINITY)
    }
    if (Array.isArray(value)) {
      const { prefix, rest, min, max } = arrayParts(s, path)
      if (value.length < min || value.length > max) return false
      return value.every((v, i) => sub(prefix[i] ?? rest, v))
    }
    if (typeof value !== 'object' || value === null) return true
    const { properties, required, additional } = objectParts(s, path)
    const keys = Object.keys(value)
    if (keys.length < Number(s['minProperties'] ?? 0)) return false
    if (keys.length > Number(s['maxProperties'] ?? Number.POSITIVE_INFINITY)) return false
    if (required.some((key) => !Object.hasOwn(value, key))) return false
    return Object.entries(value).every(([key, v]) => sub(properties.get(key) ?? additional ?? true, v))
  }

  /** Whether it is sure that no value satisfies both. */
  areDisjoint(a: unknown, b: unknown, path: string, depth = 0): boolean {
    const [x, y] = [this.flatten(a, path), this.flatten(b, path)]
    if (x === false || y === false) return true
    if (depth > 16) return false
    const inner = (one: unknown, other: unknown) => this.areDisjoint(one, other, path, depth + 1)
    for (const [one, other] of [
      [x, y],
      [y, x],
    ] as const) {
      // biome-ignore format: one line
      for (const keyword of ['anyOf', 'oneOf'])
        if (one[keyword] !== undefined && list(one[keyword], path, keyword).every((branch) => inner(branch, other))) return true
      const values = enumOf(one, path)
      if (values?.every((value) => !this.accepts(other, value, path, true))) return true
    }
    const shared = typesOf(x, path).filter((t) => typesOf(y, path).some((u) => meet(t, u) !== null))
    if (shared.length === 0) return true
    if (shared.some((type) => type !== 'object')) return false
    const [p, q] = [objectParts(x, path), objectParts(y, path)]
    for (const [one, other] of [[p, q], [q, p]] as const) // biome-ignore format: one line
      if (one.additional === false && other.required.some((key) => !one.properties.has(key))) return true
    const both = p.required.filter((key) => q.required.includes(key))
    return both.some((key) => inner(p.properties.get(key) ?? true, q.properties.get(key) ?? true))
  }
}

/** A schema that asks for what both ask for. Inner schemas are joined by `allOf`, to be read when their turn comes. */
export function merge(a: Flat, b: Flat, path: string): Flat {
  if (a === false || b === false) return false
  const out: Record<string, unknown> = { ...a }
  for (const [keyword, theirs] of Object.entries(b)) {
    const ours = out[keyword]
    if (ours === undefined || isDeepStrictEqual(ours, theirs)) out[keyword] = theirs
    else if (/^(?:min|exclusiveMin)/.test(keyword)) out[keyword] = Math.max(Number(ours), Number(theirs))
    else if (/^(?:max|exclusiveMax)/.test(keyword)) out[keyword] = Math.min(Number(ours), Number(theirs))
    else if (keyword === 'required')
      out[keyword] = [...new Set([...list(ours, path, keyword), ...list(theirs, path, keyword)])]
    else if (keyword === 'type') {
      const types = typesOf(a, path).flatMap((t) => typesOf(b, path).map((u) => meet(t, u)))
      out[keyword] = [...new Set(types.filter((t) => t !== null))]
    } else if (keyword === 'const') return false
    else if (keyword === 'enum')
      out[keyword] = list(ours, path, keyword).filter((v) =>
        list(theirs, path, keyword).some((w) => isDeepStrictEqual(v, w)),
      )
    else if (!/^(?:properties|additionalProperties|items|prefixItems|additionalItems)$/.test(keyword))
      throw new SchemaError(path, keyword, 'is asked for twice in ways that cannot be joined')
  }
  if (hasObjectParts(a) && hasObjectParts(b)) Object.assign(out, mergeObjects(a, b, path))
  if (hasArrayParts(a) && hasArrayParts(b)) Object.assign(out, mergeArrays(a, b, path))
  return out
}

function mergeObjects(a: SchemaObject, b: SchemaObject, path: string): SchemaObject {
  const [p, q] = [objectParts(a, path), objectParts(b, path)]
  const names = new Set([...p.properties.keys(), ...q.properties.keys()])
  const properties = [...names].map((name): [string, unknown] => {
    return [name, both(p.properties.get(name) ?? p.additional, q.properties.get(name) ?? q.additional)]
  })
  const additional = both(p.additional, q.additional)
  return {
    ...(names.size > 0 && { properties: Object.fromEntries(properties) }),
    ...(additional !== undefined && { additionalProperties: additional }),
  }
}

function mergeArrays(a: SchemaObject, b: SchemaObject, path: string): SchemaObject {
  const [p, q] = [arrayParts(a, path), arrayParts(b, path)]
  const n = Math.max(p.prefix.length, q.prefix.length)
  const prefix = Array.from({ length: n }, (_, i) => both(p.prefix[i] ?? p.rest, q.prefix[i] ?? q.rest))
  return { prefixItems: prefix, items: both(p.rest, q.rest), additionalItems: undefined }
}

function both(a: unknown, b: unknown): unknown {
  if (a === undefined || a === true || isDeepStrictEqual(a, b)) return b ?? a
  if (b === undefined || b === true) return a
  return a === false || b === false ? false : { allOf: [a, b] }
}

const hasObjectParts = (s: SchemaObject) => s['properties'] !== undefined || s['additionalProperties'] !== undefined
const hasArrayParts = (s: SchemaObject) => s['items'] !== undefined || s['prefixItems'] !== undefined

export interface ObjectParts {
  readonly properties: ReadonlyMap<string, unknown>
  readonly required: readonly string[]
  /** undefined where the schema does not say. */
  readonly additional: unknown
}

export function objectParts(s: SchemaObject, path: string): ObjectParts {
  const { properties = {}, required = [] } = s
  if (typeof properties !== 'object' || properties === null || Array.isArray(properties))
    throw new SchemaError(path, 'properties', 'must be an object')
  const names = list(required, path, 'required')
  if (names.some((name) => typeof name !== 'string')) throw new SchemaError(path, 'required', 'must hold strings')
  return {
    properties: new Map(Object.entries(properties)),
    required: [...new Set(names as string[])],
    additional: s['additionalProperties'],
  }
}

export interface ArrayParts {
  readonly prefix: readonly unknown[]
  readonly rest: unknown
  readonly min: number
  readonly max: number
}

/** Both spellings of a tuple: `prefixItems` with `items`, and the older `items` list with `additionalItems`. */
export function arrayParts(s: SchemaObject, path: string): ArrayParts {
  const { items, prefixItems, additionalItems } = s
  const old = Array.isArray(items)
  if (old && prefixItems !== undefined) throw new SchemaError(path, 'items', 'must be a schema beside prefixItems')
  const prefix = old ? items : list(prefixItems ?? [], path, 'prefixItems')
  const rest = (old ? additionalItems : items) ?? true
  const max = rest === false ? prefix.length : Number.POSITIVE_INFINITY
  return { prefix, rest, min: countOf(s, 'minItems', path, 0), max: Math.min(max, countOf(s, 'maxItems', path, max)) }
}

/** The values of `enum` or `const`, null without either. */
export function enumOf(s: SchemaObject, path: string): readonly unknown[] | null {
  if ('const' in s) return [s['const']]
  return s['enum'] === undefined ? null : list(s['enum'], path, 'enum')
}

/** The types that `type` allows, or those that the other keywords speak of, or all. */
export function typesOf(s: SchemaObject, path: string): readonly SchemaType[] {
  const given = s['type'] === undefined ? null : Array.isArray(s['type']) ? s['type'] : [s['type']]
  const bad = given?.find((t) => !TYPES.includes(t as SchemaType))
  if (bad !== undefined) throw new SchemaError(path, 'type', `${show(bad)}; known are ${TYPES.join(', ')}`)
  return (given as SchemaType[] | null) ?? TYPES
}

/** Types that the type-bound keywords of a schema without `type` speak of; empty when there are none. */
export function impliedTypes(s: SchemaObject): readonly SchemaType[] {
  const spoken = new Set(Object.keys(s).flatMap((keyword) => OF_TYPE[keyword] ?? []))
  if (spoken.has('number')) spoken.delete('integer')
  return [...spoken]
}

export function isOfType(value: unknown, type: SchemaType): boolean {
  if (type === 'null') return value === null
  if (type === 'array') return Array.isArray(value)
  if (type === 'integer') return Number.isInteger(value)
  if (type === 'object') return typeof value === 'object' && value !== null && !Array.isArray(value)
  return typeof value === type
}

/** A whole number from 0 that a keyword gives. */
export function countOf(s: SchemaObject, keyword: string, path: string, fallback: number): number {
  const value = s[keyword]
  if (value === undefined) return fallback
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0)
    throw new SchemaError(path, keyword, `must be a whole number from 0, not ${show(value)}`)
  return value
}

export function list(value: unknown, path: string, keyword: string): readonly unknown[] {
  if (!Array.isArray(value)) throw new SchemaError(path, keyword, `must be a list, not ${show(value)}`)
  return value
}

function numberFits(s: SchemaObject, value: number): boolean {
  const bound = (keyword: string, fallback: number) => Number(s[keyword] ?? fallback)
  return (
    value >= bound('minimum', -Infinity) &&
    value <= bound('maximum', Infinity) &&
    !(s['exclusiveMinimum'] !== undefined && value <= bound('exclusiveMinimum', 0)) &&
    !(s['exclusiveMaximum'] !== undefined && value >= bound('exclusiveMaximum', 0))
  )
}

function meet(a: SchemaType, b: SchemaType): SchemaType | null {
  if (a === b) return a
  const numbers = [a, b].sort().join()
  return numbers === 'integer,number' ? 'integer' : null
}

function show(value: unknown): string {
  return JSON.stringify(value) ?? String(value)
}
