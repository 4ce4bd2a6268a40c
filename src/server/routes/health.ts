/** Probes and what the server says of itself. `/health`, `/ready` and `/version` need no key. */
import type { FastifyInstance } from 'fastify'
import type { AppParts } from '../app.ts'

export function healthRoutes(app: FastifyInstance, { pool, version, accepting }: AppParts): void {
  const config = { open: true }
  app.get('/health', { config, schema: { summary: 'The process lives', tags: ['Operations'] } }, async () => ({
    status: 'ok',
  }))
  app.get(
    '/ready',
    { config, schema: { summary: 'Requests are taken, and the first model is loaded', tags: ['Operations'] } },
    async (_, reply) => {
      const loaded = pool.list()[0]!.state === 'loaded'
      if (accepting() && loaded) return { status: 'ready' }
      return reply.code(503).send({ status: accepting() ? 'loading' : 'draining' })
    },
  )
  app.get('/version', { config, schema: { summary: 'Version', tags: ['Operations'] } }, async () => ({ version }))
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger())
}
