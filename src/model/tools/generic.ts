/**
 * Tools for templates that know none: a text in front says which functions there are and how to call them, and calls and
 * results of the history become text. The form is Hermes', which many models have seen.
 */
import type { ChatMessage, ContentPart, ToolCall } from '../template/template.ts'
import { HERMES_CLOSE, HERMES_OPEN } from './format.ts'

export interface GenericOptions {
  readonly tools: readonly object[]
  /** Whether the template shows system messages; otherwise the first user message carries the text. */
  readonly system: boolean
}

/** The text that asks for calls; docs/tools.md shows it. */
export function toolsText(tools: readonly object[]): string {
  return `# Tools

You may call functions. Each line is one of them as JSON; "parameters" is the JSON schema of its arguments:
<tools>
${tools.map((tool) => JSON.stringify((tool as { function?: object }).function ?? tool)).join('\n')}
</tools>

To call a function, answer with one block of this form for each call:
${HERMES_OPEN}
{"name": "name of the function", "arguments": {"name of an argument": value}}
${HERMES_CLOSE}
Results come back in <tool_response></tool_response>. If no function helps, answer in plain words.`
}

/** Messages of roles system, user and assistant only, that say the same. */
export function withToolsAsText(messages: readonly ChatMessage[], options: GenericOptions): ChatMessage[] {
  const plain: ChatMessage[] = []
  for (const [i, message] of messages.entries()) {
    const last = plain.at(-1)
    if (message.role === 'tool') {
      const result = { role: 'user', content: inFront('<tool_response>\n', message.content, '\n</tool_response>') }
      // one turn holds the results of all calls, since many templates want turns to alternate
      if (messages[i - 1]?.role === 'tool') plain[plain.length - 1] = join(last!, result, '\n')
      else plain.push(result)
    } else if (message.role === 'user' && messages[i - 1]?.role === 'tool') {
      plain[plain.length - 1] = join(last!, message, '\n\n')
    } else plain.push(message.tool_calls?.length ? withCallsAsText(message, message.tool_calls) : message)
  }
  return options.tools.length === 0 ? plain : introduce(plain, toolsText(options.tools), options.system)
}

function introduce(messages: readonly ChatMessage[], text: string, system: boolean): ChatMessage[] {
  const [first] = messages
  if (first?.role === 'system') return [join(first, { role: 'system', content: text }, '\n\n'), ...messages.slice(1)]
  const user = messages.findIndex((message) => message.role === 'user')
  if (system || user < 0) return [{ role: 'system', content: text }, ...messages]
  return messages.map((m, i) => (i === user ? { ...m, content: inFront(`${text}\n\n`, m.content) } : m))
}

function withCallsAsText(message: ChatMessage, calls: readonly ToolCall[]): ChatMessage {
  const { tool_calls: _, ...rest } = message
  const blocks = calls.map(({ function: { name, arguments: args } }) => {
    // text is kept as the model wrote it, so that its cached rows are found again
    const json = typeof args === 'string' ? args : JSON.stringify(args)
    return `${HERMES_OPEN}\n{"name": ${JSON.stringify(name)}, "arguments": ${json}}\n${HERMES_CLOSE}`
  })
  return join({ ...rest, content: message.content ?? '' }, { role: message.role, content: blocks.join('\n') }, '\n')
}

/** The first message with the second's content behind its own. */
function join(a: ChatMessage, b: ChatMessage, between: string): ChatMessage {
  if (typeof b.content === 'string') {
    const gap = a.content === '' ? '' : between
    return { ...a, content: inFront('', a.content, gap + b.content) }
  }
  return { ...a, content: [...parts(a.content), ...parts(between), ...parts(b.content)] }
}

/** Content between two texts. */
function inFront(before: string, content: ChatMessage['content'], after = ''): string | readonly ContentPart[] {
  if (content === undefined || content === null || typeof content === 'string') return before + (content ?? '') + after
  return [...parts(before), ...content, ...parts(after)]
}

function parts(content: ChatMessage['content']): readonly ContentPart[] {
  if (content === undefined || content === null || content === '') return []
  return typeof content === 'string' ? [{ type: 'text', text: content }] : content
}
