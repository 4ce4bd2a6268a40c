/** Options as people and programs give them: `snapkv?window=32&pool=max`, or an object. */
import { KvasirError, nearest } from '../contract/errors.ts'
import type { OptionSpec, OptionSpecs, OptionsOf, PolicyDefinition } from '../contract/policy.ts'
import { valueProblem } from './define.ts'

/** `name?option=value&flag`: the name, and the options as they were typed; a flag alone is true. */
export function splitSpec(text: string): { readonly name: string; readonly given: ReadonlyMap<string, string> } {
  const at = text.indexOf('?')
  const name = (at < 0 ? text : text.slice(0, at)).trim()
  const given = new Map<string, string>()
  for (const part of at < 0 ? [] : text.slice(at + 1).split('&')) {
    const [key = '', ...value] = part.split('=')
    if (!key.trim()) throw invalid(`'${text}': an option without a name. Write ${name}?option=value&option=value`)
    if (given.has(key.trim())) throw invalid(`'${text}' gives '${key.trim()}' twice`)
    given.set(key.trim(), value.length ? value.join('=').trim() : 'true')
  }
  return { name, given }
}

/**
 * All options of a policy: those given, checked, and the defaults of the others.
 * @param given typed values, or texts: a text that reads as a number or a flag is one where the option wants one
 * @throws KvasirError INVALID_ARGUMENT that names the option, what was given and what is allowed
 */
export function readOptions<S extends OptionSpecs>(
  definition: PolicyDefinition<S>,
  given: Readonly<Record<string, unknown>> | ReadonlyMap<string, unknown>,
): OptionsOf<S> {
  const { name, options: specs } = definition
  const values: Record<string, unknown> = {}
  for (const [option, { default: value }] of Object.entries(specs)) values[option] = value
  for (const [option, raw] of given instanceof Map ? given : Object.entries(given)) {
    if (raw === undefined) continue
    if (!Object.hasOwn(specs, option)) throw unknownOption(name, option, Object.keys(specs))
    const value = fromText(specs[option]!, raw)
    const problem = valueProblem(specs[option]!, value)
    if (problem) throw invalid(`${name}: '${option}' ${problem}`, { policy: name, option, value })
    values[option] = value
  }
  const options = Object.freeze(values) as OptionsOf<S>
  const problem = definition.check?.(options) ?? null
  if (problem) throw invalid(`${name}: ${problem}`, { policy: name, options })
  return options
}

/** The shortest text that gives these options again: those that differ from their defaults, in the definition's order. */
export function showOptions(definition: PolicyDefinition, options: Readonly<Record<string, unknown>>): string {
  const said = Object.entries(definition.options).filter(([option, spec]) => options[option] !== spec.default)
  return definition.name + said.map(([option], i) => `${i ? '&' : '?'}${option}=${options[option]}`).join('')
}

/** One line per option, for help. */
export function describeOptions(definition: PolicyDefinition): readonly string[] {
  return Object.entries(definition.options).map(([option, spec]) => {
    const range =
      spec.kind === 'number'
        ? `${spec.min} to ${spec.max}`
        : spec.kind === 'choice'
          ? spec.choices.join(', ')
          : 'true, false'
    return `${option}  ${spec.help} (${range}; default ${spec.default})`
  })
}

function fromText(spec: OptionSpec, value: unknown): unknown {
  if (typeof value !== 'string') return value
  if (spec.kind === 'number' && /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(value)) return Number(value)
  if (spec.kind === 'flag' && /^(true|false)$/i.test(value)) return value.toLowerCase() === 'true'
  return value
}

function unknownOption(name: string, option: string, known: readonly string[]): KvasirError {
  const near = nearest(option, known)
  const all = known.length ? `There are ${known.join(', ')}.` : 'It has none.'
  return invalid(`${name} has no option '${option}'. ${near ? `Did you mean '${near}'?` : all}`, { option, known })
}

const invalid = (text: string, details: Readonly<Record<string, unknown>> = {}) =>
  new KvasirError('INVALID_ARGUMENT', text, details)
