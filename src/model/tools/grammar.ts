/**
 * The grammar of an answer that may or must call functions. What comes out of it the parser (`parse.ts`) reads as the same
 * calls, and the arguments of every call satisfy their schema.
 *
 * Free text is an automaton: one rule for each state, a character leads to the next, and the text may end in any of them.
 * It has no way into a call except through the mark that begins one.
 */
import { KvasirError } from '../../contract/errors.ts'
import { checkGrammar, literal } from '../sampling/gbnf.ts'
import { addSchema, type JsonSchema } from '../sampling/json-schema.ts'
import type { SchemaObject } from '../sampling/schema-merge.ts'
import { RuleSet } from '../sampling/schema-rules.ts'
import { chosenTools, type FunctionTool, type ToolChoice } from './check.ts'
import { HERMES_CLOSE, HERMES_OPEN, MISTRAL_OPEN, type ToolFormat } from './format.ts'
import { loosened } from './loosen.ts'

export type { FunctionTool, ToolChoice } from './check.ts'

export interface ToolGrammarOptions {
  readonly format: ToolFormat
  readonly choice: ToolChoice
  /** Whether an answer may hold several calls. Formats that know one call only (llama3) hold one. */
  readonly parallel: boolean
  /**
   * Mistral: the id of `[TOOL_CALLS]`, see `callsToken`. Without it the list of calls stands alone, since the sampler lets
   * no control token through that the grammar does not name.
   */
  readonly controlToken?: number | null
  /** With `auto`: an answer that is no call is JSON of this schema. Formats whose calls are bare JSON cannot tell the two apart. */
  readonly answer?: JsonSchema
}

const SPACE = ' \t\r\n'
/** The sampler checks the grammar again, with the vocabulary at hand. */
const ANY_VOCABULARY = 2 ** 31

/**
 * @returns GBNF that begins at its rule `root`.
 * @throws KvasirError GRAMMAR_INVALID with `details.tool`, `details.path` and `details.field` for parameters no grammar can
 * be made for; INVALID_ARGUMENT when `choice` names none of the tools; INVALID_ARGUMENT also for an `answer` that could not be told from a call.
 */
export function toolGrammar(tools: readonly FunctionTool[], options: ToolGrammarOptions): string {
  const rules = new RuleSet()
  const body = answer(rules, chosenTools(tools, options.choice).map(argumentsOf(tools, rules)), options)
  const text = rules.text(rules.add('tool-answer', body))
  checkGrammar(text, ANY_VOCABULARY)
  return text
}

/** A function and the rule of its arguments. */
interface Callable {
  readonly name: string
  readonly args: string
}

function answer(rules: RuleSet, callables: readonly Callable[], options: ToolGrammarOptions): string {
  const { format, choice, parallel, controlToken, answer: schema } = options
  if (schema !== undefined && (format === 'llama3' || format === 'mistral'))
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `calls of this model (${format}) are bare JSON, and so would its answer be: ask for a schema without tools, or for a call`,
      { field: 'response_format' },
    )
  switch (format) {
    case 'hermes':
    case 'generic': {
      const call = rules.add('call', callBody(rules, callables, 'arguments'))
      const more = parallel ? ` (ws ${literal(HERMES_OPEN)} ws ${call} ws ${literal(HERMES_CLOSE)})*` : ''
      const opened = rules.add('opened-call', `ws ${call} ws ${literal(HERMES_CLOSE)}${more}`)
      const calls = `ws ${literal(HERMES_OPEN)} ${opened}`
      if (choice !== 'auto') return calls
      return schema === undefined ? textUntil(rules, HERMES_OPEN, opened)[0]! : `${addSchema(schema, rules)} | ${calls}`
    }
    case 'llama3': {
      const call = rules.add('call', callBody(rules, callables, 'parameters'))
      return choice === 'auto' ? `${textWithoutBrace(rules)} | ${spaces(rules)} ${call}` : `ws ${call}`
    }
    case 'mistral': {
      const call = rules.add('call', callBody(rules, callables, 'arguments'))
      const list = rules.add('calls', `"[" ws ${call}${parallel ? ` (ws "," ws ${call})*` : ''} ws "]"`)
      const opened = controlToken === undefined || controlToken === null ? list : `<[${controlToken}]> ws ${list}`
      return choice === 'auto' ? `${textWithoutList(rules)} | ${spaces(rules)} ${opened}` : `ws ${opened}`
    }
  }
}

function callBody(rules: RuleSet, callables: readonly Callable[], key: 'arguments' | 'parameters'): string {
  const names = callables.map(({ name, args }): Named => {
    const rest = rules.add(`call-${name}`, `ws "," ws "\\"${key}\\":" ws ${args}`)
    return { text: JSON.stringify(name), rest }
  })
  return `"{" ws "\\"name\\":" ws (${nameTree(names)}) ws "}"`
}

/** A text, and the rule that follows it. */
interface Named {
  readonly text: string
  readonly rest: string
}

/**
 * What texts have in common is written once: each way to go on costs time with every token that is refused. Of equal texts
 * the first counts.
 */
function nameTree(names: readonly Named[]): string {
  const branches = new Set(names.map(({ text }) => text[0]))
  return [...branches]
    .map((first) => {
      const group = names.filter(({ text }) => text[0] === first)
      const [{ text, rest }] = group as [Named]
      if (group.length === 1 || text === '') return `${literal(text)} ${rest}`
      const shared = commonStart(group.map(({ text }) => text))
      const rests = group.map(({ text, rest }) => ({ text: text.slice(shared.length), rest }))
      return `${literal(shared)} (${nameTree(rests)})`
    })
    .join(' | ')
}

function commonStart(texts: readonly string[]): string {
  const [first = ''] = texts
  let n = first.length
  while (!texts.every((text) => text.startsWith(first.slice(0, n)))) n--
  return first.slice(0, n)
}

function argumentsOf(tools: readonly FunctionTool[], rules: RuleSet): (tool: FunctionTool) => Callable {
  return (tool) => {
    const { name, parameters, strict } = tool.function
    try {
      const schema = asObjectSchema(parameters)
      return { name, args: addSchema(strict ? schema : loosened(schema), rules) }
    } catch (error) {
      if (!(error instanceof KvasirError) || error.code !== 'GRAMMAR_INVALID') throw error
      const field = `tools[${tools.indexOf(tool)}].function.parameters`
      const said = error.message.replace(/^GRAMMAR_INVALID: /, '')
      throw new KvasirError(
        'GRAMMAR_INVALID',
        `${field} of ${name}: ${said}`,
        { ...error.details, tool: name, field },
        error,
      )
    }
  }
}

/** Arguments are an object. One whose list of properties is empty takes none: that is how clients say "no arguments". */
function asObjectSchema(parameters: FunctionTool['function']['parameters']): JsonSchema {
  const { type: _, properties = {}, ...rest } = (parameters ?? {}) as SchemaObject
  const says = Object.keys(rest).some((keyword) => !/^(?:\$schema|title|description|strict|required)$/.test(keyword))
  const listed = typeof properties !== 'object' || properties === null || Object.keys(properties).length > 0
  const needs = Array.isArray(rest['required']) ? rest['required'].length > 0 : rest['required'] !== undefined
  if (says || listed || needs) return { ...parameters, type: 'object' }
  return { type: 'object', additionalProperties: false }
}

/** Text in which `mark` does not come up; where it does, `after` follows and ends the answer. */
function textUntil(rules: RuleSet, mark: string, after: string | null): readonly string[] {
  const states = [...mark].map((_, read) => rules.reserve(`text-${read}`))
  for (const [read, state] of states.entries())
    rules.set(state, stateBody(overlaps(mark, read, states, after), states[0]!))
  return states
}

/** Where the characters of `mark` lead when `read` of them were read: to the longest beginning of it that is there now. */
function overlaps(
  mark: string,
  read: number,
  states: readonly string[],
  after: string | null,
): Map<string, string | null> {
  const next = new Map<string, string | null>()
  for (const char of new Set(mark)) {
    const text = mark.slice(0, read) + char
    let reached = text.length
    while (!text.endsWith(mark.slice(0, reached))) reached--
    if (reached > 0) next.set(char, states[reached] ?? after)
  }
  return next
}

/** Begins with no `{`, white space before it or not. */
function textWithoutBrace(rules: RuleSet): string {
  const lead = rules.reserve('text')
  return rules.set(lead, stateBody(new Map([...spaceTo(lead), ['{', null]]), rules.add('anything', '.*')))
}

/** Begins with no `[{`, white space before and inside included, and the control token is not in it as text. */
function textWithoutList(rules: RuleSet): string {
  const states = textUntil(rules, MISTRAL_OPEN, null)
  const from = (read: number) => overlaps(MISTRAL_OPEN, read, states, null)
  const inside = rules.reserve('text-inside')
  rules.set(inside, stateBody(new Map([...from(0), ...spaceTo(inside), ['{', null]]), states[0]!))
  const bracket = stateBody(new Map([...from(1), ...spaceTo(inside), ['{', null]]), states[0]!)
  const lead = rules.reserve('text')
  return rules.set(lead, stateBody(new Map([...spaceTo(lead), ['[', rules.add('text-bracket', bracket)]]), states[0]!))
}

function spaceTo(state: string): [string, string | null][] {
  return [...SPACE].map((char) => [char, state])
}

/** Not `ws`, which is finite: before a call there may stand whatever could have become text. */
function spaces(rules: RuleSet): string {
  return rules.add('spaces', `${charClass([...SPACE])}*`)
}

/** The end, or a character and its state; null is no way on. */
function stateBody(next: ReadonlyMap<string, string | null>, otherwise: string): string {
  const ways = ['""', `${charClass([...next.keys()], '^')} ${otherwise}`]
  for (const target of new Set(next.values())) {
    const chars = [...next.keys()].filter((char) => next.get(char) === target)
    if (target !== null) ways.push(`${charClass(chars)} ${target}`)
  }
  return ways.join(' | ')
}

function charClass(chars: readonly string[], not: '^' | '' = ''): string {
  const codes = chars.map((char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`)
  return `[${not}${codes.join('')}]`
}
