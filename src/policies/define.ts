/** How a policy is made. The definition is checked when its file is loaded, so that a mistake in it cannot wait for a request. */
import { KvasirError } from '../contract/errors.ts'
import type { OptionSpec, OptionSpecs, PolicyDefinition } from '../contract/policy.ts'

/** @throws KvasirError INVALID_ARGUMENT for a definition that contradicts itself */
export function definePolicy<const S extends OptionSpecs>(definition: PolicyDefinition<S>): PolicyDefinition<S> {
  const { name, options } = definition
  const wrong = (what: string) => new KvasirError('INVALID_ARGUMENT', `policy '${name}': ${what}`)
  if (!/^[a-z][a-z0-9]*(-[a-z0-9]+)*$/.test(name))
    throw wrong('a name is made of lower case letters, digits and hyphens')
  for (const [option, spec] of Object.entries(options)) {
    if (!/^[a-z][a-zA-Z0-9]*$/.test(option)) throw wrong(`option '${option}' must be in camelCase`)
    const problem = valueProblem(spec, spec.default)
    if (problem) throw wrong(`the default of '${option}' ${problem}`)
    Object.freeze(spec)
  }
  Object.freeze(options)
  return Object.freeze(definition)
}

/** What a value must be, said behind the option's name; null: it is that. */
export function valueProblem(spec: OptionSpec, value: unknown): string | null {
  switch (spec.kind) {
    case 'number': {
      const { min, max, whole } = spec
      const isNumber = typeof value === 'number' && value >= min && value <= max && (!whole || Number.isInteger(value))
      return isNumber ? null : `must be a ${whole ? 'whole ' : ''}number from ${min} to ${max}, got ${show(value)}`
    }
    case 'choice': {
      const isChoice = typeof value === 'string' && spec.choices.includes(value)
      return isChoice ? null : `must be one of ${spec.choices.join(', ')}, got ${show(value)}`
    }
    case 'flag':
      return typeof value === 'boolean' ? null : `must be true or false, got ${show(value)}`
    default:
      return spec satisfies never
  }
}

const show = (value: unknown) => (typeof value === 'string' ? `'${value}'` : (JSON.stringify(value) ?? String(value)))
