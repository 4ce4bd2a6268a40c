/**
 * Chat templates: the Jinja text of a model file turns messages into the exact text the model was trained on. Run by
 * `@huggingface/jinja`; what transformers gives to templates is given here too: `messages`, `tools`, `documents`,
 * `add_generation_prompt`, `bos_token`, `eos_token`, `raise_exception`, `strftime_now`.
 *
 * A template writes control tokens as text and often the BOS token, too: encode what it gives with `parseSpecial`, and
 * with `addSpecial` only if {@link ChatTemplate.writesBos} says false.
 */
import { Environment, Interpreter, Template } from '@huggingface/jinja'
import { KvasirError } from '../../contract/errors.ts'
import type { Tokenizer } from '../tokenizer/tokenizer.ts'
import { detectToolFormat, showsSystem, type ToolFormat } from '../tools/format.ts'
import { withToolsAsText } from '../tools/generic.ts'
import { withShortIds } from '../tools/mistral.ts'

export interface ContentPart {
  readonly type: string
  readonly text?: string
  readonly [key: string]: unknown
}

/** As in OpenAI's API; fields that only some templates know (`name`, `reasoning_content`, ...) go through to them. */
export interface ChatMessage {
  /** Usually system, user, assistant or tool. Which ones are allowed, and in which order, the template decides. */
  readonly role: string
  /** Text parts are joined to one text, since most templates know no parts; lists with other parts go through. */
  readonly content?: string | readonly ContentPart[] | null
  /** Calls that an assistant made. Arguments given as JSON text are read, since templates write them as JSON. */
  readonly tool_calls?: readonly ToolCall[]
  readonly tool_call_id?: string
  readonly [key: string]: unknown
}

export interface ToolCall {
  readonly id?: string
  readonly type?: string
  readonly function: { readonly name: string; readonly arguments: string | object }
  readonly [key: string]: unknown
}

export interface TemplateTokens {
  /** Text of the BOS and EOS tokens, null where the vocabulary has none; templates then see ''. */
  readonly bosToken: string | null
  readonly eosToken: string | null
}

export interface RenderOptions {
  /** End with the header of an assistant's turn, so that the model answers. Default true. */
  readonly addGenerationPrompt?: boolean
  /** Tools in OpenAI's form. Templates that know none are given a text about them, see docs/tools.md. */
  readonly tools?: readonly object[]
  /** More variables for the template, e.g. `{ enable_thinking: false }`. They win over all others. */
  readonly extra?: Readonly<Record<string, unknown>>
}

/** ChatML, for model files without a template. */
export const CHATML =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

export class ChatTemplate {
  readonly source: string
  readonly #template: Template
  readonly #tokens: TemplateTokens
  #toolFormat: ToolFormat | undefined
  #showsSystem: boolean | undefined

  /** @throws KvasirError TEMPLATE_FAILED when the source is not a template. */
  constructor(source: string, tokens: TemplateTokens) {
    this.source = source
    this.#tokens = tokens
    try {
      this.#template = new Template(source)
    } catch (error) {
      throw failure('the chat template cannot be read', error)
    }
  }

  /** The model's own template, or {@link CHATML} when its file has none. */
  static of(tokenizer: Tokenizer): ChatTemplate {
    const text = (token: number | null) => (token === null ? null : tokenizer.text(token))
    return new ChatTemplate(tokenizer.chatTemplate ?? CHATML, {
      bosToken: text(tokenizer.bos),
      eosToken: text(tokenizer.eos),
    })
  }

  /** How this template's model writes calls of functions. */
  get toolFormat(): ToolFormat {
    return (this.#toolFormat ??= detectToolFormat((messages, tools) => this.#run(checkMessages(messages), { tools })))
  }

  /**
   * @throws KvasirError TEMPLATE_FAILED with what the template said, e.g. that roles must alternate.
   */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    const checked = checkMessages(messages)
    try {
      const { tools = [] } = options
      if (tools.length === 0 && !messages.some((m) => m.role === 'tool' || m.tool_calls))
        return this.#run(checked, options)
      if (this.toolFormat === 'mistral') return this.#run(checkMessages(withShortIds(messages)), options)
      if (this.toolFormat !== 'generic') return this.#run(checked, options)
      const plain = withToolsAsText(messages, { tools, system: this.#knowsSystem })
      return this.#run(checkMessages(plain), { ...options, tools: [] })
    } catch (error) {
      if (error instanceof KvasirError) throw error
      throw failure('the chat template refused these messages', error)
    }
  }

  /** Whether a rendered text begins with the BOS token already. */
  writesBos(rendered: string): boolean {
    const { bosToken } = this.#tokens
    return bosToken !== null && bosToken !== '' && rendered.startsWith(bosToken)
  }

  get #knowsSystem(): boolean {
    return (this.#showsSystem ??= showsSystem((messages) => this.#run(checkMessages(messages), {})))
  }

  #run(messages: readonly unknown[], options: RenderOptions): string {
    const { addGenerationPrompt = true, tools, extra = {} } = options
    return run(this.#template, {
      ...GLOBALS,
      documents: null,
      bos_token: this.#tokens.bosToken ?? '',
      eos_token: this.#tokens.eosToken ?? '',
      add_generation_prompt: addGenerationPrompt,
      tools: tools && tools.length > 0 ? withoutUndefined(tools) : null,
      messages,
      ...(withoutUndefined(extra) as Record<string, unknown>),
    })
  }
}

/** Jinja's own constants and functions, and transformers'. */
const GLOBALS: Readonly<Record<string, unknown>> = {
  true: true,
  false: false,
  none: null,
  True: true,
  False: false,
  None: null,
  range,
  raise_exception: (text: string) => {
    throw new Error(text)
  },
  strftime_now: (format: string) => strftime(new Date(), format),
}

/** Not `template.render`: that has a strftime_now which speaks the machine's language, and nothing may replace it. */
function run(template: Template, variables: Readonly<Record<string, unknown>>): string {
  const environment = new Environment()
  for (const [name, value] of Object.entries(variables)) environment.set(name, value)
  const result = new Interpreter(environment).run(template.parsed) as { value: unknown }
  return String(result.value)
}

function range(from: number, to?: number, step = 1): number[] {
  const [start, end] = to === undefined || to === null ? [0, from] : [from, to]
  const n = Math.max(0, Math.ceil((end - start) / step))
  if (!(n <= 100_000)) throw new Error(`range() of ${n} numbers`)
  return Array.from({ length: n }, (_, i) => start + i * step)
}

function checkMessages(messages: readonly ChatMessage[]): unknown[] {
  if (!Array.isArray(messages) || messages.length === 0)
    throw new KvasirError('TEMPLATE_FAILED', 'messages must be a list with at least one message')
  return messages.map((message: unknown, i) => {
    const wrong = wrongWith(message)
    if (wrong) throw new KvasirError('TEMPLATE_FAILED', `messages[${i}]: ${wrong}`, { index: i })
    const { content, tool_calls: calls, ...rest } = message as ChatMessage
    return withoutUndefined({
      ...rest,
      content: joinText(content ?? null),
      ...(calls && calls.length > 0 && { tool_calls: calls.map(readArguments) }),
    })
  })
}

function wrongWith(message: unknown): string | null {
  if (typeof message !== 'object' || message === null) return 'not an object'
  const { role, content, tool_calls: calls } = message as Record<string, unknown>
  if (typeof role !== 'string' || role === '') return 'role must be a non-empty string'
  if (calls !== undefined && calls !== null) {
    const isCall = (c: unknown) => typeof (c as ToolCall | null)?.function?.name === 'string'
    if (!Array.isArray(calls) || !calls.every(isCall))
      return 'tool_calls must be a list of { function: { name, arguments } }'
  } else if (content === undefined || content === null) return 'content is missing'
  if (content === undefined || content === null || typeof content === 'string') return null
  const isPart = (p: unknown) => typeof (p as ContentPart | null)?.type === 'string'
  return Array.isArray(content) && content.every(isPart)
    ? null
    : 'content must be a text or a list of parts with a type'
}

function joinText(content: string | readonly ContentPart[] | null): unknown {
  if (content === null || typeof content === 'string') return content
  return content.every((part) => part.type === 'text') ? content.map((part) => part.text ?? '').join('') : content
}

function readArguments(call: ToolCall): ToolCall {
  const { arguments: args } = call.function
  if (typeof args !== 'string') return call
  try {
    const parsed: unknown = JSON.parse(args)
    if (typeof parsed !== 'object' || parsed === null) return call
    return { ...call, function: { ...call.function, arguments: parsed } }
  } catch {
    return call // not JSON: the template shows it as it is
  }
}

/** A copy of plain data in which absent fields are absent: templates ask whether a field is defined. */
function withoutUndefined(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutUndefined)
  if (typeof value !== 'object' || value === null) return value
  const entries = Object.entries(value).filter(([, v]) => v !== undefined)
  return Object.fromEntries(entries.map(([key, v]) => [key, withoutUndefined(v)]))
}

/** Python's strftime, in English whatever the machine speaks. */
function strftime(date: Date, format: string): string {
  const two = (n: number) => String(n).padStart(2, '0')
  const named = (options: Intl.DateTimeFormatOptions) => date.toLocaleString('en-US', options)
  const codes: Readonly<Record<string, () => string>> = {
    Y: () => String(date.getFullYear()),
    y: () => two(date.getFullYear() % 100),
    m: () => two(date.getMonth() + 1),
    d: () => two(date.getDate()),
    e: () => String(date.getDate()).padStart(2, ' '),
    B: () => named({ month: 'long' }),
    b: () => named({ month: 'short' }),
    A: () => named({ weekday: 'long' }),
    a: () => named({ weekday: 'short' }),
    H: () => two(date.getHours()),
    I: () => two(date.getHours() % 12 || 12),
    M: () => two(date.getMinutes()),
    S: () => two(date.getSeconds()),
    p: () => (date.getHours() < 12 ? 'AM' : 'PM'),
    '%': () => '%',
  }
  return format.replace(/%([a-zA-Z%])/g, (whole, code: string) => codes[code]?.() ?? whole)
}

function failure(what: string, error: unknown): KvasirError {
  const said = error instanceof Error ? error.message : String(error)
  return new KvasirError('TEMPLATE_FAILED', `${what}: ${said}`, { said }, error)
}
