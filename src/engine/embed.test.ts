/** Embeddings on the house model: the same vector however they are scheduled. Against libllama: test/oracle/embed.test.ts. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { checkStore } from '../cache/check.ts'
import type { ErrorCode, KvasirError } from '../contract/errors.ts'
import type { EngineEvent, Logged } from '../contract/events.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import { type Embedding, type EmbedRequest, POOLINGS } from './embed.ts'
import { LocalEngine } from './local.ts'
import type { EngineOptions } from './options.ts'

let natives: Record<string, number>
before(async () => {
  process.env['KVASIR_CHECK'] = '1'
  await loadNative()
  natives = liveNatives()
})
after(() => assert.deepEqual(liveNatives(), natives))

async function withEngine(options: EngineOptions, run: (engine: LocalEngine) => Promise<void>): Promise<void> {
  const engine = await LocalEngine.load('house', { threads: 1, contextLength: 1024, ...options })
  try {
    await run(engine)
    checkStore(engine.store, engine.prefixes.check())
    const { running, waiting, kv } = await engine.status()
    assert.deepEqual([running, waiting, kv.usedBytes - kv.prefixBytes, engine.store.sequences.size], [0, 0, 0, 0])
  } finally {
    await engine.dispose()
  }
}

function record(engine: LocalEngine): Logged<EngineEvent>[] {
  const events: Logged<EngineEvent>[] = []
  engine.onEvent((e) => events.push(e))
  return events
}
const ofKind = <K extends EngineEvent['kind']>(events: readonly Logged<EngineEvent>[], kind: K) =>
  events.filter((e): e is Logged<Extract<EngineEvent, { kind: K }>> => e.kind === kind)

/** Length of the difference of two vectors of length 1. */
function distance(a: Embedding, b: Embedding): number {
  return Math.hypot(...a.vector.map((x, i) => x - b.vector[i]!))
}

/**
 * One row and many are multiplied by other kernels, and the house model's q8_0 weights round activations to 8 bits: the worst of
 * 400 comparisons here was 0.025. Vectors of different texts are 0.17 apart and more.
 */
const NOISE = 0.05
const APART = 0.1

const words = 'ship harbour evening morning hamster drums silver garden winter letter orange river'.split(' ')
const text = (seed: number, n: number) =>
  Array.from({ length: n }, (_, i) => words[(i * 7 + seed * 13 + ((i * seed) % 5)) % words.length]).join(' ')
const texts: readonly EmbedRequest[] = [3, 200, 40, 90, 1, 150, 31, 33].map((n, i) => ({ prompt: text(i + 1, n) }))
const growing = { temperature: 0, grammar: 'root ::= "a" root' }

async function alone(requests: readonly EmbedRequest[]): Promise<Embedding[]> {
  const out: Embedding[] = []
  await withEngine({}, async (engine) => {
    for (const request of requests) {
      await engine.clearCache()
      out.push(await engine.embed(request))
    }
  })
  return out
}

describe('an embedding', () => {
  it('is a vector of length 1, or as it is; the mean by default; of a prompt, its tokens, messages', () =>
    withEngine({}, async (engine) => {
      const { prompt } = texts[2]!
      const one = await engine.embed({ prompt: prompt! })
      const tokens = await engine.tokenize({ prompt: prompt! })
      assert.deepEqual([one.vector.length, one.tokens, one.pooling], [engine.info.width, tokens.length, 'mean'])
      assert.ok(Math.abs(Math.hypot(...one.vector) - 1) < 1e-6)
      const raw = await engine.embed({ tokens, normalize: false })
      const length = Math.hypot(...raw.vector)
      assert.ok(Math.abs(length - 1) > 0.1, `${length}`)
      for (const [i, x] of one.vector.entries()) assert.ok(Math.abs(x - raw.vector[i]! / length) < 1e-6)
      const messages = [{ role: 'user', content: prompt! }]
      const chat = await engine.embed({ messages })
      assert.equal(chat.tokens, (await engine.tokenize({ messages })).length)
      assert.ok(distance(chat, one) > APART)
    }))

  it('is not the mean of a text when it is its last', async () => {
    for (const request of texts.slice(0, 3)) {
      const [mean, last] = await alone(POOLINGS.map((pooling) => ({ ...request, pooling })))
      assert.ok(distance(mean!, last!) > APART)
    }
  })

  for (const pooling of POOLINGS) {
    it(`is the same among others and beside answers: ${pooling}`, async () => {
      const requests = texts.map((t) => ({ ...t, pooling }))
      const want = await alone(requests)
      for (const [i, a] of want.entries())
        for (const b of want.slice(0, i)) assert.ok(distance(a, b) > APART, 'texts that are all alike prove nothing')
      for (const scheduler of ['fcfs', 'sarathi', 'sarathi-serve', 'prepacking', 'prepacking-padded'] as const)
        for (const tokenBudget of [32, 512])
          await withEngine({ scheduler, tokenBudget }, async (engine) => {
            const answer = engine.generate({ prompt: text(20, 50), sampling: growing, maxTokens: 30 })
            const [got] = await Promise.all([
              Promise.all(requests.map((r) => engine.embed(r))),
              (async () => {
                for await (const _ of answer);
              })(),
            ])
            for (const [i, e] of got.entries())
              assert.ok(distance(e, want[i]!) < NOISE, `${scheduler} ${tokenBudget} ${i}: ${distance(e, want[i]!)}`)
          })
    })

    it(`is the same in chunks: ${pooling}`, async () => {
      const request = { prompt: text(5, 220), pooling }
      const [want] = await alone([request])
      for (const tokenBudget of [1, 7, 64])
        await withEngine({ tokenBudget }, async (engine) => {
          const events = record(engine)
          const got = await engine.embed(request)
          assert.equal(ofKind(events, 'step-end').length, Math.ceil(got.tokens / tokenBudget))
          assert.ok(distance(got, want!) < NOISE, `${tokenBudget}: ${distance(got, want!)}`)
        })
    })
  }

  it('of the last token starts behind a stored prefix; a mean needs every row, and stores them for others', () =>
    withEngine({}, async (engine) => {
      const events = record(engine)
      const request = { prompt: text(6, 150) }
      const cached = () => ofKind(events, 'request-admit').at(-1)!.cachedTokens
      const mean = await engine.embed(request)
      const again = await engine.embed(request)
      assert.equal(cached(), 0)
      assert.deepEqual(again.vector, mean.vector)
      const last = await engine.embed({ ...request, pooling: 'last' })
      assert.equal(cached(), 32 * Math.floor((last.tokens - 1) / 32))
      await engine.clearCache()
      const cold = await engine.embed({ ...request, pooling: 'last' })
      assert.equal(cached(), 0)
      assert.ok(distance(cold, last) < NOISE, `${distance(cold, last)}`)
      await engine.embed({ ...request, pooling: 'last', salt: 'other' })
      assert.equal(cached(), 0)
    }))

  it('survives a preemption: no row is counted twice', async () => {
    const request = { prompt: text(7, 55) }
    const [want] = await alone([request])
    let pageBytes = 0
    await withEngine({}, async (engine) => {
      pageBytes = engine.store.home.pageBytes
    })
    // Three rows a step: the answer grows by one in each, and needs its fifth page while the embedding is half done.
    await withEngine({ kvMemory: 8 * pageBytes, tokenBudget: 3 }, async (engine) => {
      const events = record(engine)
      const answer = engine.generate({ prompt: text(8, 40), sampling: growing, maxTokens: 120 })
      await answer.next()
      const embedding = engine.embed(request)
      for await (const _ of answer);
      const got = await embedding
      const preempted = ofKind(events, 'request-preempt').filter((e) => e.request === got.request)
      assert.equal(preempted.length, 1)
      assert.ok(preempted[0]!.rows > 0 && preempted[0]!.rows < got.tokens)
      assert.ok(distance(got, want!) < NOISE, `${distance(got, want!)}`)
    })
  })

  it('is one request in events and totals', () =>
    withEngine({}, async (engine) => {
      const events = record(engine)
      const { request, tokens } = await engine.embed({ ...texts[1]!, tenant: 'a' })
      const [arrive] = ofKind(events, 'request-arrive')
      const [end] = ofKind(events, 'request-end')
      assert.deepEqual(
        [arrive!.request, arrive!.task, arrive!.tenant, arrive!.promptTokens],
        [request, 'embed', 'a', tokens],
      )
      assert.deepEqual([end!.request, end!.reason, end!.generatedTokens], [request, 'embedded', 0])
      assert.ok(end!.ms > 0)
      assert.equal(ofKind(events, 'request-first-token').length, 0)
      const { totals } = await engine.status()
      assert.deepEqual([totals.requests, totals.promptTokens, totals.generatedTokens], [1, tokens, 0])
    }))
})

describe('an embedding that does not come', () => {
  const fails = (promise: Promise<unknown>, code: ErrorCode) =>
    assert.rejects(promise, (e: KvasirError) => e.code === code)

  it('because its caller left: its pages are free', () =>
    withEngine({ tokenBudget: 4 }, async (engine) => {
      const abort = new AbortController()
      const events = record(engine)
      engine.onEvent((e) => {
        if (e.kind === 'step-end') abort.abort()
      })
      await fails(engine.embed({ prompt: text(9, 300), signal: abort.signal }), 'ABORTED')
      await fails(engine.embed({ prompt: 'a', signal: AbortSignal.abort() }), 'ABORTED')
      assert.ok(ofKind(events, 'step-end').length < 10)
      assert.equal(ofKind(events, 'request-end')[0]!.reason, 'ABORTED')
    }))

  it('because of its deadline, or a full queue', () =>
    withEngine({ maxSequences: 1, maxWaiting: 1, tokenBudget: 4 }, async (engine) => {
      const long = engine.embed({ prompt: text(9, 300) })
      await new Promise(setImmediate)
      const late = engine.embed({ prompt: 'a', deadlineMs: 1 })
      await fails(engine.embed({ prompt: 'b' }), 'QUEUE_FULL')
      await fails(late, 'DEADLINE')
      await long
    }))

  it('because it is longer than the context; as long is fine', () =>
    withEngine({ contextLength: 256 }, async (engine) => {
      const tokens = (n: number) => Int32Array.from({ length: n }, (_, i) => 3 + (i % 400))
      assert.equal((await engine.embed({ tokens: tokens(256) })).tokens, 256)
      await fails(engine.embed({ tokens: tokens(257) }), 'CONTEXT_OVERFLOW')
    }))

  it('because the request is wrong', () =>
    withEngine({}, async (engine) => {
      for (const bad of [
        {},
        { prompt: 'a', pooling: 'cls' },
        { prompt: 'a', normalize: 1 },
        { prompt: 'a', maxTokens: 3 },
        { prompt: 'a', priority: Number.NaN },
        { prompt: 'a', tokens: [3] },
      ])
        await fails(engine.embed(bad as EmbedRequest), 'INVALID_ARGUMENT')
    }))
})
