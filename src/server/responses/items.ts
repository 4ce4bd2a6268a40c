/** Input items of OpenAI's responses as the messages of a conversation. */
import type { ChatMessage, ToolCall } from '../../model/template/template.ts'
import { type Fields, stringOf, textOf } from '../content.ts'
import { ApiError } from '../errors.ts'
import type { ResponsesBody } from '../schemas/responses.ts'

const TEXTS = ['input_text', 'output_text', 'text', 'refusal']
const ROLES: Readonly<Record<string, string>> = {
  ...{ user: 'user', assistant: 'assistant', system: 'system' },
  // OpenAI's newer word for the system's role
  developer: 'system',
}

/** @throws ApiError for items that cannot be had here, by their place in the input */
export function messagesOf({ instructions, input }: ResponsesBody): readonly ChatMessage[] {
  const messages: ChatMessage[] = instructions === undefined ? [] : [{ role: 'system', content: instructions }]
  if (typeof input === 'string') return [...messages, { role: 'user', content: input }]
  for (const [i, item] of input.entries()) add(messages, item, `input[${i}]`)
  return messages
}

function add(messages: ChatMessage[], item: Fields, at: string): void {
  switch (item['type'] ?? 'message') {
    case 'message':
      addMessage(messages, item, at)
      break
    case 'function_call':
      addCall(messages, item, at)
      break
    case 'function_call_output':
      messages.push({
        role: 'tool',
        tool_call_id: stringOf(item, 'call_id', at),
        content: textOf(item['output'], TEXTS, `${at}.output`),
      })
      break
    case 'reasoning':
      break // what the model thought is not shown to it again
    default:
      throw new ApiError(
        400,
        `items of type '${String(item['type'])}' are not supported; there are message, function_call, function_call_output and reasoning`,
        { code: 'unsupported_content', param: `${at}.type` },
      )
  }
}

function addMessage(messages: ChatMessage[], item: Fields, at: string): void {
  const given = stringOf(item, 'role', at)
  const role = ROLES[given]
  if (!role)
    throw new ApiError(
      400,
      `Invalid value for '${at}.role': it must be one of ${Object.keys(ROLES).join(', ')}; got "${given}".`,
      { code: 'invalid_value', param: `${at}.role` },
    )
  const content = textOf(item['content'], TEXTS, `${at}.content`)
  const last = messages.at(-1)
  // Templates know one system message, in front: instructions and what follows them become one.
  if (role === 'system' && messages.length === 1 && last?.role === 'system')
    messages[0] = { role, content: `${String(last.content)}\n\n${content}` }
  else messages.push({ role, content })
}

/** Calls stand in the message of the assistant that made them. */
function addCall(messages: ChatMessage[], item: Fields, at: string): void {
  const call: ToolCall = {
    id: stringOf(item, 'call_id', at),
    type: 'function',
    function: { name: stringOf(item, 'name', at), arguments: stringOf(item, 'arguments', at) },
  }
  const last = messages.at(-1)
  if (last?.role === 'assistant')
    messages[messages.length - 1] = { ...last, tool_calls: [...(last.tool_calls ?? []), call] }
  else messages.push({ role: 'assistant', content: null, tool_calls: [call] })
}
