/** `GET /live`: what happens in an engine, as server-sent events, for the page. */
import Type, { type Static } from 'typebox'
import { packageVersion } from '../../version.ts'
import { ApiError } from '../errors.ts'
import { LiveFeed } from '../live.ts'
import type { LiveMessage } from '../live-messages.ts'
import type { Route } from '../route.ts'
import { modelField } from '../schemas/types.ts'
import { clientGone, type SseEvent, sendEvents } from '../sse.ts'

/** Who watches holds a connection for as long as it likes. */
const MOST_VIEWERS = 64

const query = Type.Object({ model: modelField })

export const liveRoute: Route = (app, { pool }) => {
  const feed = new LiveFeed(pool, packageVersion())
  // Viewers would keep a server that shuts down waiting.
  app.addHook('preClose', async () => feed.close())
  app.get<{ Querystring: Static<typeof query> }>(
    '/live',
    {
      schema: { querystring: query, summary: 'What happens in an engine, as events', tags: ['Operations'] },
      config: { operator: true },
    },
    async (request, reply) => {
      const { model = pool.defaultId } = request.query
      if (!pool.list().some(({ id }) => id === model))
        throw new ApiError(404, `The model '${model}' does not exist here.`, {
          code: 'model_not_found',
          param: 'model',
        })
      if (feed.viewers >= MOST_VIEWERS)
        throw new ApiError(503, `${MOST_VIEWERS} viewers watch already: close one of the pages that do`)
      await sendEvents(reply, written(feed.watch(model, clientGone(request, reply))), () => null)
    },
  )
}

async function* written(messages: AsyncIterable<LiveMessage>): AsyncGenerator<SseEvent> {
  for await (const { kind, ...data } of messages) yield { event: kind, data: JSON.stringify(data) }
}
