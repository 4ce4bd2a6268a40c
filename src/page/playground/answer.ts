/** Answers: asked for, streamed into their conversation, stopped. One at a time in each conversation. */
import { signal } from '@preact/signals'
import { call, errorIn, Failure, failureOf, isAbort, model, models } from '../server.ts'
import { eventsOf } from '../sse.ts'
import { type AnswerFigures, type AnswerState, find, setAnswer, setTurns, type Turn } from './conversations.ts'
import { parameters, toBody } from './parameters.ts'

/** Text is shown this often at most, in milliseconds: a small model is quicker than a screen. */
const SHOW_MS = 40

/** Conversations whose answer is running, and what stops it. */
export const running = signal<ReadonlyMap<string, AbortController>>(new Map())

export function send(id: string, text: string): void {
  void run(id, [...(find(id)?.turns ?? []), { role: 'user', text }])
}

/** Answers the last message again. */
export function regenerate(id: string): void {
  const turns = find(id)?.turns ?? []
  void run(id, turns.slice(0, turns.findLastIndex(({ role }) => role === 'user') + 1))
}

/** Puts another text in the place of the last message, and answers it. */
export function editLast(id: string, text: string): void {
  const turns = find(id)?.turns ?? []
  void run(id, [
    ...turns.slice(
      0,
      turns.findLastIndex(({ role }) => role === 'user'),
    ),
    { role: 'user', text },
  ])
}

/** The server notices that the connection is closed, and frees what the answer held. */
export function stop(id: string): void {
  running.value.get(id)?.abort()
}

async function run(id: string, turns: readonly Turn[]): Promise<void> {
  if (running.value.has(id) || turns.length === 0) return
  const abort = new AbortController()
  running.value = new Map(running.value).set(id, abort)
  const name = model.value || (models.value[0]?.id ?? '')
  setTurns(id, [...turns, { role: 'assistant', text: '', model: name, state: 'running', figures: null, failure: null }])
  try {
    await stream(id, turns, abort.signal)
  } catch (error) {
    const failure = failureOf(error)
    if (isAbort(failure)) setAnswer(id, (a) => ({ ...a, state: 'stopped' }))
    else setAnswer(id, (a) => ({ ...a, state: 'failed', failure: (failure as Failure).info }))
  } finally {
    const left = new Map(running.value)
    left.delete(id)
    running.value = left
  }
}

/** The parts of a chunk that are read here. */
interface Chunk {
  readonly choices: readonly {
    readonly delta: { readonly content?: string }
    readonly finish_reason: 'stop' | 'length' | null
  }[]
  readonly usage?: {
    readonly prompt_tokens: number
    readonly completion_tokens: number
    readonly prompt_tokens_details: { readonly cached_tokens: number }
  } | null
  readonly kvasir?: { readonly timings: { readonly ttft_ms: number; readonly generated_ms: number } | null }
}

async function stream(id: string, turns: readonly Turn[], signal: AbortSignal): Promise<void> {
  const response = await call('/v1/chat/completions', {
    ...{
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(bodyFor(turns)),
      signal,
    },
  })
  using shown = new Batches((text) => setAnswer(id, (a) => ({ ...a, text: a.text + text })))
  let timings: { readonly ttft_ms: number; readonly generated_ms: number } | null = null
  let state: AnswerState = 'running'
  let figures: AnswerFigures | null = null
  for await (const { data } of eventsOf(response)) {
    if (data === '[DONE]') break
    const error = errorIn(data)
    if (error) throw new Failure({ status: 500, retryAfter: null, ...error })
    const { choices, usage, kvasir } = JSON.parse(data) as Chunk
    timings = kvasir?.timings ?? timings
    for (const { delta, finish_reason } of choices) {
      if (delta.content) shown.add(delta.content)
      if (finish_reason) state = finish_reason === 'length' ? 'cut' : 'complete'
    }
    if (usage) figures = figuresOf(usage, timings)
  }
  shown.flush()
  if (state === 'running') throw new TypeError('the answer broke off')
  setAnswer(id, (a) => ({ ...a, state, figures }))
}

function bodyFor(turns: readonly Turn[]): object {
  const values = parameters.value
  const said = turns.map(({ role, text }) => ({ role, content: text }))
  return {
    ...(model.value ? { model: model.value } : {}),
    messages: values.system.trim() === '' ? said : [{ role: 'system', content: values.system }, ...said],
    ...toBody(values),
    stream: true,
    stream_options: { include_usage: true },
  }
}

function figuresOf(
  usage: NonNullable<Chunk['usage']>,
  timings: NonNullable<Chunk['kvasir']>['timings'],
): AnswerFigures {
  return {
    promptTokens: usage.prompt_tokens,
    cachedTokens: usage.prompt_tokens_details.cached_tokens,
    generatedTokens: usage.completion_tokens,
    ttftMs: timings?.ttft_ms ?? 0,
    generatedMs: timings?.generated_ms ?? 0,
  }
}

/** Gathers texts and gives them on together; what is left is given on at the end, whatever ended it. */
class Batches implements Disposable {
  readonly #give: (text: string) => void
  #text = ''
  #timer: ReturnType<typeof setTimeout> | null = null

  constructor(give: (text: string) => void) {
    this.#give = give
  }

  add(text: string): void {
    this.#text += text
    this.#timer ??= setTimeout(() => this.flush(), SHOW_MS)
  }

  flush(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    if (this.#text) this.#give(this.#text)
    this.#text = ''
  }

  [Symbol.dispose](): void {
    this.flush()
  }
}
