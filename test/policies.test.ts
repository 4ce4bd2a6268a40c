/** Policies at work in the engine, on the house model: exact where nothing is dropped, true to their budget where it is. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { LocalEngine } from '../src/engine/local.ts'
import type { GenerateRequest } from '../src/engine/request.ts'
import { POLICIES } from '../src/policies/index.ts'
import { houseExample, TASKS } from './fixtures/house-tasks.ts'

const NAMES = Object.keys(POLICIES).filter((name) => name !== 'full' && name !== 'compresskv')
const LONG = 40

let engine: LocalEngine
before(async () => {
  process.env['KVASIR_CHECK'] = '1'
  engine = await LocalEngine.load('house', { contextLength: 2048, threads: 1, tokenBudget: 128 })
})
after(async () => {
  await engine.dispose()
  delete process.env['KVASIR_CHECK']
})

const question = 'Which animal does Vera Marlow keep as a pet?'
const prompt = `${'The lake was quiet that afternoon. '.repeat(20)}Vera Marlow keeps a rabbit as a pet. ${'A bell rang. '.repeat(25)}${question}`
const messages = [{ role: 'user', content: prompt }]

async function answer(request: Partial<GenerateRequest>, on: LocalEngine = engine): Promise<number[]> {
  const tokens: number[] = []
  const base = { messages, sampling: { temperature: 0 }, maxTokens: LONG, ignoreEnd: true }
  for await (const part of on.generate({ ...base, ...request })) if (part.kind === 'token') tokens.push(part.token)
  return tokens
}

/** Blocks of the one sequence there is, by layer and head, and its rows, while it generates. */
async function held(request: Partial<GenerateRequest>): Promise<{ rows: number[]; bytes: number }> {
  let seen = { rows: [] as number[], bytes: 0 }
  for await (const part of engine.generate({
    messages,
    sampling: { temperature: 0 },
    maxTokens: 4,
    ignoreEnd: true,
    ...request,
  })) {
    const [sequence] = [...engine.store.sequences.values()]
    if (part.kind !== 'token' || !sequence) continue
    const { layers, kvHeads } = engine.store.dims
    const columns = Array.from({ length: layers * kvHeads }, (_, i) =>
      sequence.column(Math.floor(i / kvHeads), i % kvHeads, kvHeads),
    )
    const blocks = columns.reduce((sum, c) => sum + c.blocks.length, 0)
    seen = { rows: columns.map((c) => c.rows), bytes: blocks * engine.store.arenas[0]!.blockBytes }
  }
  return seen
}

describe('policies in the engine', () => {
  for (const policy of NAMES) {
    it(`${policy}: with a budget of the whole context it changes no token`, async () => {
      assert.deepEqual(await answer({ policy, budget: 2000 }), await answer({}))
    })

    it(`${policy}: holds what its budget pays for, and no more than a block per head beyond`, async () => {
      const { length: rows } = await engine.tokenize({ messages })
      const budget = Math.floor(rows / 4)
      const { layers, kvHeads } = engine.store.dims
      const heads = layers * kvHeads
      const full = await held({})
      const { rows: kept, bytes } = await held({ policy, budget: 0.25 })
      const total = kept.reduce((sum, n) => sum + n, 0)
      // Rows of the answer come on top, where a policy drops nothing any more.
      assert.ok(
        total >= heads * (budget - 1) && total <= heads * (budget + 4),
        `${total} rows, ${heads * budget} asked for`,
      )
      const blockBytes = engine.store.arenas[0]!.blockBytes
      assert.ok(bytes <= (Math.ceil(total / 32) + 2 * heads) * blockBytes, `${bytes} bytes for ${total} rows`)
      assert.ok(bytes < 0.6 * full.bytes, `${bytes} bytes, the full cache takes ${full.bytes}`)
    })

    it(`${policy}: the same alone, beside others, and again`, async () => {
      const budget = 0.5
      const alone = await answer({ policy, budget })
      const others = NAMES.filter((name) => name !== policy).slice(0, 2)
      const [together] = await Promise.all([
        answer({ policy, budget }),
        answer({}),
        ...others.map((name) => answer({ policy: name, budget: 0.3 })),
      ])
      const [again] = [await answer({ policy, budget })]
      // Batches of another shape round otherwise: near ties may part the answers later, not at once.
      assert.deepEqual(again, alone)
      assert.deepEqual(together!.slice(0, 4), alone.slice(0, 4))
    })
  }

  it('a compressed cache is never stored as a prefix: the full answer stays what it was', async () => {
    await engine.clearCache()
    const before = await answer({})
    await answer({ policy: 'random', budget: 0.1 })
    assert.deepEqual(await answer({}), before)
  })

  it('samples fork off a compressed prompt', async () => {
    const texts = new Map<number, number>()
    for await (const part of engine.generate({
      ...{ messages, policy: 'snapkv', budget: 0.5, samples: 3, maxTokens: 6, sampling: { temperature: 1.5, seed: 3 } },
    }))
      if (part.kind === 'token') texts.set(part.sample!, (texts.get(part.sample!) ?? 0) + 1)
    assert.equal(texts.size, 3)
  })

  it('frees all pages in the end', async () => {
    for (const policy of NAMES) await answer({ policy, budget: 0.25, maxTokens: 3 })
    const { kv } = await engine.status()
    assert.equal(kv.usedBytes, kv.prefixBytes)
  })

  it('repeats its plan after a preemption: no token changes', async () => {
    const plain = { contextLength: 1024, threads: 1, tokenBudget: 128 }
    await using roomy = await LocalEngine.load('house', plain)
    const { length: rows } = await roomy.tokenize({ messages })
    const bytes = roomy.info.kvBytesPerToken * 32 * Math.ceil((rows + LONG) / 32)
    await using tight = await LocalEngine.load('house', { ...plain, kvMemory: Math.floor(bytes * 1.5) })
    for (const policy of ['snapkv', 'window', 'tova']) {
      const asked = { policy, budget: 0.5 }
      const expected = await answer(asked, roomy)
      const both = await Promise.all([answer(asked, tight), answer({ ...asked, priority: -1 }, tight)])
      for (const tokens of both) assert.deepEqual(tokens.slice(0, 4), expected.slice(0, 4), policy)
    }
  })

  it('sums columns beside padding, which is taken back', async () => {
    const plain = { contextLength: 1024, threads: 1, tokenBudget: 128 }
    await using padded = await LocalEngine.load('house', { ...plain, scheduler: 'prepacking-padded' })
    await using packed = await LocalEngine.load('house', { ...plain, scheduler: 'prepacking' })
    const both = (on: LocalEngine) => {
      const short = [{ role: 'user', content: question }]
      return Promise.all([
        answer({ policy: 'h2o', budget: 0.5 }, on),
        answer({ policy: 'h2o', budget: 0.5, messages: short }, on),
      ])
    }
    const [[a, b], [c, d]] = [await both(padded), await both(packed)]
    assert.deepEqual([a.slice(0, 3), b.slice(0, 3)], [c.slice(0, 3), d.slice(0, 3)])
  })

  it('refuses what it cannot do, and says what is meant', async () => {
    const wrong: readonly [Partial<GenerateRequest>, RegExp][] = [
      [{ policy: 'snapvk', budget: 0.5 }, /Did you mean 'snapkv'/],
      [{ policy: 'snapkv' }, /needs a budget/],
      [{ budget: 0.5 }, /needs a policy/],
      [{ policy: 'snapkv', budget: -1 }, /budget/],
      [{ policy: 'snapkv?windw=3', budget: 0.5 }, /window/],
      [{ policy: 'compresskv', budget: 0.5 }, /calibrat/],
    ]
    for (const [request, message] of wrong) await assert.rejects(answer(request), { code: 'INVALID_ARGUMENT', message })
  })

  it('reads what it kept: an informed policy answers where a blind one does not', async () => {
    const right = async (policy: string): Promise<number> => {
      let n = 0
      for (let i = 0; i < 24; i++) {
        const {
          messages: [first],
          answers,
        } = houseExample(TASKS[i % TASKS.length]!, 512, 100 + i)
        let text = ''
        const asked = { messages: [first!], policy, budget: 0.25, maxTokens: 24, sampling: { temperature: 0 } }
        for await (const part of engine.generate(asked)) text += part.text
        if (answers[0]!.some((a) => text.includes(a))) n++
      }
      return n
    }
    const [snapkv, random] = [await right('snapkv'), await right('random')]
    assert.ok(snapkv > random, `snapkv ${snapkv}, random ${random} of 24`)
  })
})
