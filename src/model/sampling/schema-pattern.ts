/**
 * Regular expressions of JSON schemas as grammars of JSON string contents. The useful part of the language: literals,
 * classes, groups, alternation, repetition, and `^` and `$` at the ends of the whole pattern or of its alternatives.
 * Without an anchor anything may stand at that end, as JSON Schema says.
 */
import type { RuleSet } from './schema-rules.ts'

/** Code points as sorted ranges without overlap. */
type CharSet = readonly (readonly [from: number, to: number])[]

const LAST = 0x10ffff
const ANY: CharSet = [[0, LAST]]
const DIGIT: CharSet = [[48, 57]]
const WORD: CharSet = [[48, 57], [65, 90], [95, 95], [97, 122]] // biome-ignore format: a table
const LINE_ENDS: CharSet = [[10, 10], [13, 13], [0x2028, 0x2029]] // biome-ignore format: a table
const SPACE: CharSet = [[9, 13], [32, 32], [160, 160], [0x1680, 0x1680], [0x2000, 0x200a], [0x2028, 0x2029], [0x202f, 0x202f], [0x205f, 0x205f], [0x3000, 0x3000], [0xfeff, 0xfeff]] // biome-ignore format: a table
const CLASSES: Readonly<Record<string, CharSet>> = {
  d: DIGIT,
  D: invert(DIGIT),
  w: WORD,
  W: invert(WORD),
  s: SPACE,
  S: invert(SPACE),
}
const CONTROLS: Readonly<Record<string, number>> = { n: 10, r: 13, t: 9, f: 12, v: 11, '0': 0 }
/** Characters that JSON writes with one letter. */
const SHORT: Readonly<Record<number, string>> = { 8: 'b', 9: 't', 10: 'n', 12: 'f', 13: 'r', 34: '"', 92: '\\' }

/** @param refuse called with what is not possible; must throw. */
export function patternToGrammar(pattern: string, rules: RuleSet, refuse: (what: string) => never): string {
  try {
    new RegExp(pattern, 'u')
  } catch (error) {
    refuse(`is not a regular expression: ${(error as Error).message}`)
  }
  return new PatternReader(pattern, rules, refuse).whole()
}

class PatternReader {
  readonly #source: string
  readonly #rules: RuleSet
  readonly #refuse: (what: string) => never
  #at = 0

  constructor(source: string, rules: RuleSet, refuse: (what: string) => never) {
    this.#source = source
    this.#rules = rules
    this.#refuse = refuse
  }

  whole(): string {
    const anything = `${this.#render(ANY)}*`
    const branches: string[] = []
    do {
      const open = this.#take('^') ? '' : anything
      const body = this.#row()
      const close = this.#take('$') ? '' : anything
      const parts = [open, body, close].filter((part) => part !== '')
      branches.push(parts.length > 0 ? parts.join(' ') : '""')
    } while (this.#take('|'))
    if (this.#at < this.#source.length) this.#refuse(`has ${this.#show()}, which no grammar is made for`)
    return branches.join(' | ')
  }

  #row(): string {
    const parts: string[] = []
    while (this.#at < this.#source.length && !/[|)$^]/.test(this.#source[this.#at]!)) parts.push(this.#repeated())
    return parts.join(' ')
  }

  #repeated(): string {
    const one = this.#one()
    const sign = /^(?:[*+?]|\{\d+(?:,\d*)?\})\??/.exec(this.#source.slice(this.#at))?.[0]
    if (sign === undefined) return one
    this.#at += sign.length
    const [from, to] = range(sign)
    if (Math.max(from, to === Number.POSITIVE_INFINITY ? 0 : to) > 1_000_000) this.#refuse(`repeats with ${sign}`)
    return `(${this.#rules.repeat(this.#rules.add('pattern', one), from, to)})`
  }

  #one(): string {
    if (this.#take('(')) {
      const group = /^\?(?::|<[\p{L}_$][\p{L}\p{N}_$]*>)/u.exec(this.#source.slice(this.#at))?.[0]
      if (group) this.#at += group.length
      else if (this.#source[this.#at] === '?') this.#refuse('looks ahead or behind')
      const branches: string[] = []
      do branches.push(this.#row() || '""')
      while (this.#take('|'))
      if (!this.#take(')')) this.#refuse(`has ${this.#show()} inside a group`)
      return `(${branches.join(' | ')})`
    }
    return this.#render(this.#take('[') ? this.#class() : this.#take('.') ? invert(LINE_ENDS) : this.#char())
  }

  #class(): CharSet {
    const negative = this.#take('^')
    let set: CharSet = []
    while (!this.#take(']')) {
      const from = this.#char()
      if (this.#source[this.#at] !== '-' || this.#source[this.#at + 1] === ']' || size(from) !== 1) {
        set = union(set, from)
        continue
      }
      this.#at++
      const to = this.#char()
      set = union(set, [[from[0]![0], to[0]![0]]])
    }
    return negative ? invert(set) : set
  }

  /** A character or an escape. */
  #char(): CharSet {
    const rest = this.#source.slice(this.#at)
    if (rest[0] !== '\\') {
      const point = rest.codePointAt(0)!
      this.#at += point > 0xffff ? 2 : 1
      return [[point, point]]
    }
    const c = rest[1]!
    const code = /^\\(?:x([\da-f]{2})|u([\da-f]{4})|u\{([\da-f]+)\})/i.exec(rest)
    this.#at += code ? code[0].length : 2
    if (CLASSES[c]) return CLASSES[c]
    const point = code ? Number.parseInt(code[1] ?? code[2] ?? code[3]!, 16) : (CONTROLS[c] ?? c.codePointAt(0)!)
    if (!code && CONTROLS[c] === undefined && /[\p{L}\p{N}]/u.test(c)) this.#refuse(`uses \\${c}`)
    if (point >= 0xd800 && point <= 0xdfff) this.#refuse('speaks of surrogates')
    return [[point, point]]
  }

  /** One character of the set, written as JSON writes it inside a string. */
  #render(set: CharSet): string {
    const parts: string[] = []
    const plain: string[] = []
    for (const [from, to] of intersect(set, PLAIN))
      plain.push(from === to ? inClass(from) : `${inClass(from)}-${inClass(to)}`)
    if (plain.length > 0) parts.push(`[${plain.join('')}]`)
    for (const [from, to] of intersect(set, SPECIAL))
      for (let c = from; c <= to; c++) {
        const short = SHORT[c]
        parts.push(short ? `"\\\\${/["\\]/.test(short) ? '\\' : ''}${short}"` : `"\\\\u${hex(c, 4)}"`)
      }
    if (parts.length === 0) this.#refuse('has a class without characters')
    return parts.length === 1 ? parts[0]! : `(${parts.join(' | ')})`
  }

  #take(c: string): boolean {
    if (this.#source[this.#at] !== c) return false
    this.#at += c.length
    return true
  }

  #show(): string {
    return this.#at < this.#source.length ? `"${this.#source[this.#at]}" at index ${this.#at}` : 'no end'
  }
}

const SPECIAL: CharSet = [[0, 31], [34, 34], [92, 92]] // biome-ignore format: a table
const PLAIN: CharSet = intersect(invert(SPECIAL), [[0, 0xd7ff], [0xe000, LAST]]) // biome-ignore format: a table

function range(sign: string): [number, number] {
  if (sign[0] === '*') return [0, Number.POSITIVE_INFINITY]
  if (sign[0] === '+') return [1, Number.POSITIVE_INFINITY]
  if (sign[0] === '?') return [0, 1]
  const [from, to] = sign.replace(/[{}?]/g, '').split(',')
  return [Number(from), to === undefined ? Number(from) : to === '' ? Number.POSITIVE_INFINITY : Number(to)]
}

function inClass(point: number): string {
  return `\\U${hex(point, 8)}`
}

function hex(n: number, digits: number): string {
  return n.toString(16).padStart(digits, '0')
}

function size(set: CharSet): number {
  return set.reduce((sum, [from, to]) => sum + to - from + 1, 0)
}

function union(a: CharSet, b: CharSet): CharSet {
  const out: [number, number][] = []
  for (const [from, to] of [...a, ...b].sort((x, y) => x[0] - y[0])) {
    const last = out.at(-1)
    if (last && from <= last[1] + 1) last[1] = Math.max(last[1], to)
    else out.push([from, to])
  }
  return out
}

function invert(set: CharSet): CharSet {
  const out: [number, number][] = []
  let next = 0
  for (const [from, to] of set) {
    if (from > next) out.push([next, from - 1])
    next = to + 1
  }
  if (next <= LAST) out.push([next, LAST])
  return out
}

function intersect(a: CharSet, b: CharSet): CharSet {
  return a.flatMap(([from, to]) =>
    b.flatMap(([f, t]): [number, number][] =>
      Math.max(from, f) <= Math.min(to, t) ? [[Math.max(from, f), Math.min(to, t)]] : [],
    ),
  )
}
