/** What an engine tells of itself while it works: status, picture of the cache, events. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { PrefixCache } from '../cache/prefix-cache.ts'
import { KvStore } from '../cache/store.ts'
import type { EngineEvent, Logged } from '../contract/events.ts'
import type { RequestId } from '../contract/units.ts'
import { cpuDevice } from '../ggml/device.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import type { ArenaMap } from './api.ts'
import type { Branch } from './branch.ts'
import { cacheMap } from './cache-map.ts'
import { LocalEngine } from './local.ts'
import type { EngineOptions } from './options.ts'
import type { GeneratePart, GenerateRequest } from './request.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-observe-'))
let natives: Record<string, number>
before(async () => {
  await loadNative()
  natives = liveNatives()
})
after(() => {
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

type Event<K extends EngineEvent['kind']> = Logged<Extract<EngineEvent, { kind: K }>>

async function withEngine(
  options: EngineOptions,
  run: (engine: LocalEngine, seen: <K extends EngineEvent['kind']>(kind: K) => Event<K>[]) => Promise<void>,
): Promise<void> {
  const engine = await LocalEngine.load('house', { threads: 1, contextLength: 1024, ...options })
  const events: Logged<EngineEvent>[] = []
  engine.onEvent((e) => events.push(e))
  try {
    await run(engine, <K extends EngineEvent['kind']>(kind: K) => events.filter((e): e is Event<K> => e.kind === kind))
  } finally {
    await engine.dispose()
  }
}

const growing = { temperature: 0, grammar: 'root ::= "a" root' }
const long = 'The ships left the harbour in the morning and came back in the evening. '.repeat(8)

async function ends(engine: LocalEngine, request: GenerateRequest): Promise<Extract<GeneratePart, { kind: 'end' }>[]> {
  const out: Extract<GeneratePart, { kind: 'end' }>[] = []
  for await (const part of engine.generate(request)) if (part.kind === 'end') out.push(part)
  return out
}

/** How many pages are in each state. */
function count({ states }: ArenaMap): Record<'.' | 'o' | 's' | 'p', number> {
  const out = { '.': 0, o: 0, s: 0, p: 0 }
  for (const s of states) out[s as 'o']++
  return out
}

describe('info', () => {
  it('tells how the engine was set up', () =>
    withEngine(
      { keyType: 'q8_0', scheduler: 'fcfs', tokenBudget: 99, maxSequences: 3, maxWaiting: 7 },
      async (engine) => {
        const { keyType, valueType, scheduler, tokenBudget, maxSequences, maxWaiting, toolFormat } = engine.info
        assert.deepEqual(
          { keyType, valueType, scheduler, tokenBudget, maxSequences, maxWaiting },
          { keyType: 'q8_0', valueType: 'f16', scheduler: 'fcfs', tokenBudget: 99, maxSequences: 3, maxWaiting: 7 },
        )
        assert.equal(toolFormat, engine.chatTemplate.toolFormat)
      },
    ))
})

describe('status', () => {
  it('lists what runs, then what waits', () =>
    withEngine({ maxSequences: 2 }, async (engine) => {
      const sampling = growing
      const first = engine.generate({ prompt: long, sampling, tenant: 'a', samples: 2 })
      await first.next()
      const second = engine.generate({ prompt: 'b', sampling, tenant: 'b' })
      const late = second.next()
      await new Promise((resolve) => setTimeout(resolve, 20))
      const { requests, running, waiting } = await engine.status()
      assert.deepEqual([running, waiting], [2, 1])
      const promptTokens = (await engine.tokenize({ prompt: long })).length
      assert.deepEqual(
        requests.map((r) => [r.tenant, r.phase, r.promptTokens]),
        [
          ['a', 'decode', promptTokens],
          ['a', 'decode', promptTokens],
          ['b', 'waiting', (await engine.tokenize({ prompt: 'b' })).length],
        ],
      )
      for (const r of requests.slice(0, 2)) {
        assert.ok(r.generated >= 1 && r.ageMs > 0)
        // One more while a step runs.
        assert.ok([0, 1].includes(r.computed - (promptTokens + r.generated - 1)), JSON.stringify(r))
      }
      assert.deepEqual([requests[2]!.computed, requests[2]!.generated], [0, 0])
      assert.equal(new Set(requests.map((r) => r.id)).size, 3)
      await first.return(undefined)
      await late
      await second.return(undefined)
    }))
})

describe('the picture of the cache', () => {
  it('shows what is free, private, shared and stored, and whose it is', () =>
    withEngine({}, async (engine) => {
      const map = async () => (await engine.cacheMap()).arenas[0]!
      const { pages } = await map()
      assert.deepEqual(count(await map()), { '.': pages, o: 0, s: 0, p: 0 })
      assert.equal((await engine.cacheMap()).pageTokens, 32)
      assert.deepEqual((await engine.cacheMap()).tiers, [])

      const parts = engine.generate({ prompt: long, sampling: growing, samples: 2 })
      // Until both have written, and so have a last page of their own.
      for (let i = 0; i < 6; i++) await parts.next()
      const both = await map()
      const full = Math.floor((await engine.tokenize({ prompt: long })).length / 32)
      const shared = count(both)
      assert.ok(shared.s === full && shared.o >= 2, JSON.stringify(shared))
      assert.equal(shared.p, 0)
      assert.equal(shared['.'], engine.store.pools[0]!.freePages)
      const ids = (await engine.status()).requests.map((r) => r.id)
      for (const [page, state] of [...both.states].entries()) {
        if (state === 's') assert.equal(both.owners[page], ids[0])
        else if (state === 'o') assert.ok(ids.includes(both.owners[page]!))
        else assert.deepEqual([both.owners[page], both.agesMs[page]], [0, 0])
      }

      await parts.return(undefined)
      await new Promise((resolve) => setTimeout(resolve, 60))
      const after = await map()
      const stored = count(after)
      assert.deepEqual([stored.o, stored.s], [0, 0])
      assert.equal(stored.p, (await engine.snapshot()).blocks.length)
      assert.ok(after.owners.every((id) => id === 0))
      assert.ok(
        [...after.states].every((s, i) => (s === 'p' ? after.agesMs[i]! >= 40 : after.agesMs[i] === 0)),
        `${after.agesMs}`,
      )
      // Read as a prefix: young again.
      const start = performance.now()
      const again = engine.generate({ prompt: long, sampling: growing })
      await again.next()
      const read = await map()
      const sinceMs = performance.now() - start + 1
      const held = [...read.states].flatMap((s, i) => (s === 'o' ? [read.agesMs[i]!] : []))
      assert.ok(held.length >= full && held.every((ms) => ms <= sinceMs), `${held} in ${sinceMs} ms`)
      await again.return(undefined)
    }))

  it('has the tiers below', async () => {
    const diskCache = join(folder, 'tiers')
    await withEngine({ diskCache, diskCacheBytes: 2 ** 24, hostCacheBytes: 2 ** 20 }, async (engine) => {
      await ends(engine, { prompt: long, maxTokens: 1 })
      await engine.prefixes.flush()
      const [host, disk] = (await engine.cacheMap()).tiers
      assert.deepEqual(host, { medium: 'host', blocks: 0, bytes: 0, limitBytes: 2 ** 20 })
      assert.deepEqual([disk!.medium, disk!.limitBytes], ['disk', 2 ** 24])
      assert.equal(disk!.blocks, (await engine.snapshot()).blocks.length)
      assert.equal(disk!.bytes, (await engine.status()).kv.diskBytes)
    })
  })

  it('of 10,000 pages is drawn in milliseconds', async () => {
    const arena = { keyType: 'f16', valueType: 'f16', valuesTransposed: true, pages: 10_000 } as const
    using store = new KvStore({ layers: 1, headDim: 32, kvHeads: 1, arenas: [arena] }, cpuDevice())
    const identity = {
      ...{ model: 'm', tokenizer: 't', adapters: [], rope: {}, tenant: '', salt: '' },
      kv: { keys: 'f16', values: 'f16', layout: 'test' },
      policy: { name: 'full', params: {} },
    }
    const none = { hostCacheBytes: 0, diskCache: null, diskCacheBytes: 0, emit: () => {} }
    const prefixes = await PrefixCache.open(store, identity, none)
    const running = Array.from({ length: 16 }, (_, i) => {
      const sequence = store.create(600 * 32)
      store.append(
        sequence,
        Array.from({ length: 600 * 32 }, (_, row) => row),
      )
      return { id: (i + 1) as RequestId, sequence } as Branch
    })
    let best = Number.POSITIVE_INFINITY
    for (let i = 0; i < 10; i++) {
      const start = performance.now()
      const map = cacheMap(store, prefixes, running)
      best = Math.min(best, performance.now() - start)
      assert.equal(count(map.arenas[0]!).o, 9600)
    }
    // 2 ms where it was measured.
    assert.ok(best < 20, `${best} ms`)
    await prefixes.close()
  })
})

describe('events', () => {
  it('name a request as its parts do, and its samples', () =>
    withEngine({}, async (engine, seen) => {
      const [one] = await ends(engine, { prompt: 'The ship', maxTokens: 2 })
      const three = await ends(engine, { prompt: 'A river', maxTokens: 2, samples: 3 })
      const [first, second] = seen('request-arrive')
      assert.deepEqual([first!.task, first!.request, second!.request], ['generate', one!.request, three[0]!.request])
      assert.deepEqual(new Set(three.map((e) => e.request)).size, 1)
      const forks = seen('request-fork')
      assert.deepEqual(
        forks.map((e) => e.from),
        [second!.request, second!.request],
      )
      assert.deepEqual(
        seen('request-end')
          .map((e) => e.request)
          .sort(),
        [first!.request, second!.request, ...forks.map((e) => e.request)].sort(),
      )
      for (const e of seen('request-end')) assert.ok(e.ms > 0)
    }))

  it('and timings tell how long a request waited', () =>
    withEngine({ maxSequences: 1 }, async (engine, seen) => {
      const busy = ends(engine, { prompt: long, sampling: growing, maxTokens: 100 })
      const [waited] = await ends(engine, { prompt: 'The ship', maxTokens: 1 })
      const [before] = await busy
      const arrived = seen('request-arrive').find((e) => e.request === waited!.request)!
      const free = seen('request-end').find((e) => e.request === before!.request)!
      const { queue_ms: queue, ttft_ms: ttft } = waited!.timings
      // Events have whole milliseconds.
      assert.ok(free.atMs > arrived.atMs && queue >= free.atMs - arrived.atMs - 2, `${queue} ms`)
      assert.ok(queue <= ttft, `${queue} of ${ttft} ms`)
      assert.ok(before!.timings.queue_ms < queue, `${before!.timings.queue_ms} and ${queue} ms`)
    }))

  it('tell where cached tokens were found', async () => {
    const diskCache = join(folder, 'sources')
    const request = { prompt: long, maxTokens: 1 }
    let rows = 0
    await withEngine({ diskCache }, async (engine, seen) => {
      await ends(engine, request)
      const [again] = await ends(engine, request)
      rows = again!.timings.cached_tokens
      assert.ok(rows >= 64)
      assert.deepEqual(
        seen('request-admit').map((e) => e.loadedTokens),
        [
          { device: 0, host: 0, disk: 0 },
          { device: rows, host: 0, disk: 0 },
        ],
      )
    })
    await withEngine({ diskCache }, async (engine, seen) => {
      await ends(engine, request)
      await ends(engine, request)
      assert.deepEqual(
        seen('request-admit').map((e) => [e.cachedTokens, e.loadedTokens]),
        [
          [rows, { device: 0, host: 0, disk: rows }],
          [rows, { device: rows, host: 0, disk: 0 }],
        ],
      )
    })
  })

  it('tell what pages were evicted for', async () => {
    let pageBytes = 0
    await withEngine({}, async (engine) => {
      pageBytes = engine.store.home.pageBytes
    })
    const options = { diskCache: join(folder, 'causes'), kvMemory: 16 * pageBytes }
    const prompts = [0, 1].map((i) => 'ab'[i]! + long + long)
    const grow = { prompt: 'x', sampling: growing, maxTokens: 15 * 32 }
    await withEngine(options, async (engine, seen) => {
      const pages = Math.ceil((await engine.tokenize({ prompt: prompts[0]! })).length / 32)
      assert.ok(pages > 8 && pages < 16, `${pages} pages`)
      for (const prompt of prompts) await ends(engine, { prompt, maxTokens: 1 })
      assert.deepEqual(new Set(seen('pages-evict').map((e) => e.cause)), new Set(['admission']))
      const session = join(folder, 'causes.kv')
      await engine.saveSession(session, { prompt: prompts[1]! })
      await engine.clearCache()
      await ends(engine, grow)
      await engine.loadSession(session)
      assert.equal(seen('pages-evict').at(-1)!.cause, 'session')
      await ends(engine, { prompt: prompts[0]!, maxTokens: 1 })
    })
    await withEngine(options, async (engine, seen) => {
      // No prompt was measured yet: what is on the disk is loaded.
      await ends(engine, grow)
      assert.equal(seen('pages-evict').length, 0)
      await ends(engine, { prompt: prompts[0]!, maxTokens: 1 })
      assert.equal(seen('pages-evict')[0]!.cause, 'load')
      await ends(engine, { ...grow, tenant: 'other' })
      assert.equal(seen('pages-evict').at(-1)!.cause, 'growth')
    })
  })
})
