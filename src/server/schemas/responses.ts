/** Body of `/v1/responses`. */
import Type, { type Static } from 'typebox'
import { acceptedFields, samplingFields, streamFields } from './sampling.ts'
import { closed, modelField, text, tokenLimit, whole } from './types.ts'

const { n: _n, kvasir, ...sampling } = samplingFields
const nullable = <T extends Parameters<typeof Type.Optional>[0]>(schema: T) =>
  Type.Optional(Type.Union([schema, Type.Null()]))

/** Which fields an item has depends on its type: `items.ts` looks at them. */
const item = Type.Object({ type: Type.Optional(Type.String()) }, { additionalProperties: true })

const format = Type.Union(
  [
    closed({ type: Type.Literal('text') }, 'Free text.'),
    closed({ type: Type.Literal('json_object') }, 'Any JSON object.'),
    closed(
      {
        type: Type.Literal('json_schema'),
        name: Type.Optional(Type.String()),
        description: nullable(Type.String()),
        schema: Type.Object({}, { additionalProperties: true }),
        strict: nullable(Type.Boolean()),
      },
      'JSON that satisfies a schema; always enforced.',
    ),
  ],
  { description: 'What the answer must look like.' },
)

const tool = Type.Object(
  {
    type: Type.Literal('function'),
    name: Type.String({ pattern: '^[a-zA-Z0-9_-]{1,64}$' }),
    description: nullable(Type.String()),
    parameters: nullable(Type.Object({}, { additionalProperties: true })),
    strict: nullable(Type.Boolean()),
  },
  { additionalProperties: true },
)

export const responsesBody = closed(
  {
    model: modelField,
    input: Type.Union([Type.String(), Type.Array(item, { minItems: 1, maxItems: 65_536 })], {
      description: 'A text, or items: messages, calls of functions and their results.',
    }),
    instructions: text('A system message before the input.', 2 ** 24),
    max_output_tokens: tokenLimit('Most tokens of the answer. Default: until the context is full.'),
    text: Type.Optional(
      closed(
        { format: nullable(format), verbosity: nullable(Type.Enum(['low', 'medium', 'high'])) },
        'Form of the answer. The verbosity is given to the chat template.',
      ),
    ),
    tools: Type.Optional(Type.Array(tool, { maxItems: 128, description: 'Functions that the model may call.' })),
    tool_choice: Type.Optional(
      Type.Union(
        [
          Type.Enum(['none', 'auto', 'required']),
          closed({ type: Type.Literal('function'), name: Type.String() }, 'Calls of this function only.'),
        ],
        { description: 'Whether and which functions must be called. Default auto.' },
      ),
    ),
    parallel_tool_calls: Type.Optional(Type.Boolean({ description: 'Whether an answer may hold several calls.' })),
    include: Type.Optional(
      Type.Array(Type.String({ maxLength: 128 }), {
        maxItems: 32,
        description:
          '`message.output_text.logprobs` is honoured; others are accepted and name nothing that arises here.',
      }),
    ),
    top_logprobs: whole('And of this many most likely tokens; needs include.', 0, 20),
    reasoning: Type.Optional(
      Type.Object(
        { effort: nullable(Type.String({ maxLength: 64 })) },
        { additionalProperties: true, description: 'The effort is given to the chat template.' },
      ),
    ),
    chat_template_kwargs: Type.Optional(
      Type.Object({}, { additionalProperties: true, description: "More variables for the model's chat template." }),
    ),
    truncation: Type.Optional(
      Type.Enum(['auto', 'disabled'], { description: 'Only disabled: input is never shortened.' }),
    ),
    ...sampling,
    kvasir,
    ...streamFields,
    ...acceptedFields,
    background: Type.Optional(Type.Boolean({ description: 'Refused when true.' })),
    previous_response_id: text('Refused: answers are not stored.'),
    conversation: Type.Optional(Type.Unknown({ description: 'Refused: conversations are not stored.' })),
    prompt: Type.Optional(Type.Unknown({ description: 'Refused: prompts are not stored.' })),
    max_tool_calls: whole('Accepted: it limits tools that run in the server, and there are none.', 1, 2 ** 31 - 1),
  },
  'A conversation to be answered.',
)
export type ResponsesBody = Static<typeof responsesBody>
export type ResponseItem = Static<typeof item> & Readonly<Record<string, unknown>>
