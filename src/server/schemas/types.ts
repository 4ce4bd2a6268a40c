/** Short forms of what the schemas are made of. All of them are optional fields, except where a name says otherwise. */
import Type, { type TProperties } from 'typebox'

/** Longest text of a small field, in characters. */
const SHORT = 4096

export const number = (description: string, minimum: number, maximum: number) =>
  Type.Optional(Type.Number({ description, minimum, maximum }))

export const whole = (description: string, minimum: number, maximum: number) =>
  Type.Optional(Type.Integer({ description, minimum, maximum }))

export const text = (description: string, maxLength = SHORT) => Type.Optional(Type.String({ description, maxLength }))

/** Not optional: an object without further fields. */
export const closed = <P extends TProperties>(properties: P, description: string) =>
  Type.Object(properties, { additionalProperties: false, description })

/** Which model; the first one of the server when absent. */
export const modelField = Type.Optional(
  Type.String({ description: 'A name that /v1/models lists. Default: the first of them.', maxLength: SHORT }),
)

/** Most tokens of an answer. */
export const tokenLimit = (description: string) => whole(description, 1, 2 ** 31 - 1)
