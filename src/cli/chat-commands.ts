/** What can be typed with a slash in front. */
import { writeFileSync } from 'node:fs'
import { KvasirError, nearest, showBytes } from '../contract/errors.ts'
import type { Conversation } from './conversation.ts'
import { summary } from './run.ts'

type Answer = 'leave' | undefined

export interface ChatCommand {
  readonly name: string
  readonly usage: string
  readonly help: string
  readonly run: (chat: Conversation, argument: string, say: (text: string) => void) => Answer | Promise<Answer>
}

export const COMMANDS: readonly ChatCommand[] = [
  {
    name: 'help',
    usage: '/help',
    help: 'this list',
    run(_chat, _argument, say) {
      for (const c of COMMANDS) say(`${c.usage.padEnd(14)} ${c.help}`)
      say('A line that ends with \\ goes on in the next. A message that begins with a slash is written with two.')
      say('Ctrl-C stops an answer; at an empty prompt, twice, it leaves, as Ctrl-D does.')
      return undefined
    },
  },
  {
    name: 'clear',
    usage: '/clear',
    help: 'forget the conversation, but not the system message',
    run(chat, _argument, say) {
      chat.clear()
      say('(a new conversation)')
      return undefined
    },
  },
  {
    name: 'system',
    usage: '/system TEXT',
    help: 'set the system message; without TEXT, show it; /system - takes it away',
    run(chat, argument, say) {
      if (argument === '') say(chat.system === null ? '(no system message)' : `system: ${chat.system}`)
      else {
        chat.system = argument === '-' ? null : argument
        say(chat.system === null ? '(no system message from now on)' : '(system message set)')
      }
      return undefined
    },
  },
  {
    name: 'save',
    usage: '/save FILE',
    help: 'write the conversation: as messages when FILE ends with .json, else as text',
    run(chat, argument, say) {
      if (argument === '') throw new KvasirError('INVALID_ARGUMENT', '/save needs a file: /save FILE')
      const asText = () => chat.messages.map((m) => `## ${m.role}\n\n${m.content}\n`).join('\n')
      try {
        writeFileSync(argument, argument.endsWith('.json') ? `${JSON.stringify(chat.messages, null, 2)}\n` : asText())
      } catch (cause) {
        const message = `${argument} could not be written: ${(cause as Error).message}`
        throw new KvasirError('INVALID_ARGUMENT', message, { file: argument }, cause)
      }
      say(`(${chat.messages.length} messages saved to ${argument})`)
      return undefined
    },
  },
  {
    name: 'stats',
    usage: '/stats',
    help: 'speed of the last answer, room left',
    async run(chat, _argument, say) {
      const { timings, contextLength } = chat
      const kvBytes = await chat.kvBytes()
      if (timings) say(summary(timings))
      const used = timings ? timings.prompt_tokens + timings.generated_tokens : 0
      say(
        `context: ${used} of ${contextLength} tokens; KV cache: ${showBytes(kvBytes.used)} of ${showBytes(kvBytes.allocated)}`,
      )
      return undefined
    },
  },
  { name: 'exit', usage: '/exit', help: 'leave, as Ctrl-D does', run: () => 'leave' },
]

/** @throws KvasirError INVALID_ARGUMENT */
export async function runCommand(line: string, chat: Conversation, say: (text: string) => void): Promise<Answer> {
  const [, name = '', argument = ''] = /^\/(\S*)\s*([\s\S]*)$/.exec(line)!
  const found = COMMANDS.find((c) => c.name === name)
  if (found) return await found.run(chat, argument.trim(), say)
  const guess = nearest(
    name,
    COMMANDS.map((c) => c.name),
  )
  const mend = guess ? `did you mean /${guess}?` : '/help lists them'
  throw new KvasirError('INVALID_ARGUMENT', `there is no command /${name}; ${mend}`)
}
