/**
 * An example as a list of requests. Two ways to share a context:
 *
 * - `multi-turn`: one session. Step i's prompt is step i-1's, its reply, and the next question. The history holds the
 *   reference replies (`golden`, as in SCBench) or what the model said (`own`: errors add up).
 * - `multi-request`: each question alone behind the same context.
 *
 * And two moments to compress it: `question`: when the first prompt of the session is in the cache, its question in view;
 * `context`: when the context alone is, before any question is known. The steps say where in the prompt they are, as
 * `cachePrefix`. On a full cache it changes nothing.
 */
import type { ChatMessage } from '../model/template/template.ts'
import type { Example } from './tasks/example.ts'

export const MODES = ['multi-turn', 'multi-request'] as const
export type Mode = (typeof MODES)[number]
export const HISTORIES = ['golden', 'own'] as const
export type History = (typeof HISTORIES)[number]
export const COMPRESS_AT = ['question', 'context'] as const
export type CompressAt = (typeof COMPRESS_AT)[number]

/** As in SCBench. */
export const usualMoment = (mode: Mode): CompressAt => (mode === 'multi-turn' ? 'question' : 'context')

/** A stretch of the prompt. Neighbours of one role are one message. */
export type Piece =
  | { readonly role: 'system' | 'user' | 'assistant'; readonly text: string }
  /** What the model replied at an earlier step. */
  | { readonly role: 'assistant'; readonly replyTo: number }

export interface Step {
  readonly pieces: readonly Piece[]
  /**
   * Leading pieces from which the compressed cache is built, for either moment; what follows is computed on top of it.
   * `context` is absent where nobody knows where the context ends.
   */
  readonly cachePrefix: { readonly question: number; readonly context?: number }
}

export interface PlanOptions {
  readonly mode: Mode
  /** Default: golden. */
  readonly history?: History
}

/** One step per turn. */
export function planSteps(example: Example, { mode, history = 'golden' }: PlanOptions): Step[] {
  const { turns, system, context, separator } = example
  const shared: Piece[] = [
    ...(system === undefined ? [] : [{ role: 'system', text: system } as const]),
    { role: 'user', text: context },
  ]
  const cachePrefix = { context: shared.length, question: shared.length + 1 }
  return turns.map(({ question }, i) => {
    const first: Piece = { role: 'user', text: separator + (mode === 'multi-turn' ? turns[0]!.question : question) }
    const later = mode === 'multi-turn' ? turns.slice(1, i + 1) : []
    const pieces = later.flatMap((turn, j): Piece[] => [
      history === 'own' ? { role: 'assistant', replyTo: j } : { role: 'assistant', text: turns[j]!.reference },
      { role: 'user', text: turn.question },
    ])
    return { pieces: [...shared, first, ...pieces], cachePrefix }
  })
}

/** Messages that are a conversation already: one step per user turn, on what stands before it. */
export function stepsOfMessages(messages: readonly ChatMessage[]): Step[] {
  const pieces = messages.map(({ role, content }) => ({ role, text: content }) as Piece)
  const questions = pieces.flatMap((p, i) => (p.role === 'user' ? [i + 1] : []))
  return questions.map((end) => ({ pieces: pieces.slice(0, end), cachePrefix: { question: questions[0]! } }))
}

/** The step's prompt for a chat model. `replies`: those of the steps before. */
export function messagesOf(pieces: readonly Piece[], replies: readonly string[]): ChatMessage[] {
  const messages: { role: string; content: string }[] = []
  for (const [i, piece] of pieces.entries()) {
    const text = textOf(piece, replies)
    if (piece.role === pieces[i - 1]?.role) messages.at(-1)!.content += text
    else messages.push({ role: piece.role, content: text })
  }
  return messages
}

/** The step's prompt for a model without a chat template: messages as paragraphs. */
export function promptOf(pieces: readonly Piece[], replies: readonly string[]): string {
  return messagesOf(pieces, replies)
    .map((m) => m.content)
    .join('\n\n')
}

function textOf(piece: Piece, replies: readonly string[]): string {
  if (!('replyTo' in piece)) return piece.text
  const reply = replies[piece.replyTo]
  if (reply === undefined)
    throw new RangeError(`the prompt needs the reply to step ${piece.replyTo}, of ${replies.length}`)
  return reply
}
