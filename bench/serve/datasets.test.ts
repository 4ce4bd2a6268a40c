import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { customDataset, MOONCAKE_BLOCK, mooncakeDataset } from './dataset-files.ts'
import { multiTurnDataset, randomDataset, sharedPrefixDataset } from './datasets.ts'
import { PromptMaker } from './prompt.ts'
import type { Vocabulary } from './tokenizer.ts'
import { WORDS } from './words.ts'
import type { Piece, Session } from './workload.ts'

const LENGTHS = { inputTokens: 100, outputTokens: 20, rangeRatio: 0 }
const vocabulary: Vocabulary = { words: WORDS.map((w) => ` ${w}`), ids: WORDS.map((_, i) => 1000 + i), special: 0 }
const maker = new PromptMaker(vocabulary, 7)

/** Words of the first turn's prompt. */
function words({ turns: [turn] }: Session): string[] {
  return maker.text(turn!.content).trim().split(' ')
}

function withFile<T>(lines: readonly unknown[], use: (path: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), 'kvasir-dataset-'))
  try {
    const path = join(folder, 'data.jsonl')
    writeFileSync(path, `${lines.map((l) => (typeof l === 'string' ? l : JSON.stringify(l))).join('\n')}\n`)
    return use(path)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

describe('PromptMaker', () => {
  const piece = (key: string, tokens: number): Piece => ({ key, tokens })

  it('makes texts of the wanted length, in words of the vocabulary', () => {
    for (const n of [1, 2, 511, 512, 4000]) {
      const made = maker
        .text([piece('a', n)])
        .trim()
        .split(' ')
      assert.equal(made.length, n)
      assert.ok(made.every((w) => WORDS.includes(w)))
    }
  })

  it('equal keys make equal words, a shorter piece the beginning of a longer one', () => {
    const long = maker.text([piece('a', 300)])
    assert.equal(maker.text([piece('a', 300)]), long)
    assert.ok(long.startsWith(`${maker.text([piece('a', 100)])} `))
    assert.notEqual(maker.text([piece('b', 300)]), long)
    assert.notEqual(new PromptMaker(vocabulary, 8).text([piece('a', 300)]), long)
  })

  it('uses the whole vocabulary', () => {
    const used = new Set(maker.text([piece('a', 40 * WORDS.length)]).split(' '))
    assert.ok(used.size > 0.99 * WORDS.length, `${used.size} of ${WORDS.length}`)
  })

  it('as tokens: those of the same words', () => {
    const pieces = [piece('a', 3), piece('b', 4)]
    const byWord = maker.text(pieces).trim().split(' ')
    assert.deepEqual(
      maker.tokens(pieces),
      byWord.map((w) => 1000 + WORDS.indexOf(w)),
    )
    assert.throws(
      () => new PromptMaker({ ...vocabulary, ids: null }, 7).tokens(pieces),
      /--token-ids: .* no \/tokenize/,
    )
  })

  it('leaves room for what the server puts before a text', () => {
    const withBos = new PromptMaker({ ...vocabulary, special: 1 }, 7)
    const all = maker.text([piece('a', 10)])
    assert.equal(withBos.wholeText([piece('a', 10)]), all.slice(0, all.lastIndexOf(' ')))
    assert.equal(withBos.wholeText([piece('a', 1)]), maker.text([piece('a', 1)]))
    assert.equal(withBos.text([piece('a', 10)]), all)
  })
})

describe('random', () => {
  it('exact lengths; prompts differ after the prefix that they share', () => {
    const sessions = randomDataset(10, LENGTHS, 30, 1)
    const prompts = sessions.map(words)
    assert.ok(prompts.every((p) => p.length === 130))
    assert.equal(new Set(prompts.map((p) => p.slice(0, 30).join(' '))).size, 1)
    assert.equal(new Set(prompts.map((p) => p.slice(30, 40).join(' '))).size, 10)
    assert.ok(sessions.every((s) => s.turns.length === 1 && s.turns[0]!.outputTokens === 20 && s.arrivalMs === null))
  })

  it('lengths fill their range, and never leave it', () => {
    const sessions = randomDataset(2000, { ...LENGTHS, rangeRatio: 0.3 }, 0, 1)
    const inputs = sessions.map((s) => (s.turns[0]!.content as readonly Piece[])[0]!.tokens)
    const outputs = sessions.map((s) => s.turns[0]!.outputTokens)
    assert.deepEqual([Math.min(...inputs), Math.max(...inputs)], [70, 130])
    assert.deepEqual([Math.min(...outputs), Math.max(...outputs)], [14, 26])
    assert.deepEqual(sessions, randomDataset(2000, { ...LENGTHS, rangeRatio: 0.3 }, 0, 1))
    assert.notDeepEqual(sessions, randomDataset(2000, { ...LENGTHS, rangeRatio: 0.3 }, 0, 2))
  })
})

describe('shared-prefix', () => {
  it('each prefix is shared by as many prompts, in no order, and by no other', () => {
    const prompts = sharedPrefixDataset(40, LENGTHS, { prefixes: 4, prefixTokens: 64 }, 3).map(words)
    const counts = new Map<string, number>()
    for (const p of prompts) {
      assert.equal(p.length, 164)
      const key = p.slice(0, 64).join(' ')
      counts.set(key, (counts.get(key) ?? 0) + 1)
    }
    assert.deepEqual([...counts.values()], [10, 10, 10, 10])
    assert.equal(new Set(prompts.map((p) => p.slice(64).join(' '))).size, 40)
    const order = prompts.map((p) => [...counts.keys()].indexOf(p.slice(0, 64).join(' ')))
    assert.notDeepEqual(
      order,
      order.map((_, i) => i % 4),
    )
  })
})

describe('multi-turn', () => {
  it('turns of a conversation differ, the first ones share a prefix', () => {
    const sessions = multiTurnDataset({ conversations: 3, turns: 4, prefixTokens: 16 }, LENGTHS, 1)
    const texts = sessions.flatMap((s) => s.turns.map((t) => maker.text(t.content).trim().split(' ')))
    assert.deepEqual(
      texts.map((t) => t.length),
      Array.from({ length: 3 }, () => [116, 100, 100, 100]).flat(),
    )
    assert.equal(new Set(texts.map((t) => t.slice(-100).join(' '))).size, 12)
    assert.equal(new Set([0, 4, 8].map((i) => texts[i]!.slice(0, 16).join(' '))).size, 1)
  })
})

describe('mooncake-trace', () => {
  const rows = [
    { timestamp: 1000, input_length: 1100, output_length: 7, hash_ids: [0, 1, 2] },
    { timestamp: 1000, input_length: 1536, output_length: 9, hash_ids: [0, 1, 3] },
    { timestamp: 4000, input_length: 700, output_length: 0, hash_ids: [5, 1] },
    { timestamp: 4500, input_length: 600, output_length: 3, hash_ids: [0] },
  ]

  it('equal hashes are equal blocks, others are not', () => {
    const prompts = withFile(rows, (path) => mooncakeDataset(path, 1)).map(words)
    assert.deepEqual(
      prompts.map((p) => p.length),
      [1100, 1536, 700, 600],
    )
    const block = (prompt: number, i: number) =>
      prompts[prompt]!.slice(i * MOONCAKE_BLOCK, (i + 1) * MOONCAKE_BLOCK).join(' ')
    assert.equal(block(0, 0), block(1, 0))
    assert.equal(block(0, 1), block(1, 1))
    assert.equal(block(0, 0), block(3, 0))
    assert.notEqual(block(0, 0), block(2, 0))
    assert.notEqual(block(0, 0), block(0, 1))
    assert.ok(!block(1, 2).startsWith(block(0, 2)))
    // The same hash where a block is not full: its beginning.
    assert.ok(block(0, 1).startsWith(block(2, 1)))
    // What hashes do not cover is shared with none.
    assert.ok(!block(1, 1).startsWith(block(3, 1)))
  })

  it('comes when the trace says, times the scale, and no answer is empty', () => {
    const [first, second, ...later] = rows
    const sessions = withFile([first, ...later, second], (path) => mooncakeDataset(path, 0.5))
    assert.deepEqual(
      sessions.map((s) => s.arrivalMs),
      [0, 0, 1500, 1750],
    )
    assert.deepEqual(
      sessions.map((s) => s.turns[0]!.outputTokens),
      [7, 9, 1, 3],
    )
    assert.equal(withFile(rows, (path) => mooncakeDataset(path, 1, 2)).length, 2)
  })

  it('says what is wrong, and where', () => {
    for (const [line, says] of [
      ['{"timestamp": 0', /line 2: it is not JSON/],
      ['7', /line 2: it must be an object/],
      [{ ...rows[0], timestamp: 'x' }, /line 2: "timestamp" must be a number/],
      [{ ...rows[0], input_length: 0 }, /line 2: "input_length" must be a whole number from 1 up/],
      [{ ...rows[0], hash_ids: [{}] }, /line 2: "hash_ids" must be a list/],
    ] as const)
      assert.throws(() => withFile([rows[0], line], (path) => mooncakeDataset(path, 1)), says)
    assert.throws(() => mooncakeDataset('/no/such/file', 1), /--dataset-path: .*ENOENT/)
    assert.throws(() => withFile([''], (path) => mooncakeDataset(path, 1)), /it holds no request/)
  })
})

describe('custom', () => {
  it('takes prompts as they are, and lengths of answers where they are given', () => {
    const lines = [{ prompt: 'What is koffi?', output_tokens: 5 }, '', { prompt: ' Ok ' }]
    assert.deepEqual(
      withFile(lines, (path) => customDataset(path, 64)).map((s) => s.turns),
      [[{ content: 'What is koffi?', outputTokens: 5 }], [{ content: ' Ok ', outputTokens: 64 }]],
    )
    assert.throws(() => withFile([{ prompt: '' }], (path) => customDataset(path, 1)), /"prompt" must be a text/)
    assert.throws(
      () => withFile([{ prompt: 'a', output_tokens: 1.5 }], (path) => customDataset(path, 1)),
      /"output_tokens" must be a whole number/,
    )
  })
})
