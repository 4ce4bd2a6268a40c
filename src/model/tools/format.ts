/**
 * How models write calls of functions. Which form a model knows, its chat template tells: it is asked to render a call,
 * and the result is looked at.
 *
 * hermes   `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`: Qwen 2.5 and 3, Hermes 2 Pro and 3
 * llama3   `{"name": ..., "parameters": {...}}` as the whole answer: Llama 3.1, 3.2, 3.3
 * mistral  the control token `[TOOL_CALLS]`, then `[{"name": ..., "arguments": {...}}, ...]`: Mistral 7B v0.3, Nemo
 * generic  as hermes, explained in the system text (`generic.ts`): templates that know no tools or another form
 */
import type { ChatMessage } from '../template/template.ts'
import type { FunctionTool } from './check.ts'

export type ToolFormat = 'hermes' | 'llama3' | 'mistral' | 'generic'

export const HERMES_OPEN = '<tool_call>'
export const HERMES_CLOSE = '</tool_call>'
export const MISTRAL_OPEN = '[TOOL_CALLS]'

/** A name and a value that no template writes by itself. */
const NAME = 'probe_of_tools'
const VALUE = 'probe-of-arguments'
const TOOL: FunctionTool = {
  type: 'function',
  function: {
    name: NAME,
    description: 'A function.',
    parameters: { type: 'object', properties: { key: { type: 'string', description: 'A text.' } }, required: ['key'] },
  },
}
/** Mistral's templates insist on ids of nine letters and digits. */
const ID = 'abcdef123'
const QUESTION: ChatMessage = { role: 'user', content: 'Question?' }
const CALL: ChatMessage = {
  role: 'assistant',
  content: '',
  tool_calls: [{ id: ID, type: 'function', function: { name: NAME, arguments: { key: VALUE } } }],
}
const RESULT: ChatMessage = { role: 'tool', name: NAME, tool_call_id: ID, content: 'Result.' }

const call = (key: string) => `\\{\\s*"name":\\s*"${NAME}",\\s*"${key}":\\s*\\{\\s*"key":\\s*"${VALUE}"\\s*\\}`
/** Some of Hermes' templates write the arguments first; the models take both orders. */
const reversed = `\\{\\s*"arguments":\\s*\\{\\s*"key":\\s*"${VALUE}"\\s*\\},\\s*"name":\\s*"${NAME}"`
const FORMS: readonly [ToolFormat, RegExp][] = [
  ['hermes', new RegExp(`<tool_call>\\s*(?:${call('arguments')}|${reversed})\\s*\\}\\s*</tool_call>`)],
  ['mistral', new RegExp(`\\[TOOL_CALLS\\]\\s*\\[\\s*${call('arguments')}`)],
  ['llama3', new RegExp(`${call('parameters')}\\s*\\}`)],
]

/** @param render the template itself, without anything of ours around it; may throw. */
export function detectToolFormat(
  render: (messages: readonly ChatMessage[], tools: readonly FunctionTool[]) => string,
): ToolFormat {
  try {
    if (!render([QUESTION], [TOOL]).includes(NAME)) return 'generic'
    const text = render([QUESTION, CALL, RESULT], [TOOL])
    return FORMS.find(([, form]) => form.test(text))?.[0] ?? 'generic'
  } catch {
    return 'generic' // what cannot show a call and its result is no help in asking for one
  }
}

/** Whether a template shows system messages: some refuse them, some leave them out. */
export function showsSystem(render: (messages: readonly ChatMessage[]) => string): boolean {
  try {
    return render([{ role: 'system', content: VALUE }, QUESTION]).includes(VALUE)
  } catch {
    return false
  }
}
