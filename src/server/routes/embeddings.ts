/** `POST /v1/embeddings`: vectors of texts, pooled from the states behind the model's final norm. */
import { endianness } from 'node:os'
import type { EngineApi } from '../../engine/api.ts'
import type { Embedding, EmbedRequest } from '../../engine/embed.ts'
import { ApiError } from '../errors.ts'
import { merge } from '../merge.ts'
import { type Caller, defined } from '../request.ts'
import type { Route } from '../route.ts'
import { type EmbeddingsBody, embeddingsBody } from '../schemas/embeddings.ts'
import { type Input, inputsOf } from '../schemas/input.ts'
import { clientGone } from '../sse.ts'
import { speaking, type Terms } from '../terms.ts'

const TERMS: Terms = [[/^(messages|prompt|tokens)$/, 'input']]

export const embeddingsRoute: Route = (app, { pool, callerOf }) => {
  app.post<{ Body: EmbeddingsBody }>(
    '/v1/embeddings',
    { schema: { body: embeddingsBody, summary: 'Vectors of texts', tags: ['OpenAI'] } },
    async (request, reply) =>
      await speaking(TERMS, async () => {
        const { body } = request
        const signal = clientGone(request, reply)
        using lease = await pool.lease(body.model)
        const { engine } = lease
        checkDimensions(body, engine)
        const requests = inputsOf(body.input, 'input').map((input) => embedRequest(input, body, callerOf(request)))
        const embeddings = await embedAll(engine, requests, signal)
        const prompt = embeddings.reduce((sum, { tokens }) => sum + tokens, 0)
        return {
          object: 'list',
          data: embeddings.map(({ vector }, index) => ({
            ...{ object: 'embedding', index },
            embedding: body.encoding_format === 'base64' ? base64Of(vector) : [...vector],
          })),
          model: lease.id,
          usage: { prompt_tokens: prompt, total_tokens: prompt },
          kvasir: { pooling: embeddings[0]!.pooling },
        }
      }),
  )
}

function checkDimensions({ dimensions }: EmbeddingsBody, { info }: EngineApi): void {
  if (dimensions !== undefined && dimensions !== info.width)
    throw new ApiError(
      400,
      `dimensions is ${dimensions}; vectors of this model have ${info.width} and are not shortened: leave it out`,
      { param: 'dimensions' },
    )
}

function embedRequest(input: Input, body: EmbeddingsBody, { tenant }: Caller): EmbedRequest {
  if (input === '') throw new ApiError(400, 'input is empty: there is nothing to embed', { param: 'input' })
  const { priority, cache_salt: salt, kvasir } = body
  const what = typeof input === 'string' ? { prompt: input } : { tokens: input }
  return defined({ ...what, tenant, priority, salt, pooling: kvasir?.pooling, normalize: kvasir?.normalize })
}

/** In their order; no more at once than run at once, so that one caller does not fill the queue. */
async function embedAll(
  engine: EngineApi,
  requests: readonly EmbedRequest[],
  signal: AbortSignal,
): Promise<readonly Embedding[]> {
  const embeddings: Embedding[] = []
  const sources = requests.map(
    (request, i) =>
      async function* (either: AbortSignal): AsyncGenerator<readonly [number, Embedding]> {
        yield [i, await engine.embed({ ...request, signal: either })]
      },
  )
  for await (const [i, embedding] of merge(sources, engine.info.maxSequences, signal)) embeddings[i] = embedding
  return embeddings
}

/** f32, lowest byte first. */
function base64Of(vector: Float32Array): string {
  const bytes = Buffer.from(Float32Array.from(vector).buffer)
  return (endianness() === 'LE' ? bytes : bytes.swap32()).toString('base64')
}
