/** Requests that choose the types of their own caches, on the house model, beside others that do not. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { type CacheType, PAGE_CELLS } from '../cache/arena.ts'
import { checkStore } from '../cache/check.ts'
import type { KvStore } from '../cache/store.ts'
import type { ErrorCode, KvasirError } from '../contract/errors.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import type { ModelConfig } from '../model/config.ts'
import { arenaOf } from './cache-types.ts'
import { LocalEngine } from './local.ts'
import type { EngineOptions } from './options.ts'
import type { CacheTypesRequest, GeneratePart, GenerateRequest } from './request.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-types-'))
let natives: Record<string, number>
after(() => {
  delete process.env['KVASIR_CHECK']
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

const greedy = { temperature: 0 }
const PAIRS: readonly (readonly [CacheType, CacheType])[] = [
  ['q8_0', 'q8_0'],
  ['q4_0', 'q4_0'],
  ['q5_1', 'iq4_nl'],
  ['f32', 'f32'],
  ['bf16', 'q4_1'],
]
const types = ([cacheTypeK, cacheTypeV]: readonly [CacheType, CacheType]) => ({ cacheTypeK, cacheTypeV })
const Q8 = types(['q8_0', 'q8_0'])
const F32 = types(['f32', 'f32'])
const Q4 = types(['q4_0', 'q4_0'])

/** A question whose answer stands at the beginning, behind a name of its own. */
const question = (name: string, length = 12): GenerateRequest => ({
  messages: [
    {
      role: 'user',
      content:
        `${name} Osford keeps a hamster as a pet. ` +
        'The captain stood beside an empty field of barley in those days. '.repeat(length) +
        `Which animal does ${name} Osford keep as a pet?`,
    },
  ],
  sampling: greedy,
  maxTokens: 16,
})
const NAMES = ['Karin', 'Petra', 'Martin', 'Oliver', 'Susan', 'Thomas']

interface Answer {
  readonly tokens: number[]
  readonly logprobs: (number | undefined)[]
  readonly end: Extract<GeneratePart, { kind: 'end' }>
}

async function collect(engine: LocalEngine, request: GenerateRequest): Promise<Answer> {
  const tokens: number[] = []
  const logprobs: (number | undefined)[] = []
  let end: Answer['end'] | undefined
  for await (const part of engine.generate(request))
    if (part.kind === 'end') end = part
    else {
      tokens.push(part.token)
      logprobs.push(part.logprob)
    }
  return { tokens, logprobs, end: end! }
}

/** Runs with an engine, of which all memory is free at the end. */
async function withEngine<T>(options: EngineOptions, run: (engine: LocalEngine) => Promise<T>): Promise<T> {
  const engine = await LocalEngine.load('house', { threads: 1, contextLength: 1024, ...options })
  try {
    const result = await run(engine)
    await allIsFree(engine)
    return result
  } finally {
    await engine.dispose()
  }
}

async function allIsFree(engine: LocalEngine): Promise<void> {
  const { store, prefixes } = engine
  checkStore(store, prefixes.check())
  const { kv } = await engine.status()
  assert.equal(kv.usedBytes, kv.prefixBytes)
  assert.equal(store.sequences.size, 0)
  // Stored blocks, all of which could go, hold what is not free.
  assert.equal(store.pools[0]!.freePages + prefixes.evictablePages, store.home.pages)
  await engine.clearCache()
  assert.deepEqual(store.lentPages, [])
  assert.equal(store.pools[0]!.freePages, store.home.pages)
  assert.equal(store.usedBytes, 0)
}

const fails = (promise: Promise<unknown>, code: ErrorCode, text = /./) =>
  assert.rejects(promise, (e: KvasirError) => {
    assert.equal(e.code, code, e.message)
    assert.match(e.message, text)
    return true
  })

/** Bytes of so many pages of the engine's own types (f16). */
let pageBytes = 0
/** What each of the questions gets alone in an engine of its own types, and of f16: by types. */
const alone = new Map<CacheTypesRequest | null, number[][]>()
// One hook: those of a file run at the same time.
before(async () => {
  process.env['KVASIR_CHECK'] = '1'
  await loadNative()
  natives = liveNatives()
  for (const own of [null, Q8, Q4, F32]) {
    const options = own ? { keyType: own.cacheTypeK, valueType: own.cacheTypeV } : {}
    await withEngine(options, async (engine) => {
      if (!own) pageBytes = engine.store.home.pageBytes
      const answers: number[][] = []
      for (const name of NAMES) answers.push((await collect(engine, question(name))).tokens)
      alone.set(own, answers)
    })
  }
})

describe('a request with cache types of its own', () => {
  it('gets the answer, to the bit, of an engine that was loaded with them', () =>
    withEngine({}, async (engine) => {
      const f16 = await collect(engine, { ...question('Karin'), sampling: { ...greedy, logprobs: 1 } })
      for (const pair of PAIRS) {
        const asked = { ...question('Karin'), sampling: { ...greedy, logprobs: 1 } }
        const got = await collect(engine, { ...asked, ...types(pair) })
        const want = await withEngine({ keyType: pair[0], valueType: pair[1] }, (other) => collect(other, asked))
        assert.equal(got.end.timings.cached_tokens, 0)
        assert.deepEqual(got.tokens, want.tokens, `${pair}`)
        assert.deepEqual(got.logprobs, want.logprobs, `${pair}`)
        assert.notDeepEqual(got.logprobs, f16.logprobs, `${pair}`)
        assert.equal(got.end.timings.kv_bytes, want.end.timings.kv_bytes)
        assert.equal(got.end.timings.kv_bytes_full, f16.end.timings.kv_bytes_full)
      }
    }))

  it('may ask for larger ones than the engine has', async () => {
    const asked = { ...question('Karin'), sampling: { ...greedy, logprobs: 1 } }
    const want = await withEngine({}, (engine) => collect(engine, asked))
    await withEngine({ keyType: 'q8_0', valueType: 'q8_0' }, async (engine) => {
      const got = await collect(engine, { ...asked, cacheTypeK: 'f16', cacheTypeV: 'f16' })
      assert.deepEqual([got.tokens, got.logprobs], [want.tokens, want.logprobs])
      const { kv_bytes, kv_bytes_full } = got.end.timings
      assert.equal(kv_bytes, want.end.timings.kv_bytes)
      assert.ok(kv_bytes > kv_bytes_full)
    })
  })

  it('may name one of the two: the other is as the engine was loaded', () =>
    withEngine({}, async (engine) => {
      const { kv_bytes: full, kv_bytes_full } = (await collect(engine, question('Karin'))).end.timings
      assert.equal(full, kv_bytes_full)
      const { kv_bytes: half } = (await collect(engine, { ...question('Karin'), cacheTypeK: 'q8_0' })).end.timings
      assert.equal(half, (full * (34 / 32 + 2)) / 4)
    }))

  it('runs in one batch with requests of other types, and each gets its own answer', () =>
    withEngine({}, async (engine) => {
      const asked = [null, Q8, F32, Q4].flatMap((own) => NAMES.slice(0, 3).map((name, i) => ({ own, name, i })))
      const answers = await Promise.all(asked.map(({ own, name }) => collect(engine, { ...question(name), ...own })))
      for (const [n, { own, i }] of asked.entries())
        assert.deepEqual(answers[n]!.tokens, alone.get(own)![i], JSON.stringify({ own, i }))
      const { steps, generatedTokens } = (await engine.status()).totals
      assert.ok(steps < generatedTokens / 4, `${steps} steps for ${generatedTokens} tokens: they ran one by one`)
    }))

  it('is refused with types that there are not, and where they do not fit', () =>
    withEngine({}, async (engine) => {
      const ask = (more: object) => collect(engine, { ...question('Karin'), ...more })
      await fails(ask({ cacheTypeK: 'q8' }), 'INVALID_ARGUMENT', /cacheTypeK is "q8".*Did you mean "q8_0"/)
      await fails(ask({ cacheTypeV: 'q6_K' }), 'INVALID_ARGUMENT', /cacheTypeV is "q6_K"; it must be one of f16/)
      await fails(ask({ cacheTypeV: null }), 'INVALID_ARGUMENT', /cacheTypeV/)
      const policy = { policy: 'snapkv', budget: 0.5 }
      // `full` shortens nothing, and the engine's own types are no others.
      await ask({ policy: 'full', budget: 1, ...Q8 })
      await ask({ ...policy, cacheTypeK: 'f16', cacheTypeV: 'f16' })
      const { store, model, options } = engine
      const tools = { store, model: model.config, lowering: options.lowering }
      const narrow: ModelConfig = { ...model.config, headDim: 80 }
      const invalid = (e: KvasirError) => e.code === 'INVALID_ARGUMENT' && /multiple of 32 numbers.* 80/.test(e.message)
      assert.throws(() => arenaOf({ cacheTypeK: 'q4_0' }, { ...tools, model: narrow }), invalid)
      const elsewhere = { home: store.home, device: { kind: 'gpu', name: 'CUDA0' } } as KvStore
      const refused = (e: KvasirError) => e.code === 'NOT_SUPPORTED' && /CUDA0/.test(e.message)
      assert.throws(() => arenaOf(Q8, { ...tools, store: elsewhere }), refused)
      assert.equal(arenaOf({ cacheTypeK: 'f16' }, { ...tools, store: elsewhere }), 0)
    }))
})

describe('stored prefixes', () => {
  it('are found by requests of the same types only', () =>
    withEngine({}, async (engine) => {
      const cached = async (own: CacheTypesRequest = {}) =>
        (await collect(engine, { ...question('Karin'), ...own })).end.timings.cached_tokens
      const whole = PAGE_CELLS * Math.floor((engine.encodePrompt(question('Karin')).length - 1) / PAGE_CELLS)
      assert.ok(whole > 0)
      // The engine's own types are what a request gets that asks for none.
      assert.deepEqual([await cached(), await cached({ cacheTypeK: 'f16', cacheTypeV: 'f16' })], [0, whole])
      for (const own of [Q8, Q4, F32, { cacheTypeK: 'q8_0' } as const, { cacheTypeV: 'q8_0' } as const])
        assert.deepEqual([await cached(own), await cached(own), await cached()], [0, whole, whole], JSON.stringify(own))
      const { kv } = await engine.status()
      assert.equal(kv.prefixBytes, kv.usedBytes)
    }))

  it('serve an embedding, whose rows are of the engine’s own types, as before', () =>
    withEngine({}, async (engine) => {
      const { messages } = question('Karin')
      const last = { messages: messages!, pooling: 'last' } as const
      const want = await engine.embed(last)
      await engine.clearCache()
      await collect(engine, { ...question('Karin'), ...Q8 })
      const got = await engine.embed(last)
      assert.deepEqual(got.vector, want.vector)
    }))

  for (const tier of ['diskCache', 'hostCacheBytes'] as const)
    it(`of all types come back from below: ${tier}`, async () => {
      const disk = join(folder, tier)
      const below = tier === 'diskCache' ? { diskCache: disk } : { hostCacheBytes: 200 * pageBytes }
      const kvMemory = (tier === 'diskCache' ? 24 : 224) * pageBytes
      const options = { ...below, kvMemory, contextLength: 512 }
      const all = [null, Q8, Q4, F32]
      const ask = (engine: LocalEngine, own: CacheTypesRequest | null) =>
        collect(engine, { ...question('Karin'), ...own })
      let engine = await LocalEngine.load('house', { threads: 1, ...options })
      try {
        for (const own of all) assert.equal((await ask(engine, own)).end.timings.cached_tokens, 0)
        if (tier === 'diskCache') {
          await engine.dispose()
          engine = await LocalEngine.load('house', { threads: 1, ...options })
        } else {
          engine.prefixes.evict(1000, 'growth')
          assert.equal(engine.prefixes.size, 0)
        }
        for (const own of all) {
          const { tokens, end } = await ask(engine, own)
          assert.deepEqual(tokens, alone.get(own)![0], JSON.stringify(own))
          assert.equal(end.timings.cached_tokens, PAGE_CELLS * Math.floor((end.timings.prompt_tokens - 1) / PAGE_CELLS))
        }
        await allIsFree(engine)
      } finally {
        await engine.dispose()
      }
    })

  it('of other types are no session', () =>
    withEngine({}, async (engine) => {
      const path = join(folder, 'session.kv')
      await collect(engine, { ...question('Karin'), ...Q8 })
      const saved = engine.saveSession(path, question('Karin'))
      await fails(saved, 'INVALID_ARGUMENT', /nothing of this prompt.*the engine's own cache types/)
      await collect(engine, question('Karin'))
      assert.ok((await engine.saveSession(path, question('Karin'))) > 0)
      await engine.clearCache()
      await engine.loadSession(path)
      const again = await collect(engine, { ...question('Karin'), ...Q8 })
      assert.equal(again.end.timings.cached_tokens, 0)
    }))
})

describe('memory that is short', () => {
  /** Without an end of its own every answer grows. */
  const endless = (engine: LocalEngine): GenerateRequest['sampling'] => {
    const { tokenizer } = engine.model
    const ends = Array.from({ length: tokenizer.vocabSize }, (_, t) => t).filter((t) => tokenizer.isEndOfGeneration(t))
    return { ...greedy, logitBias: new Map(ends.map((t) => [t, -1e4])) }
  }

  it('is shared by all types: requests are preempted and go on, and prefixes of any type make room', () =>
    withEngine({ kvMemory: 24 * pageBytes, tokenBudget: 64, contextLength: 512 }, async (engine) => {
      const sampling = endless(engine)!
      const all = [null, Q8, Q4, F32]
      const answers = await Promise.all(
        all.flatMap((own) =>
          NAMES.slice(0, 3).map((name) =>
            collect(engine, { ...question(name, 8), ...own, sampling, maxTokens: 120, priority: own === F32 ? 1 : 0 }),
          ),
        ),
      )
      for (const { tokens } of answers) assert.equal(tokens.length, 120)
      const { preemptions, evictedPages } = (await engine.status()).totals
      assert.ok(preemptions > 0 && evictedPages > 0, `${preemptions} preemptions, ${evictedPages} evictions`)
    }))

  it('bounds what a request of larger types can hold', { timeout: 20_000 }, () =>
    withEngine({ kvMemory: 16 * pageBytes, contextLength: 512 }, async (engine) => {
      // 16 pages of f16 are 8 of f32.
      const tokens = (n: number) => ({ tokens: Int32Array.from({ length: n }, (_, i) => 300 + i) })
      const asked = { sampling: endless(engine)!, ...F32 }
      const { end } = await collect(engine, { ...tokens(240), ...asked })
      assert.equal(end.reason.kind, 'context-full')
      assert.equal(end.timings.prompt_tokens + end.timings.generated_tokens, 256)
      // All of the memory held f16 before: it makes room.
      await collect(engine, { ...tokens(500), sampling: greedy, maxTokens: 8 })
      assert.equal((await collect(engine, { ...tokens(255), ...asked })).tokens.length, 1)
      await fails(collect(engine, { ...tokens(256), ...asked }), 'KV_BUDGET', /holds 256 as f32 keys and f32 values/)
      const forced = { ...tokens(250), ...F32, forced: [300, 301, 302, 303, 304, 305, 306] }
      await fails(collect(engine, forced), 'KV_BUDGET', /the forced answer has 7/)
      await fails(collect(engine, { ...tokens(512), ...asked }), 'CONTEXT_OVERFLOW')
    }),
  )

  for (const scheduler of ['fcfs', 'sarathi', 'sarathi-serve', 'prepacking', 'prepacking-padded'] as const)
    it(
      `holds back a request of larger types, and nobody else, until there is room for it: ${scheduler}`,
      {
        timeout: 20_000,
      },
      () =>
        withEngine({ kvMemory: 16 * pageBytes, contextLength: 512, scheduler }, async (engine) => {
          const sampling = endless(engine)!
          const tokens = (n: number, first: number) => Int32Array.from({ length: n }, (_, i) => first + i)
          // 10 pages of f16, which grow; 4 of f32 are 8 of f16.
          const running = collect(engine, { tokens: tokens(310, 300), sampling, maxTokens: 40 })
          while ((await engine.status()).totals.generatedTokens < 2) await new Promise((next) => setImmediate(next))
          const larger = collect(engine, { tokens: tokens(120, 900), sampling, maxTokens: 4, ...F32 })
          assert.equal((await running).tokens.length, 40)
          assert.equal((await larger).tokens.length, 4)
          assert.equal((await engine.status()).totals.preemptions, 0)
        }),
    )

  it('is used by a request that comes while another of other types has it all', () =>
    withEngine({ kvMemory: 16 * pageBytes, contextLength: 512 }, async (engine) => {
      const long = { tokens: Int32Array.from({ length: 400 }, (_, i) => 300 + i), sampling: endless(engine)! }
      const answers = await Promise.all([
        collect(engine, { ...long, maxTokens: 60 }),
        collect(engine, { ...question('Karin', 8), ...F32 }),
        collect(engine, { ...question('Karin', 8), ...Q4 }),
        collect(engine, { ...long, ...Q8, maxTokens: 60 }),
      ])
      assert.deepEqual(
        answers.map((a) => a.tokens.length > 0),
        [true, true, true, true],
      )
    }))
})

describe('samples of one prompt', () => {
  it('share its pages, and are what they would be in an engine of these types', async () => {
    const asked = { ...question('Karin'), samples: 3, sampling: { temperature: 2, topK: 0, topP: 1, minP: 0, seed: 7 } }
    const samplesOf = async (engine: LocalEngine, request: GenerateRequest) => {
      const samples: number[][] = [[], [], []]
      for await (const part of engine.generate(request))
        if (part.kind === 'token') samples[part.sample!]!.push(part.token)
      return samples
    }
    const want = await withEngine({ keyType: 'q8_0', valueType: 'q8_0' }, (engine) => samplesOf(engine, asked))
    await withEngine({}, async (engine) => {
      assert.deepEqual(await samplesOf(engine, { ...asked, ...Q8 }), want)
      assert.ok(new Set(want.map(String)).size > 1)
    })
  })
})

describe('many requests of all types', () => {
  it('come, leave and end in any order, and all memory comes back', () =>
    withEngine({ kvMemory: 32 * pageBytes, contextLength: 512, tokenBudget: 96 }, async (engine) => {
      const all = [null, ...PAIRS.map(types)]
      const asked = Array.from({ length: 30 }, (_, i) => i)
      const ends = await Promise.allSettled(
        asked.map(async (i) => {
          const own = all[(i * 7) % all.length]
          const request = { ...question(NAMES[i % 6]!, 2 + ((i * 5) % 9)), ...own, maxTokens: 1 + ((i * 11) % 30) }
          const samples = i % 5 === 0 ? 2 : 1
          let parts = 0
          // Every fourth caller leaves in the middle.
          for await (const _ of engine.generate({ ...request, samples })) if (++parts > 4 && i % 4 === 0) break
        }),
      )
      assert.deepEqual(
        ends.filter((e) => e.status === 'rejected').map((e) => String((e as PromiseRejectedResult).reason)),
        [],
      )
      while ((await engine.status()).running > 0) await new Promise((resolve) => setTimeout(resolve, 5))
    }))
})
