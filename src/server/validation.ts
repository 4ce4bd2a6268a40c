/** What a schema says against a body, as one sentence that names the field. */
import type { FastifySchemaValidationError } from 'fastify'
import { nearest } from '../contract/errors.ts'
import { ApiError } from './errors.ts'

/** Deeper bodies are refused: nothing that is asked of this server needs it, and recursion over them costs stack. */
const MAX_DEPTH = 200

/** @throws ApiError for text that is no JSON or too deep */
export function parseJson(text: string): unknown {
  checkDepth(text)
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new ApiError(400, `the body is not valid JSON: ${(error as Error).message}`, { code: 'invalid_json' })
  }
}

function checkDepth(text: string): void {
  let depth = 0
  let inString = false
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i)
    if (inString) {
      if (c === 0x5c) i++
      else if (c === 0x22) inString = false
    } else if (c === 0x22) inString = true
    else if (c === 0x7b || c === 0x5b) {
      if (++depth > MAX_DEPTH)
        throw new ApiError(400, `the body is nested more than ${MAX_DEPTH} levels deep`, { code: 'invalid_json' })
    } else if (c === 0x7d || c === 0x5d) depth--
  }
}

/** Clients send null for what they leave out. */
export function withoutNulls(body: unknown): unknown {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) return body
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null))
}

/**
 * Of a union every branch complains: the deepest complaint is the one that knows what was meant; several at one place
 * are alternatives.
 */
export function validationError(errors: readonly FastifySchemaValidationError[], body: unknown): ApiError {
  const real = errors.filter((e) => !['anyOf', 'oneOf', 'if'].includes(e.keyword))
  const deepest = Math.max(...real.map((e) => depthOf(e)))
  const first = real.find((e) => depthOf(e) === deepest)
  if (!first) return new ApiError(400, 'the body is not what this route takes')
  const at = real.filter((e) => e.instancePath === first.instancePath)
  const param = paramOf(first.instancePath)
  switch (first.keyword) {
    case 'additionalProperties': {
      const name = String(first.params['additionalProperty'])
      const full = param ? `${param}.${name}` : name
      const guess = nearest(name, knownOf(first))
      const mend = guess ? ` Did you mean '${guess}'?` : ''
      return new ApiError(400, `Unknown parameter: '${full}'.${mend}`, { code: 'unknown_parameter', param: full })
    }
    case 'required': {
      const name = String(first.params['missingProperty'])
      const full = param ? `${param}.${name}` : name
      return new ApiError(400, `Missing required parameter: '${full}'.`, {
        code: 'missing_required_parameter',
        param: full,
      })
    }
    default: {
      const allowed = [...new Set(at.map(expectation))].join(', or ')
      const got = show(valueAt(body, first.instancePath))
      return new ApiError(400, `Invalid value for '${param || 'body'}': it must be ${allowed}; got ${got}.`, {
        code: first.keyword === 'type' ? 'invalid_type' : 'invalid_value',
        ...(param ? { param } : {}),
      })
    }
  }
}

function depthOf({ instancePath }: FastifySchemaValidationError): number {
  return instancePath.split('/').length
}

/** `/messages/0/content` to `messages[0].content`. */
function paramOf(path: string): string {
  return path
    .split('/')
    .slice(1)
    .map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'))
    .reduce((out, part) => (/^\d+$/.test(part) ? `${out}[${part}]` : out ? `${out}.${part}` : part), '')
}

function knownOf(error: FastifySchemaValidationError): string[] {
  const schema = (error as { parentSchema?: { properties?: object } }).parentSchema
  return Object.keys(schema?.properties ?? {})
}

function expectation({ keyword, params, message }: FastifySchemaValidationError): string {
  switch (keyword) {
    case 'type': {
      const types = [params['type']].flat().map(String)
      return types.map((t) => ARTICLES[t] ?? t).join(' or ')
    }
    case 'const':
      return JSON.stringify(params['allowedValue'])
    case 'enum':
      return `one of ${(params['allowedValues'] as unknown[]).map((v) => JSON.stringify(v)).join(', ')}`
    case 'minimum':
    case 'maximum':
    case 'exclusiveMinimum':
    case 'exclusiveMaximum':
      return `${params['comparison']} ${params['limit']}`
    case 'minItems':
      return `a list of at least ${params['limit']}`
    case 'maxItems':
      return `a list of at most ${params['limit']}`
    case 'minLength':
      return `a text of at least ${params['limit']} characters`
    case 'maxLength':
      return `a text of at most ${params['limit']} characters`
    default:
      return (message ?? keyword).replace(/^must (be|match) /, '')
  }
}

const ARTICLES: Readonly<Record<string, string>> = {
  string: 'a string',
  number: 'a number',
  integer: 'a whole number',
  boolean: 'true or false',
  object: 'an object',
  array: 'a list',
  null: 'null',
}

function valueAt(body: unknown, path: string): unknown {
  const step = (value: unknown, key: string) => (value as Record<string, unknown> | undefined)?.[key]
  return path
    .split('/')
    .slice(1)
    .map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'))
    .reduce(step, body)
}

function show(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (Array.isArray(value)) return `a list of ${value.length}`
  if (typeof value === 'object' && value !== null) return 'an object'
  if (typeof value === 'number') return String(value)
  const text = JSON.stringify(value)
  return text.length > 60 ? `${text.slice(0, 60)}...` : text
}
