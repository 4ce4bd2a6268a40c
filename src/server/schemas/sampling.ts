/**
 * Fields that the APIs share. Ranges are OpenAI's where OpenAI has the field. Names that are not OpenAI's are those of vLLM
 * and llama.cpp, so that their clients need no change.
 */
import Type, { type Static } from 'typebox'
import { CACHE_TYPES } from '../../cache/arena.ts'
import { closed, number, text, whole } from './types.ts'

const cacheType = (what: string) =>
  Type.Optional(
    Type.Enum([...CACHE_TYPES], {
      description: `${what}. Prefixes are shared between requests of the same types only. Default: the server's.`,
    }),
  )

export const samplingFields = {
  temperature: number('0 takes the most likely token. Default 0.8, as for all of Kvasir.', 0, 2),
  top_p: number('Keep the most likely tokens that together reach this probability. Default 0.95.', 0, 1),
  presence_penalty: number('Subtracted once from tokens that were seen.', -2, 2),
  frequency_penalty: number('Subtracted from tokens for each time they were seen.', -2, 2),
  seed: Type.Optional(
    Type.Integer({
      description: 'The same seed gives the same answer. Any whole number.',
      minimum: -Number.MAX_SAFE_INTEGER,
      maximum: Number.MAX_SAFE_INTEGER,
    }),
  ),
  logit_bias: Type.Optional(
    Type.Record(Type.String({ pattern: '^[0-9]{1,9}$' }), Type.Number({ minimum: -100, maximum: 100 }), {
      description: 'Added to logits, by token id; -100 forbids the token.',
      maxProperties: 1024,
      additionalProperties: false,
    }),
  ),
  stop: Type.Optional(
    Type.Union([Type.String({ minLength: 1 }), Type.Array(Type.String({ minLength: 1 }), { maxItems: 64 })], {
      description: 'Texts that end the answer; they are not part of it.',
    }),
  ),
  n: whole('Answers to one prompt, which is computed once.', 1, 256),
  user: text('Whose request it is; written to the log.'),
  // beyond OpenAI
  top_k: whole('Keep the k most likely tokens; 0 and -1 are off. Default 40.', -1, 2 ** 31 - 1),
  min_p: number('Keep tokens at least this fraction as likely as the most likely one. Default 0.05.', 0, 1),
  typical_p: number('Keep the tokens of the most typical surprise. Default 1: off.', 0, 1),
  repetition_penalty: number('Divides logits of tokens seen lately. Default 1: off.', 0.01, 100),
  ignore_eos: Type.Optional(
    Type.Boolean({ description: 'Never end the answer by itself; for load tests. Needs a limit of tokens.' }),
  ),
  stop_token_ids: Type.Optional(
    Type.Array(Type.Integer({ minimum: 0 }), { maxItems: 64, description: 'Tokens that end the answer.' }),
  ),
  grammar: text('The answer must match this GBNF grammar, from its rule `root`.', 2 ** 18),
  cache_salt: text('Cached prefixes are shared only between requests of the same salt.', 1024),
  prompt_cache_key: text('Accepted; prefixes are found without it.'),
  priority: number('Higher goes first when requests wait. Default 0.', -1e9, 1e9),
  kvasir: Type.Optional(
    closed(
      {
        deadline_ms: number('Give up when the answer has not begun within this time.', 0, 2 ** 31),
        policy: Type.Optional(
          Type.Union(
            [Type.String({ maxLength: 512 }), Type.Object({ name: Type.String() }, { additionalProperties: true })],
            {
              description:
                "What shortens the cache behind the prompt: 'snapkv', 'cake?window=32', or an object. Default: nothing.",
            },
          ),
        ),
        budget: Type.Optional(
          Type.Union([Type.Number(), Type.String({ maxLength: 64 })], {
            description:
              "What the policy may keep: 0.25 of the full cache, 512 tokens per layer and KV head, or '64MiB'.",
          }),
        ),
        compress_at: whole(
          'Tokens of the prompt, from its beginning, that the policy shortens; the rest is computed over what it kept. Default: all.',
          1,
          2 ** 24,
        ),
        cache_type_k: cacheType('Type of cached keys'),
        cache_type_v: cacheType('Type of cached values'),
        repeat_last_n: whole('How far back the penalties look, in tokens. Default 64.', 0, 1_000_000),
        top_n_sigma: number('Keep logits within n standard deviations of the highest. Default 0: off.', 0, 100),
      },
      'What only Kvasir has.',
    ),
  ),
}

export const samplingSchema = Type.Object(samplingFields)
export type SamplingFields = Static<typeof samplingSchema>

export const streamFields = {
  stream: Type.Optional(Type.Boolean({ description: 'Send the answer as server-sent events while it is made.' })),
  stream_options: Type.Optional(
    closed(
      {
        include_usage: Type.Optional(Type.Boolean({ description: 'End with a chunk that tells the usage.' })),
        include_obfuscation: Type.Optional(Type.Boolean({ description: 'Accepted; nothing is padded.' })),
        continuous_usage_stats: Type.Optional(Type.Boolean({ description: 'Accepted.' })),
      },
      'Options of a stream.',
    ),
  ),
}

/** Fields of OpenAI's that change nothing here. */
export const acceptedFields = {
  metadata: Type.Optional(Type.Record(Type.String(), Type.String(), { description: 'Accepted; kept nowhere.' })),
  store: Type.Optional(Type.Boolean({ description: 'Accepted; answers are not stored.' })),
  service_tier: text('Accepted.'),
  safety_identifier: text('Accepted.'),
  prompt_cache_retention: text('Accepted.'),
}

export const toolFields = {
  tools: Type.Optional(
    Type.Array(
      Type.Object(
        {
          type: Type.Literal('function'),
          function: Type.Object(
            {
              name: Type.String({ pattern: '^[a-zA-Z0-9_-]{1,64}$' }),
              description: Type.Optional(Type.String()),
              parameters: Type.Optional(Type.Union([Type.Object({}, { additionalProperties: true }), Type.Null()])),
              strict: Type.Optional(Type.Union([Type.Boolean(), Type.Null()])),
            },
            { additionalProperties: true },
          ),
        },
        { additionalProperties: true },
      ),
      { maxItems: 128, description: 'Functions that the model may call.' },
    ),
  ),
  tool_choice: Type.Optional(
    Type.Union(
      [
        Type.Enum(['none', 'auto', 'required']),
        Type.Object({ type: Type.Literal('function'), function: Type.Object({ name: Type.String() }) }),
      ],
      { description: 'Whether and which functions must be called. Default auto.' },
    ),
  ),
  parallel_tool_calls: Type.Optional(Type.Boolean({ description: 'Whether an answer may hold several calls.' })),
}

export const responseFormat = Type.Optional(
  Type.Union(
    [
      closed({ type: Type.Literal('text') }, 'Free text.'),
      closed({ type: Type.Literal('json_object') }, 'Any JSON object.'),
      closed(
        {
          type: Type.Literal('json_schema'),
          json_schema: Type.Object(
            {
              name: Type.Optional(Type.String()),
              description: Type.Optional(Type.String()),
              schema: Type.Optional(Type.Union([Type.Object({}, { additionalProperties: true }), Type.Boolean()])),
              strict: Type.Optional(Type.Union([Type.Boolean(), Type.Null()])),
            },
            { additionalProperties: false },
          ),
        },
        'JSON that satisfies a schema; always enforced.',
      ),
    ],
    { description: 'What the answer must look like.' },
  ),
)
export type ResponseFormat = NonNullable<Static<typeof responseFormat>>
