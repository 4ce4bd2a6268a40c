/** Texts or tokens, one or several: what completions and embeddings take. */
import Type, { type Static } from 'typebox'
import { ApiError } from '../errors.ts'

/** Of one request, as OpenAI has it for embeddings. */
export const MOST_INPUTS = 2048

const tokens = Type.Array(Type.Integer({ minimum: 0 }), { minItems: 1, maxItems: 2 ** 22 })

export const textOrTokens = (description: string) =>
  Type.Union([Type.String(), Type.Array(Type.String(), { minItems: 1 }), tokens, Type.Array(tokens, { minItems: 1 })], {
    description: `${description} At most ${MOST_INPUTS}.`,
  })
export type TextOrTokens = Static<ReturnType<typeof textOrTokens>>

/** One text, or the tokens of one. */
export type Input = string | readonly number[]

/** @throws ApiError for too many: the schema's complaint would be about the other forms */
export function inputsOf(given: TextOrTokens, param: string): readonly Input[] {
  if (typeof given === 'string') return [given]
  if (typeof given[0] === 'number') return [given as number[]]
  if (given.length > MOST_INPUTS)
    throw new ApiError(400, `${param} is a list of ${given.length}; a request holds at most ${MOST_INPUTS}`, { param })
  return given as readonly Input[]
}
