/** The policies by name. To add one: write its file and its page, list it here; the suite in `policies.test.ts` runs it. */
import { KvasirError, nearest } from '../contract/errors.ts'
import type { OptionsOf, PolicyDefinition } from '../contract/policy.ts'
import { adaKv } from './eviction/ada-kv.ts'
import { cake } from './eviction/cake.ts'
import { compresskv } from './eviction/compresskv.ts'
import { h2o } from './eviction/h2o.ts'
import { lacache } from './eviction/lacache.ts'
import { pyramidkv } from './eviction/pyramidkv.ts'
import { random } from './eviction/random.ts'
import { razorattention } from './eviction/razorattention.ts'
import { snapkv } from './eviction/snapkv.ts'
import { streamingLlm } from './eviction/streaming-llm.ts'
import { tova } from './eviction/tova.ts'
import { uncomp } from './eviction/uncomp.ts'
import { window } from './eviction/window.ts'
import { full } from './full.ts'
import { kvmerger } from './merging/kvmerger.ts'
import { minicache } from './merging/minicache.ts'
import { describeOptions, readOptions, showOptions, splitSpec } from './options.ts'
import { gear } from './quantization/gear.ts'
import { kivi } from './quantization/kivi.ts'
import { mikv } from './quantization/mikv.ts'
import { zipcache } from './quantization/zipcache.ts'

export { type Budget, type BudgetBase, budgetRows, parseBudget, showBudget } from './budget.ts'
export { definePolicy } from './define.ts'
export { randomOf } from './parts/random.ts'

export const POLICIES = {
  full,
  random,
  window,
  'streaming-llm': streamingLlm,
  h2o,
  tova,
  snapkv,
  pyramidkv,
  'ada-kv': adaKv,
  cake,
  compresskv,
  uncomp,
  razorattention,
  lacache,
  kvmerger,
  minicache,
  kivi,
  gear,
  mikv,
  zipcache,
} as const satisfies Record<string, PolicyDefinition>

export type PolicyName = keyof typeof POLICIES

/** Policies of other people, by name. */
const registered = new Map<string, PolicyDefinition>()

/**
 * Makes a policy of your own known in this process, under its name: `docs/writing-a-policy.md`.
 * @throws KvasirError INVALID_ARGUMENT for a name that is taken
 */
export function registerPolicy(definition: PolicyDefinition): void {
  const { name } = definition
  const known = registered.get(name)
  if (known === definition) return
  if (known || Object.hasOwn(POLICIES, name))
    throw new KvasirError('INVALID_ARGUMENT', `a policy named '${name}' is there already; give yours another name`, {
      name,
    })
  registered.set(name, definition)
}

/** A policy and its options as an object: `{ name: 'snapkv', window: 32 }`. */
export type PolicySpec = {
  [N in PolicyName]: { readonly name: N } & Partial<OptionsOf<(typeof POLICIES)[N]['options']>>
}[PolicyName]

/** A policy, all its options, and the shortest text for both: the same text means the same policy. */
export interface ChosenPolicy {
  readonly definition: PolicyDefinition
  readonly options: OptionsOf<PolicyDefinition['options']>
  readonly text: string
}

/** @throws KvasirError INVALID_ARGUMENT with the nearest name there is */
export function policyNamed(name: string): PolicyDefinition {
  if (Object.hasOwn(POLICIES, name)) return POLICIES[name as PolicyName]
  const own = registered.get(name)
  if (own) return own
  const names = [...Object.keys(POLICIES), ...registered.keys()]
  const near = nearest(name, names)
  const hint = near ? `Did you mean '${near}'?` : `There are ${names.join(', ')}.`
  throw new KvasirError('INVALID_ARGUMENT', `no policy is named '${name}'. ${hint}`, { name, known: names })
}

/**
 * @param spec `snapkv`, `snapkv?window=32&pool=max`, or the same as an object
 * @throws KvasirError INVALID_ARGUMENT
 */
export function choosePolicy(spec: string | PolicySpec): ChosenPolicy {
  const { name, given } = typeof spec === 'string' ? splitSpec(spec) : split(spec)
  const definition = policyNamed(name)
  const options = readOptions(definition, given)
  return { definition, options, text: showOptions(definition, options) }
}

function split({ name, ...given }: PolicySpec): { name: string; given: Readonly<Record<string, unknown>> } {
  return { name, given }
}

/** For help: each policy with its summary, and its options below it. */
export function describePolicies(): string {
  const width = Math.max(...Object.keys(POLICIES).map((name) => name.length))
  return Object.values<PolicyDefinition>(POLICIES)
    .flatMap((p) => [
      `${p.name.padEnd(width)}  ${p.summary}`,
      ...describeOptions(p).map((o) => `${' '.repeat(width + 2)}${o}`),
    ])
    .join('\n')
}
