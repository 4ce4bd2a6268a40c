/** Content of messages: a text, or parts that are texts. Which fields an object has may depend on its type. */
import { ApiError } from './errors.ts'

export type Fields = Readonly<Record<string, unknown>>

/**
 * @param kinds types of parts that are texts
 * @param param what the content is called in the body, e.g. `messages[2].content`
 * @throws ApiError for parts of other types
 */
export function textOf(content: unknown, kinds: readonly string[], param: string): string {
  if (typeof content === 'string') return content
  return fieldsOf(content, param)
    .map((part, i) => partText(part, kinds, `${param}[${i}]`))
    .join('')
}

/** The same of one part. */
export function partText(part: Fields, kinds: readonly string[], at: string): string {
  const { type } = part
  if (!kinds.includes(String(type)))
    throw new ApiError(400, `this model takes text only (${kinds.join(', ')}), not parts of type '${String(type)}'`, {
      code: 'unsupported_content',
      param: `${at}.type`,
    })
  // A refusal is a model's own earlier answer.
  return stringOf(part, type === 'refusal' ? 'refusal' : 'text', at)
}

/** A list of objects. @throws ApiError */
function fieldsOf(value: unknown, param: string): readonly Fields[] {
  const isFields = (x: unknown): x is Fields => typeof x === 'object' && x !== null && !Array.isArray(x)
  if (Array.isArray(value) && value.every(isFields)) return value
  throw new ApiError(400, `Invalid value for '${param}': it must be a string or a list of objects.`, {
    code: 'invalid_type',
    param,
  })
}

/** A field that must be there. @throws ApiError */
export function stringOf(fields: Fields, name: string, at: string): string {
  const value = fields[name]
  const param = `${at}.${name}`
  if (typeof value === 'string') return value
  if (value === undefined || value === null)
    throw new ApiError(400, `Missing required parameter: '${param}'.`, { code: 'missing_required_parameter', param })
  throw new ApiError(400, `Invalid value for '${param}': it must be a string.`, { code: 'invalid_type', param })
}
