/** Messages of OpenAI's chat as templates know them. */
import type { ChatMessage } from '../model/template/template.ts'
import { textOf } from './content.ts'
import type { ChatBody } from './schemas/chat.ts'

/** `developer` is OpenAI's newer word for the system's role, `function` the older one for a tool's. */
const ROLES: Readonly<Record<string, string>> = { developer: 'system', function: 'tool' }

/** @throws ApiError for parts that are no text */
export function toMessages(messages: ChatBody['messages']): ChatMessage[] {
  return messages.map((message, i) => {
    const { role, content, ...rest } = message
    const param = `messages[${i}].content`
    const text = content === undefined || content === null ? null : textOf(content, ['text', 'refusal'], param)
    // A call needs no text beside it; without either, the template says what is missing.
    const said = text !== null || message.tool_calls?.length ? { content: text } : {}
    return { ...rest, role: ROLES[role] ?? role, ...said } as ChatMessage
  })
}
