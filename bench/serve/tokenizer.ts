/** What a server's tokenizer makes of {@link WORDS}: asked over HTTP, in vLLM's form or llama.cpp's. */
import type { Target } from './target.ts'
import { WORDS } from './words.ts'

export interface Vocabulary {
  /** Each with the space before it. */
  readonly words: readonly string[]
  /** Their tokens; null: the server has not told. */
  readonly ids: readonly number[] | null
  /** Tokens that the server puts before every text: the BOS of most. */
  readonly special: number
}

/** With fewer words that are one token, the tokenizer is of another kind than prompts are made for. */
const FEWEST_WORDS = 32
const AT_ONCE = 8
/** Words of the text by which the whole is checked. */
const SAMPLE = 64

/** When nothing can be asked, a word counts as a token. */
const ALL_WORDS: Vocabulary = { words: WORDS.map((w) => ` ${w}`), ids: null, special: 0 }

export async function findVocabulary(
  target: Target,
  model: string,
  onNote: (note: string) => void,
): Promise<Vocabulary> {
  const tokenize = await findTokenizer(target, model)
  if (!tokenize) {
    onNote('the server has no /tokenize: prompts are as many words as they should have tokens')
    return ALL_WORDS
  }
  const anchor = ` ${WORDS[0]}`
  const one = await tokenize(anchor)
  const special = 2 * one.length - (await tokenize(anchor + anchor)).length
  const words: string[] = []
  const ids: number[] = []
  for (let i = 0; i < WORDS.length; i += AT_ONCE) {
    const some = WORDS.slice(i, i + AT_ONCE).map((w) => ` ${w}`)
    for (const [k, tokens] of (await Promise.all(some.map((w) => tokenize(anchor + w)))).entries())
      if (tokens.length === one.length + 1) {
        words.push(some[k]!)
        ids.push(tokens.at(-1)!)
      }
  }
  if (words.length < FEWEST_WORDS) {
    onNote(`only ${words.length} common words are one token here: prompts are as many words as they should have tokens`)
    return ALL_WORDS
  }
  const sample = Array.from({ length: SAMPLE }, (_, i) => words[(7 * i) % words.length]!)
  const counted = (await tokenize(sample.join(''))).length - special
  if (counted !== SAMPLE)
    onNote(`${SAMPLE} words of one token each are ${counted} together here: lengths of prompts are approximate`)
  return { words, ids, special }
}

type Tokenize = (text: string) => Promise<readonly number[]>

/** Null when neither form is answered with tokens. */
async function findTokenizer(target: Target, model: string): Promise<Tokenize | null> {
  const forms = [(text: string) => ({ model, prompt: text }), (text: string) => ({ content: text })]
  for (const form of forms) {
    const ask: Tokenize = async (text) => {
      const reply = (await target.json('POST', '/tokenize', form(text))) as { readonly tokens?: unknown } | null
      return Array.isArray(reply?.tokens) && reply.tokens.every((t) => typeof t === 'number') ? reply.tokens : []
    }
    // llama.cpp answers an unknown form with no tokens, others with an error.
    const tokens = await ask(` ${WORDS[0]}`).catch(() => [])
    if (tokens.length > 0) return ask
  }
  return null
}
