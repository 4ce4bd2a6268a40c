/** An example as requests: what each of the two modes sends, and what of it the compressed cache is built from. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { messagesOf, planSteps, promptOf, stepsOfMessages, usualMoment } from './plan.ts'
import type { Example, Turn } from './tasks/example.ts'

const turn = (i: number): Turn => ({
  question: `Q${i}`,
  answers: [`A${i}`],
  reference: `R${i}`,
  metric: 'substring',
  maxTokens: 8,
})
const example: Example = {
  id: 'x',
  task: 'x',
  length: 8,
  context: 'C',
  separator: '\n',
  turns: [turn(0), turn(1), turn(2)],
}
const user = (content: string) => ({ role: 'user', content })
const assistant = (content: string) => ({ role: 'assistant', content })

describe('plans', () => {
  it('multi-turn: each step is the last one, its right reply, and a question', () => {
    const steps = planSteps(example, { mode: 'multi-turn' })
    assert.deepEqual(
      steps.map((s) => messagesOf(s.pieces, [])),
      [
        [user('C\nQ0')],
        [user('C\nQ0'), assistant('R0'), user('Q1')],
        [user('C\nQ0'), assistant('R0'), user('Q1'), assistant('R1'), user('Q2')],
      ],
    )
  })

  it('multi-turn with its own history: the replies that were given', () => {
    const [, , last] = planSteps(example, { mode: 'multi-turn', history: 'own' })
    assert.deepEqual(messagesOf(last!.pieces, ['one', 'two']), [
      user('C\nQ0'),
      assistant('one'),
      user('Q1'),
      assistant('two'),
      user('Q2'),
    ])
    assert.throws(() => messagesOf(last!.pieces, ['one']), /reply to step 1, of 1/)
  })

  it('multi-request: each question alone behind the context', () => {
    const steps = planSteps({ ...example, system: 'S' }, { mode: 'multi-request' })
    assert.deepEqual(
      steps.map((s) => messagesOf(s.pieces, [])),
      [0, 1, 2].map((i) => [{ role: 'system', content: 'S' }, user(`C\nQ${i}`)]),
    )
  })

  it('the cache is built from the context alone, or with the first question in view', () => {
    const prefix = (mode: 'multi-turn' | 'multi-request', moment: 'context' | 'question') =>
      planSteps(example, { mode }).map(({ pieces, cachePrefix }) => promptOf(pieces.slice(0, cachePrefix[moment]), []))
    assert.deepEqual(prefix('multi-turn', 'question'), ['C\nQ0', 'C\nQ0', 'C\nQ0'])
    assert.deepEqual(prefix('multi-request', 'context'), ['C', 'C', 'C'])
    assert.deepEqual(prefix('multi-turn', 'context'), ['C', 'C', 'C'])
    assert.deepEqual(prefix('multi-request', 'question'), ['C\nQ0', 'C\nQ1', 'C\nQ2'])
    assert.deepEqual([usualMoment('multi-turn'), usualMoment('multi-request')], ['question', 'context'])
  })

  it('a conversation from a file: one step per user turn', () => {
    const messages = [{ role: 'system', content: 'S' }, user('a'), assistant('b'), user('c')]
    assert.deepEqual(
      stepsOfMessages(messages).map((s) => messagesOf(s.pieces, [])),
      [messages.slice(0, 2), messages],
    )
  })

  it('without a chat template the messages are paragraphs', () => {
    const [, second] = planSteps(example, { mode: 'multi-turn' })
    assert.equal(promptOf(second!.pieces, []), 'C\nQ0\n\nR0\n\nQ1')
  })
})
