/** Bodies of Anthropic's `/v1/messages` and `/v1/messages/count_tokens`. */
import Type, { type Static } from 'typebox'
import { samplingFields } from './sampling.ts'
import { closed, modelField, number, text } from './types.ts'

const { top_k, seed, min_p, cache_salt, priority, kvasir } = samplingFields
const open = { additionalProperties: true }

/** Which fields a block has depends on its type: `conversation.ts` looks at them. */
const block = Type.Object({ type: Type.String() }, open)
const content = Type.Union([Type.String(), Type.Array(block, { maxItems: 65_536 })])
const parallel = {
  disable_parallel_tool_use: Type.Optional(Type.Boolean({ description: 'One call in an answer at most.' })),
}

/** What a prompt is made of. */
const conversation = {
  model: modelField,
  messages: Type.Array(Type.Object({ role: Type.Enum(['user', 'assistant', 'system']), content }, open), {
    minItems: 1,
    maxItems: 65_536,
    description: 'Turns of the conversation; the last one is not the assistant’s.',
  }),
  system: Type.Optional(Type.Union([Type.String(), Type.Array(block)], { description: 'System text.' })),
  tools: Type.Optional(
    Type.Array(
      Type.Object(
        {
          type: Type.Optional(Type.Union([Type.Literal('custom'), Type.Null()])),
          name: Type.String({ pattern: '^[a-zA-Z0-9_-]{1,64}$' }),
          description: Type.Optional(Type.String()),
          input_schema: Type.Object({}, open),
        },
        open,
      ),
      { maxItems: 128, description: 'Functions that the model may call; none run in the server.' },
    ),
  ),
  tool_choice: Type.Optional(
    Type.Union(
      [
        closed({ type: Type.Enum(['auto', 'any']), ...parallel }, 'The model decides; or at least one call.'),
        closed({ type: Type.Literal('tool'), name: Type.String(), ...parallel }, 'Calls of this function only.'),
        closed({ type: Type.Literal('none') }, 'No calls.'),
      ],
      { description: 'Whether and which functions must be called. Default auto.' },
    ),
  ),
  thinking: Type.Optional(
    Type.Object(
      { type: Type.Enum(['disabled', 'adaptive', 'enabled']) },
      {
        ...open,
        description:
          'disabled is given to the chat template as `enable_thinking: false`; adaptive leaves it to the model; enabled is refused.',
      },
    ),
  ),
  output_config: Type.Optional(
    closed(
      {
        effort: Type.Optional(Type.Union([Type.String({ maxLength: 64 }), Type.Null()])),
        format: Type.Optional(
          Type.Union([
            closed(
              { type: Type.Literal('json_schema'), schema: Type.Object({}, open) },
              'JSON that satisfies a schema; always enforced.',
            ),
            Type.Null(),
          ]),
        ),
      },
      'Form of the answer. The effort is given to the chat template as `reasoning_effort`.',
    ),
  ),
  cache_control: Type.Optional(Type.Unknown({ description: 'Accepted; prefixes are always cached.' })),
}

export const countTokensBody = closed(conversation, 'A conversation to be counted.')
export type CountTokensBody = Static<typeof countTokensBody>

export const messagesBody = closed(
  {
    ...conversation,
    max_tokens: Type.Integer({ description: 'Most tokens of the answer.', minimum: 1, maximum: 2 ** 31 - 1 }),
    stop_sequences: Type.Optional(
      Type.Array(Type.String({ minLength: 1 }), {
        maxItems: 64,
        description: 'Texts that end the answer; they are not part of it.',
      }),
    ),
    stream: Type.Optional(Type.Boolean({ description: 'Send the answer as server-sent events while it is made.' })),
    temperature: number('0 takes the most likely token. Default 0.8, as for all of Kvasir.', 0, 1),
    top_p: number('Keep the most likely tokens that together reach this probability. Default 0.95.', 0, 1),
    metadata: Type.Optional(
      closed({ user_id: Type.Optional(Type.Union([Type.String(), Type.Null()])) }, 'Accepted; kept nowhere.'),
    ),
    service_tier: text('Accepted.'),
    inference_geo: text('Accepted.'),
    top_k,
    // beyond Anthropic
    seed,
    min_p,
    repetition_penalty: samplingFields.repetition_penalty,
    grammar: samplingFields.grammar,
    cache_salt,
    priority,
    kvasir,
  },
  "A conversation to be answered, in Anthropic's form.",
)
export type MessagesBody = Static<typeof messagesBody>
