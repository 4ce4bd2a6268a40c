/** Body of `/v1/embeddings`. */
import Type, { type Static } from 'typebox'
import { POOLINGS } from '../../engine/embed.ts'
import { textOrTokens } from './input.ts'
import { samplingFields } from './sampling.ts'
import { closed, modelField, text, whole } from './types.ts'

const { cache_salt, priority } = samplingFields

export const embeddingsBody = closed(
  {
    model: modelField,
    input: textOrTokens('A text, its tokens, or several of either; each becomes a vector.'),
    encoding_format: Type.Optional(
      Type.Enum(['float', 'base64'], {
        description: 'Numbers, or the bytes of 32-bit floats, lowest byte first, in base64. Default float.',
      }),
    ),
    dimensions: whole('Only the width of the model: vectors are not shortened.', 1, 2 ** 20),
    user: text('Accepted.'),
    cache_salt,
    priority,
    kvasir: Type.Optional(
      closed(
        {
          pooling: Type.Optional(
            Type.Enum([...POOLINGS], {
              description:
                "Of the states of all tokens the mean, or the last. Default: as the model's file says, else mean.",
            }),
          ),
          normalize: Type.Optional(Type.Boolean({ description: 'Give vectors of length 1. Default true.' })),
        },
        'What only Kvasir has.',
      ),
    ),
  },
  'Texts to be embedded.',
)
export type EmbeddingsBody = Static<typeof embeddingsBody>
