/** From a workload to the bodies of requests: its pieces become words, or tokens where the endpoint takes them. */
import { createHash } from 'node:crypto'
import { KvasirError } from '../../src/contract/errors.ts'
import type { Said } from './load.ts'
import type { Vocabulary } from './tokenizer.ts'
import type { Piece, Turn } from './workload.ts'

export class PromptMaker {
  readonly #vocabulary: Vocabulary
  readonly #seed: number

  constructor(vocabulary: Vocabulary, seed: number) {
    this.#vocabulary = vocabulary
    this.#seed = seed
  }

  text(content: Turn['content']): string {
    return typeof content === 'string' ? content : this.#words(this.#indices(content))
  }

  /** Text of a whole prompt: as many words fewer as the server puts special tokens before it, so that its length is right. */
  wholeText(content: Turn['content']): string {
    if (typeof content === 'string') return content
    const indices = this.#indices(content)
    return this.#words(indices.slice(0, Math.max(1, indices.length - this.#vocabulary.special)))
  }

  /** @throws KvasirError INVALID_ARGUMENT when the server has not told which tokens its words are */
  tokens(pieces: readonly Piece[]): number[] {
    const { ids } = this.#vocabulary
    if (ids) return this.#indices(pieces).map((i) => ids[i]!)
    const message = '--token-ids: the server has no /tokenize to ask for the tokens of words; leave it out'
    throw new KvasirError('INVALID_ARGUMENT', message, { field: '--token-ids' })
  }

  #words(indices: readonly number[]): string {
    return indices.map((i) => this.#vocabulary.words[i]!).join('')
  }

  #indices(pieces: readonly Piece[]): number[] {
    return pieces.flatMap((p) => this.#ofPiece(p))
  }

  /**
   * Positions in the vocabulary. SHAKE's output is as long as one likes, the shorter one the beginning of the longer, and no
   * two keys share it: a trace has so many blocks that 32 bits of seed would make some of them equal by chance.
   */
  #ofPiece({ key, tokens }: Piece): number[] {
    const hash = createHash('shake256', { outputLength: 2 * tokens })
    const bytes = hash.update(`${this.#seed} ${key}`).digest()
    const { length } = this.#vocabulary.words
    return Array.from({ length: tokens }, (_, i) => bytes.readUInt16LE(2 * i) % length)
  }
}

/** The part of a chat request that the turn decides. */
export function chatBody(maker: PromptMaker, turn: Turn, history: readonly Said[]): object {
  const said = history.flatMap(({ turn: before, answer }) => [
    { role: 'user', content: maker.text(before.content) },
    { role: 'assistant', content: answer },
  ])
  return {
    messages: [...said, { role: 'user', content: maker.text(turn.content) }],
    max_completion_tokens: turn.outputTokens,
  }
}

/** The same of a completion: a conversation is one text, and goes on where the answer before ended. */
export function completionBody(
  maker: PromptMaker,
  { content, outputTokens }: Turn,
  history: readonly Said[],
  tokenIds: boolean,
): object {
  if (tokenIds && typeof content !== 'string') return { prompt: maker.tokens(content), max_tokens: outputTokens }
  const [first, ...more] = [...history.map((s) => s.turn.content), content]
  const questions = [maker.wholeText(first!), ...more.map((c) => maker.text(c))]
  return {
    prompt: questions.map((text, i) => text + (history[i]?.answer ?? '')).join(''),
    max_tokens: outputTokens,
  }
}
