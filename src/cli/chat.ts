/** `kvasir chat`: a conversation on a terminal; without a terminal, each line of stdin is a turn. */
import { type Command, Option } from 'commander'
import { KvasirError } from '../contract/errors.ts'
import { COMMANDS, runCommand } from './chat-commands.ts'
import { Conversation } from './conversation.ts'
import { LineReader } from './line-reader.ts'
import { loadEngine } from './model.ts'
import {
  addOptions,
  type EngineFlags,
  engineOptions,
  MODEL_HELP,
  type SamplingFlags,
  samplingOptions,
  toRequest,
} from './options.ts'

interface Flags extends EngineFlags, SamplingFlags {
  readonly system?: string
}

export const chatOptions = (): Option[] => [new Option('-s, --system <text>', 'the system message')]

export function addChat(program: Command): void {
  const command = program
    .command('chat')
    .description('talk with a model; /help inside tells more')
    .argument('[model]', MODEL_HELP, 'house')
    .addHelpText('after', `\nInside:\n${COMMANDS.map((c) => `  ${c.usage.padEnd(14)} ${c.help}`).join('\n')}`)
    .action(run)
  addOptions(command, chatOptions(), samplingOptions(), engineOptions())
}

async function run(model: string, flags: Flags): Promise<void> {
  const request = toRequest(flags)
  await using engine = await loadEngine(model, flags)
  const conversation = new Conversation(engine, request, flags.system ?? null)
  using reader = new LineReader()
  /** Everything that is not an answer goes to stderr, so that stdout can be kept. */
  const say = (text: string) => void process.stderr.write(`${text}\n`)
  if (reader.isTerminal)
    say(`${engine.info.name}, context of ${engine.info.contextLength} tokens. /help for help, Ctrl-D to leave.`)

  for (;;) {
    const input = await reader.next()
    if (input === null) return
    if (input.trim() === '') continue
    try {
      const isCommand = input.startsWith('/') && !input.startsWith('//')
      if (!isCommand) await answer(conversation, input.replace(/^\/\//, '/'), reader, say)
      else if ((await runCommand(input, conversation, say)) === 'leave') return
    } catch (error) {
      if (!(error instanceof KvasirError)) throw error
      say(`error: ${error.message}`)
      // A person sees it and goes on; a script must be able to notice.
      if (!reader.isTerminal) process.exitCode = 1
    }
  }
}

async function answer(
  conversation: Conversation,
  text: string,
  reader: LineReader,
  say: (text: string) => void,
): Promise<void> {
  const stop = new AbortController()
  reader.whileBusy(() => stop.abort())
  let column = 0
  try {
    const end = await conversation.say(text, stop.signal, (piece) => {
      process.stdout.write(piece)
      column = piece.endsWith('\n') ? 0 : 1
    })
    if (column) process.stdout.write('\n')
    column = 0
    if (end === 'stopped') say('(stopped; the conversation goes on from here)')
    if (end === 'max-tokens') say('(stopped by --max-tokens)')
    if (end === 'context-full')
      say(
        `(cut off: the context of ${conversation.contextLength} tokens is full. /clear starts afresh; ` +
          '--context N gives more room next time)',
      )
  } catch (error) {
    if (column) process.stdout.write('\n')
    if (!(error instanceof KvasirError) || error.code !== 'CONTEXT_OVERFLOW') throw error
    const { promptTokens, contextLength } = error.details
    throw new KvasirError(
      'CONTEXT_OVERFLOW',
      `with this message the conversation has ${promptTokens} tokens, and the context holds ${contextLength}. The message ` +
        'was not sent. /clear starts afresh and keeps the system message; --context N gives more room next time',
      error.details,
      error,
    )
  } finally {
    reader.whileBusy(null)
  }
}
