/** What is Mistral's alone: a control token begins the calls, and templates refuse ids other than nine letters and digits. */
import { createHash } from 'node:crypto'
import type { ChatMessage, ToolCall } from '../template/template.ts'
import type { Tokenizer } from '../tokenizer/tokenizer.ts'
import { MISTRAL_OPEN } from './format.ts'

/** The id of `[TOOL_CALLS]`, null where the vocabulary has no such control token. */
export function callsToken(tokenizer: Tokenizer): number | null {
  const [token, ...more] = tokenizer.encode(MISTRAL_OPEN, { parseSpecial: true })
  return token !== undefined && more.length === 0 && tokenizer.isControl(token) ? token : null
}

/** Other ids, as OpenAI's `call_...`, become nine characters that depend on the id alone, so that calls and results still match. */
export function withShortIds(messages: readonly ChatMessage[]): ChatMessage[] {
  return messages.map((message) => {
    const { tool_calls: calls, tool_call_id: id } = message
    const withId = (call: ToolCall): ToolCall => ({ ...call, id: shortId(call.id ?? '') })
    return {
      ...message,
      ...(calls && { tool_calls: calls.map(withId) }),
      ...((id !== undefined || message.role === 'tool') && { tool_call_id: shortId(id ?? '') }),
    }
  })
}

function shortId(id: string): string {
  if (/^[a-zA-Z0-9]{9}$/.test(id)) return id
  return createHash('sha256').update(id).digest('hex').slice(0, 9)
}
