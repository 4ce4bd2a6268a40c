/** A grammar under construction, and the rules that every JSON grammar starts from. */
import { KvasirError } from '../../contract/errors.ts'

/** Longest repetition written in one piece; longer ones are built from blocks. libllama refuses 2000. */
const BLOCK = 1000
const MAX_REPEAT = 1_000_000

/**
 * White space and numbers are finite, or a model at a loss could go on with blanks for ever. Strings hold no escaped
 * surrogates, so that a character of the grammar is a character of the value.
 */
const BASIC: Readonly<Record<string, string>> = {
  ws: '"" | " " | "\\n" [ \\t]{0,20}',
  hex: '[0-9a-fA-F]',
  unit: '[0-9a-cA-CefEF] hex{3} | [dD] [0-7] hex{2}',
  char: '[^"\\\\\\x00-\\x1f] | "\\\\" (["\\\\/bfnrt] | "u" unit)',
  string: '"\\"" char* "\\""',
  integer: '"0" | "-"? [1-9] [0-9]{0,14}',
  number: '"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
  boolean: '"true" | "false"',
  null: '"null"',
  array: '"[" ws (value ("," ws value)* ws)? "]"',
  object: '"{" ws (member ("," ws member)* ws)? "}"',
  member: 'string ":" ws value',
  value: 'object | array | string | number | boolean | null',
}

export class RuleSet {
  readonly #rules = new Map<string, string>()

  constructor() {
    for (const [name, body] of Object.entries(BASIC)) this.#rules.set(name, body)
  }

  /** A name that is not taken, reserved for {@link set}. */
  reserve(hint: string): string {
    const base =
      hint
        .replace(/[^a-zA-Z0-9]+/g, '-')
        .replace(/^-|-$/g, '')
        .slice(-60) || 'rule'
    let name = base
    for (let n = 2; this.#rules.has(name) || name === 'root'; n++) name = `${base}-${n}`
    this.#rules.set(name, '')
    return name
  }

  set(name: string, body: string): string {
    this.#rules.set(name, body)
    return name
  }

  add(hint: string, body: string): string {
    for (const [name, known] of this.#rules) if (known === body) return name
    return this.set(this.reserve(hint), body)
  }

  /** `what`, the name of a rule, from `min` to `max` times. */
  repeat(what: string, min: number, max: number): string {
    const largest = max === Number.POSITIVE_INFINITY ? min : max
    if (largest > MAX_REPEAT)
      throw new KvasirError(
        'GRAMMAR_INVALID',
        `JSON schema: ${largest} repetitions; at most ${MAX_REPEAT} are possible`,
      )
    if (max === 0) return '""'
    if (largest <= BLOCK) {
      if (min === 1 && max === 1) return what
      return `${what}{${min},${max === Number.POSITIVE_INFINITY ? '' : max}}`
    }
    const block = () => this.add(`${what}-block`, `${what}{${BLOCK}}`)
    const exactly = (n: number) =>
      [...Array(Math.floor(n / BLOCK)).fill(block()), ...(n % BLOCK > 0 ? [`${what}{${n % BLOCK}}`] : [])].join(' ')
    if (max === Number.POSITIVE_INFINITY) return `${exactly(min)} ${what}*`
    const open = max - min
    // either fewer than a block and then the end, or a block and then the rest
    let rest = this.add(`${what}-rest`, `${what}{0,${open % BLOCK}}`)
    for (let n = 0; n < Math.floor(open / BLOCK); n++)
      rest = this.add(`${what}-rest`, `${what}{0,${BLOCK - 1}} | ${block()} ${rest}`)
    return `${exactly(min)} ${rest}`.trim()
  }

  /** The text of all rules that `root` needs. */
  text(root: string): string {
    const lines = [`root ::= ${root}`]
    const seen = new Set<string>()
    const need = (body: string) => {
      for (const name of namesIn(body)) {
        const rule = this.#rules.get(name)
        if (seen.has(name) || rule === undefined) continue
        seen.add(name)
        lines.push(`${name} ::= ${rule}`)
        queue.push(rule)
      }
    }
    const queue = [root]
    for (let body = queue.shift(); body !== undefined; body = queue.shift()) need(body)
    return `${lines.join('\n')}\n`
  }
}

/** Names of rules in a body: what is left without literals, classes and repetitions. */
function namesIn(body: string): string[] {
  return body.replace(/"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{[^}]*\}/g, ' ').match(/[a-zA-Z0-9-]+/g) ?? []
}
