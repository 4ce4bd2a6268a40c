import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { KvasirError } from '../contract/errors.ts'
import type { EngineApi } from '../engine/api.ts'
import { ModelPool, type ModelSpec, type PoolOptions } from './models.ts'

const specs = (...ids: string[]): ModelSpec[] => ids.map((id) => ({ id, path: `${id}.gguf`, engine: {} }))

/** Engines that only count how often they are loaded and disposed of. */
function counting(over: Partial<PoolOptions> = {}) {
  const log: string[] = []
  const load = async (path: string) => {
    log.push(`load ${path}`)
    await sleep(5)
    return { dispose: async () => void log.push(`dispose ${path}`) } as unknown as EngineApi
  }
  return { log, options: { load, idleUnloadMs: null, ...over } satisfies PoolOptions }
}

describe('a pool of models', () => {
  it('loads a model once for all that ask at the same time', async () => {
    const { log, options } = counting()
    const pool = new ModelPool(specs('a', 'b'), options)
    const leases = await Promise.all([pool.lease('a'), pool.lease('a'), pool.lease()])
    assert.deepEqual(log, ['load a.gguf'])
    assert.ok(leases.every((l) => l.engine === leases[0]!.engine))
    assert.deepEqual(
      pool.list().map((m) => [m.id, m.state]),
      [
        ['a', 'loaded'],
        ['b', 'unloaded'],
      ],
    )
    await pool.close()
    assert.deepEqual(log, ['load a.gguf', 'dispose a.gguf'])
    await assert.rejects(pool.lease('a'), { status: 503 })
  })

  it('refuses an unknown model and names what is meant', async () => {
    const pool = new ModelPool(specs('house', 'qwen'), counting().options)
    await assert.rejects(pool.lease('hause'), { status: 404, code: 'model_not_found', message: /Did you mean 'house'/ })
    await assert.rejects(pool.lease('gpt-4o'), { status: 404, message: /There are: house, qwen/ })
    assert.throws(() => new ModelPool(specs('a', 'a'), counting().options), { code: 'INVALID_ARGUMENT' })
    assert.throws(() => new ModelPool([], counting().options), { code: 'INVALID_ARGUMENT' })
  })

  it('unloads an idle model, never one that is leased, and loads it again', async () => {
    const { log, options } = counting({ idleUnloadMs: 20 })
    const pool = new ModelPool(specs('a'), options)
    const held = await pool.lease('a')
    const other = await pool.lease('a')
    other[Symbol.dispose]()
    other[Symbol.dispose]() // a second end counts nothing
    await sleep(50)
    assert.deepEqual(log, ['load a.gguf'])
    held[Symbol.dispose]()
    await sleep(50)
    assert.deepEqual(log, ['load a.gguf', 'dispose a.gguf'])
    using again = await pool.lease('a')
    assert.ok(again.engine)
    assert.equal(log.length, 3)
  })

  it('a model in use again before its time is not unloaded', async () => {
    const { log, options } = counting({ idleUnloadMs: 40 })
    const pool = new ModelPool(specs('a'), options)
    for (let i = 0; i < 5; i++) {
      const lease = await pool.lease('a')
      lease[Symbol.dispose]()
      await sleep(15)
    }
    assert.deepEqual(log, ['load a.gguf'])
    await pool.close()
  })

  it('frees idle models, the least recently used first, when memory is short', async () => {
    const live = new Set<string>()
    const log: string[] = []
    const pool = new ModelPool(specs('a', 'b', 'c'), {
      idleUnloadMs: null,
      load: async (path) => {
        if (live.size >= 2) throw new KvasirError('OUT_OF_MEMORY', 'full')
        live.add(path)
        const dispose = async () => {
          live.delete(path)
          log.push(path)
        }
        return { dispose } as unknown as EngineApi
      },
    })
    const a = await pool.lease('a')
    const b = await pool.lease('b')
    await assert.rejects(pool.lease('c'), { code: 'OUT_OF_MEMORY' })
    b[Symbol.dispose]()
    await sleep(2)
    a[Symbol.dispose]()
    using c = await pool.lease('c')
    assert.ok(c.engine)
    assert.deepEqual(log, ['b.gguf'])
    await pool.close()
  })

  it('a failed load is tried again with the next request', async () => {
    let tries = 0
    const pool = new ModelPool(specs('a'), {
      idleUnloadMs: null,
      load: async () => {
        if (tries++ === 0) throw new KvasirError('GGUF_IO', 'disk asleep')
        return { dispose: async () => {} } as unknown as EngineApi
      },
    })
    await assert.rejects(pool.lease(), { code: 'GGUF_IO' })
    assert.equal(pool.list()[0]!.state, 'unloaded')
    using lease = await pool.lease()
    assert.ok(lease.engine)
  })

  it('tells of engines before they are used and before they go', async () => {
    const log: string[] = []
    const pool = new ModelPool(specs('a'), {
      ...counting().options,
      onLoad: (id) => {
        log.push(`+${id}`)
        return () => void log.push(`-${id}`)
      },
    })
    using lease = await pool.lease()
    assert.ok(lease)
    assert.deepEqual(log, ['+a'])
    await pool.close()
    assert.deepEqual(log, ['+a', '-a'])
  })
})
