/**
 * Checks a GBNF grammar before libllama sees it. libllama says only "no" to a bad grammar, takes exponential time to
 * look for left recursion, misses some of it and then never comes back, and overflows its stack on deep nesting.
 *
 * The language is libllama's: `name ::= alternatives`, with literals, `[classes]`, `.`, `(groups)`, `* + ? {m,n}`,
 * `<[token id]>`, `<token text>`, `!` before a token, and `#` comments. A rule ends with its line, except inside groups
 * and after `|`.
 */
import { KvasirError } from '../../contract/errors.ts'

const MAX_DEPTH = 100
const MAX_REPEAT = 2000
/** Elements after libllama has written out all repetitions. */
const MAX_ELEMENTS = 2_000_000
/** Ways to begin. libllama follows each one, and compares it with all others. */
const MAX_WORK = 20_000

/** One alternative: things in a row. A string is the name of a rule, null a character or token. */
interface Item {
  readonly what: string | null
  readonly min: number
  readonly max: number
  readonly elements: number
  readonly at: number
}

interface Rule {
  readonly name: string
  readonly at: number
  readonly alternatives: readonly (readonly Item[])[]
}

/** @throws KvasirError GRAMMAR_INVALID with line and column. */
export function checkGrammar(text: string, vocabSize: number): void {
  const rules = new Parser(text, vocabSize).parse()
  const fail = (at: number, what: string) => {
    throw grammarError(text, at, what)
  }
  if (!rules.has('root')) fail(0, 'there is no rule called root')
  let elements = 0
  for (const rule of rules.values())
    for (const item of rule.alternatives.flat()) {
      if (item.what !== null && !rules.has(item.what)) fail(item.at, `there is no rule called ${item.what}`)
      elements += item.elements
    }
  if (elements > MAX_ELEMENTS) fail(0, `written out, it has ${elements} elements; ${MAX_ELEMENTS} are allowed`)
  const nullable = findNullable(rules)
  for (const rule of rules.values())
    for (const item of rule.alternatives.flat())
      if (item.max > 1 && item.what !== null && nullable.has(item.what))
        fail(item.at, `${show(item.what)} may be empty and is repeated`)
  checkLeftRecursion(rules, nullable, fail)
}

/** Ids of the tokens that a grammar asks for; `any` where it names some by their text (`<text>`) or excludes some (`!`). */
export function namedTokens(text: string): ReadonlySet<number> | 'any' {
  const parser = new Parser(text, 2 ** 31)
  parser.parse()
  return parser.namesByText ? 'any' : parser.namedIds
}

/** Text that stands for exactly this string in a grammar. */
export function literal(text: string): string {
  const escaped = text.replace(/[\\"\p{Cc}]/gu, (c) => {
    if (c === '\\' || c === '"') return `\\${c}`
    return `\\x${c.codePointAt(0)!.toString(16).padStart(2, '0')}`
  })
  return `"${escaped}"`
}

function findNullable(rules: ReadonlyMap<string, Rule>): Set<string> {
  const nullable = new Set<string>()
  const isEmpty = (item: Item) => item.min === 0 || (item.what !== null && nullable.has(item.what))
  for (let before = -1; before !== nullable.size; ) {
    before = nullable.size
    for (const rule of rules.values())
      if (rule.alternatives.some((items) => items.every(isEmpty))) nullable.add(rule.name)
  }
  return nullable
}

function checkLeftRecursion(
  rules: ReadonlyMap<string, Rule>,
  nullable: ReadonlySet<string>,
  fail: (at: number, what: string) => void,
): void {
  const work = new Map<string, number>()
  const open = new Set<string>()
  const visit = (rule: Rule, depth: number): number => {
    const known = work.get(rule.name)
    if (known !== undefined) return known
    if (open.has(rule.name)) fail(rule.at, `${show(rule.name)} can begin with itself (left recursion)`)
    if (depth > 3000) fail(rule.at, 'rules begin with rules more than 3000 deep')
    open.add(rule.name)
    let sum = 1
    for (const items of rule.alternatives)
      for (const item of items) {
        sum += item.what === null ? 1 : visit(rules.get(item.what)!, depth + 1)
        if (item.min > 0 && (item.what === null || !nullable.has(item.what))) break
      }
    open.delete(rule.name)
    if (sum > MAX_WORK) fail(rule.at, `more than ${MAX_WORK} ways to begin ${show(rule.name)}`)
    work.set(rule.name, sum)
    return sum
  }
  for (const rule of rules.values()) visit(rule, 0)
}

/** Groups have become rules with names that nobody can write. */
function show(name: string): string {
  return name.startsWith('(') ? 'a group' : name
}

function grammarError(text: string, at: number, what: string): KvasirError {
  const before = text.slice(0, at).split('\n')
  const place = { line: before.length, column: before.at(-1)!.length + 1 }
  return new KvasirError('GRAMMAR_INVALID', `grammar, line ${place.line}, column ${place.column}: ${what}`, place)
}

class Parser {
  readonly namedIds = new Set<number>()
  namesByText = false
  readonly #text: string
  readonly #vocabSize: number
  readonly #rules = new Map<string, Rule>()
  #at = 0

  constructor(text: string, vocabSize: number) {
    this.#text = text
    this.#vocabSize = vocabSize
    const bad = /\0|\p{Surrogate}/u.exec(text)
    if (bad) throw grammarError(text, bad.index, 'NUL and lone surrogates are not allowed')
  }

  parse(): Map<string, Rule> {
    this.#space(true)
    while (this.#at < this.#text.length) this.#rule()
    return this.#rules
  }

  #rule(): void {
    const at = this.#at
    const name = this.#match(/[a-zA-Z0-9-]+/y)
    if (name === null) this.#fail('a rule name of letters, digits and hyphens was expected')
    this.#space(false)
    if (this.#match(/::=/y) === null) this.#fail('::= was expected')
    if (this.#rules.has(name)) this.#fail(`the rule ${name} is there twice`, at)
    this.#space(true)
    this.#rules.set(name, { name, at, alternatives: [] }) // keeps the order of the text
    this.#rules.set(name, { name, at, alternatives: this.#alternatives(0) })
    if (this.#at < this.#text.length && this.#match(/\r\n?|\n/y) === null)
      this.#fail('the end of the line was expected')
    this.#space(true)
  }

  #alternatives(depth: number): Item[][] {
    const alternatives = [this.#sequence(depth)]
    while (this.#match(/\|/y) !== null) {
      this.#space(true)
      alternatives.push(this.#sequence(depth))
    }
    return alternatives
  }

  #sequence(depth: number): Item[] {
    const items: Item[] = []
    for (;;) {
      const at = this.#at
      const one = this.#element(depth)
      if (one === null) return items
      this.#space(depth > 0)
      const repeats = this.#repeats(depth)
      // libllama writes a repeated literal or group out again and again
      const times = repeats.max === Number.POSITIVE_INFINITY ? repeats.min + 1 : Math.max(1, repeats.max)
      items.push({ ...one, ...repeats, elements: one.elements * times, at })
    }
  }

  /** What stands before a repetition. A literal without characters counts as an optional character. */
  #element(depth: number): { what: string | null; elements: number } | null {
    const c = this.#text[this.#at]
    if (c === '"') return this.#literal()
    if (c === '[') return this.#class()
    if (c === '<' || c === '!') return this.#token()
    if (c === '(') return this.#group(depth)
    if (this.#match(/\./y) !== null) return { what: null, elements: 1 }
    const name = this.#match(/[a-zA-Z0-9-]+/y)
    return name === null ? null : { what: name, elements: 1 }
  }

  #literal(): { what: string | null; elements: number } {
    const at = this.#at++
    let n = 0
    while (this.#match(/"/y) === null) {
      this.#char(at, 'this literal has no end')
      n++
    }
    if (n > 0) return { what: null, elements: n }
    const name = '("")'
    this.#rules.set(name, { name, at, alternatives: [[]] })
    return { what: name, elements: 1 }
  }

  #class(): { what: null; elements: number } {
    const at = this.#at++
    this.#match(/\^/y)
    let n = 0
    while (this.#match(/\]/y) === null) {
      const from = this.#char(at, 'this class has no end')
      n++
      if (this.#match(/-(?!\])/y) === null) continue
      if (this.#char(at, 'this class has no end') < from) this.#fail('a range runs backwards', at)
      n++
    }
    if (n === 0) this.#fail('an empty class', at)
    return { what: null, elements: n }
  }

  #token(): { what: null; elements: number } {
    const at = this.#at
    const text = this.#match(/!?<[^>\r\n]+>/y)
    if (text === null) this.#fail('a token like <[42]> or <text> was expected')
    const id = /^!?<\[(.*)\]>$/.exec(text)?.[1]
    if (id !== undefined && !(/^\d{1,10}$/.test(id) && Number(id) < this.#vocabSize))
      this.#fail(`there is no token ${id}; ids go from 0 to ${this.#vocabSize - 1}`, at)
    if (id === undefined || text.startsWith('!')) this.namesByText = true
    else this.namedIds.add(Number(id))
    return { what: null, elements: 1 }
  }

  #group(depth: number): { what: string; elements: number } {
    const at = this.#at++
    if (depth >= MAX_DEPTH) this.#fail(`groups are nested more than ${MAX_DEPTH} deep`)
    this.#space(true)
    const name = `(${at}`
    const alternatives = this.#alternatives(depth + 1)
    this.#rules.set(name, { name, at, alternatives })
    if (this.#match(/\)/y) === null) this.#fail('this group has no end', at)
    return { what: name, elements: 1 }
  }

  #repeats(depth: number): { min: number; max: number } {
    let [min, max] = [1, 1]
    for (let found = 0; ; found++) {
      const at = this.#at
      const sign = this.#match(/[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\}/y)
      if (sign === null) return { min, max }
      if (found > 0) this.#fail('repeated twice; use a group', at)
      this.#space(depth > 0)
      const [from = '', to] = sign.slice(1, -1).split(',')
      if (sign === '*') [min, max] = [0, Number.POSITIVE_INFINITY]
      else if (sign === '+') max = Number.POSITIVE_INFINITY
      else if (sign === '?') min = 0
      else {
        min = Number(from)
        max = to === undefined ? min : to.trim() === '' ? Number.POSITIVE_INFINITY : Number(to)
      }
      if (max < min) this.#fail('more at least than at most', at)
      const largest = max === Number.POSITIVE_INFINITY ? min : max
      if (largest >= MAX_REPEAT) this.#fail(`repeated ${largest} times; less than ${MAX_REPEAT} are allowed`, at)
    }
  }

  /** One character of a literal or class, as a code point. */
  #char(start: number, endless: string): number {
    if (this.#at >= this.#text.length) this.#fail(endless, start)
    const at = this.#at
    const code = this.#match(/\\(?:x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|[trn\\"[\]])/y)
    if (code === null) {
      if (this.#text[at] === '\\')
        this.#fail('unknown escape; known are \\x00 \\u0000 \\U00000000 \\t \\r \\n \\\\ \\" \\[ \\]')
      const point = this.#text.codePointAt(at)!
      this.#at += point > 0xffff ? 2 : 1
      return point
    }
    const named = { t: 9, r: 13, n: 10 }[code[1]!]
    const point = /^\\[xuU]/.test(code) ? Number.parseInt(code.slice(2), 16) : (named ?? code.charCodeAt(1))
    if (point > 0x10ffff) this.#fail('characters go up to \\U0010FFFF', at)
    return point
  }

  #space(overLines: boolean): void {
    this.#match(overLines ? /(?:[ \t\r\n]+|#[^\r\n]*)*/y : /(?:[ \t]+|#[^\r\n]*)*/y)
  }

  #match(pattern: RegExp): string | null {
    pattern.lastIndex = this.#at
    const found = pattern.exec(this.#text)?.[0] ?? null
    if (found !== null) this.#at += found.length
    return found
  }

  #fail(what: string, at = this.#at): never {
    throw grammarError(this.#text, at, what)
  }
}
