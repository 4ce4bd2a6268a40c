/** Body of `/v1/completions`. */
import Type, { type Static } from 'typebox'
import { textOrTokens } from './input.ts'
import { acceptedFields, responseFormat, samplingFields, streamFields } from './sampling.ts'
import { closed, modelField, text, tokenLimit, whole } from './types.ts'

export const completionsBody = closed(
  {
    model: modelField,
    prompt: textOrTokens('A text, its tokens, or several of either; each is continued.'),
    max_tokens: tokenLimit('Most tokens of each answer. Default 16.'),
    logprobs: whole('Report log-probabilities, and those of this many most likely tokens.', 0, 5),
    echo: Type.Optional(Type.Boolean({ description: 'Begin each answer with its prompt.' })),
    best_of: whole('Only the same as n: all answers that are made are given.', 1, 256),
    suffix: text('Refused: these models do not fill in.'),
    add_special_tokens: Type.Optional(
      Type.Boolean({ description: 'Put BOS in front of texts where the model wants it. Default true.' }),
    ),
    ...samplingFields,
    ...streamFields,
    response_format: responseFormat,
    ...acceptedFields,
  },
  'Texts to be continued.',
)
export type CompletionsBody = Static<typeof completionsBody>
