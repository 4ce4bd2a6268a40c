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
import { fileCells, proseCells, type TreatmentOptions, taskCells } from './cells.ts'
import { readExamples } from './data.ts'
import { evaluate, type Refusal } from './evaluate.ts'
import type { Mode } from './plan.ts'
import { Results, readRows } from './results.ts'
import { type EvalRow, runFacts } from './row.ts'
import { tasksNamed } from './tasks/index.ts'
import { FULL } from './treatments.ts'

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
        Math.abs(row.accuracy! * row.n - theirs) <= 1.001,
        `${JSON.stringify(row)}; libllama ${theirs} of ${row.n}`,
      )
      // 6 layers x keys and values x 2 heads x 64 numbers x 2 bytes a token; lengths are nominal, give or take a quarter.
      const tokens = row.kv_bytes / (6 * 2 * 2 * 64 * 2)
      assert.ok(tokens > row.length * 0.75 && tokens < row.length * 1.3, `${tokens} tokens for ${row.length}`)
      sum += row.accuracy!
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
    taskCells({ tasks: tasksNamed(names), lengths: [512], n, modes: [mode], history, seed: 0, count })

  it('the house model finds needles and answers in turn, far above chance, which is 0', async () => {
    const [single, turns] = await evaluate(engine, cells(['niah_single', 'multiturn'], 6))
    assert.ok(single!.accuracy! >= 0.65, JSON.stringify(single))
    assert.ok(turns!.accuracy! >= 0.75, JSON.stringify(turns))
    assert.deepEqual([turns!.n, turns!.scores.length, turns!.accuracy_by_turn.length], [6, 6, 5])
    for (const { ttft_ms, decode_tok_s, kv_bytes, kv_bytes_full } of [single!, turns!]) {
      assert.ok(ttft_ms! > 0 && decode_tok_s > 0)
      assert.equal(kv_bytes, kv_bytes_full)
    }
  })

  it('several at a time score as one at a time', async () => {
    const at = (concurrency: number) => evaluate(engine, cells(['kv'], 4), { concurrency })
    const [alone, together] = [(await at(1))[0]!, (await at(4))[0]!]
    // Batches change last bits, and so now and then a token; four examples have 20 questions.
    const same = alone.scores.filter((s, i) => Math.abs(s - together.scores[i]!) < 0.21).length
    assert.ok(same === 4 && alone.accuracy! > 0.5, JSON.stringify([alone.scores, together.scores]))
  })

  it('multi-request asks each question alone; its own history is what it said', async () => {
    const [requests] = await evaluate(engine, cells(['multiturn'], 2, 'multi-request'))
    const [own] = await evaluate(engine, cells(['multiturn'], 2, 'multi-turn', 'own'))
    assert.deepEqual([requests!.mode, own!.history], ['multi-request', 'own'])
    assert.ok(requests!.accuracy! > 0.5 && own!.accuracy! > 0.5, JSON.stringify([requests, own]))
    // The last question of five stands behind the others in one mode, alone in the other.
    assert.ok(requests!.kv_bytes < own!.kv_bytes)
  })

  it('a failure stops everything and is thrown', async () => {
    const tooLong = taskCells({
      ...{
        tasks: tasksNamed(['niah_single']),
        lengths: [8192],
        n: 4,
        modes: ['multi-turn'],
        history: 'golden',
        seed: 0,
      },
      count,
    })
    await assert.rejects(evaluate(engine, tooLong), (e: KvasirError) => e.code === 'CONTEXT_OVERFLOW')
    assert.equal((await engine.status()).running, 0)
  })

  it('rows in a file are not run again, even behind half a line; others are', async () => {
    const path = join(folder, 'rows.jsonl')
    const run = async (names: string[], n: number) => {
      const results = new Results(path, runFacts(engine.info))
      const ran: EvalRow[] = []
      const rows = await evaluate(engine, cells(names, n), {
        finished: (cell, treatment) => results.find(cell, treatment),
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
    const known = (change: object) =>
      new Results(path, { ...runFacts(engine.info), ...change }).find(cells(['rag'], 1)[0]!, FULL)
    assert.deepEqual(known({}), second.rows[1])
    // Another model, another quantisation of it, another cache, another way to ask.
    for (const change of [
      { model: 'x' },
      { model_file: 'x.gguf' },
      { type_k: 'q8_0' },
      { type_v: 'q8_0' },
      { raw: true },
    ])
      assert.equal(known(change), undefined, JSON.stringify(change))
    writeFileSync(path, '{"task": "a"}\n')
    assert.throws(
      () => new Results(path, runFacts(engine.info)),
      (e: KvasirError) => e.code === 'INVALID_ARGUMENT' && /rows\.jsonl:1: not a row/.test(e.message),
    )
  })
})

describe('policies', () => {
  const count = (text: string) => engine.model.tokenizer.encode(text, { addSpecial: false }).length
  const common = { lengths: [512], seed: 0, count }
  const cells = (tasks: string[], modes: Mode[], n: number, compared: TreatmentOptions) =>
    taskCells({ ...common, ...compared, tasks: tasksNamed(tasks), modes, n, history: 'golden' })

  it('full runs once, each policy with every budget; bytes are what the store holds', async () => {
    const compared = { policies: ['streaming-llm', 'full'], budgets: ['25%', 0.5, 0.25] }
    const rows = await evaluate(engine, cells(['niah_single'], ['multi-request'], 2, compared))
    assert.deepEqual(
      rows.map((r) => [r.policy, r.budget, r.compress_at]),
      [
        ['full', 1, null],
        ['streaming-llm', 0.25, 'context'],
        ['streaming-llm', 0.5, 'context'],
      ],
    )
    const [full, quarter, half] = rows.map((r) => r.kv_bytes / r.kv_bytes_full)
    assert.equal(full, 1)
    // The question is computed on top of what was kept, and blocks hold 32 rows: 2 of about 18.
    assert.ok(quarter! > 0.25 && quarter! < 0.25 + 0.12, `${quarter}`)
    assert.ok(half! > 0.5 && half! < 0.5 + 0.12, `${half}`)
  })

  it('a budget that holds everything answers as the full cache, at either moment', async () => {
    const compared = {
      policies: ['full', 'snapkv'],
      budgets: ['4096t'],
      compressAt: ['question', 'context'] as const,
    }
    const [full, ...kept] = await evaluate(engine, cells(['multiturn'], ['multi-turn'], 2, compared))
    assert.deepEqual(
      kept.map((r) => r.compress_at),
      ['question', 'context'],
    )
    for (const row of kept) {
      assert.deepEqual(row.scores, full!.scores)
      assert.equal(row.kv_bytes, full!.kv_bytes)
    }
  })

  it('quantised caches keep every row in fewer bytes, and need no moment', async () => {
    const policies = ['full', 'types?k=q8_0&v=q8_0', 'types?v=q4_0']
    const compared = { policies, budgets: [0.5], compressAt: ['context'] as const }
    const [full, eights, fours] = await evaluate(engine, cells(['multiturn'], ['multi-turn'], 2, compared))
    // 34 and 18 bytes for 32 numbers, instead of 64.
    assert.ok(Math.abs(eights!.kv_bytes / full!.kv_bytes - 34 / 64) < 0.01, `${eights!.kv_bytes}, ${full!.kv_bytes}`)
    assert.ok(Math.abs(fours!.kv_bytes / full!.kv_bytes - (64 + 18) / 128) < 0.01, `${fours!.kv_bytes}`)
    assert.equal(eights!.kv_bytes_full, full!.kv_bytes_full)
    assert.ok(eights!.accuracy! > full!.accuracy! - 0.15, `${eights!.accuracy}, ${full!.accuracy}`)
    // Other texts than those of the test below, which must compute its prompts itself.
    const [, prose] = await evaluate(engine, proseCells({ ...common, ...compared, seed: 7, n: 1 }))
    assert.ok(prose!.kl! > 0 && prose!.kl! < 0.05 && prose!.top1! > 0.9, JSON.stringify(prose))
  })

  it('prose: nothing is lost by keeping everything, something by keeping little', async () => {
    const compared = { policies: ['full', 'window'], budgets: ['4096t', 0.125] }
    // One at a time, in memory that is all free: in batches of other sizes, and over rows in several pieces, last bits differ, and
    // rounded activations make more of them.
    await engine.clearCache()
    const rows = await evaluate(engine, proseCells({ ...common, ...compared, n: 2 }), { concurrency: 1 })
    const [full, all, little] = rows
    for (const row of rows) assert.deepEqual([row.accuracy, row.mode, row.kl_by_example.length], [null, 'forced', 2])
    assert.deepEqual([full!.kl, full!.top1], [0, 1])
    assert.ok(all!.kl! < 1e-5 && all!.top1 === 1, JSON.stringify(all))
    assert.ok(little!.kl! > 0.01 && little!.top1! < 0.95, JSON.stringify(little))
  })

  it('prompts that are shared are computed once, and say no time', async () => {
    const compared = { policies: ['full', 'streaming-llm'], budgets: [0.5] }
    const run = (sharedPrompts: boolean) =>
      evaluate(engine, cells(['rag'], ['multi-turn'], 1, compared), { sharedPrompts })
    await engine.clearCache()
    const before = (await engine.status()).totals.cachedTokens
    const own = await run(false)
    const between = (await engine.status()).totals.cachedTokens
    await engine.clearCache()
    const shared = await run(true)
    const after = (await engine.status()).totals.cachedTokens
    assert.ok(after - between > between - before + 400, `${between - before} and ${after - between}`)
    assert.ok(own.every((r) => r.ttft_ms! > 0))
    assert.deepEqual(
      shared.map((r) => r.ttft_ms === null),
      [false, true],
    )
  })

  it('a policy that refuses leaves out its row, and says why; without somebody to tell, it is thrown', async () => {
    // Bytes for less than one row.
    const compared = { policies: ['full', 'snapkv'], budgets: ['16b', 0.5] }
    const told: Refusal[] = []
    const progress: string[] = []
    const rows = await evaluate(engine, cells(['niah_single'], ['multi-turn'], 2, compared), {
      onRefusal: (refusal) => told.push(refusal),
      onProgress: (done, of) => progress.push(`${done}/${of}`),
    })
    assert.deepEqual(
      rows.map((r) => [r.policy, r.budget]),
      [
        ['full', 1],
        ['snapkv', 0.5],
      ],
    )
    assert.equal(told.length, 1)
    assert.match(told[0]!.error.message, /does not hold one token/)
    assert.equal(progress.at(-1), '6/6')
    await assert.rejects(
      evaluate(engine, cells(['niah_single'], ['multi-turn'], 1, compared)),
      (e: KvasirError) => e.code === 'INVALID_ARGUMENT',
    )
  })

  it('rows are found by policy, budget and moment', () => {
    const path = join(folder, 'policies.jsonl')
    const [cell] = cells(['rag'], ['multi-turn'], 3, { policies: ['full', 'snapkv'], budgets: [0.5, 0.25] })
    const old = { task: 'rag', length: 512, mode: 'multi-turn', history: 'golden', seed: 0, n: 3 }
    const row = { ...old, accuracy: 0.5, ...runFacts(engine.info), compress_at: null }
    const lines = [
      { ...row, policy: 'full', budget: 1 },
      { ...row, policy: 'snapkv', budget: 0.25, compress_at: 'question' },
    ]
    writeFileSync(path, lines.map((line) => `${JSON.stringify(line)}\n`).join(''))
    const results = new Results(path, runFacts(engine.info))
    assert.deepEqual(
      cell!.treatments.map((t) => results.find(cell!, t)?.policy),
      ['full', undefined, 'snapkv'],
    )
    assert.equal(results.find(cell!, { policy: 'snapkv', budget: 0.25, compressAt: 'context' }), undefined)
    assert.deepEqual(readRows([path, path]).length, 2)
  })

  it('files do not say where the context ends', () => {
    assert.throws(
      () => fileCells({ files: [data], compressAt: ['context'] }),
      (e: KvasirError) => /do not say where the context ends/.test(e.message),
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
