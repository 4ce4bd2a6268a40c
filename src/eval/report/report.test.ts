/** From rows to pictures: what is averaged, what is left out, what is drawn, and that it is well-formed. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { KvasirError } from '../../contract/errors.ts'
import type { EvalRow } from '../row.ts'
import { Draw } from '../tasks/draw.ts'
import { spread } from './chart.ts'
import { commandsFor } from './command.ts'
import { costsOf, divergenceOf, turnsOf } from './curves.ts'
import { byLength } from './lengths.ts'
import { bootstrap, isClear, marginOf } from './margins.ts'
import { stylesOf } from './palette.ts'
import { type AskedRow, panelsOf } from './panels.ts'
import { drawReport, readReport } from './report.ts'
import { lengthTable, marginTable, overviewTable } from './tables.ts'

const BYTES = 1_000_000

function row(fields: Partial<EvalRow>): AskedRow {
  const { scores = [1, 0], budget = 1 } = fields
  return {
    policy: 'full',
    budget,
    compress_at: fields.policy === undefined ? null : 'question',
    task: 'kv',
    length: 512,
    mode: 'multi-turn',
    n: scores.length,
    accuracy: scores.reduce((a, b) => a + b, 0) / scores.length,
    accuracy_by_turn: [],
    scores,
    kl: null,
    kl_by_example: [],
    top1: null,
    ttft_ms: 10,
    policy_ms: 0,
    decode_tok_s: 100,
    kv_bytes: BYTES * Number(budget),
    kv_bytes_full: BYTES,
    ...{
      model: 'House 5.5M',
      model_file: 'house.gguf',
      type_k: 'f16',
      type_v: 'f16',
      raw: false,
      shared_prompts: false,
    },
    history: 'golden',
    seed: 0,
    ...fields,
  } as AskedRow
}

const prose = (fields: Partial<EvalRow>) =>
  row({ task: 'prose', mode: 'forced', compress_at: null, accuracy: null, scores: [], n: 2, ...fields })

const OPTIONS = { version: '1.2.3', files: ['rows.jsonl'], folder: 'out' }

describe('panels', () => {
  it('a point is the mean over tasks and lengths, at the mean of the shares that are held', () => {
    const [panel, ...others] = panelsOf([
      row({ scores: [1, 1] }),
      row({ length: 1024, scores: [1, 0] }),
      row({ policy: 'snapkv', budget: 0.5, scores: [1, 0], kv_bytes: 0.6 * BYTES }),
      row({ policy: 'snapkv', budget: 0.5, length: 1024, scores: [0, 0], kv_bytes: 0.5 * BYTES }),
    ])
    assert.deepEqual(others, [])
    assert.deepEqual([panel!.group, panel!.tasks, panel!.lengths], ['Retrieval', ['kv'], [512, 1024]])
    assert.equal(panel!.full!.accuracy, 0.75)
    const [point] = panel!.series[0]!.points
    assert.deepEqual([point!.accuracy, point!.held.toFixed(6)], [0.25, '0.550000'])
  })

  it('what lacks a task or a length is named, not averaged', () => {
    const [panel] = panelsOf([
      row({}),
      row({ length: 1024 }),
      row({ policy: 'tova', budget: 0.5 }),
      row({ policy: 'tova', budget: 0.5, length: 1024 }),
      row({ policy: 'tova', budget: 0.25 }),
      // One of three: its length is nobody's.
      row({ policy: 'tova', budget: 0.25, length: 2048 }),
      row({ policy: 'cake', budget: 0.5 }),
      row({ policy: 'cake', budget: 0.5, length: 1024 }),
    ])
    assert.deepEqual(panel!.lengths, [512, 1024])
    assert.deepEqual(panel!.incomplete, [{ policy: 'tova', budget: 0.25 }])
    assert.deepEqual(
      panel!.series[0]!.points.map((p) => p.budget),
      [0.5],
    )
  })

  it('moments, modes and groups of tasks are apart; unknown tasks are own sets; the larger run counts', () => {
    const tova = (fields: Partial<EvalRow>) => row({ policy: 'tova', budget: 0.5, ...fields })
    const panels = panelsOf([
      tova({ compress_at: 'context' }),
      tova({}),
      tova({ scores: [1, 1, 1] }),
      tova({ mode: 'multi-request' }),
      tova({ task: 'rag' }),
      tova({ task: 'scbench_kv' }),
      tova({ task: 'mine' }),
    ])
    assert.deepEqual(
      panels.map((p) => [p.group, p.setting.mode, p.setting.compressAt, p.full]),
      [
        ['Retrieval', 'multi-request', 'question', null],
        ['Retrieval', 'multi-turn', 'question', null],
        ['RAG', 'multi-turn', 'question', null],
        ['SCBench, string retrieval', 'multi-turn', 'question', null],
        ['Own sets', 'multi-turn', 'question', null],
        ['Retrieval', 'multi-turn', 'context', null],
      ],
    )
    assert.equal(panels[1]!.series[0]!.points[0]!.accuracy, 1)
  })
})

describe('by length', () => {
  const at = (length: number, scores: number[], fields: Partial<EvalRow> = {}) =>
    row({ policy: 'cake', budget: 0.25, kv_bytes: 0.25 * BYTES, length, scores, ...fields })
  const rows = [
    row({ scores: [1, 1] }),
    row({ length: 2048, scores: [1, 0] }),
    at(512, [1, 1]),
    at(2048, [0, 0]),
    at(2048, [1, 1], { budget: 0.5 }),
    at(512, [1, 1], { budget: 0.5 }),
    ...[512, 2048].map((length) => at(length, [1, 0], { policy: 'kivi', budget: 'own', kv_bytes: 0.24 * BYTES })),
    ...[512, 2048].map((length) => at(length, [1, 1], { policy: 'gear', budget: 'own', kv_bytes: 0.6 * BYTES })),
  ]

  it('a line per policy at one budget, and of those with about as many bytes', () => {
    const { panels } = readReport(rows, OPTIONS)
    const [own, ...others] = byLength(panels, 0.25)
    assert.deepEqual(others, [])
    assert.deepEqual(own!.lengths, [512, 2048])
    assert.deepEqual(own!.series, [
      { policy: 'full', accuracies: [1, 0.5] },
      { policy: 'cake', accuracies: [1, 0] },
      { policy: 'kivi', accuracies: [0.5, 0.5] },
    ])
    assert.deepEqual(
      lengthTable(own!).rows[1]!.map((cell) => cell.text),
      ['cake', '100 %', '0 %'],
    )
  })

  it('is a picture and a section; with one length there is neither', () => {
    const files = drawReport(readReport(rows, OPTIONS))
    assert.match(files['lengths.svg']!, />2048</)
    for (const name of ['index.html', 'README.md']) assert.match(files[name]!, /By length, at a budget of 0\.25/)
    const one = drawReport(
      readReport(
        rows.filter((r) => r.length === 512),
        OPTIONS,
      ),
    )
    assert.equal(one['lengths.svg'], undefined)
    for (const name of ['index.html', 'README.md']) assert.doesNotMatch(one[name]!, /By length/)
  })
})

describe('margins', () => {
  it('pairs examples; the interval of a difference that is always the same is that difference', () => {
    const better = row({ scores: [1, 0.5, 0.75, 1] })
    const worse = row({ scores: [0.5, 0, 0.25, 0.5] })
    assert.deepEqual(marginOf([better], [worse]), { mean: 0.5, low: 0.5, high: 0.5 })
    assert.equal(marginOf([better], [row({ scores: [1, 0] })]), null)
    assert.equal(marginOf([better], [{ ...worse, seed: 7 }]), null)
  })

  it('the interval of a coin is what the normal approximation says, and holds 0', () => {
    // 100 differences of +-1: a standard error of 0.1, so 1.96 of them either side.
    const coin = Array.from({ length: 100 }, (_, i) => (i % 2 ? 1 : -1))
    const margin = bootstrap([coin])
    assert.equal(margin.mean, 0)
    assert.ok(Math.abs(margin.high - 0.196) < 0.04 && Math.abs(margin.low + 0.196) < 0.04, JSON.stringify(margin))
    assert.deepEqual([isClear(margin), isClear(bootstrap([coin.map((x) => x + 1)]))], [false, true])
    assert.deepEqual(bootstrap([coin]), margin)
  })

  it('of five examples holds the truth about as often as it says; of three, everything is possible', () => {
    const draw = new Draw('coverage')
    const unit = () => draw.whole(0, 1e6) / 1e6
    const bell = () => (unit() + unit() + unit() + unit() - 2) / 2 + 0.1
    const times = 300
    let held = 0
    for (let i = 0; i < times; i++) {
      const { low, high } = bootstrap([Array.from({ length: 5 }, bell)])
      if (low <= 0.1 && high >= 0.1) held++
    }
    // Without widening it is 0.83.
    assert.ok(held / times > 0.9, `${held} of ${times}`)
    assert.deepEqual(bootstrap([[1, 1, 1]]), { mean: 1, low: -1, high: 1 })
  })

  it('stand in the table, at the same budget, and say where bytes are not the same', () => {
    const all = [1, 1, 1, 1, 1]
    const none = [0, 0, 0, 0, 0]
    const [panel] = panelsOf([
      row({ scores: all }),
      row({ policy: 'random', budget: 0.5, scores: none }),
      row({ policy: 'random', budget: 0.25, scores: none }),
      row({ policy: 'cake', budget: 0.5, scores: all }),
      row({ policy: 'cake', budget: 0.25, scores: all, kv_bytes: 0.4 * BYTES }),
    ])
    const { head, rows } = marginTable(panel!)
    assert.deepEqual(head, ['policy', 'budget', 'held', 'accuracy', 'over random', 'over full'])
    const cake = rows.find((cells) => cells[0]!.text === 'cake')!.map((cell) => cell.text)
    assert.deepEqual(cake, ['cake', '0.5', '50 %', '100 %', '+100 [+100, +100]', '0 [0, 0]'])
    const [, more] = rows.filter((cells) => cells[0]!.text === 'cake').map((cells) => cells[4]!)
    assert.deepEqual(more, { text: '+100 [+100, +100] (1.6x bytes)', isStrong: false })
    assert.equal(rows.find((cells) => cells[0]!.text === 'random')![4]!.text, '')
  })
})

describe('what stands beside', () => {
  it('divergence is the mean over lengths, from most bytes to least', () => {
    const rows = [
      prose({ kl: 0, top1: 1 }),
      prose({ policy: 'tova', budget: 0.25, kl: 0.4, top1: 0.5 }),
      prose({ policy: 'tova', budget: 0.5, kl: 0.1, top1: 0.9 }),
      prose({ policy: 'tova', budget: 0.5, kl: 0.3, top1: 0.7, length: 1024 }),
    ]
    const { series } = divergenceOf(rows)!
    assert.deepEqual(
      series.map((s) => [s.policy, s.points.map((p) => [p.budget, p.kl.toFixed(6), p.top1.toFixed(6)])]),
      [
        [
          'tova',
          // 0.25 was run at one length only.
          [[0.5, '0.200000', '0.800000']],
        ],
      ],
    )
    assert.equal(divergenceOf([row({})]), null)
  })

  it('turns are those of conversations of which the first question was known, at the budget nearest to a quarter', () => {
    const talk = (fields: Partial<EvalRow>) => row({ accuracy_by_turn: [1, 0.5], ...fields })
    const turns = turnsOf([
      talk({}),
      talk({ policy: 'tova', budget: 0.5 }),
      talk({ policy: 'tova', budget: 0.2, accuracy_by_turn: [0.5, 0] }),
      talk({ policy: 'tova', budget: 0.2, compress_at: 'context', accuracy_by_turn: [0, 0] }),
      talk({ policy: 'tova', budget: 0.2, mode: 'multi-request', accuracy_by_turn: [0, 0] }),
    ])!
    assert.equal(turns.budget, 0.2)
    assert.deepEqual(turns.series, [
      { policy: 'full', turns: [1, 0.5] },
      { policy: 'tova', turns: [0.5, 0] },
    ])
    assert.equal(turnsOf([row({ accuracy_by_turn: [1] })]), null)
  })

  it('times are of rows that computed their own prompts, where there are any', () => {
    const shared = row({ policy: 'tova', budget: 0.5, ttft_ms: null, policy_ms: 9 })
    const own = row({ policy: 'tova', budget: 0.5, ttft_ms: 20, policy_ms: 3, task: 'rag' })
    assert.deepEqual(
      costsOf([row({}), shared]).map((c) => c.ttftMs),
      [10, null],
    )
    const [, cost] = costsOf([row({}), shared, own])
    assert.deepEqual([cost!.ttftMs, cost!.policyMs], [20, 3])
  })
})

describe('names at the ends of lines', () => {
  it('keep their distance, their order and to the panel, and stay where they are when there is room', () => {
    assert.deepEqual(spread([100, 50], 0, 200), [100, 50])
    for (const wanted of [[10, 10, 10], [198, 199, 200, 200], [0, 0, 100, 104, 108, 200], [50]]) {
      const got = spread(wanted, 0, 200)
      const sorted = [...got].sort((a, b) => a - b)
      assert.ok(
        sorted.every((y, i) => i === 0 || y - sorted[i - 1]! >= 12 - 1e-9),
        `${wanted} became ${got}`,
      )
      assert.ok(sorted[0]! >= 0 && sorted.at(-1)! <= 200, `${wanted} became ${got}`)
      for (const [i, y] of wanted.entries())
        for (const [j, z] of wanted.entries()) if (y < z) assert.ok(got[i]! < got[j]!, `${wanted} became ${got}`)
    }
  })
})

describe('commands', () => {
  it('are those that make the rows', () => {
    const rows = [
      prose({ policy: 'cake?gamma=100', budget: 0.5, kl: 0, top1: 1, ttft_ms: null, seed: 3 }),
      row({ seed: 3 }),
      row({ policy: 'cake?gamma=100', budget: 0.5, ttft_ms: null, seed: 3 }),
      row({ policy: 'cake?gamma=100', budget: '512t', ttft_ms: null, seed: 3, task: 'rag', length: 1024 }),
      row({
        policy: 'cake?gamma=100',
        budget: 0.5,
        mode: 'multi-request',
        compress_at: 'context',
        ttft_ms: null,
        seed: 3,
      }),
    ]
    assert.deepEqual(commandsFor(rows, 'r.jsonl'), [
      "npm run kvasir -- eval --tasks rag,kv,prose --lengths 512,1024 --limit 2 --seed 3 --policies full,'cake?gamma=100' " +
        '--budgets 0.5,512t --mode multi-turn --compress-at question --shared-prompts --out r.jsonl',
      "npm run kvasir -- eval --tasks kv --lengths 512 --limit 2 --seed 3 --policies 'cake?gamma=100' --budgets 0.5 " +
        '--mode multi-request --compress-at context --shared-prompts --out r.jsonl',
    ])
  })
})

describe('reports', () => {
  const rows = [
    row({}),
    row({ policy: 'random', budget: 0.5 }),
    row({ policy: 'cake?gamma=100', budget: 0.5 }),
    row({ policy: 'cake', budget: 0.5, accuracy_by_turn: [1, 0] }),
    prose({ policy: 'cake', budget: 0.5, kl: 0.1, top1: 0.9 }),
  ]

  it('are the same for the same rows, whatever their order', () => {
    const draw = (of: readonly EvalRow[]) => drawReport(readReport(of, OPTIONS))
    const files = draw(rows)
    assert.deepEqual(Object.keys(files).sort(), ['README.md', 'accuracy.svg', 'beside.svg', 'index.html'])
    assert.equal(draw([...rows].reverse())['accuracy.svg'], files['accuracy.svg'])
  })

  it('need nothing from elsewhere, and hold every policy, escaped', () => {
    const { 'index.html': page, 'accuracy.svg': picture } = drawReport(readReport(rows, OPTIONS))
    for (const text of [page!, picture!]) {
      assert.doesNotMatch(text, /<script|<link|url\(|src=|NaN|undefined|Infinity/)
      assert.deepEqual(
        [...text.matchAll(/https?:[^" ]*/g)].map(String).filter((url) => url !== 'http://www.w3.org/2000/svg'),
        [],
      )
      for (const policy of ['random', 'cake', 'cake?gamma=100']) assert.ok(text.includes(`>${policy}<`), policy)
    }
    const hostile = [...rows, row({ task: '<b>"&', policy: 'cake', budget: 0.5 })]
    const { 'index.html': safe } = drawReport(readReport(hostile, OPTIONS))
    assert.ok(safe!.includes('&lt;b&gt;&quot;&amp;') && !safe!.includes('<b>"'))
  })

  it('variants of a policy share its colour and differ in their dashes; references are ink', () => {
    const styles = stylesOf(['full', 'random', 'cake', 'cake?gamma=100', 'tova'])
    const [cake, variant, tova] = ['cake', 'cake?gamma=100', 'tova'].map((name) => styles.get(name)!)
    assert.deepEqual(cake!.colours, variant!.colours)
    assert.notEqual(cake!.dash, variant!.dash)
    assert.notDeepEqual(cake!.colours, tova!.colours)
    assert.ok(styles.get('random')!.isReference && styles.get('full')!.isReference && !cake!.isReference)
  })

  it('of the full cache alone, or of two models, there are none', () => {
    const refused = (of: readonly EvalRow[], text: RegExp) =>
      assert.throws(
        () => readReport(of, OPTIONS),
        (e: KvasirError) => e.code === 'INVALID_ARGUMENT' && text.test(e.message),
      )
    refused([row({})], /--policies/)
    refused([...rows, row({ model: 'another' })], /several models: House 5.5M, another/)
  })
})

describe('policies that take no budget', () => {
  const own = (policy: string, held: number, scores: number[]) =>
    row({ policy, budget: 'own', scores, kv_bytes: held * BYTES })
  const rows = [
    row({ scores: [1, 1] }),
    row({ policy: 'random', budget: 0.25, scores: [0, 0], kv_bytes: 0.27 * BYTES }),
    own('kivi', 0.42, [1, 1]),
    own('kivi?bits=2', 0.24, [1, 0]),
    own('minicache', 0.84, [1, 1]),
  ]
  const report = readReport(rows, OPTIONS)

  it('are a curve each, with a point for each of their options', () => {
    const { series } = report.panels[0]!
    const points = new Map(series.map((s) => [s.policy, s.points.map((p) => [p.budget, p.held])]))
    assert.deepEqual(
      new Map(points.get('kivi')!.map(([budget, held]) => [budget, held])),
      new Map([
        ['as it is', 0.42],
        ['bits=2', 0.24],
      ]),
    )
    assert.deepEqual(report.policies.toSorted(), ['full', 'kivi', 'minicache', 'random'])
  })

  it('stand beside budgets only where their bytes are near', () => {
    const table = overviewTable(report.panels, 0.25, ['full', 'random', 'kivi', 'minicache'])
    assert.deepEqual(
      table.rows.map((cells) => cells.map((cell) => cell.text)),
      [
        ['full', '100 %'],
        ['random', '0 %'],
        ['kivi', '50 %'],
        ['minicache', ''],
      ],
    )
  })

  it('are in no list of budgets', () => {
    const [command] = report.commands
    assert.match(command!, /--budgets 0\.25 /)
    assert.match(command!, /kivi\?bits=2/)
  })
})
