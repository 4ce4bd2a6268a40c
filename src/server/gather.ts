/** Answers as wholes, for those who do not stream. */
import type { AnswerEvent, TokenInfo } from './answer.ts'

export type EndEvent = Extract<AnswerEvent, { readonly kind: 'end' }>

export interface WholeCall {
  readonly id: string
  readonly name: string
  /** JSON text; cut off where the answer was. */
  readonly json: string
}

export interface WholeAnswer {
  readonly sample: number
  readonly text: string
  readonly calls: readonly WholeCall[]
  /** Only with log-probabilities. */
  readonly tokens: readonly TokenInfo[]
  readonly end: EndEvent
}

/** All samples, in their order. */
export async function gather(events: AsyncIterable<AnswerEvent>): Promise<readonly WholeAnswer[]> {
  const parts = new Map<
    number,
    { text: string; calls: { id: string; name: string; json: string }[]; tokens: TokenInfo[] }
  >()
  const answers: WholeAnswer[] = []
  for await (const event of events) {
    const part = parts.get(event.sample) ?? { text: '', calls: [], tokens: [] }
    parts.set(event.sample, part)
    switch (event.kind) {
      case 'text':
        part.text += event.text
        if (event.token) part.tokens.push(event.token)
        break
      case 'call':
        part.calls.push({ id: event.id, name: event.name, json: '' })
        break
      case 'arguments':
        part.calls[event.index]!.json += event.json
        break
      case 'end':
        answers.push({ sample: event.sample, ...part, end: event })
        break
    }
  }
  return answers.sort((a, b) => a.sample - b.sample)
}

/** What only Kvasir tells: where the time went, and the seed that gives the same answer again. */
export function extrasOf(ends: readonly EndEvent[]): object {
  return { timings: ends.at(-1)?.timings ?? null, seed: ends[0]?.seed ?? null }
}
