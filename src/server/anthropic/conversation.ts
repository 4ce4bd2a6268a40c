/** Anthropic's messages as those that chat templates know. */
import type { ChatMessage, ToolCall } from '../../model/template/template.ts'
import { type Fields, partText, stringOf, textOf } from '../content.ts'
import { ApiError } from '../errors.ts'
import type { CountTokensBody } from '../schemas/messages.ts'

const TEXTS = ['text']
/** What the model thought is not shown to it again. */
const THOUGHTS = ['thinking', 'redacted_thinking']

/** @throws ApiError for blocks that cannot be had here, by their place in the body */
export function messagesOf({ system, messages }: CountTokensBody): readonly ChatMessage[] {
  if (messages.at(-1)!.role === 'assistant')
    throw new ApiError(
      400,
      'the last message is the assistant’s: beginnings of answers are not continued here. End with a message of the user.',
      { code: 'unsupported_content', param: `messages[${messages.length - 1}].role` },
    )
  const text = system === undefined ? '' : textOf(system, TEXTS, 'system')
  return [
    ...(text ? [{ role: 'system', content: text }] : []),
    ...messages.flatMap(({ role, content }, i) => {
      const at = `messages[${i}].content`
      if (typeof content === 'string') return [{ role, content }]
      return role === 'assistant' ? [assistantMessage(content, at)] : userMessages(role, content, at)
    }),
  ]
}

function assistantMessage(content: readonly Fields[], at: string): ChatMessage {
  const calls: ToolCall[] = []
  let text = ''
  for (const [i, block] of content.entries()) {
    const place = `${at}[${i}]`
    if (THOUGHTS.includes(String(block['type']))) continue
    if (block['type'] === 'tool_use') calls.push(toolCall(block, place))
    else text += partText(block, TEXTS, place)
  }
  return { role: 'assistant', content: text, ...(calls.length ? { tool_calls: calls } : {}) }
}

function toolCall(block: Fields, at: string): ToolCall {
  const input = block['input'] ?? {}
  if (typeof input !== 'object' || Array.isArray(input))
    throw new ApiError(400, `Invalid value for '${at}.input': it must be an object.`, {
      code: 'invalid_type',
      param: `${at}.input`,
    })
  return {
    id: stringOf(block, 'id', at),
    type: 'function',
    function: { name: stringOf(block, 'name', at), arguments: input },
  }
}

/** Results of calls are messages of their own for templates; text between them keeps its place. */
function userMessages(role: string, content: readonly Fields[], at: string): readonly ChatMessage[] {
  const messages: { role: string; content: string; tool_call_id?: string }[] = []
  for (const [i, block] of content.entries()) {
    const place = `${at}[${i}]`
    if (block['type'] === 'tool_result') {
      const result = textOf(block['content'] ?? '', TEXTS, `${place}.content`)
      messages.push({ role: 'tool', tool_call_id: stringOf(block, 'tool_use_id', place), content: result })
      continue
    }
    const text = partText(block, TEXTS, place)
    const last = messages.at(-1)
    if (last?.role === role) last.content += text
    else messages.push({ role, content: text })
  }
  return messages.length ? messages : [{ role, content: '' }]
}
