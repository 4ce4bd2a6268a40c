/** Texts or tokens, one or several: what completions and embeddings take. */
import Type, { type Static } from 'typebox'

const tokens = Type.Array(Type.Integer({ minimum: 0 }), { minItems: 1, maxItems: 2 ** 22 })

export const textOrTokens = (description: string, most: number) =>
  Type.Union(
    [
      Type.String(),
      Type.Array(Type.String(), { minItems: 1, maxItems: most }),
      tokens,
      Type.Array(tokens, { minItems: 1, maxItems: most }),
    ],
    { description },
  )
export type TextOrTokens = Static<ReturnType<typeof textOrTokens>>

/** One text, or the tokens of one. */
export type Input = string | readonly number[]

export function inputsOf(given: TextOrTokens): readonly Input[] {
  if (typeof given === 'string') return [given]
  return typeof given[0] === 'number' ? [given as number[]] : (given as Input[])
}
