/** What a failed request is told: OpenAI's error objects, and Anthropic's on its own route. */
import { KvasirError } from '../contract/errors.ts'

/** A refusal that arises in the server itself. */
export class ApiError extends Error {
  override readonly name = 'ApiError'
  readonly status: number
  /** For programs, as OpenAI names them: `invalid_api_key`, `model_not_found`, `unknown_parameter`. */
  readonly code: string | null
  /** The field of the body that is wrong, e.g. `messages[2].content`. */
  readonly param: string | null

  constructor(status: number, message: string, at: { readonly code?: string; readonly param?: string } = {}) {
    super(message)
    this.status = status
    this.code = at.code ?? null
    this.param = at.param ?? null
  }
}

/** What every error becomes before it is put into some API's form. */
export interface Refusal {
  readonly status: number
  readonly message: string
  readonly code: string | null
  readonly param: string | null
  /** Seconds after which another try makes sense. */
  readonly retryAfter: number | null
}

/** The client has gone; nobody reads this status, logs do. */
export const CLIENT_CLOSED = 499

export function refusalOf(error: unknown): Refusal {
  if (error instanceof ApiError) {
    const { status, message, code, param } = error
    return { status, message, code, param, retryAfter: null }
  }
  if (error instanceof KvasirError) return ofEngine(error)
  const { statusCode, code, message } = (error ?? {}) as { statusCode?: number; code?: string; message?: string }
  const text = HTTP_ERRORS[code ?? ''] ?? message
  if (typeof statusCode === 'number' && statusCode >= 400 && statusCode < 500)
    return { status: statusCode, message: text ?? 'bad request', code: null, param: null, retryAfter: null }
  return {
    status: 500,
    message: 'internal error; the log has it under the request id of this answer',
    code: 'internal_error',
    param: null,
    retryAfter: null,
  }
}

/** The framework's texts, where they do not say how to mend it. */
const HTTP_ERRORS: Readonly<Record<string, string>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: 'the body must be JSON: send it with the header Content-Type: application/json',
  FST_ERR_CTP_BODY_TOO_LARGE: 'the body is larger than this server accepts (--body-limit)',
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: 'the body is not as long as its Content-Length says',
}

function ofEngine(error: KvasirError): Refusal {
  const { code, details, status } = error
  // A client that left reads nothing: whoever reads this was left by the server.
  if (code === 'ABORTED') {
    const message = 'the server is shutting down, or has unloaded this model: the answer is not complete'
    return { status: 503, message, code: 'shutting_down', param: null, retryAfter: 1 }
  }
  const field = typeof details['field'] === 'string' ? apiName(details['field']) : null
  const after = details['retryAfterMs']
  const retryAfter = typeof after === 'number' ? Math.max(1, Math.ceil(after / 1000)) : 1
  return {
    status,
    message: error.message.replace(`${code}: `, ''),
    code: code === 'CONTEXT_OVERFLOW' ? 'context_length_exceeded' : code.toLowerCase(),
    param: field ?? PARAM_OF[code] ?? null,
    retryAfter: status === 429 || status === 503 ? retryAfter : null,
  }
}

const PARAM_OF: Readonly<Record<string, string>> = {
  CONTEXT_OVERFLOW: 'messages',
  TEMPLATE_FAILED: 'messages',
  GRAMMAR_INVALID: 'response_format',
}

/** Where the APIs have another name. */
const NAMES: Readonly<Record<string, string>> = { samples: 'n', stopTokens: 'stop_token_ids', ignoreEnd: 'ignore_eos' }

/** The engine's names of fields to those of the API: `topLogprobs` to `top_logprobs`. */
function apiName(name: string): string {
  return NAMES[name] ?? name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}

const OPENAI_TYPES: Readonly<Record<number, string>> = {
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  429: 'rate_limit_error',
}

export interface OpenAiError {
  readonly error: {
    readonly message: string
    readonly type: string
    readonly param: string | null
    readonly code: string | null
  }
}

export function openAiError({ status, message, param, code }: Refusal): OpenAiError {
  const type = OPENAI_TYPES[status] ?? (status < 500 ? 'invalid_request_error' : 'server_error')
  return { error: { message, type, param, code } }
}

const ANTHROPIC_TYPES: Readonly<Record<number, string>> = {
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  413: 'request_too_large',
  429: 'rate_limit_error',
  503: 'overloaded_error',
  504: 'timeout_error',
}

export interface AnthropicError {
  readonly type: 'error'
  readonly error: { readonly type: string; readonly message: string }
}

export function anthropicError({ status, message, param }: Refusal): AnthropicError {
  const type = ANTHROPIC_TYPES[status] ?? (status < 500 ? 'invalid_request_error' : 'api_error')
  return {
    type: 'error',
    error: { type, message: param && !message.includes(param) ? `${param}: ${message}` : message },
  }
}
