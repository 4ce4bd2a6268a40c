/** `GET /v1/models`. */

import { ApiError } from '../errors.ts'
import type { ModelPool } from '../models.ts'
import type { Route } from '../route.ts'

export const modelsRoutes: Route = (app, { pool }) => {
  app.get('/v1/models', { schema: { summary: 'The models there are', tags: ['OpenAI'] } }, async () => ({
    object: 'list',
    data: pool.list().map(describe),
  }))
  app.get<{ Params: { '*': string } }>(
    '/v1/models/*',
    { schema: { summary: 'One model', tags: ['OpenAI'] } },
    async ({ params }) => {
      const id = decodeURIComponent(params['*'])
      const found = pool.list().find((m) => m.id === id)
      if (!found)
        throw new ApiError(404, `The model '${id}' does not exist here.`, { code: 'model_not_found', param: 'model' })
      return describe(found)
    },
  )
}

function describe({ id, created, state, engine }: ReturnType<ModelPool['list']>[number]): object {
  const info = engine?.info
  return {
    ...{ id, object: 'model', created, owned_by: 'kvasir', root: id, parent: null },
    max_model_len: info?.contextLength ?? null,
    kvasir: info
      ? { state, name: info.name, architecture: info.architecture, device: info.device, kv_memory: info.kvMemory }
      : { state },
  }
}
