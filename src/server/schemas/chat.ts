/** Body of `/v1/chat/completions`. */
import Type, { type Static } from 'typebox'
import { acceptedFields, responseFormat, samplingFields, streamFields, toolFields } from './sampling.ts'
import { closed, modelField, tokenLimit, whole } from './types.ts'

const part = Type.Object({ type: Type.String(), text: Type.Optional(Type.String()) }, { additionalProperties: true })

export const message = Type.Object(
  {
    role: Type.Enum(['system', 'developer', 'user', 'assistant', 'tool', 'function']),
    content: Type.Optional(Type.Union([Type.String(), Type.Array(part), Type.Null()])),
    name: Type.Optional(Type.Union([Type.String(), Type.Null()])),
    tool_call_id: Type.Optional(Type.String()),
    tool_calls: Type.Optional(
      Type.Union([
        Type.Array(
          Type.Object(
            {
              id: Type.Optional(Type.String()),
              function: Type.Object({ name: Type.String(), arguments: Type.String() }, { additionalProperties: true }),
            },
            { additionalProperties: true },
          ),
        ),
        Type.Null(),
      ]),
    ),
  },
  { additionalProperties: true },
)

export const chatBody = closed(
  {
    model: modelField,
    messages: Type.Array(message, { minItems: 1, maxItems: 65_536, description: 'Turns of the conversation.' }),
    max_completion_tokens: tokenLimit('Most tokens of the answer. Default: until the context is full.'),
    max_tokens: tokenLimit('The older name of max_completion_tokens.'),
    logprobs: Type.Optional(Type.Boolean({ description: 'Report log-probabilities of the tokens.' })),
    top_logprobs: whole('And of this many most likely ones; needs logprobs.', 0, 20),
    ...samplingFields,
    ...streamFields,
    ...toolFields,
    response_format: responseFormat,
    chat_template_kwargs: Type.Optional(
      Type.Object({}, { additionalProperties: true, description: "More variables for the model's chat template." }),
    ),
    reasoning_effort: Type.Optional(Type.String({ description: 'Given to the chat template.', maxLength: 64 })),
    verbosity: Type.Optional(Type.String({ description: 'Given to the chat template.', maxLength: 64 })),
    modalities: Type.Optional(Type.Array(Type.Literal('text'), { description: 'Only text.' })),
    ...acceptedFields,
  },
  'A conversation to be answered.',
)
export type ChatBody = Static<typeof chatBody>
