/** Functions that a model may call, in OpenAI's form, and what must be true of them. */
import { KvasirError, nearest } from '../../contract/errors.ts'

export interface FunctionTool {
  readonly type: 'function'
  readonly function: {
    readonly name: string
    readonly description?: string | null
    /** JSON schema of the arguments, which are an object. Without it the function takes `{}`. */
    readonly parameters?: object | null
    /** Accepted; arguments are held to their schema whatever it says. */
    readonly strict?: boolean | null
  }
}

/** `required`: at least one call. A name: calls of that function only, at least one. */
export type ToolChoice = 'auto' | 'required' | { readonly name: string }

const MAX_TOOLS = 128
const NAME = /^[a-zA-Z0-9_-]{1,64}$/

/**
 * Tools as they came from outside.
 *
 * @throws KvasirError INVALID_ARGUMENT with `details.field`, e.g. `tools[2].function.name`.
 */
export function checkTools(tools: unknown): readonly FunctionTool[] {
  if (!Array.isArray(tools) || tools.length === 0) fail('tools', tools, 'a list of at least one tool')
  if (tools.length > MAX_TOOLS) fail('tools', `a list of ${tools.length}`, `at most ${MAX_TOOLS} tools`)
  const seen = new Map<string, number>()
  for (const [i, tool] of tools.entries()) {
    const name = checkTool(tool, `tools[${i}]`)
    const earlier = seen.get(name)
    if (earlier !== undefined)
      fail(`tools[${i}].function.name`, name, `names not used before; tools[${earlier}] has it`)
    seen.set(name, i)
  }
  return tools as FunctionTool[]
}

/** The tools that a choice leaves. @throws KvasirError INVALID_ARGUMENT for a name that no tool has. */
export function chosenTools(tools: readonly FunctionTool[], choice: ToolChoice): readonly FunctionTool[] {
  if (typeof choice === 'string') return tools
  const chosen = tools.filter((tool) => tool.function.name === choice.name)
  if (chosen.length > 0) return chosen
  const names = tools.map((tool) => tool.function.name)
  const near = nearest(choice.name, names)
  const mend = near ? `did you mean ${JSON.stringify(near)}?` : `the tools are ${names.join(', ')}`
  fail('tool_choice', choice.name, `names of the tools given; ${mend}`)
}

/** The name of a well-formed tool. */
function checkTool(tool: unknown, at: string): string {
  const { type, function: fn } = asObject(tool, at)
  if (type !== 'function') fail(`${at}.type`, type, '"function"')
  const { name, description, parameters, strict } = asObject(fn, `${at}.function`)
  if (typeof name !== 'string' || !NAME.test(name))
    fail(`${at}.function.name`, name, '1 to 64 letters, digits, underscores and hyphens')
  if (typeof (description ?? '') !== 'string') fail(`${at}.function.description`, description, 'a text')
  if (typeof (strict ?? false) !== 'boolean') fail(`${at}.function.strict`, strict, 'true or false')
  if (parameters === undefined || parameters === null) return name
  const schema = asObject(parameters, `${at}.function.parameters`)
  if ((schema['type'] ?? 'object') !== 'object')
    fail(`${at}.function.parameters.type`, schema['type'], '"object": arguments have names')
  return name
}

function asObject(value: unknown, field: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) fail(field, value, 'an object')
  return value as Record<string, unknown>
}

function fail(field: string, value: unknown, allowed: string): never {
  const shown = (JSON.stringify(value) ?? String(value)).slice(0, 80)
  throw new KvasirError('INVALID_ARGUMENT', `${field} is ${shown}; allowed: ${allowed}`, { field, allowed })
}
