/** The engine's process and its client: with a fake engine, and once with the real one. */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { KvasirError } from '../../contract/errors.ts'
import type { EngineEvent, Logged } from '../../contract/events.ts'
import type { GeneratePart, GenerateRequest } from '../request.ts'
import { CREDITS, EngineClient, type Supervision } from './client.ts'
import { type Fault, type LoadScript, MODULE, model, type Script, script } from './fake-engine.fixture.ts'
import { fromPlain, toPlain } from './messages.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-process-'))
/** Every engine process that a test saw. */
const pids = new Set<number>()
after(() => {
  rmSync(folder, { recursive: true })
  assert.deepEqual([...pids].filter(isAlive), [])
})

async function start(script: LoadScript = {}, supervision: Partial<Supervision> = {}): Promise<EngineClient> {
  return seen(await EngineClient.loadWith(MODULE, model(script), {}, { firstDelayMs: 10, ...supervision }))
}

function seen(engine: EngineClient): EngineClient {
  if (engine.pid !== null) pids.add(engine.pid)
  return engine
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
  } catch {
    return false
  }
  // An orphan has ended and waits to be reaped: how soon is up to the machine's init.
  if (process.platform !== 'linux') return true
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false
  }
}

async function until(condition: () => boolean | Promise<boolean>, ms = 5000): Promise<void> {
  const deadline = Date.now() + ms
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `${condition} was not so within ${ms} ms`)
    await sleep(10)
  }
}

interface Outcome {
  readonly tokens: number
  readonly error: KvasirError | null
}

async function outcome(engine: EngineClient, s: Script, signal?: AbortSignal): Promise<Outcome> {
  let tokens = 0
  try {
    for await (const part of engine.generate({ ...script(s), ...(signal ? { signal } : {}) }))
      if (part.kind === 'token') tokens++
    return { tokens, error: null }
  } catch (error) {
    assert.ok(error instanceof KvasirError, String(error))
    return { tokens, error }
  }
}

const failsWith = (code: string) => (error: unknown) => error instanceof KvasirError && error.code === code

async function all(parts: AsyncIterable<GeneratePart>): Promise<GeneratePart[]> {
  const list: GeneratePart[] = []
  for await (const part of parts) list.push(part)
  return list
}

describe('an engine in its own process', () => {
  it('gives the same parts in the same order', async () => {
    await using engine = await start()
    for (const tokens of [0, 1, CREDITS - 1, CREDITS, CREDITS + 1, 1000]) {
      const parts = await all(engine.generate(script({ tokens })))
      assert.equal(parts.length, tokens + 1)
      assert.ok(parts.slice(0, -1).every((part, i) => part.kind === 'token' && part.token === i))
      assert.equal(parts.at(-1)!.kind, 'end')
    }
  })

  it('answers calls', async () => {
    await using engine = await start()
    assert.deepEqual(await engine.tokenize(script({})), Int32Array.from(Buffer.from('{}')))
    assert.equal(await engine.detokenize([75, 118]), 'Kv')
    assert.equal(await engine.detokenize(Int32Array.of(75)), 'K')
    assert.equal((await engine.status()).totals.restarts, 0)
    const { vector, ...rest } = await engine.embed(script({ tokens: 3 }))
    assert.deepEqual([vector, rest], [Float32Array.of(0, 1, 2), { tokens: 3, pooling: 'mean', request: 1 }])
    assert.deepEqual((await engine.cacheMap()).arenas[0]!.owners, [0, 1])
    await engine.clearCache()
    await assert.rejects(engine.saveSession('some.file', { prompt: '' }), {
      message: `GGUF_IO: ${resolve('some.file')}`,
    })
    assert.equal(await engine.loadSession('/a'), 2)
    assert.equal(engine.info.device, `threads of libuv: ${process.env['UV_THREADPOOL_SIZE'] ?? 8}`)
  })

  it('reports progress of loading, then info', async () => {
    const progress: number[][] = []
    const onProgress = (loaded: number, total: number) => void progress.push([loaded, total])
    await using engine = seen(
      await EngineClient.loadWith(MODULE, model({ progress: 3 }), { onProgress, contextLength: 77 }),
    )
    assert.deepEqual(progress, [[1, 3], [2, 3], [3, 3]]) // biome-ignore format: pairs
    assert.equal(engine.info.contextLength, 77)
  })

  it('works from any folder', async () => {
    const before = process.cwd()
    process.chdir(folder)
    try {
      await using engine = await start()
      assert.equal((await outcome(engine, {})).tokens, 5)
    } finally {
      process.chdir(before)
    }
  })

  it('keeps typed errors', async () => {
    await using engine = await start()
    const { tokens, error } = await outcome(engine, { fault: 'typed', at: 3 })
    assert.equal(tokens, 3)
    assert.equal(error?.message, 'KV_BUDGET: too little')
    assert.deepEqual(error?.details, { neededBytes: 2, freeBytes: 1 })
    assert.equal((error!.cause as Error).message, 'Error: behind it')
    const bug = (await outcome(engine, { fault: 'bug' })).error
    assert.match(bug!.message, /^NATIVE_FAILED: .*TypeError: a bug/)
    const odd = { ...script({}), stop: (() => 'x') as unknown as string }
    await assert.rejects(all(engine.generate(odd)), failsWith('INVALID_ARGUMENT'))
    assert.equal((await outcome(engine, {})).error, null)
  })

  it('keeps an error through many hops', () => {
    const error = new KvasirError('SHAPE', 'SHAPE is odd', { n: 1 })
    const hop = fromPlain(toPlain(fromPlain(toPlain(error))))
    assert.equal(hop.message, error.message)
    assert.deepEqual(hop.details, error.details)
  })

  it('passes events on while someone listens', async () => {
    await using engine = await start()
    const events: Logged<EngineEvent>[] = []
    const end = engine.onEvent((event) => events.push(event))
    await outcome(engine, {})
    await engine.clearCache()
    end()
    await engine.clearCache()
    await engine.status()
    assert.deepEqual(events.map((e) => [e.id, e.kind]), [[0, 'request-end'], [1, 'AllBlocksCleared']]) // biome-ignore format: pairs
  })
})

describe('stopping a request', () => {
  it('by its signal: at once, and the engine hears of it', async () => {
    await using engine = await start()
    const took: number[] = []
    for (const s of [{ tokens: null, delayMs: 3 }, { tokens: null }, { tokens: null, delayMs: 60_000 }]) {
      const controller = new AbortController()
      const done = outcome(engine, s, controller.signal)
      await sleep(50)
      const from = performance.now()
      controller.abort(new Error('enough'))
      const { error } = await done
      took.push(performance.now() - from)
      assert.equal(error?.code, 'ABORTED')
      assert.equal((error!.cause as Error).message, 'enough')
      await until(async () => (await engine.status()).running === 0)
    }
    // The best of three: other programs may want the machine.
    assert.ok(Math.min(...took) < 10, `${took} ms`)
    const { error } = await outcome(engine, {}, AbortSignal.abort())
    assert.equal(error?.code, 'ABORTED')
  })

  it('by its signal while nobody reads', async () => {
    await using engine = await start()
    const controller = new AbortController()
    const parts = engine.generate({ ...script({ tokens: null }), signal: controller.signal })
    await parts.next()
    controller.abort()
    await until(async () => (await engine.status()).running === 0)
    await assert.rejects(parts.next(), failsWith('ABORTED'))
  })

  it('for an embedding: the engine hears of it', async () => {
    await using engine = await start()
    const abort = new AbortController()
    const embedding = engine.embed({ ...script({ tokens: null, delayMs: 1 }), signal: abort.signal })
    while ((await engine.status()).running === 0) await sleep(1)
    abort.abort(new Error('enough'))
    await assert.rejects(embedding, (e: KvasirError) => e.code === 'ABORTED' && String(e.cause) === 'Error: enough')
    while ((await engine.status()).running > 0) await sleep(1)
    await assert.rejects(engine.embed({ prompt: '', signal: AbortSignal.abort() }), failsWith('ABORTED'))
  })

  it('by leaving the loop', async () => {
    await using engine = await start()
    for await (const part of engine.generate(script({ tokens: null }))) if (part.text === '200 ') break
    await until(async () => (await engine.status()).running === 0)
  })
})

describe('a slow reader', () => {
  it('stops its own request only', async () => {
    await using engine = await start()
    const slow = engine.generate(script({ tokens: null }))
    await slow.next()
    await sleep(100)
    const before = (await engine.status()).totals.generatedTokens
    assert.ok(before <= CREDITS, `${before} tokens were generated for a reader of one`)
    const from = performance.now()
    assert.equal((await outcome(engine, { tokens: 20_000 })).tokens, 20_000)
    assert.ok(performance.now() - from < 2000, `${performance.now() - from} ms for 20,000 tokens`)
    assert.equal((await engine.status()).totals.generatedTokens, before + 20_000)
    // It goes on as if nothing had been.
    for (let i = 1; i < 3 * CREDITS; i++) assert.equal(((await slow.next()).value as { token: number }).token, i)
    await slow.return()
  })
})

describe('a crash', () => {
  for (const [fault, sign] of [
    ['kill', /SIGKILL/],
    ['abort', /SIGABRT.*GGML_ASSERT\(fake\) failed/s],
    ['exit', /exit code 5/],
  ] as const satisfies readonly (readonly [Fault, RegExp])[])
    it(`by ${fault} fails the running requests, and the next ones work`, async () => {
      await using engine = await start()
      const events: Logged<EngineEvent>[] = []
      engine.onEvent((event) => events.push(event))
      await outcome(engine, {})
      const info = engine.info
      const unread = engine.generate(script({ tokens: null, delayMs: 60_000 })).next()
      unread.catch(() => {})
      const [begun, crashed, calm] = await Promise.all([
        outcome(engine, { tokens: null, delayMs: 2 }),
        outcome(engine, { tokens: null, fault, at: 20, delayMs: 4 }),
        outcome(engine, { tokens: 1 }),
      ])
      assert.deepEqual(calm, { tokens: 1, error: null })
      for (const { error, tokens } of [begun, crashed]) {
        assert.equal(error?.code, 'ENGINE_CRASHED')
        assert.match(error!.message, sign)
        assert.equal(error!.details['retrySafe'], false)
        assert.equal(error!.details['generatedTokens'], tokens)
      }
      await assert.rejects(unread, (e: KvasirError) => {
        assert.match(e.message, /safe to send the request again/)
        return e.details['retrySafe'] === true && e.details['generatedTokens'] === 0
      })
      assert.deepEqual(await outcome(engine, {}), { tokens: 5, error: null })
      seen(engine)
      assert.equal(engine.info, info)
      assert.equal((await engine.status()).totals.restarts, 1)
      assert.deepEqual(
        events.map((e) => e.kind),
        ['request-end', 'request-end', 'AllBlocksCleared', 'request-end'],
      )
      const ids = events.map((e) => e.id)
      assert.ok(
        ids.every((id, i) => i === 0 || id > ids[i - 1]!),
        `${ids}`,
      )
    })

  it('does not let ids of requests begin anew', async () => {
    await using engine = await start()
    const inEvents: number[] = []
    engine.onEvent((e) => {
      if (e.kind === 'request-end') inEvents.push(e.request)
    })
    const inParts: number[] = []
    const ask = async () => {
      for await (const part of engine.generate({ ...script({}), samples: 3 }))
        if (part.kind === 'end') inParts.push(part.request)
      inParts.push((await engine.embed(script({}))).request)
    }
    await ask()
    for (let i = 0; i < 2; i++) {
      await outcome(engine, { fault: 'kill' })
      await ask()
      const last = inParts.at(-1)!
      assert.equal((await engine.status()).requests[0]!.id, last)
      assert.deepEqual((await engine.cacheMap()).arenas[0]!.owners, [0, last])
    }
    assert.deepEqual(inEvents, inParts)
    assert.ok(
      inParts.every((id, i) => i === 0 || id > inParts[i - 1]!),
      `${inParts}`,
    )
  })

  it('at random moments, 20 times over', async () => {
    await using engine = await start()
    for (let round = 1; round <= 20; round++) {
      const requests = [
        outcome(engine, { tokens: null }),
        outcome(engine, { tokens: null, delayMs: 1 }),
        outcome(engine, { tokens: null, delayMs: 60_000 }),
        outcome(engine, { tokens: null, delayMs: 7 }),
      ]
      await sleep(Math.random() * 30)
      const pid = seen(engine).pid!
      process.kill(pid, 'SIGKILL')
      for (const { error, tokens } of await Promise.all(requests)) {
        assert.equal(error?.code, 'ENGINE_CRASHED')
        assert.deepEqual(
          [error!.details['retrySafe'], error!.details['signal'], error!.details['generatedTokens']],
          [tokens === 0, 'SIGKILL', tokens],
        )
      }
      assert.ok(!isAlive(pid))
      assert.deepEqual(await outcome(engine, {}), { tokens: 5, error: null })
      assert.equal((await engine.status()).totals.restarts, round)
    }
    seen(engine)
  })

  it('fails calls too', async () => {
    await using engine = await start()
    void outcome(engine, { fault: 'hang' })
    const status = engine.status()
    setTimeout(() => process.kill(engine.pid!, 'SIGKILL'), 50)
    await assert.rejects(status, failsWith('ENGINE_CRASHED'))
    seen(engine)
  })

  it('of an idle engine is mended before anyone asks', async () => {
    await using engine = await start()
    const pid = engine.pid!
    process.kill(pid, 'SIGKILL')
    await until(() => engine.pid !== null && engine.pid !== pid)
    assert.equal((await outcome(seen(engine), {})).error, null)
  })
})

describe('starting', () => {
  it('fails with the typed error of the engine', async () => {
    await assert.rejects(start({ fault: 'missing' }), (error: KvasirError) => {
      assert.equal(error.message, 'MODEL_NOT_FOUND: no such model')
      assert.equal(typeof error.details['odd'], 'string')
      return error.code === 'MODEL_NOT_FOUND'
    })
    await assert.rejects(start({ fault: 'bug' }), /TypeError: a bug in load/)
    const odd = { device: () => 'CPU' } as unknown as { device: string }
    await assert.rejects(EngineClient.loadWith(MODULE, model(), odd), failsWith('INVALID_ARGUMENT'))
  })

  it('fails with the last words of a process that died', async () => {
    await assert.rejects(start({ fault: 'exit' }), /ENGINE_CRASHED: .*exit code 3.*no luck today/s)
    await assert.rejects(start({ fault: 'kill' }), /ENGINE_CRASHED: .*SIGKILL.*no luck today/s)
  })

  it('is given up after some failures, and tried again later', async () => {
    const whileThere = join(folder, 'broken')
    await using engine = await start({ fault: 'exit', whileThere }, { failedStarts: 2, maxDelayMs: 400 })
    writeFileSync(whileThere, '')
    process.kill(engine.pid!, 'SIGKILL')
    const lastWords = /ENGINE_CRASHED: .*2 tries failed.*exit code 3.*no luck today/s
    await until(() => engine.pid === null)
    // Waits for the restart, which does not come.
    await assert.rejects(all(engine.generate(script({}))), lastWords)
    const from = performance.now()
    await assert.rejects(engine.status(), lastWords)
    assert.ok(performance.now() - from < 20)
    await sleep(420)
    await assert.rejects(engine.status(), /3 tries failed/)
    rmSync(whileThere)
    await sleep(420)
    assert.equal((await outcome(engine, {})).error, null)
    assert.equal((await engine.status()).totals.restarts, 1)
    seen(engine)
  })

  it('is waited for no longer than agreed, and not after an abort', async () => {
    await using engine = await start({}, { firstDelayMs: 60_000, maxDelayMs: 60_000, waitMs: 50 })
    process.kill(engine.pid!, 'SIGKILL')
    await until(() => engine.pid === null)
    const { error } = await outcome(engine, {})
    assert.match(error!.message, /ENGINE_CRASHED: .*not ready after 0.05 s/)
    assert.equal(error!.details['retrySafe'], true)
    assert.equal((await outcome(engine, {}, AbortSignal.timeout(10))).error?.code, 'ABORTED')
  })
})

describe('the end', () => {
  it('by dispose: requests end with ABORTED, later ones with DISPOSED', async () => {
    const engine = await start()
    const running = [outcome(engine, { tokens: null }), outcome(engine, { tokens: null, delayMs: 60_000 })]
    await sleep(20)
    const from = performance.now()
    const [first, second] = [engine.dispose(), engine.dispose()]
    for (const { error } of await Promise.all(running)) assert.equal(error?.code, 'ABORTED')
    await Promise.all([first, second])
    assert.ok(performance.now() - from < 1000)
    assert.equal((await outcome(engine, {})).error?.code, 'DISPOSED')
    await assert.rejects(engine.status(), failsWith('DISPOSED'))
    assert.throws(() => engine.onEvent(() => {}), failsWith('DISPOSED'))
    assert.equal(engine.info.name, 'fake')
    assert.deepEqual([...pids].filter(isAlive), [])
  })

  it('by dispose of a process that hangs', async () => {
    const engine = await start({}, { graceMs: 100 })
    const hung = outcome(engine, { fault: 'hang' })
    await sleep(20)
    await engine.dispose()
    assert.equal((await hung).error?.code, 'ABORTED')
    assert.deepEqual([...pids].filter(isAlive), [])
  })

  it('by using, and by dispose during a restart', async () => {
    let pid: number
    {
      using engine = await start()
      pid = engine.pid!
    }
    await until(() => !isAlive(pid))
    const engine = await start()
    process.kill(engine.pid!, 'SIGKILL')
    await until(() => engine.pid === null)
    const waiting = outcome(engine, {})
    await engine.dispose()
    assert.equal((await waiting).error?.code, 'ABORTED')
  })

  const parent = async (how: string): Promise<{ child: ChildProcess; pid: number }> => {
    const file = fileURLToPath(new URL('parent.fixture.ts', import.meta.url))
    const child = spawn(process.execPath, ['--import', 'tsx', file, how], { stdio: ['ignore', 'pipe', 'inherit'] })
    const [text] = await once(child.stdout!.setEncoding('utf8'), 'data')
    const pid = Number(text)
    pids.add(pid)
    return { child, pid }
  }

  for (const how of ['idle', 'answer'])
    it(`of a program that forgot dispose (${how})`, async () => {
      const { child, pid } = await parent(how)
      const from = performance.now()
      assert.deepEqual(await once(child, 'exit'), [0, null])
      assert.ok(performance.now() - from < 1500)
      await until(() => !isAlive(pid), 1500)
    })

  for (const how of ['running', 'hang'])
    it(`of a program that is killed (${how})`, async () => {
      const { child, pid } = await parent(how)
      await sleep(100)
      assert.ok(isAlive(pid))
      child.kill('SIGKILL')
      await until(() => !isAlive(pid), how === 'hang' ? 4000 : 900)
    })

  it('is not brought by Ctrl-C', async () => {
    await using engine = await start()
    const running = outcome(engine, { tokens: 20, delayMs: 10 })
    await sleep(20)
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.kill(engine.pid!, signal)
    assert.deepEqual(await running, { tokens: 20, error: null })
  })
})

describe('the real engine', () => {
  it('answers as it does in this process', async () => {
    const options = { threads: 1, contextLength: 1024 }
    const request: GenerateRequest = {
      messages: [{ role: 'user', content: 'Karin Osford keeps a hamster. Which animal does Karin Osford keep?' }],
      sampling: { temperature: 0, logprobs: 2 },
      maxTokens: 100,
    }
    const plain = (parts: GeneratePart[]) => parts.map((p) => (p.kind === 'end' ? [p.text, p.reason] : p))
    await using there = seen(await EngineClient.load('house', options))
    const answer = plain(await all(there.generate(request)))
    const { LocalEngine } = await import('../local.ts')
    const here = await LocalEngine.load('house', options)
    try {
      assert.deepEqual(answer, plain(await all(here.generate(request))))
    } finally {
      await here.dispose()
    }
    assert.ok(answer.length > 3)
    const prompt = 'The ships left the harbour.'
    const [one, two] = await Promise.all([there.embed({ prompt }), there.embed({ prompt, normalize: false })])
    assert.ok(Math.abs(Math.hypot(...one.vector) - 1) < 1e-6 && Math.abs(Math.hypot(...two.vector) - 1) > 0.1)
    assert.equal(one.vector.length, there.info.width)
    const bare = await there.tokenize({ prompt, addSpecial: false })
    assert.equal((await there.tokenize({ prompt })).length, bare.length + 1)
    assert.equal((await there.cacheMap()).arenas[0]!.pages, (await there.cacheMap()).arenas[0]!.states.length)
    await assert.rejects(EngineClient.load('no-such-model.gguf'), failsWith('MODEL_NOT_FOUND'))
    await assert.rejects(all(there.generate({ prompt: 'x', maxTokens: 0 })), failsWith('INVALID_ARGUMENT'))
  })
})
