/** `POST /v1/responses`: OpenAI's responses. Nothing is stored, so each request holds its whole conversation. */
import type { EngineApi } from '../../engine/api.ts'
import type { FunctionTool } from '../../model/tools/check.ts'
import { answer, type Job } from '../answer.ts'
import { blocks } from '../blocks.ts'
import { ApiError, openAiError, refusalOf } from '../errors.ts'
import { type Caller, conversationJob, defined, generationOf } from '../request.ts'
import { messagesOf } from '../responses/items.ts'
import { newResponse } from '../responses/response.ts'
import { type ResponseEvent, ResponseWriter } from '../responses/writer.ts'
import type { Route } from '../route.ts'
import { type ResponsesBody, responsesBody } from '../schemas/responses.ts'
import type { ResponseFormat } from '../schemas/sampling.ts'
import { clientGone, type SseEvent, sendEvents } from '../sse.ts'
import { inTerms, speaking, type Terms } from '../terms.ts'

const TERMS: Terms = [
  [/^messages/, 'input'],
  [/^response_format/, 'text.format'],
  [/^max_tokens$/, 'max_output_tokens'],
  // Functions lie flat here.
  [/^(tools\[\d+\])\.function\./, '$1.'],
]
const LOGPROBS = 'message.output_text.logprobs'

export const responsesRoute: Route = (app, { pool, callerOf, track }) => {
  app.post<{ Body: ResponsesBody }>(
    '/v1/responses',
    { schema: { body: responsesBody, summary: 'Answer a conversation, in items', tags: ['OpenAI'] } },
    async (request, reply) =>
      await speaking(TERMS, async () => {
        const { body } = request
        checkBody(body)
        const signal = clientGone(request, reply)
        using lease = await pool.lease(body.model)
        const job = jobOf(body, lease.engine, callerOf(request))
        const writer = new ResponseWriter(newResponse(body, lease.id))
        const events = writer.write(blocks(track(request, lease, answer(lease.engine, job, signal))))
        if (body.stream)
          return await sendEvents(reply, named(events), (error) =>
            toSse(writer.failed(openAiError(refusalOf(inTerms(error, TERMS))))),
          )
        for await (const _ of events);
        return writer.response
      }),
  )
}

async function* named(events: AsyncIterable<ResponseEvent>): AsyncGenerator<SseEvent> {
  for await (const event of events) yield toSse(event)
}

function toSse(event: ResponseEvent): SseEvent {
  return { event: event.type, data: JSON.stringify(event) }
}

/** @throws ApiError for what cannot be had here */
function checkBody(body: ResponsesBody): void {
  const nothing = 'nothing is stored here: send the earlier items in input'
  const refusals: readonly (readonly [keyof ResponsesBody, boolean, string])[] = [
    ['previous_response_id', body.previous_response_id !== undefined, nothing],
    ['conversation', body.conversation !== undefined, nothing],
    ['prompt', body.prompt !== undefined, 'prompts are not stored here: send the text in instructions and input'],
    ['background', body.background === true, 'answers are not stored here to be fetched later: use stream'],
    ['truncation', body.truncation === 'auto', 'input is never shortened here: leave it out, or set it to "disabled"'],
    [
      'top_logprobs',
      (body.top_logprobs ?? 0) > 0 && !body.include?.includes(LOGPROBS),
      `it needs include: ["${LOGPROBS}"]`,
    ],
  ]
  for (const [param, refused, mend] of refusals)
    if (refused)
      throw new ApiError(400, `'${param}' is not supported as given: ${mend}.`, {
        code: 'unsupported_parameter',
        param,
      })
}

function jobOf(body: ResponsesBody, engine: EngineApi, caller: Caller): Job {
  const generation = generationOf(body, caller, {
    maxTokens: body.max_output_tokens,
    logprobs: body.include?.includes(LOGPROBS) ? (body.top_logprobs ?? 0) : undefined,
    format: formatOf(body),
  })
  const { tool_choice: choice = 'auto' } = body
  const asked = {
    tools: body.tools?.map(nested),
    choice: typeof choice === 'string' ? choice : { name: choice.name },
    parallel: body.parallel_tool_calls ?? true,
  }
  const { reasoning, text, chat_template_kwargs: extra } = body
  const given = { reasoning_effort: reasoning?.effort ?? undefined, verbosity: text?.verbosity ?? undefined }
  const options = { ...defined(given), ...extra }
  return conversationJob(messagesOf(body), generation, asked, engine.info, options)
}

/** As the chat API has it. */
function formatOf({ text }: ResponsesBody): ResponseFormat | undefined {
  const format = text?.format ?? undefined
  return format?.type === 'json_schema' ? { type: 'json_schema', json_schema: { schema: format.schema } } : format
}

/** As the chat API has it. Templates write what is null, so that is left out. */
function nested({ name, description, parameters, strict }: NonNullable<ResponsesBody['tools']>[number]): FunctionTool {
  const rest = { description: description ?? undefined, strict: strict ?? undefined }
  const schema = { parameters: (parameters ?? undefined) as FunctionTool['function']['parameters'] }
  return { type: 'function', function: { name, ...defined({ ...rest, ...schema }) } }
}
