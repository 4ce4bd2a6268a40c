/** `kvasir run`: one prompt, one answer. */
import { text as readStream } from 'node:stream/consumers'
import { type Command, Option } from 'commander'
import { KvasirError } from '../contract/errors.ts'
import type { Engine } from '../engine/engine.ts'
import type { FinishReason, GenerateRequest, Timings } from '../engine/request.ts'
import type { ChatMessage } from '../model/template/template.ts'
import { interruptible } from './interrupt.ts'
import { loadEngine } from './model.ts'
import {
  addOptions,
  type EngineFlags,
  engineOptions,
  jsonOption,
  MODEL_HELP,
  readText,
  type SamplingFlags,
  samplingOptions,
  toRequest,
} from './options.ts'

interface Flags extends EngineFlags, SamplingFlags {
  readonly prompt?: string
  readonly file?: string
  readonly raw?: true
  readonly system?: string
  readonly json?: true
}

export const runOptions = (): Option[] => [
  new Option('-p, --prompt <text>', 'what to say to the model'),
  new Option('-f, --file <file>', 'the same from a file, - for stdin; with -p both, the file first'),
  new Option('-s, --system <text>', 'the system message'),
  new Option('--raw', 'continue the text as it is, without the chat template').conflicts('system'),
  jsonOption('print one JSON object when the answer is complete: text, finish_reason, timings, model'),
]

export function addRun(program: Command): void {
  const command = program
    .command('run')
    .description('answer one prompt')
    .argument('[model]', MODEL_HELP, 'house')
    .usage('[model] -p TEXT | -f FILE [options]')
    .action(async (model: string, flags: Flags, self: Command) => {
      if (flags.prompt === undefined && flags.file === undefined)
        self.error('error: nothing to answer: give a prompt with -p TEXT or -f FILE')
      await run(model, flags)
    })
  addOptions(command, runOptions(), samplingOptions(), engineOptions())
}

interface Answer {
  readonly text: string
  readonly reason: FinishReason
  readonly timings: Timings
}

async function run(model: string, flags: Flags): Promise<void> {
  const text = await promptOf(flags)
  const request = { ...inputOf(text, flags), ...toRequest(flags) }
  await using engine = await loadEngine(model, flags)
  const write = flags.json ? () => {} : (piece: string) => void process.stdout.write(piece)
  const { text: answer, reason, timings } = await interruptible((signal) => stream(engine, request, write, signal))
  if (flags.json) {
    const { prompt_tokens, prompt_ms, generated_tokens, generated_ms, cached_tokens, ttft_ms } = timings
    const result = {
      text: answer,
      finish_reason: reason.kind,
      timings: { prompt_tokens, prompt_ms, generated_tokens, generated_ms, cached_tokens, ttft_ms },
      model,
    }
    process.stdout.write(`${JSON.stringify(result)}\n`)
    return
  }
  if (!answer.endsWith('\n')) process.stdout.write('\n')
  process.stderr.write(`${reasonNote(reason)}${summary(timings)}\n`)
}

/** Writes the pieces as they come. What was written before Ctrl-C stays in the error. */
async function stream(
  engine: Engine,
  request: GenerateRequest,
  write: (piece: string) => void,
  signal: AbortSignal,
): Promise<Answer> {
  let text = ''
  try {
    for await (const part of engine.generate({ ...request, signal })) {
      text += part.text
      write(part.text)
      if (part.kind === 'end') return { text, reason: part.reason, timings: part.timings }
    }
    throw new Error('the answer had no end')
  } catch (error) {
    if (!(error instanceof KvasirError) || error.code !== 'ABORTED') throw error
    if (text && !text.endsWith('\n')) write('\n')
    throw new KvasirError('ABORTED', 'the answer was stopped', { text }, error)
  }
}

async function promptOf({ prompt, file }: Flags): Promise<string> {
  if (file === undefined) return prompt!
  const content = file === '-' ? await readStream(process.stdin) : readText(file, '--file')
  // An editor's last newline is no part of what the user meant to say.
  const text = content.replace(/\r?\n$/, '')
  return prompt === undefined ? text : `${text}\n\n${prompt}`
}

function inputOf(text: string, { raw, system }: Flags): Pick<GenerateRequest, 'prompt' | 'messages'> {
  if (raw) return { prompt: text }
  const messages: ChatMessage[] = [{ role: 'user', content: text }]
  if (system !== undefined) messages.unshift({ role: 'system', content: system })
  return { messages }
}

/** What a reader must know about how an answer ended; nothing when it ended by itself. */
export function reasonNote(reason: FinishReason): string {
  if (reason.kind === 'max-tokens') return '(stopped by --max-tokens) '
  if (reason.kind === 'context-full') return '(cut off: the context is full; --context makes it larger) '
  return ''
}

/** `first token 29 ms, prompt 27 tokens at 1800 tok/s, answer 13 tokens at 845 tok/s` */
export function summary(t: Timings): string {
  const fresh = t.prompt_tokens - t.cached_tokens
  const cached = t.cached_tokens ? ` (${t.cached_tokens} of them cached)` : ''
  return (
    `first token ${t.ttft_ms.toFixed(0)} ms, prompt ${t.prompt_tokens} tokens${cached} at ${perSecond(fresh, t.prompt_ms)}, ` +
    // The first token of an answer comes from the prompt's last logits.
    `answer ${t.generated_tokens} tokens at ${perSecond(t.generated_tokens - 1, t.generated_ms)}`
  )
}

function perSecond(tokens: number, ms: number): string {
  if (tokens < 1 || ms <= 0) return '- tok/s'
  const rate = (1000 * tokens) / ms
  return `${rate.toFixed(rate < 10 ? 1 : 0)} tok/s`
}
