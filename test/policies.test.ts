/** Policies at work in the engine, on the house model: exact where nothing is dropped, true to their budget where it is. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { LocalEngine } from '../src/engine/local.ts'
import type { GenerateRequest } from '../src/engine/request.ts'
import { choosePolicy, POLICIES } from '../src/policies/index.ts'
import { houseExample, TASKS } from './fixtures/house-tasks.ts'

/** Every policy, and the other ways in which some of them read a prompt. */
const NAMES = Object.keys(POLICIES).filter((name) => name !== 'full')
const ALL = [
  ...NAMES,
  'cake?prefill=cascade',
  'uncomp?least=0.02',
  'streaming-llm?prefill=stream',
  'streaming-llm?positions=kept',
  'lacache?prefill=stream',
  'snapkv?layers=cake&heads=ada',
  'kivi?bits=2&residual=32',
  'gear?backbone=kcvt&outliers=0',
  'mikv?hi=8&lo=4',
  'zipcache?lo=0&hi=16',
]
/** Those whose options say what they hold, with options under which that is everything as it was computed. */
const EVERYTHING: Readonly<Record<string, string>> = {
  kivi: 'kivi?residual=2048',
  gear: 'gear?buffer=2048',
  mikv: 'mikv?ratio=1',
  zipcache: 'zipcache?hi=16&salient=1',
  minicache: 'minicache?start=1',
}
const takesBudget = (policy: string) => choosePolicy(policy).definition.takesBudget !== false
/** A request's policy, with a budget if it takes one. */
const asking = (policy: string, budget: number) => (takesBudget(policy) ? { policy, budget } : { policy })
/** What a policy may hold beside its budget, rows per layer and head on average, where its file says so. */
const SLACK: Readonly<Record<string, { readonly below?: number; readonly above?: number }>> = {
  razorattention: { below: 2, above: 64 },
  lacache: { above: 2 },
  // The answer's rows are merged when 64 of them have gathered.
  kvmerger: { above: 64 },
  // Pruned rows are nowhere behind the layers that they reached: there is a bound above alone.
  'uncomp?least=0.02': { below: Number.POSITIVE_INFINITY },
  'lacache?prefill=stream': { above: 2 },
}
/** One of each kind: what is seen, how the prompt is read, what becomes of rows. */
const EACH_KIND = [
  ...[
    'random',
    'streaming-llm',
    'h2o',
    'cake',
    'cake?prefill=cascade',
    'razorattention',
    'uncomp?least=0.02',
    'lacache',
  ],
  ...['kvmerger', 'kivi?bits=2&residual=32', 'gear', 'mikv?hi=8&lo=4', 'zipcache', 'minicache'],
]
const PREEMPTED = new Set(['cake', 'kvmerger', 'kivi?bits=2&residual=32'])
const LONG = 24

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
  const base = { messages, sampling: { temperature: 0, seed: 1 }, maxTokens: LONG, ignoreEnd: true }
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
    seen = { rows: columns.map((c) => c.rows), bytes: engine.store.heldBytes(sequence) }
  }
  return seen
}

/** Runs of other shapes round otherwise: near ties may part answers later, but not at once. */
const sameBeginning = (a: readonly number[], b: readonly number[], what: string, tokens: number) =>
  assert.deepEqual(a.slice(0, tokens), b.slice(0, tokens), what)

describe('policies in the engine', () => {
  let small: LocalEngine
  let tight: LocalEngine
  let resumed: LocalEngine
  const folder = mkdtempSync(join(tmpdir(), 'kvasir-policies-'))
  before(async () => {
    const plain = { contextLength: 1024, threads: 1 }
    small = await LocalEngine.load('house', { ...plain, tokenBudget: 32 })
    resumed = await LocalEngine.load('house', { ...plain, tokenBudget: 128 })
    const { length: rows } = await engine.tokenize({ messages })
    const bytes = engine.info.kvBytesPerToken * 32 * Math.ceil((rows + LONG) / 32)
    tight = await LocalEngine.load('house', { ...plain, tokenBudget: 128, kvMemory: Math.floor(bytes * 1.5) })
    await answer({ maxTokens: 1 })
    await engine.saveSession(join(folder, 'session'), { messages })
    await resumed.loadSession(join(folder, 'session'))
  })
  after(async () => {
    for (const e of [small, tight, resumed]) await e.dispose()
    rmSync(folder, { recursive: true })
  })

  /** An answer that gives way, behind its first token, to eight others that grow. */
  async function preempted(request: Partial<GenerateRequest>): Promise<number[]> {
    const before = (await tight.status()).totals.preemptions
    const tokens: number[] = []
    let others: Promise<number[]> | undefined
    const base = { messages, sampling: { temperature: 0, seed: 1 }, maxTokens: 48, ignoreEnd: true, priority: -1 }
    for await (const part of tight.generate({ ...base, ...request })) {
      if (part.kind === 'token') tokens.push(part.token)
      others ??= answer({ messages: [{ role: 'user', content: question }], samples: 8, maxTokens: 48 }, tight)
    }
    await others
    assert.ok((await tight.status()).totals.preemptions > before, 'nothing was preempted')
    return tokens
  }

  for (const policy of ALL) {
    // Pruning goes by the length of the prompt, whatever the budget.
    if (!policy.includes('least=') && takesBudget(policy))
      it(`${policy}: with a budget of the whole context it changes no token`, async () => {
        assert.deepEqual(await answer({ policy, budget: 2000 }), await answer({}))
      })

    if (takesBudget(policy))
      it(`${policy}: holds what its budget pays for, far into the answer if it goes on there`, async () => {
        const { length: rows } = await engine.tokenize({ messages })
        const budget = Math.floor(rows / 4)
        const { layers, kvHeads } = engine.store.dims
        const heads = layers * kvHeads
        const maxTokens = 48
        const { definition, options } = choosePolicy(policy)
        const goesOn = definition.afterDecode !== undefined
        const { below = 0, above = 0 } = SLACK[policy] ?? {}
        const { rows: kept, bytes } = await held({ policy, budget: 0.25, maxTokens })
        const total = kept.reduce((sum, n) => sum + n, 0)
        const grown = goesOn ? 0 : maxTokens - 1
        assert.ok(
          total >= heads * (budget + grown - 1 - below) && total <= heads * (budget + grown + 1 + above),
          `${total} rows, ${heads * budget} asked for (${JSON.stringify(options)})`,
        )
        const { blockBytes } = engine.store.home
        assert.ok(bytes <= (Math.ceil(total / 32) + 2 * heads) * blockBytes, `${bytes} bytes for ${total} rows`)
      })

    it(`${policy}: the same in small chunks, behind a stored prefix, beside others, from a session, after preemptions`, async () => {
      const asked = asking(policy, 0.5)
      const alone = await answer(asked)
      // Codes make whole steps of last bits.
      const tokens = takesBudget(policy) ? 4 : 3
      const same = (a: readonly number[], what: string) => sameBeginning(a, alone, what, tokens)
      same(await answer(asked, small), 'small chunks')
      assert.deepEqual(await answer(asked), alone, 'again')
      same(await answer(asked, resumed), 'from a session')
      const others = ALL.filter((name) => name !== policy).slice(0, 2)
      const [together] = await Promise.all([
        answer(asked),
        answer({}),
        ...others.map((name) => answer(asking(name, 0.3))),
      ])
      same(together!, 'beside others')
      same(await preempted(asked), 'preempted')
    })
  }

  for (const [policy, everything] of Object.entries(EVERYTHING)) {
    it(`${everything} changes no token`, async () => {
      assert.deepEqual(await answer({ policy: everything }), await answer({}))
    })

    it(`${policy} keeps every row, in fewer bytes, far into the answer`, async () => {
      const { length: rows } = await engine.tokenize({ messages })
      const maxTokens = 140
      const { rows: kept, bytes } = await held({ policy, maxTokens })
      // The last token is given out while its row may be on its way.
      assert.equal(new Set(kept).size, 1)
      assert.ok(kept[0]! >= rows + maxTokens - 2, `${kept[0]} rows`)
      const full = Math.ceil((rows + maxTokens) / 32) * engine.store.home.pageBytes
      assert.ok(bytes < 0.9 * full, `${bytes} of ${full} bytes`)
    })
  }

  for (const [keyType, valueType] of [
    ['q8_0', 'q4_0'],
    ['f32', 'q8_0'],
  ] as const)
    it(`beside cache types of the request's own, ${keyType} and ${valueType}: what an engine of these types answers`, async () => {
      const types = { cacheTypeK: keyType, cacheTypeV: valueType }
      const plain = { contextLength: 1024, threads: 1, tokenBudget: 128 }
      await using own = await LocalEngine.load('house', { ...plain, keyType, valueType })
      for (const policy of EACH_KIND) {
        const asked = asking(policy, 0.4)
        const want = await answer(asked, own)
        assert.deepEqual(await answer({ ...asked, ...types }), want, policy)
        // f32 keys do not fit where two answers are to be tight.
        if (keyType === 'f32' || !PREEMPTED.has(policy)) continue
        // Codes of rows that were rounded before are coarse: other shapes of steps may part answers early.
        sameBeginning(await answer({ ...asked, ...types }, small), want, `${policy} in small chunks`, 2)
        sameBeginning(await preempted({ ...asked, ...types }), want, `${policy} preempted`, 2)
      }
      const bytesOf = async (request: Partial<GenerateRequest>) => (await held({ maxTokens: 8, ...request })).bytes
      const [full, kept, both] = [
        await bytesOf({}),
        await bytesOf({ policy: 'snapkv', budget: 0.25 }),
        await bytesOf({ policy: 'snapkv', budget: 0.25, ...types }),
      ]
      const [ours, engines] = [own.info.kvBytesPerToken, engine.info.kvBytesPerToken]
      assert.equal(both / kept, ours / engines, 'a policy and types save what each of them saves')
      assert.ok(kept < 0.5 * full, `${kept} of ${full}`)
      await engine.clearCache()
      assert.equal((await engine.status()).kv.usedBytes, 0)
    })

  it('the map of the cache shows pages of other formats, and those that were lent for them', async () => {
    const maps: Awaited<ReturnType<LocalEngine['cacheMap']>>[] = []
    const request = { messages, policy: 'kivi?bits=2&residual=32', maxTokens: 4, ignoreEnd: true } as const
    for await (const part of engine.generate(request)) if (part.kind === 'token') maps.push(await engine.cacheMap())
    const map = maps.find(({ arenas }) => arenas.length > 1)
    assert.ok(map, 'codes were seen')
    const [home, codes] = map.arenas
    assert.deepEqual([codes!.keyType, codes!.valueType], ['2 bits', '2 bits'])
    const count = (states: string, state: string) => [...states].filter((s) => s === state).length
    const used = codes!.states.length - count(codes!.states, '.')
    const lent = count(home!.states, 'l')
    assert.ok(used > 0, 'pages of codes are held')
    assert.ok(lent * home!.pageBytes >= used * codes!.pageBytes, `${lent} pages are lent for ${used}`)
    await engine.clearCache()
    assert.equal(count((await engine.cacheMap()).arenas[0]!.states, 'l'), 0)
  })

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

  it('sessions were found', async () => {
    assert.ok((await resumed.status()).totals.cachedTokens > 0)
  })

  it('frees all pages in the end', async () => {
    for (const policy of ALL) await answer({ ...asking(policy, 0.25), maxTokens: 3 })
    await answer({ policy: 'snapkv', budget: 0.25, signal: AbortSignal.timeout(30) }).catch(() => {})
    const { kv } = await engine.status()
    assert.equal(kv.usedBytes, kv.prefixBytes)
  })

  it('memory that policies free serves others: six long prompts are answered together where two fit', async () => {
    const long = Array.from({ length: 6 }, (_, i) => [{ role: 'user', content: `${i}. ${prompt}` }])
    const { length: rows } = await engine.tokenize({ messages: long[0]! })
    const kvMemory = Math.floor(2.3 * (rows + 160) * engine.info.kvBytesPerToken)
    const most = async (request: Partial<GenerateRequest>): Promise<number> => {
      await using on = await LocalEngine.load('house', { contextLength: 1024, threads: 1, tokenBudget: 512, kvMemory })
      let together = 0
      const play = async (own: (typeof long)[number]) => {
        const base = { messages: own, sampling: { temperature: 0 }, maxTokens: 120, ignoreEnd: true }
        for await (const part of on.generate({ ...base, ...request }))
          if (part.kind === 'token') together = Math.max(together, on.store.sequences.size)
      }
      await Promise.all(long.map(play))
      return together
    }
    const [full, kept] = [await most({}), await most({ policy: 'snapkv', budget: 0.125 })]
    assert.ok(full <= 3, `${full} full caches at once`)
    assert.ok(kept >= 5, `${kept} compressed ones at once`)
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
      [{ policy: 'kivi', budget: 0.5 }, /takes no budget/],
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
