/** What every route is given. */
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { AnswerEvent, TokenMark } from './answer.ts'
import type { Lease, ModelPool } from './models.ts'
import type { Caller } from './request.ts'

export interface RouteContext {
  readonly pool: ModelPool
  readonly callerOf: (request: FastifyRequest) => Caller
  /** Passes an answer's events through and takes its measures: metrics, spans, log. */
  readonly track: (
    request: FastifyRequest,
    lease: Lease,
    events: AsyncIterable<AnswerEvent | TokenMark>,
  ) => AsyncGenerator<AnswerEvent>
}

export type Route = (app: FastifyInstance, context: RouteContext) => void
