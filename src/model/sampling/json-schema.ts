/**
 * JSON Schema to GBNF. Every text that the grammar allows satisfies the schema; the grammar may allow fewer texts than
 * the schema: properties come in the order they are listed in, white space and numbers without bounds are finite, and
 * objects with listed `properties` take others only where `additionalProperties` says so.
 *
 * What cannot be expressed is an error with its place, never ignored.
 */
import { checkGrammar, literal } from './gbnf.ts'
import {
  arrayParts,
  countOf,
  enumOf,
  type Flat,
  impliedTypes,
  type JsonSchema,
  list,
  merge,
  objectParts,
  SchemaError,
  type SchemaObject,
  SchemaReader,
  type SchemaType,
  typesOf,
  Unsatisfiable,
} from './schema-merge.ts'
import { type Bound, decimalsOf, integersWithin, numbersWithin } from './schema-numbers.ts'
import { patternToGrammar } from './schema-pattern.ts'
import { RuleSet } from './schema-rules.ts'

export type { JsonSchema } from './schema-merge.ts'

/** Any JSON object. */
export const JSON_GRAMMAR = new RuleSet().text('object')

const YEAR = '[0-9]{4}'
const DAY = '("0" [1-9] | "1" [0-9] | "2" [0-8])' // every month has these
const DATE = `${YEAR} "-" (("0" [1-9] | "1" [0-2]) "-" ${DAY} | ("0" [13-9] | "1" [0-2]) "-" ("29" | "30") | ("0" [13578] | "1" [02]) "-31")`
const TIME = `([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,9})? ("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])`
const FORMATS: Readonly<Record<string, string>> = {
  date: DATE,
  time: TIME,
  'date-time': `${DATE} "T" ${TIME}`,
  uuid: 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}

/**
 * @returns a grammar that begins at its rule `root`.
 * @throws KvasirError GRAMMAR_INVALID with `details.path` (a JSON pointer) and `details.keyword`, for a schema that is
 * wrong, that no value can satisfy, or that says something no grammar is made for.
 */
export function schemaToGrammar(schema: JsonSchema): string {
  const rules = new RuleSet()
  const text = rules.text(addSchema(schema, rules))
  checkGrammar(text, 0)
  return text
}

/** Adds what a schema needs to a larger grammar, and gives the name of its rule. Throws as {@link schemaToGrammar}. */
export function addSchema(schema: JsonSchema, rules: RuleSet): string {
  return new Compiler(schema, rules).compile()
}

class Compiler {
  readonly #root: JsonSchema
  readonly #reader: SchemaReader
  readonly #rules: RuleSet
  /** Rule of each schema met so far, by its JSON: what refers to itself finds its rule here. */
  readonly #known = new Map<string, string>()

  constructor(root: JsonSchema, rules: RuleSet) {
    this.#root = root
    this.#reader = new SchemaReader(root)
    this.#rules = rules
  }

  compile(): string {
    return this.#rule(this.#root, '#')
  }

  /** The name of the rule for a schema. */
  #rule(schema: unknown, path: string): string {
    const key = JSON.stringify(schema)
    const known = this.#known.get(key)
    if (known !== undefined) return known
    const name = this.#rules.reserve(path === '#' ? 'answer' : path.slice(2))
    this.#known.set(key, name)
    try {
      return this.#rules.set(name, this.#body(this.#reader.flatten(schema, path), path))
    } catch (error) {
      this.#known.delete(key)
      throw error
    }
  }

  #body(schema: Flat, path: string): string {
    if (schema === false) throw new Unsatisfiable(path, null, 'no value is allowed')
    const { anyOf, oneOf, ...base } = schema
    const values = enumOf(schema, path)
    if (values !== null) return this.#values(values, schema, path)
    if (anyOf !== undefined)
      return this.#branches(
        list(anyOf, path, 'anyOf'),
        { ...base, ...(oneOf !== undefined && { oneOf }) },
        `${path}/anyOf`,
      )
    if (oneOf !== undefined) {
      const branches = list(oneOf, path, 'oneOf')
      this.#checkExclusive(branches, path)
      return this.#branches(branches, base, `${path}/oneOf`)
    }
    const implied = base['type'] === undefined ? impliedTypes(base) : typesOf(base, path)
    if (base['type'] === undefined && implied.length === 0) return 'value'
    if (implied.length === 0) throw new Unsatisfiable(path, 'type', 'no type is left')
    const types = implied.includes('number') ? implied.filter((t) => t !== 'integer') : implied
    return this.#alternatives(types, path, (type) => this.#ofType(type, base, path))
  }

  /** The bodies of those items that can be satisfied. */
  #alternatives<T>(items: readonly T[], path: string, body: (item: T, i: number) => string): string {
    const bodies: string[] = []
    let failure: unknown
    for (const [i, item] of items.entries()) {
      try {
        bodies.push(body(item, i))
      } catch (error) {
        if (!(error instanceof Unsatisfiable)) throw error
        failure = error
      }
    }
    if (bodies.length > 0) return [...new Set(bodies)].join(' | ')
    throw failure ?? new Unsatisfiable(path, null, 'no branch is given')
  }

  #branches(branches: readonly unknown[], base: SchemaObject, path: string): string {
    const alone = Object.keys(base).length === 0
    return this.#alternatives(branches, path, (branch, i) => {
      const at = `${path}/${i}`
      if (alone) return this.#rule(branch, at)
      const merged = merge(base, this.#reader.flatten(branch, at), at)
      if (merged === false) throw new Unsatisfiable(at, null, 'no value is allowed')
      return this.#rule(merged, at)
    })
  }

  #checkExclusive(branches: readonly unknown[], path: string): void {
    for (const [i, a] of branches.entries())
      for (const [j, b] of branches.entries()) {
        if (j <= i || this.#reader.areDisjoint(a, b, path)) continue
        const mend = 'Use anyOf, or give both a required property with different const values.'
        throw new SchemaError(path, 'oneOf', `branches ${i} and ${j} may both match a value. ${mend}`)
      }
  }

  #values(values: readonly unknown[], schema: SchemaObject, path: string): string {
    const fitting = values.filter((value) => this.#reader.accepts(schema, value, path))
    if (fitting.length === 0) throw new Unsatisfiable(path, 'enum', 'none of the values satisfies the rest')
    return [...new Set(fitting.map((value) => literal(JSON.stringify(value))))].join(' | ')
  }

  #ofType(type: SchemaType, s: SchemaObject, path: string): string {
    if (type === 'object') return this.#object(s, path)
    if (type === 'array') return this.#array(s, path)
    if (type === 'string') return this.#string(s, path)
    if (type === 'number' || type === 'integer') return this.#number(type, s, path)
    return type satisfies 'boolean' | 'null'
  }

  #string(s: SchemaObject, path: string): string {
    const { pattern, format } = s
    const min = countOf(s, 'minLength', path, 0)
    const max = countOf(s, 'maxLength', path, Number.POSITIVE_INFINITY)
    const bounded = s['minLength'] !== undefined || s['maxLength'] !== undefined
    if ([pattern !== undefined, format !== undefined, bounded].filter(Boolean).length > 1)
      throw new SchemaError(
        path,
        pattern !== undefined ? 'pattern' : 'format',
        'cannot be joined with other demands on a string',
      )
    if (pattern !== undefined) {
      const refuse = (what: string): never => {
        throw new SchemaError(path, 'pattern', `${JSON.stringify(pattern)} ${what}`)
      }
      if (typeof pattern !== 'string') return refuse('is not a string')
      return `"\\"" (${patternToGrammar(pattern, this.#rules, refuse)}) "\\""`
    }
    if (format !== undefined) {
      const body = FORMATS[String(format)]
      if (body === undefined)
        throw new SchemaError(path, 'format', `${JSON.stringify(format)}; known are ${Object.keys(FORMATS).join(', ')}`)
      return `"\\"" ${this.#rules.add(String(format), body)} "\\""`
    }
    if (max < min) throw new Unsatisfiable(path, 'minLength', `at least ${min} characters and at most ${max}`)
    return bounded ? `"\\"" ${this.#rules.repeat('char', min, max)} "\\""` : 'string'
  }

  #number(type: 'number' | 'integer', s: SchemaObject, path: string): string {
    const bound = (keyword: string): Bound | null => {
      const value = s[keyword]
      if (value === undefined) return null
      if (typeof value !== 'number' || !Number.isFinite(value))
        throw new SchemaError(path, keyword, `must be a number, not ${JSON.stringify(value)}`)
      if (type === 'number' && decimalsOf(value) === null)
        throw new SchemaError(path, keyword, 'has more than 15 digits before or after the point')
      return { value, exclusive: keyword.startsWith('exclusive') }
    }
    const tightest = (side: 'imum' | 'Imum', sign: 1 | -1): Bound | null => {
      const word = sign === 1 ? 'Min' : 'Max'
      const [open, closed] = [bound(`exclusive${word}${side}`), bound(`${word.toLowerCase()}${side}`)]
      if (!open || !closed) return open ?? closed
      return sign * (open.value - closed.value) >= 0 ? open : closed
    }
    const bounds = { min: tightest('imum', 1), max: tightest('imum', -1) }
    if (!bounds.min && !bounds.max) return type
    const body = type === 'integer' ? integersWithin(bounds) : numbersWithin(bounds)
    if (body === null) throw new Unsatisfiable(path, null, `no ${type} lies within the bounds`)
    return body
  }

  #array(s: SchemaObject, path: string): string {
    const { prefix, rest, min, max } = arrayParts(s, path)
    if (max < min) throw new Unsatisfiable(path, 'minItems', `at least ${min} items and at most ${max}`)
    const rules = this.#rules
    const n = Math.min(prefix.length, max)
    /** From the last place to the first: what follows when `i` items were written. */
    let after = ''
    if (max > n) {
      const from = Math.max(1, min - n)
      after = this.#optional(min <= n, () => {
        const item = this.#rule(rest, `${path}/items`)
        if (n > 0) return rules.repeat(this.#next(item), from, max - n)
        return max === 1 ? item : `${item} ${rules.repeat(this.#next(item), from - 1, max - 1)}`
      })
    }
    for (let i = n - 1; i >= 0; i--) {
      const at = `${path}/prefixItems/${i}`
      const follow = after === '' ? '' : ` ${rules.add(`${at}/after`, after)}`
      after = this.#optional(i >= min, () => `${i > 0 ? '"," ws ' : ''}${this.#rule(prefix[i], at)}${follow}`)
    }
    if (after === '') return '"[" ws "]"'
    const canBeEmpty = min === 0
    const some = rules.add(`${path}/list`, canBeEmpty ? after.slice(1, -2) : after)
    return canBeEmpty ? `"[" ws (${some} ws)? "]"` : `"[" ws ${some} ws "]"`
  }

  /** `body`, or nothing where the array may end. */
  #optional(mayEnd: boolean, body: () => string): string {
    if (!mayEnd) return body()
    try {
      return `(${body()})?`
    } catch (error) {
      if (error instanceof Unsatisfiable) return ''
      throw error
    }
  }

  #next(item: string): string {
    return this.#rules.add(`${item}-next`, `"," ws ${item}`)
  }

  #object(s: SchemaObject, path: string): string {
    const { properties, required, additional } = objectParts(s, path)
    const listed = new Map(properties)
    for (const name of required) if (!listed.has(name)) listed.set(name, additional ?? true)
    const members: { rule: string; needed: boolean }[] = []
    for (const [name, schema] of listed) {
      const needed = required.includes(name)
      const at = `${path}/properties/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`
      try {
        const value = this.#rule(schema, at)
        members.push({
          rule: this.#rules.add(`${at}-member`, `${literal(JSON.stringify(name))} ":" ws ${value}`),
          needed,
        })
      } catch (error) {
        if (needed || !(error instanceof Unsatisfiable)) throw error
      }
    }
    const extra = this.#extraMember(listed, additional, path)
    const { canBeEmpty, maxExtra } = this.#memberCounts(s, members, extra !== null, path)
    const choices = this.#members(members, maxExtra > 0 ? extra : null, maxExtra, path)
    const body = choices.length === 0 ? '' : this.#rules.add(`${path}/members`, choices.join(' | '))
    if (body === '') return '"{" ws "}"'
    return canBeEmpty ? `"{" ws (${body} ws)? "}"` : `"{" ws ${body} ws "}"`
  }

  /** Ways to write at least one member, in order. */
  #members(
    members: readonly { rule: string; needed: boolean }[],
    extra: string | null,
    maxExtra: number,
    path: string,
  ): string[] {
    const rules = this.#rules
    const extras = (n: number) => (n < 1 || extra === null ? '' : rules.repeat(this.#next(extra), 0, n))
    /** What may follow when something was written already. */
    let more = members.length > 0 ? extras(maxExtra) : ''
    const choices: string[] = extra === null ? [] : [`${extra} ${extras(maxExtra - 1)}`.trim()]
    for (const [i, { rule, needed }] of [...members.entries()].reverse()) {
      if (needed) choices.length = 0
      choices.unshift(`${rule} ${more}`.trim())
      const member = needed ? `"," ws ${rule}` : `("," ws ${rule})?`
      if (i > 0) more = rules.add(`${path}/more`, `${member} ${more}`.trim())
    }
    return choices
  }

  #extraMember(listed: ReadonlyMap<string, unknown>, additional: unknown, path: string): string | null {
    const schema = additional ?? listed.size === 0
    if (schema === false) return null
    const at = `${path}/additionalProperties`
    try {
      const value = this.#rule(schema, at)
      const key =
        listed.size === 0
          ? 'string'
          : this.#rules.add(`${at}-key`, `"\\"" ${this.#otherThan([...listed.keys()].filter(isPlain))} "\\""`)
      return this.#rules.add(`${at}-member`, `${key} ":" ws ${value}`)
    } catch (error) {
      if (error instanceof Unsatisfiable) return null
      throw error
    }
  }

  /** String contents without escapes, other than these names, which need none either. */
  #otherThan(names: readonly string[]): string {
    const plain = this.#rules.add('plain', '[^"\\\\\\x00-\\x1f]')
    const next = new Map<string, string[]>()
    for (const name of names) {
      const [first] = name
      if (first !== undefined) next.set(first, [...(next.get(first) ?? []), name.slice(first.length)])
    }
    const others = [...next.keys()].map((c) => `\\U${c.codePointAt(0)!.toString(16).padStart(8, '0')}`).join('')
    const branches = [...next].map(([c, rests]) => `${literal(c)} ${this.#otherThan(rests)}`)
    branches.push(`[^"\\\\\\x00-\\x1f${others}] ${plain}*`)
    if (!names.includes('')) branches.push('""')
    return this.#rules.add('other', branches.join(' | '))
  }

  /** What `minProperties` and `maxProperties` leave. A key written twice counts once, so a minimum above 1 needs care. */
  #memberCounts(s: SchemaObject, members: readonly { needed: boolean }[], hasExtra: boolean, path: string) {
    const min = countOf(s, 'minProperties', path, 0)
    const max = countOf(s, 'maxProperties', path, Number.POSITIVE_INFINITY)
    const needed = members.filter((member) => member.needed).length
    if (max < Math.max(min, needed)) throw new Unsatisfiable(path, 'maxProperties', `${max} are too few`)
    if (min > Math.max(1, needed))
      throw new SchemaError(path, 'minProperties', 'more than 1 and more than are required')
    if (max < members.length) throw new SchemaError(path, 'maxProperties', 'fewer than are listed')
    if (min > needed && members.length === 0 && !hasExtra)
      throw new Unsatisfiable(path, 'minProperties', 'no properties are allowed')
    return { canBeEmpty: needed === 0 && min === 0, maxExtra: max - members.length }
  }
}

/** Whether JSON writes a string as it is: keys that are written without escapes cannot meet any other. */
function isPlain(text: string): boolean {
  return JSON.stringify(text) === `"${text}"`
}
