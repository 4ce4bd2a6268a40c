/** What is known of a request when it is over: from it come its count, its spans and its line in the log. */
import type { FastifyRequest } from 'fastify'
import { KvasirError } from '../../contract/errors.ts'
import { ApiError, CLIENT_CLOSED } from '../errors.ts'
import type { AnswerMeter } from './answer.ts'

/** A request from its head to the last byte of its answer. */
export interface RequestRecord {
  readonly request: FastifyRequest
  readonly method: string
  /** As it was declared, so that there are few; `unmatched` when there is none. */
  readonly route: string
  /** Of the clock of `performance.now()`. */
  readonly startedMs: number
  readonly endedMs: number
  /** {@link CLIENT_CLOSED} when the client went before the answer was complete. */
  readonly status: number
  readonly answers: readonly AnswerMeter[]
  /** What failed, also when it did after the head of the answer was sent. */
  readonly error: unknown
}

/** A word for what went wrong, for programs; null when nothing did. */
export function failureOf({ status, error }: RequestRecord): string | null {
  if (status === CLIENT_CLOSED) return 'client_closed'
  if (error instanceof KvasirError) return error.code.toLowerCase()
  if (error instanceof ApiError && error.code) return error.code
  if (status >= 400) return String(status)
  return error === undefined ? null : 'internal_error'
}

/** Of all answers of a request together. */
export function sum(answers: readonly AnswerMeter[], of: (answer: AnswerMeter) => number): number {
  return answers.reduce((total, a) => total + of(a), 0)
}
