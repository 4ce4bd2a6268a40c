/** Evaluation files: one JSON object a line. */
import { readFileSync } from 'node:fs'
import { KvasirError } from '../contract/errors.ts'
import type { ChatMessage } from '../model/template/template.ts'
import { METRICS, type Metric } from './score.ts'

export interface EvalExample {
  readonly task: string
  /** Nominal length of the prompt, tokens. */
  readonly length: number
  /** Turns to play. Assistant turns, where present, are the history that later turns see. */
  readonly messages: readonly ChatMessage[]
  /** For each user turn what its reply must hold. */
  readonly answers: readonly (readonly string[])[]
  /** How replies are scored. Default: the share of the strings that a reply holds. */
  readonly metric: Metric
  /** Most tokens of a reply. */
  readonly maxTokens: number
}

/** Bound on a reply when the example names none (`meta.max_tokens`). */
const DEFAULT_MAX_TOKENS = 64

/** @throws KvasirError INVALID_ARGUMENT that names file, line and field. */
export function readExamples(path: string): EvalExample[] {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `${path} could not be read: ${(cause as Error).message}`,
      { file: path },
      cause,
    )
  }
  return text.split('\n').flatMap((line, i) => (line.trim() ? [parse(line, `${path}:${i + 1}`)] : []))
}

function parse(line: string, where: string): EvalExample {
  const bad = (what: string, cause?: unknown) =>
    new KvasirError('INVALID_ARGUMENT', `${where}: ${what}`, { where }, cause)
  let raw: Record<string, unknown>
  try {
    raw = JSON.parse(line)
  } catch (cause) {
    throw bad(`not JSON (${(cause as Error).message})`, cause)
  }
  const { task, length, messages, answers, meta } = raw as Partial<EvalExample> & { meta?: { max_tokens?: number } }
  const { metric = 'fraction' } = raw as { metric?: Metric }
  if (typeof task !== 'string') throw bad('"task" must be a string')
  if (typeof length !== 'number') throw bad('"length" must be a number')
  const isTurn = (m: unknown) => {
    const { role, content } = (m ?? {}) as Partial<ChatMessage>
    return ['system', 'user', 'assistant'].includes(role as string) && typeof content === 'string'
  }
  if (!Array.isArray(messages) || !messages.every(isTurn))
    throw bad('"messages" must be a list of {role: "system" | "user" | "assistant", content: string}')
  const turns = messages.filter((m) => m.role === 'user').length
  const isList = (a: unknown) => Array.isArray(a) && a.length > 0 && a.every((s) => typeof s === 'string')
  if (!Array.isArray(answers) || answers.length !== turns || !answers.every(isList))
    throw bad(`"answers" must hold a list of strings for each of the ${turns} user turns`)
  if (!Object.hasOwn(METRICS, metric)) throw bad(`"metric" must be one of ${Object.keys(METRICS).join(', ')}`)
  return { task, length, messages, answers, metric, maxTokens: meta?.max_tokens ?? DEFAULT_MAX_TOKENS }
}
