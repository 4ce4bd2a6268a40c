/** `GET /metrics`, in the text format of Prometheus. It needs a key where there are keys, and works during a shutdown. */
import type { FastifyInstance } from 'fastify'
import type { Observer } from '../metrics/observer.ts'

export function metricsRoute(app: FastifyInstance, observer: Observer): void {
  const schema = { summary: 'Metrics, for Prometheus', tags: ['Operations'] }
  app.get('/metrics', { schema, config: { operator: true } }, async (_, reply) =>
    reply.type(observer.contentType).send(await observer.scrape()),
  )
}
