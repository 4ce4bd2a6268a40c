/** `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's messages. */
import type { EngineApi } from '../../engine/api.ts'
import type { PromptRequest } from '../../engine/request.ts'
import type { FunctionTool } from '../../model/tools/check.ts'
import { answer, type Job } from '../answer.ts'
import { messagesOf } from '../anthropic/conversation.ts'
import { type MessageEvent, messageEvents, newMessage, wholeMessage } from '../anthropic/writer.ts'
import { blocks } from '../blocks.ts'
import { ApiError, anthropicError, refusalOf } from '../errors.ts'
import { type Caller, conversationJob, defined, generationOf, type ToolsAsked } from '../request.ts'
import type { Route } from '../route.ts'
import { type CountTokensBody, countTokensBody, type MessagesBody, messagesBody } from '../schemas/messages.ts'
import { clientGone, type SseEvent, sendEvents } from '../sse.ts'
import { inTerms, speaking, type Terms } from '../terms.ts'

const TERMS: Terms = [
  [/^response_format/, 'output_config.format'],
  [/^stop$/, 'stop_sequences'],
  // Functions lie flat here.
  [/^(tools\[\d+\])\.function\.parameters/, '$1.input_schema'],
  [/^(tools\[\d+\])\.function\./, '$1.'],
]
const tags = ['Anthropic']

export const messagesRoutes: Route = (app, { pool, callerOf, track }) => {
  app.post<{ Body: MessagesBody }>(
    '/v1/messages',
    { schema: { body: messagesBody, summary: "Answer a conversation, in Anthropic's form", tags } },
    async (request, reply) =>
      await speaking(TERMS, async () => {
        const { body } = request
        reply.header('request-id', request.id)
        const signal = clientGone(request, reply)
        using lease = await pool.lease(body.model)
        const { engine } = lease
        const job = jobOf(body, engine, callerOf(request))
        // A stream tells the length of its prompt at its beginning.
        const promptTokens = body.stream ? (await engine.tokenize(promptOf(job))).length : 0
        const message = newMessage(lease.id, promptTokens)
        const events = blocks(track(request, lease, answer(engine, job, signal)))
        if (!body.stream) return await wholeMessage(message, body.max_tokens, events)
        await sendEvents(reply, named(messageEvents(message, body.max_tokens, events)), (error) =>
          toSse({ ...anthropicError(refusalOf(inTerms(error, TERMS))) }),
        )
      }),
  )
  app.post<{ Body: CountTokensBody }>(
    '/v1/messages/count_tokens',
    { schema: { body: countTokensBody, summary: "Count a conversation's tokens", tags } },
    async (request, reply) =>
      await speaking(TERMS, async () => {
        reply.header('request-id', request.id)
        using lease = await pool.lease(request.body.model)
        const { engine } = lease
        const job = jobOf(request.body, engine, callerOf(request))
        return { input_tokens: (await engine.tokenize(promptOf(job))).length }
      }),
  )
}

async function* named(events: AsyncIterable<MessageEvent>): AsyncGenerator<SseEvent> {
  for await (const event of events) yield toSse(event)
}

function toSse(event: MessageEvent): SseEvent {
  return { event: event.type, data: JSON.stringify(event) }
}

function promptOf({ request: { messages, tools, templateOptions } }: Job): PromptRequest {
  return defined({ messages, tools, templateOptions })
}

/** @param body one that is only counted makes no answer, and so has no fields about it */
function jobOf(body: CountTokensBody & Partial<MessagesBody>, engine: EngineApi, caller: Caller): Job {
  if (body.thinking?.type === 'enabled')
    throw new ApiError(
      400,
      "blocks of thinking are not written here: set thinking to { type: 'disabled' } or leave it out",
      {
        code: 'unsupported_parameter',
        param: 'thinking',
      },
    )
  const { stop_sequences: stop, output_config: config } = body
  const schema = config?.format?.schema
  const generation = generationOf(defined({ ...samplingOf(body), stop }), caller, {
    maxTokens: body.max_tokens,
    logprobs: undefined,
    format: schema && { type: 'json_schema', json_schema: { schema } },
  })
  const options = defined({
    enable_thinking: body.thinking?.type === 'disabled' ? false : undefined,
    reasoning_effort: config?.effort ?? undefined,
  })
  return conversationJob(messagesOf(body), generation, toolsAsked(body), engine.info, options)
}

function samplingOf({ temperature, top_p, top_k, min_p, seed, repetition_penalty, ...rest }: Partial<MessagesBody>) {
  const { grammar, cache_salt, priority, kvasir } = rest
  return { temperature, top_p, top_k, min_p, seed, repetition_penalty, grammar, cache_salt, priority, kvasir }
}

function toolsAsked({ tools, tool_choice: choice = { type: 'auto' } }: CountTokensBody): ToolsAsked {
  const choices = { auto: 'auto', any: 'required', none: 'none' } as const
  return {
    tools: tools?.map(nested),
    choice: choice.type === 'tool' ? { name: choice.name } : choices[choice.type],
    parallel: choice.type === 'none' || choice.disable_parallel_tool_use !== true,
  }
}

/** As OpenAI has it. */
function nested({ name, description, input_schema }: NonNullable<CountTokensBody['tools']>[number]): FunctionTool {
  const parameters = input_schema as NonNullable<FunctionTool['function']['parameters']>
  return { type: 'function', function: { name, parameters, ...defined({ description }) } }
}
