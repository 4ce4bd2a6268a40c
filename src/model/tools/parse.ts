/**
 * Reads calls of functions from an answer while it is written. Text is held back only while it may still become the
 * beginning of a call, arguments are passed on as they come, in the model's own characters.
 *
 * Every decision depends on the text alone, not on how it was cut into pieces: a pattern matches here, or may match when
 * more text has come, or does not match.
 */
import { HERMES_CLOSE, HERMES_OPEN, MISTRAL_OPEN, type ToolFormat } from './format.ts'

export type ToolEvent =
  | { readonly kind: 'text'; readonly text: string }
  /** A call begins. `index` counts the calls of an answer from 0. */
  | { readonly kind: 'call'; readonly index: number; readonly name: string }
  /** A piece of the arguments; all pieces of a call together are one JSON object. */
  | { readonly kind: 'arguments'; readonly index: number; readonly json: string }
  /** The arguments are complete. Missing when the answer was cut off within them. */
  | { readonly kind: 'call-end'; readonly index: number }

/** Text of a certain form, and the beginnings of such text. */
interface Pattern {
  readonly whole: RegExp
  readonly start: RegExp
}

type Found = { readonly length: number; readonly name: string | undefined } | 'perhaps' | null

/** What a format looks like around the arguments. Of several patterns the first that matches counts. */
interface Form {
  /** Everything from the mark to the arguments. Calls may begin anywhere, or only where the answer begins. */
  readonly opens: readonly Pattern[]
  readonly anywhere: boolean
  /** From the arguments to the end of a call's object. */
  readonly ends: readonly Pattern[]
  /** The next call of a list. */
  readonly again: readonly Pattern[]
  /** What closes the call, or the list. */
  readonly closes: readonly Pattern[]
}

/** Heads are shorter; so the look-ahead stays bounded. In UTF-16 code units. */
const LONGEST = 1024
const WS = '[ \\t\\r\\n]*'
/** A string's inside. Half an escape is a beginning, too. */
const INSIDE = '(?:[^"\\\\]|\\\\(?:.|$))*'

/** @param parts of a regular expression: each matches one character, or repeats one. */
function pattern(...parts: readonly string[]): Pattern {
  const nested = parts.reduceRight((rest, part) => `(?:${part}${rest}|$)`, '$')
  return { whole: new RegExp(`^${parts.join('')}`, 's'), start: new RegExp(`^${nested}`, 's') }
}

/** A text as parts. */
const chars = (text: string) => [...text].map((c) => c.replace(/\W/, '\\$&'))
const string = ['"', `(?<name>${INSIDE})`, '"']
/** From the object's brace to that of its arguments, which is only looked at. */
const head = (key: string) => [
  ...['\\{', WS, ...chars('"name"'), WS, ':', WS, ...string, WS, ',', WS],
  ...[...chars(`"${key}"`), WS, ':', WS, '(?=\\{)'],
]
const END = pattern(WS, '\\}')
/** Mistral's models were shown calls with ids. */
const END_WITH_ID = pattern(WS, ',', WS, ...chars('"id"'), WS, ':', WS, '"', INSIDE, '"', WS, '\\}')

const HERMES: Form = {
  opens: [pattern(...chars(HERMES_OPEN), WS, ...head('arguments'))],
  anywhere: true,
  ends: [END],
  again: [],
  closes: [pattern(WS, ...chars(HERMES_CLOSE))],
}
const FORMS: Readonly<Record<ToolFormat, Form>> = {
  hermes: HERMES,
  generic: HERMES,
  llama3: { opens: [pattern(...head('parameters'))], anywhere: false, ends: [END], again: [], closes: [] },
  mistral: {
    // the mark's text is only seen where the vocabulary has it as ordinary text
    opens: [
      pattern('\\[', WS, ...head('arguments')),
      pattern(...chars(MISTRAL_OPEN), WS, '\\[', WS, ...head('arguments')),
    ],
    anywhere: false,
    ends: [END, END_WITH_ID],
    again: [pattern(WS, ',', WS, ...head('arguments'))],
    closes: [pattern(WS, '\\]')],
  },
}

/** Where the parser stands. */
type State = 'text' | 'plain-text' | 'arguments' | 'end-of-call' | 'after-call'

/** One answer. */
export class ToolCallParser {
  readonly #form: Form
  #state: State = 'text'
  /** Text that no event has told of yet. */
  #held = ''
  #events: ToolEvent[] = []
  /** Calls that have begun. */
  #calls = 0
  /** Whether white space at the front belongs to a call before it. */
  #trim = false
  #depth = 0
  #inString = false
  #escaped = false

  constructor(format: ToolFormat) {
    this.#form = FORMS[format]
  }

  feed(text: string): ToolEvent[] {
    this.#held += text
    while (this.#step(false)) {}
    return this.#take()
  }

  /** The answer has ended: what was held back is not going to become a call. */
  end(): ToolEvent[] {
    while (this.#step(true)) {}
    if (this.#state === 'text' || this.#state === 'plain-text') this.#text(this.#held)
    if (this.#state === 'end-of-call') this.#endCall()
    this.#held = ''
    return this.#take()
  }

  #take(): ToolEvent[] {
    const events = this.#events
    this.#events = []
    return events
  }

  /** Whether there may be more to do with the text at hand. */
  #step(ended: boolean): boolean {
    switch (this.#state) {
      case 'text':
        return this.#form.anywhere ? this.#readText(ended) : this.#readFront(ended)
      case 'plain-text':
        this.#text(this.#held)
        this.#held = ''
        return false
      case 'arguments':
        return this.#readArguments()
      case 'end-of-call':
        return this.#readEnd(ended)
      case 'after-call':
        return this.#readAfter(ended)
    }
  }

  /** Looks for a call anywhere. White space waits: a call may follow it. */
  #readText(ended: boolean): boolean {
    const mark = HERMES_OPEN[0]! // the one form whose calls may begin anywhere
    let at = this.#held.indexOf(mark)
    for (; at >= 0; at = this.#held.indexOf(mark, at + 1)) {
      const found = this.#match(this.#form.opens, at)
      if (found === 'perhaps' && !ended) break
      if (found === null || found === 'perhaps') continue
      this.#text(this.#held.slice(0, spaceAtEnd(this.#held, at)))
      this.#openCall(found, at)
      return true
    }
    const certain = spaceAtEnd(this.#held, at < 0 ? this.#held.length : at)
    this.#text(this.#held.slice(0, certain))
    this.#held = this.#held.slice(certain)
    return false
  }

  /** Calls at the front of the answer; it begins with one, or has none. */
  #readFront(ended: boolean): boolean {
    const at = this.#held.length - trimStart(this.#held).length
    if (at === this.#held.length) return false
    const found = this.#match(this.#form.opens, at)
    if (found === 'perhaps' && !ended) return false
    if (found === null || found === 'perhaps') this.#state = 'plain-text'
    else this.#openCall(found, at)
    return true
  }

  #openCall({ name, length }: Exclude<Found, string | null>, at: number): void {
    this.#held = this.#held.slice(at + length)
    this.#events.push({ kind: 'call', index: this.#calls++, name: JSON.parse(`"${name}"`) })
    this.#state = 'arguments'
  }

  /** A JSON object ends where its brackets do. */
  #readArguments(): boolean {
    const text = this.#held
    let at = 0
    do {
      if (at === text.length) break
      const c = text[at++]!
      if (this.#escaped) this.#escaped = false
      else if (this.#inString) {
        if (c === '\\') this.#escaped = true
        else if (c === '"') this.#inString = false
      } else if (c === '"') this.#inString = true
      else if (c === '{' || c === '[') this.#depth++
      else if (c === '}' || c === ']') this.#depth--
    } while (this.#depth > 0)
    if (at > 0) this.#events.push({ kind: 'arguments', index: this.#calls - 1, json: text.slice(0, at) })
    this.#held = text.slice(at)
    if (this.#depth > 0 || at === 0) return false
    this.#state = 'end-of-call'
    return true
  }

  #readEnd(ended: boolean): boolean {
    const found = this.#match(this.#form.ends, 0)
    if (found === 'perhaps') {
      if (ended) this.#held = ''
      return false
    }
    this.#held = this.#held.slice(found?.length ?? 0)
    this.#endCall()
    return true
  }

  #endCall(): void {
    this.#events.push({ kind: 'call-end', index: this.#calls - 1 })
    this.#state = 'after-call'
    this.#trim = true
  }

  #readAfter(ended: boolean): boolean {
    const { again, closes, anywhere } = this.#form
    const next = this.#match(again, 0)
    if (next === 'perhaps' && !ended) return false
    if (next !== null && next !== 'perhaps') {
      this.#openCall(next, 0)
      return true
    }
    const close = this.#match(closes, 0)
    if (close === 'perhaps') {
      if (ended)
        this.#held = '' // a call is complete without the rest of its closing mark
      else return false
    } else this.#held = this.#held.slice(close?.length ?? 0)
    this.#state = anywhere ? 'text' : 'plain-text'
    return true
  }

  #match(patterns: readonly Pattern[], at: number): Found {
    const text = this.#held.slice(at, at + LONGEST)
    for (const { whole, start } of patterns) {
      const found = whole.exec(text)
      if (found && isString(found.groups?.['name'])) return { length: found[0].length, name: found.groups?.['name'] }
      if (!found && text.length < LONGEST && start.test(text)) return 'perhaps'
    }
    return null
  }

  #text(text: string): void {
    const shown = this.#trim ? trimStart(text) : text
    if (shown === '') return
    this.#trim = false
    this.#events.push({ kind: 'text', text: shown })
  }
}

/** Whether the inside of a string is JSON: no bad escapes, no control characters. */
function isString(inside = ''): boolean {
  try {
    JSON.parse(`"${inside}"`)
    return true
  } catch {
    return false
  }
}

/** Where the white space before `end` begins. */
function spaceAtEnd(text: string, end: number): number {
  let at = end
  while (at > 0 && isSpace(text[at - 1]!)) at--
  return at
}

function trimStart(text: string): string {
  let at = 0
  while (at < text.length && isSpace(text[at]!)) at++
  return text.slice(at)
}

/** JSON's white space, no other: the grammar counts the rest as text. */
function isSpace(char: string): boolean {
  return char === ' ' || char === '\n' || char === '\t' || char === '\r'
}
