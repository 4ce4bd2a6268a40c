/** What a model is asked while it is measured: needles in prose, whose place among the tokens is known, and task prompts. */

import { KvasirError } from '../../contract/errors.ts'
import type { Range } from '../../contract/units.ts'
import { encodePrompt } from '../../engine/prompt.ts'
import { ChatTemplate } from '../../model/template/template.ts'
import type { Tokenizer } from '../../model/tokenizer/tokenizer.ts'
import { messagesOf, type Piece, planSteps, promptOf } from '../plan.ts'
import { Draw } from '../tasks/draw.ts'
import type { Task } from '../tasks/example.ts'
import { fill } from '../tasks/fill.ts'
import { Entities } from '../tasks/house/entities.ts'
import { needles } from '../tasks/house/facts.ts'
import { intro } from '../tasks/house/frame.ts'
import { sentence } from '../tasks/prose.ts'
import { FIRST_SEED } from './measurement.ts'

export interface NeedlePrompt {
  readonly tokens: Int32Array
  /** The needle's tokens, half-open. */
  readonly span: Range
  readonly needle: string
}

/** @param depth where in the prose the needle stands, 0 to 1 */
export function needlePrompt(tokenizer: Tokenizer, seed: number, length: number, depth: number): NeedlePrompt {
  const r = new Draw(`calibrate-needle-${length}-${FIRST_SEED + seed}`)
  const head = intro(r)
  const [needle] = needles(new Entities(r), 1)
  const { statement, question } = needle!
  const count = countWith(tokenizer)
  const prose = fill(
    { length, count },
    {
      render: (units) => [head, statement, ...units].join(' '),
      next: (room) => sentence(r, room),
    },
  )
  const context = [head, ...prose.toSpliced(Math.round(depth * prose.length), 0, statement)].join(' ')
  const tokens = encode(tokenizer, [{ role: 'user', text: `${context}\n\n${question}` }])
  return { tokens, span: spanOf(tokenizer, tokens, statement), needle: statement }
}

/** Context and first question of an example. */
export function taskPrompt(tokenizer: Tokenizer, task: Task, seed: number, length: number): Int32Array {
  const example = task.make(FIRST_SEED + seed, length, countWith(tokenizer))
  return encode(tokenizer, planSteps(example, { mode: 'multi-turn' })[0]!.pieces)
}

/** The first `length` tokens of an example's context. */
export function taskText(tokenizer: Tokenizer, task: Task, seed: number, length: number): Int32Array {
  // Contexts come out up to 2 % short.
  const { context } = task.make(FIRST_SEED + seed, Math.ceil(length * 1.03) + 8, countWith(tokenizer))
  return tokenizer.encode(context, { addSpecial: true }).slice(0, length)
}

/** Tokens that hold any byte of `text`, which must occur once. @throws KvasirError MODEL_UNSUPPORTED */
export function spanOf(tokenizer: Tokenizer, tokens: Int32Array, text: string): Range {
  const pieces = Array.from(tokens, (token) => tokenizer.piece(token, { special: true }))
  const bytes = Buffer.concat(pieces)
  const start = bytes.indexOf(text, 0, 'utf8')
  const times = start < 0 ? 'not' : bytes.indexOf(text, start + 1, 'utf8') < 0 ? 'once' : 'more than once'
  if (times !== 'once')
    throw new KvasirError(
      'MODEL_UNSUPPORTED',
      `"${text}" comes ${times} out of the tokens it went into: with this vocabulary a passage cannot be found again`,
    )
  const end = start + Buffer.byteLength(text)
  let at = 0
  const ends = pieces.map((piece) => (at += piece.length))
  return { from: ends.findIndex((e) => e > start), to: ends.findIndex((e) => e >= end) + 1 }
}

const countWith = (tokenizer: Tokenizer) => (text: string) => tokenizer.encode(text).length

/** With the chat template where there is one. */
function encode(tokenizer: Tokenizer, pieces: readonly Piece[]): Int32Array {
  const request =
    tokenizer.chatTemplate === null ? { prompt: promptOf(pieces, []) } : { messages: messagesOf(pieces, []) }
  return encodePrompt(request, tokenizer, () => ChatTemplate.of(tokenizer))
}
