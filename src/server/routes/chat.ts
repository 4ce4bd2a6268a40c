/** `POST /v1/chat/completions`: OpenAI's chat API. */
import {
  type AnswerEvent,
  answer,
  type Finish,
  type Job,
  newId,
  type TokenInfo,
  type Usage,
  usageOf,
} from '../answer.ts'
import { toMessages } from '../conversation.ts'
import { ApiError, openAiError, refusalOf } from '../errors.ts'
import { type EndEvent, extrasOf, gather, type WholeCall } from '../gather.ts'
import { logprobOf } from '../logprobs.ts'
import { type Caller, checkStream, conversationJob, generationOf } from '../request.ts'
import type { Route } from '../route.ts'
import { type ChatBody, chatBody } from '../schemas/chat.ts'
import { clientGone, type SseEvent, sendEvents } from '../sse.ts'

export const chatRoute: Route = (app, { pool, callerOf, track }) => {
  app.post<{ Body: ChatBody }>(
    '/v1/chat/completions',
    { schema: { body: chatBody, summary: 'Answer a conversation', tags: ['OpenAI'] } },
    async (request, reply) => {
      const { body } = request
      const signal = clientGone(request, reply)
      using lease = await pool.lease(body.model)
      const job = jobOf(body, lease, callerOf(request))
      const events = track(request, lease, answer(lease.engine, job, signal))
      const head = { id: newId('chatcmpl-'), created: Math.floor(Date.now() / 1000), model: lease.id }
      if (!body.stream) return await whole(head, body, events)
      await sendEvents(reply, chunks(head, body, events), (error) => ({
        data: JSON.stringify(openAiError(refusalOf(error))),
      }))
    },
  )
}

function jobOf(body: ChatBody, lease: { readonly engine: Parameters<typeof answer>[0] }, caller: Caller): Job {
  checkStream(body)
  if (body.top_logprobs !== undefined && !body.logprobs)
    throw new ApiError(400, 'top_logprobs needs logprobs: true', { param: 'top_logprobs' })
  const generation = generationOf(body, caller, {
    maxTokens: body.max_completion_tokens ?? body.max_tokens,
    logprobs: body.logprobs ? (body.top_logprobs ?? 0) : undefined,
    format: body.response_format,
  })
  const { tool_choice: choice = 'auto' } = body
  const asked = {
    tools: body.tools,
    choice: typeof choice === 'string' ? choice : { name: choice.function.name },
    parallel: body.parallel_tool_calls ?? true,
  }
  return conversationJob(toMessages(body.messages), generation, asked, lease.engine.info, variables(body))
}

function variables(body: ChatBody): Record<string, unknown> | undefined {
  const { chat_template_kwargs: extra, reasoning_effort, verbosity } = body
  const all = { ...(reasoning_effort ? { reasoning_effort } : {}), ...(verbosity ? { verbosity } : {}), ...extra }
  return Object.keys(all).length ? all : undefined
}

// answers --------------------------------------------------------------------------------------------------------------

interface Head {
  readonly id: string
  readonly created: number
  readonly model: string
}

async function whole(head: Head, body: ChatBody, events: AsyncIterable<AnswerEvent>): Promise<object> {
  const answers = await gather(events)
  const ends = answers.map(({ end }) => end)
  return {
    id: head.id,
    object: 'chat.completion',
    created: head.created,
    model: head.model,
    choices: answers.map(({ sample, text, calls, tokens, end }) => ({
      index: sample,
      message: {
        role: 'assistant',
        content: text === '' && calls.length ? null : text,
        refusal: null,
        ...(calls.length ? { tool_calls: calls.map(toolCall) } : {}),
      },
      logprobs: body.logprobs ? { content: tokens.map(logprobOf), refusal: null } : null,
      finish_reason: end.finish,
    })),
    usage: usageOf(ends.map((e) => e.timings)),
    kvasir: extrasOf(ends),
  }
}

function toolCall({ id, name, json }: WholeCall): object {
  return { id, type: 'function', function: { name, arguments: json } }
}

async function* chunks(head: Head, body: ChatBody, events: AsyncIterable<AnswerEvent>): AsyncGenerator<SseEvent> {
  const withUsage = body.stream_options?.include_usage === true
  const chunk = (choices: readonly object[], usage: Usage | null = null, extra: object = {}): SseEvent => ({
    data: JSON.stringify({
      ...{ id: head.id, object: 'chat.completion.chunk', created: head.created, model: head.model, choices },
      ...(withUsage ? { usage } : {}),
      ...extra,
    }),
  })
  const choice = (index: number, delta: object, finish: Finish | null = null, token: TokenInfo | null = null) => ({
    ...{ index, delta, logprobs: token ? { content: [logprobOf(token)], refusal: null } : null },
    finish_reason: finish,
  })
  const begun = new Set<number>()
  const ends: EndEvent[] = []
  for await (const event of events) {
    const { sample } = event
    if (!begun.has(sample)) {
      begun.add(sample)
      yield chunk([choice(sample, { role: 'assistant', content: '', refusal: null })])
    }
    switch (event.kind) {
      case 'text':
        yield chunk([choice(sample, { content: event.text }, null, event.token)])
        break
      case 'call': {
        const call = { index: event.index, id: event.id, type: 'function' }
        yield chunk([choice(sample, { tool_calls: [{ ...call, function: { name: event.name, arguments: '' } }] })])
        break
      }
      case 'arguments': {
        const call = { index: event.index, function: { arguments: event.json } }
        yield chunk([choice(sample, { tool_calls: [call] })])
        break
      }
      case 'end':
        ends.push(event)
        yield chunk([choice(sample, {}, event.finish)], null, { kvasir: extrasOf([event]) })
        break
    }
  }
  if (withUsage) yield chunk([], usageOf(ends.map((e) => e.timings)))
  yield { data: '[DONE]' }
}
