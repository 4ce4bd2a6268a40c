/**
 * Accuracy on retrieval tasks: what the engine reaches with its default lowering is what libllama reaches with the same file
 * and prompts, greedy, within one example. The whole of the published sets is run by `kvasir eval` (docs/measured.md).
 */
import assert from 'node:assert/strict'
import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Peer } from '../../bench/peer.ts'
import { houseExample, TASKS } from '../../test/fixtures/house-tasks.ts'
import type { KvasirError } from '../contract/errors.ts'
import { LocalEngine } from '../engine/local.ts'
import { modelPath } from '../engine/options.ts'
import { argmax } from '../model/sampling/candidates.ts'
import { fileCells, taskCells } from './cells.ts'
import { readExamples } from './data.ts'
import { type EvalRow, evaluate } from './evaluate.ts'
import type { Mode } from './plan.ts'
import { Results } from './results.ts'
import { tasksNamed } from './tasks/index.ts'

const LENGTHS = [512, 2048]
const PER_CELL = 6
const folder = mkdtempSync(join(tmpdir(), 'kvasir-eval-'))
const data = join(folder, 'house.jsonl')
const examples = TASKS.flatMap((task) =>
  LENGTHS.flatMap((length) => Array.from({ length: PER_CELL }, (_, seed) => houseExample(task, length, seed))),
)
let engine: LocalEngine

before(async () => {
  writeFileSync(data, examples.map((e) => JSON.stringify(e)).join('\n'))
  engine = await LocalEngine.load('house', { threads: 1, contextLength: 4096 })
})
after(async () => {
  await engine.dispose()
  rmSync(folder, { recursive: true })
})

describe('accuracy of the house model', () => {
  it('is that of libllama within one example of each task and length, and high', async () => {
    const rows = await evaluate(engine, fileCells({ files: [data] }))
    assert.equal(rows.length, TASKS.length * LENGTHS.length)
    using peer = await Peer.load(modelPath('house'), { contextLength: 4096, chunk: 512, threads: 1 })
    let sum = 0
    for (const row of rows) {
      const cell = examples.filter((e) => e.task === row.task && e.length === row.length)
      assert.equal(row.n, cell.length)
      const theirs = cell.filter((e) => answer(peer, e).includes(e.answers[0]![0]!)).length
      assert.ok(
        Math.abs(row.accuracy * row.n - theirs) <= 1.001,
        `${JSON.stringify(row)}; libllama ${theirs} of ${row.n}`,
      )
      // 6 layers x keys and values x 2 heads x 64 numbers x 2 bytes a token; lengths are nominal, give or take a quarter.
      const tokens = row.kv_bytes / (6 * 2 * 2 * 64 * 2)
      assert.ok(tokens > row.length * 0.75 && tokens < row.length * 1.3, `${tokens} tokens for ${row.length}`)
      sum += row.accuracy
    }
    assert.ok(sum / rows.length > 0.75, `mean ${sum / rows.length}`)
  })

  it('takes the first examples of each cell, and of the lengths and tasks asked for', async () => {
    const progress: number[] = []
    const cells = fileCells({ files: [data], limit: 2, lengths: [512], tasks: ['pet'] })
    const rows = await evaluate(engine, cells, { onProgress: (n) => progress.push(n) })
    assert.deepEqual(
      rows.map(({ task, length, n, policy, budget }) => ({ task, length, n, policy, budget })),
      [{ task: 'pet', length: 512, n: 2, policy: 'full', budget: 1 }],
    )
    assert.deepEqual(progress, [1, 2])
  })
})

/** libllama's greedy reply. */
function answer(peer: Peer, example: (typeof examples)[number]): string {
  const { tokenizer } = engine.model
  peer.clear()
  let logits = peer.eval(engine.encodePrompt({ messages: example.messages }))
  const reply: number[] = []
  for (let token = argmax(logits); !tokenizer.isEndOfGeneration(token); token = argmax(logits)) {
    reply.push(token)
    if (reply.length >= example.meta.max_tokens) break
    logits = peer.eval(Int32Array.of(token))
  }
  return tokenizer.decode(reply)
}

describe('generated tasks', () => {
  const count = (text: string) => engine.model.tokenizer.encode(text, { addSpecial: false }).length
  const cells = (names: string[], n: number, mode: Mode = 'multi-turn', history: 'golden' | 'own' = 'golden') =>
    taskCells({ tasks: tasksNamed(names), lengths: [512], n, mode, history, seed: 0, count })

  it('the house model finds needles and answers in turn, far above chance, which is 0', async () => {
    const [single, turns] = await evaluate(engine, cells(['niah_single', 'multiturn'], 6))
    assert.ok(single!.accuracy >= 0.65, JSON.stringify(single))
    assert.ok(turns!.accuracy >= 0.75, JSON.stringify(turns))
    assert.deepEqual([turns!.n, turns!.scores.length, turns!.accuracy_by_turn.length], [6, 6, 5])
    for (const { ttft_ms, decode_tok_s, kv_bytes, kv_bytes_full } of [single!, turns!]) {
      assert.ok(ttft_ms > 0 && decode_tok_s > 0)
      assert.equal(kv_bytes, kv_bytes_full)
    }
  })

  it('several at a time score as one at a time', async () => {
    const at = (concurrency: number) => evaluate(engine, cells(['kv'], 4), { concurrency })
    const [alone, together] = [(await at(1))[0]!, (await at(4))[0]!]
    // Batches change last bits, and so now and then a token; four examples have 20 questions.
    const same = alone.scores.filter((s, i) => Math.abs(s - together.scores[i]!) < 0.21).length
    assert.ok(same === 4 && alone.accuracy > 0.5, JSON.stringify([alone.scores, together.scores]))
  })

  it('multi-request asks each question alone; its own history is what it said', async () => {
    const [requests] = await evaluate(engine, cells(['multiturn'], 2, 'multi-request'))
    const [own] = await evaluate(engine, cells(['multiturn'], 2, 'multi-turn', 'own'))
    assert.deepEqual([requests!.mode, own!.history], ['multi-request', 'own'])
    assert.ok(requests!.accuracy > 0.5 && own!.accuracy > 0.5, JSON.stringify([requests, own]))
    // The last question of five stands behind the others in one mode, alone in the other.
    assert.ok(requests!.kv_bytes < own!.kv_bytes)
  })

  it('a failure stops everything and is thrown', async () => {
    const tooLong = taskCells({
      ...{ tasks: tasksNamed(['niah_single']), lengths: [8192], n: 4, mode: 'multi-turn', history: 'golden', seed: 0 },
      count,
    })
    await assert.rejects(evaluate(engine, tooLong), (e: KvasirError) => e.code === 'CONTEXT_OVERFLOW')
    assert.equal((await engine.status()).running, 0)
  })

  it('rows in a file are not run again, even behind half a line; others are', async () => {
    const path = join(folder, 'rows.jsonl')
    const run = async (names: string[], n: number) => {
      const results = new Results(path, engine.info.name)
      const ran: EvalRow[] = []
      const rows = await evaluate(engine, cells(names, n), {
        finished: (cell) => results.find(cell),
        onRow: (row) => {
          results.add(row)
          ran.push(row)
        },
      })
      return { rows, ran: ran.map((r) => r.task) }
    }
    const first = await run(['niah_single'], 1)
    assert.deepEqual(first.ran, ['niah_single'])
    appendFileSync(path, '{"task": "kv", "acc')
    const second = await run(['niah_single', 'rag'], 1)
    assert.deepEqual(second.ran, ['rag'])
    assert.deepEqual(second.rows[0], first.rows[0])
    assert.deepEqual((await run(['niah_single'], 2)).ran, ['niah_single'])
    assert.deepEqual(new Results(path, 'another model').find(cells(['rag'], 1)[0]!), undefined)
    writeFileSync(path, '{"task": "a"}\n')
    assert.throws(
      () => new Results(path, engine.info.name),
      (e: KvasirError) => e.code === 'INVALID_ARGUMENT' && /rows\.jsonl:1: not a row/.test(e.message),
    )
  })
})

describe('evaluation files', () => {
  const bad: Record<string, [string, RegExp]> = {
    'no JSON': ['{"task": ', /bad\.jsonl:2: not JSON/],
    'no task': ['{"length": 5, "messages": [], "answers": []}', /"task" must be a string/],
    'a strange role': [
      '{"task":"a","length":5,"messages":[{"role":"boss","content":"x"}],"answers":[]}',
      /"messages" must/,
    ],
    'an unknown metric': [
      '{"task":"a","length":5,"messages":[{"role":"user","content":"x"}],"answers":[["x"]],"metric":"bleu"}',
      /"metric" must be one of substring/,
    ],
    'answers that do not fit': [
      '{"task":"a","length":5,"messages":[{"role":"user","content":"x"}],"answers":[]}',
      /for each of the 1 user turns/,
    ],
  }
  for (const [name, [line, text]] of Object.entries(bad))
    it(`${name}: the error names file, line and field`, () => {
      const path = join(folder, 'bad.jsonl')
      writeFileSync(path, `${JSON.stringify(examples[0])}\n${line}\n`)
      assert.throws(
        () => readExamples(path),
        (e: KvasirError) => e.code === 'INVALID_ARGUMENT' && text.test(e.message),
      )
    })

  it('a missing file', () => {
    assert.throws(
      () => readExamples(join(folder, 'none.jsonl')),
      (e: KvasirError) => /none\.jsonl/.test(e.message),
    )
  })

  it('turns of a conversation are scored one by one', async () => {
    const path = join(folder, 'turns.jsonl')
    const fact = 'Vera Marlow keeps a rabbit as a pet. Vera Marlow plays the harp.'
    const messages = [
      { role: 'user', content: `${fact} Which animal does Vera Marlow keep as a pet?` },
      { role: 'assistant', content: 'Vera Marlow has a pet rabbit.' },
      { role: 'user', content: 'Which instrument does Vera Marlow play?' },
    ]
    writeFileSync(
      path,
      JSON.stringify({ task: 'turns', length: 64, messages, answers: [['rabbit', 'elephant'], ['harp']] }),
    )
    assert.equal((await evaluate(engine, fileCells({ files: [path] })))[0]!.accuracy, 0.75)
  })
})
