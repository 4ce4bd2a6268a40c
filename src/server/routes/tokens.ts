/** `POST /tokenize` and `/detokenize`, in vLLM's form. */
import Type, { type Static } from 'typebox'
import { toMessages } from '../conversation.ts'
import { ApiError } from '../errors.ts'
import { defined } from '../request.ts'
import type { Route } from '../route.ts'
import { message } from '../schemas/chat.ts'
import { closed, modelField } from '../schemas/types.ts'

const tokenizeBody = closed(
  {
    model: modelField,
    prompt: Type.Optional(Type.String({ description: 'Text. One of prompt and messages.' })),
    messages: Type.Optional(Type.Array(message, { minItems: 1, description: 'A conversation, as the model sees it.' })),
    add_special_tokens: Type.Optional(
      Type.Boolean({ description: 'With a prompt: BOS as the model wants it. Default true.' }),
    ),
    return_token_strs: Type.Optional(Type.Boolean({ description: 'Also the text of each token.' })),
  },
  'A text or a conversation.',
)

const detokenizeBody = closed(
  {
    model: modelField,
    tokens: Type.Array(Type.Integer({ minimum: 0 }), { maxItems: 2 ** 22, description: 'Token ids.' }),
  },
  'Tokens.',
)

export const tokenRoutes: Route = (app, { pool }) => {
  const tags = ['Tokens']
  app.post<{ Body: Static<typeof tokenizeBody> }>(
    '/tokenize',
    { schema: { body: tokenizeBody, summary: 'Text or a conversation to tokens', tags } },
    async ({ body }) => {
      const { prompt, messages, add_special_tokens: addSpecial } = body
      if ((prompt === undefined) === (messages === undefined))
        throw new ApiError(400, 'one of prompt and messages is needed, not both', { param: 'prompt' })
      using lease = await pool.lease(body.model)
      const { engine } = lease
      const asked = defined({ prompt, messages: messages && toMessages(messages) })
      // An empty text has tokens too: none. The engine has nothing to continue then.
      const tokens =
        prompt === ''
          ? []
          : [...(await engine.tokenize(messages || addSpecial === undefined ? asked : { ...asked, addSpecial }))]
      const texts = body.return_token_strs ? await Promise.all(tokens.map((t) => engine.detokenize([t]))) : null
      return { count: tokens.length, max_model_len: engine.info.contextLength, tokens, token_strs: texts }
    },
  )
  app.post<{ Body: Static<typeof detokenizeBody> }>(
    '/detokenize',
    { schema: { body: detokenizeBody, summary: 'Tokens to text', tags } },
    async ({ body }) => {
      using lease = await pool.lease(body.model)
      return { prompt: await lease.engine.detokenize(body.tokens) }
    },
  )
}
