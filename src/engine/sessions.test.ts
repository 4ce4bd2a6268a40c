/** Saved sessions and the disk below the cache: what comes back is what was stored, or it does not come back. */
import assert from 'node:assert/strict'
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { Random } from '../../bench/random-model.ts'
import { PAGE_CELLS } from '../cache/arena.ts'
import { checkStore } from '../cache/check.ts'
import { blockFileBytes } from '../cache/tiers/disk.ts'
import type { ErrorCode, KvasirError } from '../contract/errors.ts'
import type { EngineEvent } from '../contract/events.ts'
import { readGguf, str, writeGguf } from '../ggml/gguf/index.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import { LocalEngine } from './local.ts'
import { type EngineOptions, modelPath } from './options.ts'
import type { GeneratePart } from './request.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-sessions-'))
let natives: Record<string, number>
before(async () => {
  await loadNative()
  natives = liveNatives()
})
after(() => {
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

/** A question whose answer stands at the beginning: rows that are not the right ones give another answer. */
const request = {
  messages: [
    {
      role: 'user',
      content:
        'Karin Osford keeps a hamster as a pet. ' +
        'The captain stood beside an empty field of barley in those days. '.repeat(20) +
        'Which animal does Karin Osford keep as a pet?',
    },
  ],
}
const greedy = { temperature: 0 }

interface Answer {
  readonly tokens: number[]
  readonly end: Extract<GeneratePart, { kind: 'end' }>
}

async function ask(engine: LocalEngine, what: { messages?: typeof request.messages; prompt?: string } = request) {
  const tokens: number[] = []
  let end: Answer['end'] | undefined
  for await (const part of engine.generate({ ...what, sampling: greedy, maxTokens: 24 }))
    if (part.kind === 'token') tokens.push(part.token)
    else end = part
  return { tokens, cached: end!.timings.cached_tokens, promptTokens: end!.timings.prompt_tokens }
}

function load(options: EngineOptions = {}, model = 'house'): Promise<LocalEngine> {
  return LocalEngine.load(model, { threads: 1, contextLength: 1024, ...options })
}

/** Runs with an engine that is then asked for the right answer and found in order, whatever happened. */
async function withEngine(run: (engine: LocalEngine) => Promise<void>, options: EngineOptions = {}): Promise<void> {
  const engine = await load(options)
  try {
    await run(engine)
    checkStore(engine.store, engine.prefixes.check())
    const { kv } = await engine.status()
    assert.equal(kv.usedBytes, kv.prefixBytes)
  } finally {
    await engine.dispose()
  }
}

const fails = (promise: Promise<unknown>, code: ErrorCode, text = /./) =>
  assert.rejects(promise, (e: KvasirError) => {
    assert.equal(e.code, code, e.message)
    assert.match(e.message, text)
    return true
  })

let right: number[]
let wholeBlocks: number
const session = join(folder, 'session.kv')
before(async () => {
  await withEngine(async (engine) => {
    const answer = await ask(engine)
    right = answer.tokens
    assert.match(engine.model.tokenizer.decode(right), /hamster/)
    wholeBlocks = PAGE_CELLS * Math.floor((answer.promptTokens - 1) / PAGE_CELLS)
    assert.ok(wholeBlocks >= 8 * PAGE_CELLS)
    const saved = await engine.saveSession(session, request)
    assert.equal(saved, PAGE_CELLS * Math.floor(answer.promptTokens / PAGE_CELLS))
  })
})

describe('a saved session', () => {
  it('comes back in another engine: cached, and with the same answer', async () => {
    await withEngine(async (engine) => {
      assert.ok((await engine.loadSession(session)) >= wholeBlocks)
      const answer = await ask(engine)
      assert.equal(answer.cached, wholeBlocks)
      assert.deepEqual(answer.tokens, right)
      // Nothing is stored twice.
      const { size } = engine.prefixes
      await engine.loadSession(session)
      assert.equal(engine.prefixes.size, size)
      // What was loaded can be saved again.
      const again = join(folder, 'again.kv')
      await engine.saveSession(again, request)
      assert.deepEqual(readFileSync(again), readFileSync(session))
    })
  })

  it('comes back with other memory, threads and schedulers, beside what is in use', async () => {
    const options = { contextLength: 2048, scheduler: 'fcfs', tokenBudget: 64, hostCacheBytes: 2 ** 20 } as const
    await withEngine(async (engine) => {
      const other = ask(engine, { prompt: 'The old bridge was known for '.repeat(30) })
      assert.ok((await engine.loadSession(session)) >= wholeBlocks)
      assert.equal((await ask(engine)).cached, wholeBlocks)
      assert.deepEqual((await ask(engine)).tokens, right)
      await other
    }, options)
  })

  it('holds whole blocks of what was used; of nothing there is none', () =>
    withEngine(async (engine) => {
      const path = join(folder, 'nothing.kv')
      await fails(engine.saveSession(path, request), 'INVALID_ARGUMENT', /nothing of this prompt is in the cache/)
      assert.ok(!existsSync(path))
    }))

  it('of another model is refused, and the error says so', async () => {
    const file = readGguf(modelPath('house'))
    const bytes = readFileSync(file.path)
    const path = join(folder, 'other.gguf')
    writeGguf(path, {
      metadata: [...file.metadata.entries()].map(([k, v]) => [k, k === 'general.name' ? str('Other') : v] as const),
      tensors: [...file.tensors.values()].map((t) => ({
        ...{ name: t.name, type: t.type, ne: t.ne.slice(0, t.nDims) },
        data: bytes.subarray(t.offset, t.offset + t.bytes),
      })),
    })
    const engine = await load({}, path)
    await fails(engine.loadSession(session), 'SESSION_INVALID', /belongs to another model/)
    assert.deepEqual((await ask(engine)).tokens, right)
    checkStore(engine.store, engine.prefixes.check())
    await engine.dispose()
  })

  for (const options of [{ keyType: 'q8_0' }, { valueType: 'f32' }, { lowering: 'flash' }] as const)
    it(`of an engine without ${JSON.stringify(options)} is refused`, () =>
      withEngine(async (engine) => {
        await fails(engine.loadSession(session), 'SESSION_INVALID', /saved under other settings: different are kv/)
        assert.equal((await ask(engine)).cached, 0)
      }, options))

  it('of another version is refused', () =>
    withEngine(async (engine) => {
      const path = changed((bytes) => bytes.writeUInt32LE(2, 8))
      await fails(engine.loadSession(path), 'SESSION_INVALID', /format version 2, this Kvasir reads version 1/)
    }))

  it('that was cut short anywhere is refused', () =>
    withEngine(async (engine) => {
      const { size } = statSync(session)
      const path = join(folder, 'short.kv')
      for (const bytes of [0, 5, 40, 64, 200, size >> 1, size - 40, size - 1]) {
        copyFileSync(session, path)
        truncateSync(path, bytes)
        await fails(engine.loadSession(path), 'SESSION_INVALID')
      }
      writeFileSync(path, Buffer.concat([readFileSync(session), Buffer.alloc(1)]))
      await fails(engine.loadSession(path), 'SESSION_INVALID')
      assert.equal(engine.prefixes.size, 0)
    }))

  it('with a flipped bit anywhere is refused; what was right before it does no harm', () =>
    withEngine(async (engine) => {
      const { size } = statSync(session)
      const r = new Random(40)
      // The head and the tokens take the first kilobytes: half of the places there, half in the blocks.
      for (let i = 0; i < 40; i++) {
        const at = Math.floor(r.uniform() * (i % 2 ? 3000 : size))
        const bit = 1 << Math.floor(8 * r.uniform())
        const path = changed((bytes) => {
          bytes[at]! ^= bit
        })
        await fails(engine.loadSession(path), 'SESSION_INVALID', new RegExp(`session ${path}: `))
        checkStore(engine.store, engine.prefixes.check())
        if (i % 8 > 0) continue
        assert.deepEqual((await ask(engine)).tokens, right, `byte ${at}`)
        await engine.clearCache()
      }
    }))

  it('that is not there, or is no file, is GGUF_IO; so is a folder to save in that is not there', () =>
    withEngine(async (engine) => {
      await ask(engine)
      await fails(engine.loadSession(join(folder, 'no.kv')), 'GGUF_IO', /no\.kv could not be read/)
      await fails(engine.saveSession(join(folder, 'none', 'a.kv'), request), 'GGUF_IO', /could not be written/)
      await assert.rejects(engine.loadSession(folder))
    }))

  it('for which there is no room is KV_BUDGET', () =>
    withEngine(
      async (engine) => {
        await fails(engine.loadSession(session), 'KV_BUDGET', /does not fit/)
        const short = await ask(engine, { prompt: 'The ship' })
        assert.ok(short.tokens.length > 0)
        assert.ok((await engine.status()).totals.evictedPages >= 0)
      },
      { kvMemory: 8 * 98304 },
    ))

  it('is not written from pages that were given away meanwhile, nor read into them', () =>
    withEngine(async (engine) => {
      await ask(engine)
      const path = join(folder, 'cleared.kv')
      const saving = engine.saveSession(path, request)
      while (!readdirSync(folder).some((f) => f.startsWith('cleared.kv.'))) await nextTurn()
      const clearing = engine.clearCache()
      // Takes the pages that the session is being written from.
      const other = ask(engine, { prompt: 'The garden was known for '.repeat(60) })
      await fails(saving, 'ABORTED')
      assert.ok(!existsSync(path))
      await Promise.all([clearing, other])
      const loading = engine.loadSession(session)
      await new Promise((resolve) => setTimeout(resolve, 2))
      await engine.clearCache()
      await loading.catch((e: KvasirError) => assert.equal(e.code, 'ABORTED'))
      assert.deepEqual((await ask(engine)).tokens, right)
    }))

  it('ends with its engine, which is not touched any more', async () => {
    for (const what of ['save', 'load'] as const) {
      const engine = await load()
      await ask(engine)
      const path = join(folder, 'ended.kv')
      const working = what === 'save' ? engine.saveSession(path, request) : engine.loadSession(session)
      const refused = fails(working, 'DISPOSED')
      await engine.dispose()
      await refused
      assert.ok(!existsSync(path))
    }
    assert.deepEqual(
      readdirSync(folder).filter((f) => f.endsWith('.tmp')),
      [],
    )
  })
})

/** A copy of the session with a change. */
function changed(change: (bytes: Buffer) => void): string {
  const bytes = readFileSync(session)
  change(bytes)
  const path = join(folder, 'changed.kv')
  writeFileSync(path, bytes)
  return path
}

describe('the disk below the cache', () => {
  const kvb = (path: string) =>
    readdirSync(path, { recursive: true, withFileTypes: true })
      .filter((f) => f.name.endsWith('.kvb'))
      .map((f) => join(f.parentPath, f.name))
      .sort()

  /** A folder in which an engine left the request's blocks. */
  async function filled(name: string): Promise<string> {
    const diskCache = join(folder, name)
    await withEngine(async (engine) => void (await ask(engine)), { diskCache })
    assert.ok(kvb(diskCache).length >= wholeBlocks / PAGE_CELLS)
    return diskCache
  }

  it('is found again after a restart', async () => {
    const diskCache = await filled('again')
    await withEngine(
      async (engine) => {
        let loaded = 0
        engine.onEvent((e: EngineEvent) => {
          if (e.kind === 'pages-load') loaded += e.pages
        })
        const answer = await ask(engine)
        assert.equal(answer.cached, wholeBlocks)
        assert.equal(loaded, wholeBlocks / PAGE_CELLS)
        assert.deepEqual(answer.tokens, right)
      },
      { diskCache },
    )
  })

  it('is not found by an engine with another cache type', async () => {
    const diskCache = await filled('types')
    await withEngine(async (engine) => assert.equal((await ask(engine)).cached, 0), { diskCache, keyType: 'q8_0' })
  })

  it('misses files that are damaged, exchanged or cut short: never a wrong token', async () => {
    const r = new Random(7)
    const damages: Record<string, (files: readonly string[]) => void> = {
      'a bit in every file': (files) => {
        for (const f of files) flip(f, Math.floor(r.uniform() * statSync(f).size))
      },
      'a bit in one payload': (files) => flip(files[3]!, 5000),
      'one cut short': (files) => truncateSync(files[2]!, 50_000),
      'one empty': (files) => truncateSync(files[1]!, 0),
      'one gone': (files) => rmSync(files[4]!),
      'two exchanged': (files) => {
        const first = readFileSync(files[0]!)
        copyFileSync(files[1]!, files[0]!)
        writeFileSync(files[1]!, first)
      },
    }
    const whole = await filled('damaged')
    const originals = kvb(whole).map((path) => ({ path, bytes: readFileSync(path) }))
    for (const [what, damage] of Object.entries(damages)) {
      for (const { path, bytes } of originals) writeFileSync(path, bytes)
      damage(kvb(whole))
      await withEngine(
        async (engine) => {
          const answer = await ask(engine)
          assert.deepEqual(answer.tokens, right, what)
          // Blocks of the answer are among the files: damage to one of these is not met.
          assert.ok(answer.cached <= wholeBlocks)
          if (what.includes('every')) assert.equal(answer.cached, 0)
          assert.equal(engine.prefixes.problem, null)
        },
        { diskCache: whole },
      )
      // Mended by what was computed anew: reading ends at a damaged block, so each restart meets at least one of them.
      let cached = 0
      for (let i = 0; i < originals.length && cached < wholeBlocks; i++)
        await withEngine(async (engine) => void ({ cached } = await ask(engine)), { diskCache: whole })
      assert.equal(cached, wholeBlocks, what)
    }
  })

  it('keeps its limit', async () => {
    const diskCache = join(folder, 'limit')
    const fileBytes = blockFileBytes(PAGE_CELLS, 98304)
    const diskCacheBytes = 12 * fileBytes + 100
    await withEngine(
      async (engine) => {
        for (const prompt of ['bridge', 'garden', 'market', 'letter', 'winter']) {
          await ask(engine, { prompt: `The ${prompt} was known for `.repeat(40) })
          await engine.prefixes.flush()
          const bytes = kvb(diskCache).reduce((sum, f) => sum + statSync(f).size, 0)
          assert.ok(bytes <= diskCacheBytes, `${bytes} bytes`)
          assert.ok((await engine.status()).kv.diskBytes <= diskCacheBytes)
        }
        assert.equal(kvb(diskCache).length, 12)
      },
      { diskCache, diskCacheBytes },
    )
  })

  it('in a folder that cannot be used: the engine works, and says why', async () => {
    const path = join(folder, 'file')
    writeFileSync(path, '')
    await withEngine(
      async (engine) => {
        assert.match(engine.prefixes.problem!, /the disk cache in .*file\/cache is off: it cannot be used: .*ENOTDIR/)
        assert.deepEqual((await ask(engine)).tokens, right)
        assert.equal((await ask(engine)).cached, wholeBlocks)
        assert.equal((await engine.status()).kv.diskBytes, 0)
        await engine.clearCache()
      },
      { diskCache: join(path, 'cache') },
    )
  })

  it('is written whole even when memory is short while it is being written', async () => {
    const diskCache = join(folder, 'short')
    await withEngine(
      async (engine) => {
        await ask(engine)
        // Evicts the end of the chain before the write-behind has come to it.
        await ask(engine, { prompt: 'The market stood beside '.repeat(40) })
      },
      { diskCache, kvMemory: 24 * 98304 },
    )
    await withEngine(async (engine) => assert.equal((await ask(engine)).cached, wholeBlocks), { diskCache })
  })

  it('gets nothing any more after a disposal that does not wait', async () => {
    for (let i = 0; i < 3; i++) {
      const diskCache = join(folder, `sync${i}`)
      const engine = await load({ diskCache })
      await ask(engine)
      engine[Symbol.dispose]()
      await new Promise((resolve) => setTimeout(resolve, 100))
      // A few blocks were read before; the others' memory is freed.
      assert.ok(kvb(diskCache).length < wholeBlocks / PAGE_CELLS, `${kvb(diskCache).length} files`)
    }
  })

  it('is forgotten by clearCache, as everything else', async () => {
    const diskCache = await filled('clear')
    await withEngine(
      async (engine) => {
        await ask(engine)
        assert.ok(engine.prefixes.size > 0)
        await engine.clearCache()
        assert.deepEqual(kvb(diskCache), [])
        const { kv } = await engine.status()
        assert.deepEqual(kv, { ...kv, usedBytes: 0, prefixBytes: 0, hostBytes: 0, diskBytes: 0 })
        assert.equal((await ask(engine)).cached, 0)
        // While it is being loaded from the disk, too.
        await engine.prefixes.flush()
      },
      { diskCache, hostCacheBytes: 2 ** 20 },
    )
    await withEngine(
      async (engine) => {
        const asked = ask(engine)
        await engine.clearCache()
        assert.deepEqual((await asked).tokens, right)
        await engine.clearCache()
      },
      { diskCache },
    )
    await withEngine(async (engine) => assert.equal((await ask(engine)).cached, 0), { diskCache })
  })
})

function flip(path: string, at: number): void {
  const bytes = readFileSync(path)
  bytes[at]! ^= 16
  writeFileSync(path, bytes)
}
