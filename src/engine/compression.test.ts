/** What the engine does for a policy, seen by policies that are made for that. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import type { ObservedLayer } from '../contract/observation.ts'
import type { CompressionPlan, PolicyDefinition, PolicyState, StageState } from '../contract/policy.ts'
import { definePolicy, registerPolicy } from '../policies/index.ts'
import { LocalEngine } from './local.ts'
import type { GeneratePart, GenerateRequest } from './request.ts'

let engine: LocalEngine
before(async () => {
  process.env['KVASIR_CHECK'] = '1'
  engine = await LocalEngine.load('house', { contextLength: 1024, threads: 1, tokenBudget: 64 })
})
after(async () => {
  await engine.dispose()
  delete process.env['KVASIR_CHECK']
})

const text = `${'The lake was quiet that afternoon. '.repeat(12)}Vera Marlow keeps a rabbit as a pet. Which animal does she keep?`
const messages = [{ role: 'user', content: text }]

type End = Extract<GeneratePart, { kind: 'end' }>
type Token = Extract<GeneratePart, { kind: 'token' }>

async function play(request: Partial<GenerateRequest>, on = engine): Promise<{ tokens: Token[]; end: End }> {
  const tokens: Token[] = []
  const base = { messages, sampling: { temperature: 0, logprobs: 5 } }
  const most = request.forced ? {} : { maxTokens: 24, ignoreEnd: true }
  for await (const part of on.generate({ ...base, ...most, ...request })) {
    if (part.kind === 'end') return { tokens, end: part }
    tokens.push(part)
  }
  throw new Error('no end')
}

const ids = (tokens: readonly Token[]) => tokens.map((t) => t.token)
const rowsOf = (state: PolicyState) => state.positions(0, 0).length
const everywhere = ({ model }: PolicyState, rows: Int32Array) =>
  Array.from({ length: model.layers }, () => Array.from({ length: model.kvHeads }, () => rows))
const range = (from: number, to: number) => Int32Array.from({ length: to - from }, (_, i) => from + i)

let number = 0
/** A policy for one test, known to the engine. */
function policy(parts: Partial<PolicyDefinition>): string {
  const name = `made-up-${++number}`
  const definition = definePolicy({
    ...{ name, family: 'eviction', summary: '', paper: null, options: {} },
    observes: () => ({}),
    afterPrefill: () => ({ kind: 'keep-all' }),
    ...parts,
  })
  registerPolicy(definition)
  return name
}

describe('policies of one’s own', () => {
  it('are found by name, and no name is taken twice', async () => {
    const name = policy({})
    assert.deepEqual(ids((await play({ policy: name, budget: 0.5 })).tokens), ids((await play({})).tokens))
    assert.throws(() => policy({ name }), { code: 'INVALID_ARGUMENT', message: /is there already/ })
    assert.throws(() => policy({ name: 'snapkv' }), { code: 'INVALID_ARGUMENT' })
  })
})

describe('the seed', () => {
  it('is one for plan and sampling: told at the end, it gives both again', async () => {
    const ask = (seed?: number) =>
      play({ policy: 'random', budget: 0.2, sampling: { temperature: 1, ...(seed === undefined ? {} : { seed }) } })
    const first = await ask()
    assert.deepEqual(ids((await ask(first.end.seed)).tokens), ids(first.tokens))
    const others = await Promise.all([1, 2, 3].map((i) => ask(first.end.seed + i)))
    assert.ok(others.some(({ tokens }) => ids(tokens).join() !== ids(first.tokens).join()))
  })
})

describe('memory', () => {
  it('reaches the next plan, of forks too, and begins anew with the sequence', async () => {
    const seen: unknown[] = []
    const name = policy({
      afterPrefill: (_, state) => ({ kind: 'keep-all', memory: [rowsOf(state)] }),
      afterDecode: (_, { memory }) => {
        seen.push(memory)
        return { kind: 'keep-all', memory: [...(memory as number[]), 1] }
      },
    })
    const rows = (await engine.tokenize({ messages })).length
    for await (const _ of engine.generate({
      messages,
      policy: name,
      budget: 10,
      samples: 2,
      maxTokens: 4,
      ignoreEnd: true,
    }));
    // Two answers of four tokens, of which the last is in no cache.
    assert.deepEqual((seen as number[][]).map((list) => list.length).sort(), [1, 1, 2, 2, 3, 3])
    for (const list of seen as number[][]) assert.deepEqual(list, [rows, ...new Array(list.length - 1).fill(1)])
  })
})

describe('a prompt of which a part is shortened', () => {
  const seenAt: { positions: number[]; seen: number }[] = []
  let name: string
  before(() => {
    name = policy({
      observes: () => ({ window: { rows: 4, statistics: ['sum'] } }),
      afterPrefill(seen, state): CompressionPlan {
        const { keys } = seen.window![0]!
        assert.equal(keys[0], state.seen)
        seenAt.push({ positions: [...state.positions(0, 0)], seen: state.seen })
        const n = rowsOf(state)
        return { kind: 'keep', rows: everywhere(state, range(n - state.budget, n)) }
      },
    })
  })

  it('the policy sees no row behind it, and what is left is as long as it should be', async () => {
    const n = (await engine.tokenize({ messages })).length
    for (const compressAt of [60, 64, 65, n - 1, n]) {
      const { end } = await play({ policy: name, budget: 32, compressAt })
      const at = seenAt.at(-1)!
      assert.deepEqual(at, { positions: [...range(0, compressAt)], seen: compressAt })
      const { kv_bytes, kv_bytes_full } = end.timings
      const perRow = engine.info.kvBytesPerToken
      assert.equal(kv_bytes_full, perRow * 32 * Math.ceil((n + 23) / 32), 'the last token of the answer has no row')
      const left = 32 + n - compressAt + 23
      assert.ok(
        kv_bytes >= perRow * left && kv_bytes <= perRow * (left + 64),
        `${kv_bytes / perRow} rows, ${left} are left`,
      )
    }
  })

  it('changes nothing where all of it is kept', async () => {
    assert.deepEqual(
      ids((await play({ policy: name, budget: 512, compressAt: 70 })).tokens),
      ids((await play({})).tokens),
    )
  })

  it('what is read row by row behind it leaves the rest of each step to others', async () => {
    let rows = 0
    const slow = policy({
      afterDecode: () => {
        rows++
        return { kind: 'keep-all' }
      },
    })
    const first = play({ policy: slow, budget: 512, compressAt: 10 })
    while (rows < 3) await setTimeout(1)
    const before = rows
    await play({ messages: [{ role: 'user', content: 'Which animal does she keep?' }], maxTokens: 1 })
    assert.ok(rows - before < 20, `${rows - before} rows went before`)
    await first
  })

  it('must be named within the prompt, and by a policy', async () => {
    for (const compressAt of [0, -1, 1.5, 9999])
      await assert.rejects(play({ policy: name, budget: 32, compressAt }), {
        code: 'INVALID_ARGUMENT',
        message: /compressAt/,
      })
    await assert.rejects(play({ compressAt: 10 }), { code: 'INVALID_ARGUMENT', message: /policy/ })
  })
})

describe('a forced answer', () => {
  it('is given token by token, as likely as the model finds it', async () => {
    const free = await play({})
    const forced = await play({ forced: ids(free.tokens) })
    assert.deepEqual(ids(forced.tokens), ids(free.tokens))
    assert.equal(forced.end.reason.kind, 'max-tokens')
    for (const [i, token] of forced.tokens.entries())
      assert.ok(Math.abs(token.logprob! - free.tokens[i]!.logprob!) < 0.05)
    const other = await play({ forced: [5, 6, 7] })
    assert.deepEqual(ids(other.tokens), [5, 6, 7])
    assert.ok(other.tokens[0]!.logprob! < free.tokens[0]!.logprob!)
    assert.equal(other.tokens[0]!.top![0]!.token, free.tokens[0]!.token, 'what the model would have said is told')
  })

  it('goes with nothing that would end it otherwise', async () => {
    const bad: Partial<GenerateRequest>[] = [
      { forced: [] },
      { forced: [1, -1] },
      { forced: [1, 2 ** 30] },
      { forced: [1], maxTokens: 3 },
      { forced: [1], stop: 'a' },
      { forced: [1], samples: 2 },
      { forced: [1], sampling: { grammar: 'root ::= "a"' } },
    ]
    for (const request of bad)
      await assert.rejects(play(request), { code: 'INVALID_ARGUMENT', message: /forced/ }, JSON.stringify(request))
    await assert.rejects(play({ forced: new Array(1000).fill(5) }), { code: 'CONTEXT_OVERFLOW' })
  })
})

describe('a prompt that is read in chunks', () => {
  const keepNewest = (state: PolicyState): CompressionPlan => {
    const n = rowsOf(state)
    if (n <= state.budget) return { kind: 'keep-all' }
    return { kind: 'keep', rows: everywhere(state, range(n - state.budget, n)) }
  }
  const chunked = (seen: number[], more: Partial<PolicyDefinition> = {}) =>
    policy({
      chunkRows: () => 40,
      afterChunk(state) {
        seen.push(state.seen)
        return keepNewest(state)
      },
      afterDecode: (_, state) => keepNewest(state),
      ...more,
    })

  it('is planned for after each, and never holds more than budget and chunk', async () => {
    const seen: number[] = []
    const n = (await engine.tokenize({ messages })).length
    let most = 0
    const watch = setInterval(() => {
      for (const s of engine.store.sequences.values()) most = Math.max(most, s.rows)
    }, 1)
    await play({ policy: chunked(seen), budget: 50 })
    clearInterval(watch)
    assert.deepEqual(seen, [...range(1, Math.ceil(n / 40))].map((i) => 40 * i).concat(n))
    assert.ok(most > 0 && most <= 90, `${most} rows`)
  })

  it('answers go on beyond the context, and so do prompts, where a policy is endless', async () => {
    const name = chunked([], { isEndless: () => true })
    const long = await play({ policy: name, budget: 50, maxTokens: 1500 })
    assert.equal(long.tokens.length, 1500)
    assert.equal(long.end.reason.kind, 'max-tokens')
    assert.ok(long.end.timings.kv_bytes <= engine.info.kvBytesPerToken * 32 * 4)
    const { tokens } = await play({
      policy: name,
      budget: 50,
      maxTokens: 3,
      messages: [{ role: 'user', content: text.repeat(12) }],
    })
    assert.equal(tokens.length, 3)
    await assert.rejects(
      play({ policy: chunked([]), budget: 50, messages: [{ role: 'user', content: text.repeat(12) }] }),
      {
        code: 'CONTEXT_OVERFLOW',
      },
    )
  })
})

describe('a prompt that is read layer by layer', () => {
  const staged = (
    stages: readonly number[],
    plan: (
      seen: readonly ObservedLayer[],
      state: StageState,
    ) => ReturnType<NonNullable<PolicyDefinition['afterStage']>>,
  ) =>
    policy({
      observes: () => ({ window: { rows: 6, statistics: ['sum'] } }),
      stages: () => stages,
      afterStage: (seen, state) => plan(seen.window!, state),
    })

  it('gives the same answer when all rows stay', async () => {
    const plain = await play({})
    for (const stages of [[0], [0, 1], [0, 3, 4], [...range(0, engine.model.config.layers)]]) {
      const ran: unknown[] = []
      const name = staged(stages, (seen, { layers, ran: rows, seen: tokens }) => {
        assert.equal(tokens, rows.length, 'all of the prompt, at every stage')
        ran.push([layers.from, layers.to, rows.length, seen.length, seen[0]!.keys[0]])
        return { rows: null, next: null }
      })
      const got = await play({ policy: name, budget: 10 })
      assert.deepEqual(ids(got.tokens), ids(plain.tokens), `stages ${stages}`)
      const n = (await engine.tokenize({ messages })).length
      const ends = [...stages.slice(1), engine.model.config.layers]
      assert.deepEqual(
        ran,
        stages.map((from, i) => [from, ends[i], n, ends[i]! - from, n]),
      )
    }
  })

  it('cuts layers that it has passed, and lets rows stay behind: memory is what is left, beside others too', async () => {
    const budget = 20
    const name = staged([0, 2, 5], (_, state) => {
      const { layers, ran, model } = state
      const rows = Array.from({ length: layers.to }, (_, layer) =>
        Array.from({ length: model.kvHeads }, (_, head) => {
          const n = state.positions(layer, head).length
          return range(n - Math.min(n, budget + head), n)
        }),
      )
      // Every second one goes on, and the newest.
      const next = range(0, ran.length).filter((i) => i % 2 === 0 || i === ran.length - 1)
      return { rows, next }
    })
    const alone = await play({ policy: name, budget })
    const rows =
      alone.end.timings.kv_bytes /
      (engine.info.kvBytesPerToken / (engine.model.config.layers * engine.model.config.kvHeads))
    const heads = engine.model.config.layers * engine.model.config.kvHeads
    assert.ok(rows <= heads * 32 * 3, `${rows / heads} rows by head, blocks of 32`)
    const [together] = await Promise.all([
      play({ policy: name, budget }),
      play({}),
      play({ policy: 'snapkv', budget: 0.3 }),
    ])
    assert.deepEqual(ids(together!.tokens).slice(0, 4), ids(alone.tokens).slice(0, 4))
    assert.deepEqual(ids((await play({})).tokens), ids((await play({ policy: 'full' })).tokens))
  })

  it('prompts of different lengths meet in other layers, or in none', async () => {
    const every = range(0, engine.model.config.layers)
    const name = staged([...every], () => ({ rows: null, next: null }))
    const short = [{ role: 'user', content: 'Which animal does she keep?' }]
    const alone = [await play({ messages: short }), await play({})]
    const together = await Promise.all([
      play({ policy: name, budget: 10, messages: short }),
      play({ policy: name, budget: 10 }),
    ])
    for (const [i, { tokens }] of together.entries())
      assert.deepEqual(ids(tokens).slice(0, 4), ids(alone[i]!.tokens).slice(0, 4))
  })

  it('stages and chunks that cannot be are refused, and hurt nobody', async () => {
    const wrong = [
      ...[[1], [], [0, 0], [0, 99], [0, 1.5]].map((stages) => staged(stages, () => ({ rows: null, next: null }))),
      ...[0, -1, Number.NaN].map((n) => policy({ chunkRows: () => n, afterChunk: () => ({ kind: 'keep-all' }) })),
      policy({ stages: () => [0, 1] }),
      policy({ chunkRows: () => 5 }),
    ]
    for (const name of wrong) await assert.rejects(play({ policy: name, budget: 10 }), { code: 'INVALID_ARGUMENT' })
  })

  it('a plan that leaves the newest row behind ends its own request alone', async () => {
    const name = staged([0, 4], () => ({ rows: null, next: range(0, 5) }))
    const [bad, good] = await Promise.allSettled([play({ policy: name, budget: 10 }), play({})])
    assert.equal(bad!.status, 'rejected')
    assert.match(String((bad as PromiseRejectedResult).reason), /newest row/)
    assert.equal(good!.status, 'fulfilled')
  })

  it('begins anew after a preemption, and repeats its plans', async () => {
    const long = [{ role: 'user', content: `${text} ${text} ${text}` }]
    // 16 pages: room for one of them and a little more.
    const kvMemory = engine.info.kvBytesPerToken * 32 * 16
    await using tight = await LocalEngine.load('house', { contextLength: 512, threads: 1, tokenBudget: 64, kvMemory })
    // Each layer is cut when it is done, so that others are let in while the next ones still need room.
    const every = range(0, engine.model.config.layers)
    const name = staged([...every], (_, { layers, model, positions }) => {
      const newest = (n: number) => range(Math.max(0, n - 10), n)
      const cut = (layer: number) =>
        Array.from({ length: model.kvHeads }, (_, head) => newest(positions(layer, head).length))
      return { rows: Array.from({ length: layers.to }, (_, layer) => cut(layer)), next: null }
    })
    const asked = { policy: name, budget: 40, messages: long }
    const alone = await play(asked, tight)
    const both = await Promise.all([play(asked, tight), play(asked, tight), play({ messages: long }, tight)])
    for (const { tokens } of both.slice(0, 2)) assert.deepEqual(ids(tokens).slice(0, 4), ids(alone.tokens).slice(0, 4))
    assert.ok((await tight.status()).totals.preemptions > 0)
  })
})

it('frees all pages in the end', async () => {
  const { kv } = await engine.status()
  assert.equal(kv.usedBytes, kv.prefixBytes)
})
