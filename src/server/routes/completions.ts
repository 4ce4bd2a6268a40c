/** `POST /v1/completions`: OpenAI's older API, texts that are continued. */
import type { EngineApi } from '../../engine/api.ts'
import { type AnswerEvent, answer, type Finish, type Job, newId, type TokenInfo, type Usage } from '../answer.ts'
import { ApiError, openAiError, refusalOf } from '../errors.ts'
import { type EndEvent, extrasOf, gather } from '../gather.ts'
import { merge } from '../merge.ts'
import { checkStream, defined, generationOf } from '../request.ts'
import type { Route } from '../route.ts'
import { type CompletionsBody, completionsBody } from '../schemas/completions.ts'
import { type Input, inputsOf } from '../schemas/input.ts'
import { clientGone, type SseEvent, sendEvents } from '../sse.ts'
import { inTerms, speaking, type Terms } from '../terms.ts'
import { OldLogprobs } from './old-logprobs.ts'

const DEFAULT_MAX_TOKENS = 16
const TERMS: Terms = [[/^(messages|tokens)$/, 'prompt']]

export const completionsRoute: Route = (app, { pool, callerOf, track }) => {
  app.post<{ Body: CompletionsBody }>(
    '/v1/completions',
    { schema: { body: completionsBody, summary: 'Continue texts', tags: ['OpenAI'] } },
    async (request, reply) =>
      await speaking(TERMS, async () => {
        const { body } = request
        checkBody(body)
        const signal = clientGone(request, reply)
        using lease = await pool.lease(body.model)
        const { engine } = lease
        const prompts = inputsOf(body.prompt, 'prompt')
        const generation = generationOf(body, callerOf(request), {
          maxTokens: body.max_tokens ?? DEFAULT_MAX_TOKENS,
          logprobs: body.logprobs,
          format: body.response_format,
        })
        const samples = body.n ?? 1
        const sources = prompts.map(
          (prompt, i) => (either: AbortSignal) =>
            shifted(
              track(
                request,
                lease,
                answer(engine, { request: { ...generation, ...promptOf(prompt, body) }, tools: null }, either),
              ),
              i * samples,
            ),
        )
        const events = merge(sources, engine.info.maxSequences, signal)
        const head = {
          id: newId('cmpl-'),
          object: 'text_completion',
          created: Math.floor(Date.now() / 1000),
          model: lease.id,
        }
        const echoes = body.echo ? await Promise.all(prompts.map((prompt) => textOf(engine, prompt))) : []
        const echoOf = (choice: number) => echoes[Math.floor(choice / samples)] ?? ''
        if (!body.stream) return await whole(head, body, events, echoOf)
        await sendEvents(reply, chunks(head, body, events, echoOf), (error) => ({
          data: JSON.stringify(openAiError(refusalOf(inTerms(error, TERMS)))),
        }))
      }),
  )
}

/** @throws ApiError for what cannot be had here */
function checkBody(body: CompletionsBody): void {
  checkStream(body)
  const { n = 1, best_of: bestOf = n } = body
  if (body.suffix)
    throw new ApiError(400, 'suffix is not supported: the models here continue texts, they do not fill in', {
      param: 'suffix',
    })
  if (bestOf !== n)
    throw new ApiError(
      400,
      `best_of is ${bestOf}; it can only be n, which is ${n}: all answers are given, none dropped`,
      {
        param: 'best_of',
      },
    )
  if (body.echo && body.logprobs !== undefined)
    throw new ApiError(400, 'echo and logprobs exclude each other: log-probabilities of a prompt are not computed', {
      param: 'echo',
    })
}

function promptOf(prompt: Input, body: CompletionsBody): Pick<Job['request'], 'prompt' | 'tokens' | 'addSpecial'> {
  return typeof prompt === 'string' ? defined({ prompt, addSpecial: body.add_special_tokens }) : { tokens: prompt }
}

async function textOf(engine: EngineApi, prompt: Input): Promise<string> {
  return typeof prompt === 'string' ? prompt : await engine.detokenize(prompt)
}

/** Choices are counted prompt by prompt. */
async function* shifted(events: AsyncIterable<AnswerEvent>, by: number): AsyncGenerator<AnswerEvent> {
  for await (const event of events) yield { ...event, sample: event.sample + by }
}

// answers --------------------------------------------------------------------------------------------------------------

interface Head {
  readonly id: string
  readonly object: string
  readonly created: number
  readonly model: string
}

type Echo = (choice: number) => string

async function whole(
  head: Head,
  body: CompletionsBody,
  events: AsyncIterable<AnswerEvent>,
  echoOf: Echo,
): Promise<object> {
  const answers = await gather(events)
  const ends = answers.map(({ end }) => end)
  return {
    ...head,
    choices: answers.map(({ sample, text, tokens, end }) => ({
      text: echoOf(sample) + text,
      index: sample,
      logprobs: body.logprobs === undefined ? null : new OldLogprobs().of(tokens),
      finish_reason: end.finish,
    })),
    usage: totalUsage(ends, body.n ?? 1),
    kvasir: extrasOf(ends),
  }
}

async function* chunks(
  head: Head,
  body: CompletionsBody,
  events: AsyncIterable<AnswerEvent>,
  echoOf: Echo,
): AsyncGenerator<SseEvent> {
  const withUsage = body.stream_options?.include_usage === true
  const chunk = (choices: readonly object[], usage: Usage | null = null, extra: object = {}): SseEvent => ({
    data: JSON.stringify({ ...head, choices, ...(withUsage ? { usage } : {}), ...extra }),
  })
  const choice = (index: number, text: string, logprobs: object | null, finish: Finish | null = null) => ({
    ...{ text, index, logprobs, finish_reason: finish },
  })
  const logprobs = new Map<number, OldLogprobs>()
  const logprobsOf = (sample: number, token: TokenInfo | null) => (token ? logprobs.get(sample)!.of([token]) : null)
  const ends: EndEvent[] = []
  for await (const event of events) {
    const { sample } = event
    if (!logprobs.has(sample)) {
      logprobs.set(sample, new OldLogprobs())
      if (body.echo) yield chunk([choice(sample, echoOf(sample), null)])
    }
    if (event.kind === 'text') yield chunk([choice(sample, event.text, logprobsOf(sample, event.token))])
    if (event.kind !== 'end') continue
    ends.push(event)
    yield chunk([choice(sample, '', null, event.finish)], null, { kvasir: extrasOf([event]) })
  }
  if (withUsage) yield chunk([], totalUsage(ends, body.n ?? 1))
  yield { data: '[DONE]' }
}

/** Of all prompts; the samples of one count it once. */
function totalUsage(ends: readonly EndEvent[], samples: number): Usage {
  const firsts = ends.filter(({ sample }) => sample % samples === 0).map(({ timings }) => timings)
  const prompt = firsts.reduce((sum, t) => sum + t.prompt_tokens, 0)
  const completion = ends.reduce((sum, { timings }) => sum + timings.generated_tokens, 0)
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: firsts.reduce((sum, t) => sum + t.cached_tokens, 0) },
    completion_tokens_details: { reasoning_tokens: 0 },
  }
}
