/** Several generators read as one: what comes, how many run, and who is stopped. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { merge } from './merge.ts'

const never = new AbortController().signal

describe('merge', () => {
  it('gives everything, each source in its order, no more running than allowed', async () => {
    let running = 0
    let most = 0
    const sources = Array.from(
      { length: 7 },
      (_, i) =>
        async function* (): AsyncGenerator<readonly [number, number]> {
          most = Math.max(most, ++running)
          for (let k = 0; k < 5; k++) {
            await sleep((i * k) % 3)
            yield [i, k]
          }
          running--
        },
    )
    const got = new Map<number, number[]>()
    for await (const [i, k] of merge(sources, 3, never)) got.set(i, [...(got.get(i) ?? []), k])
    assert.equal(most, 3)
    assert.equal(got.size, 7)
    for (const list of got.values()) assert.deepEqual(list, [0, 1, 2, 3, 4])
  })

  it('takes turns between sources that are always ready', async () => {
    const source = (name: string) =>
      async function* (): AsyncGenerator<string> {
        for (let k = 0; k < 4; k++) yield name
      }
    const got: string[] = []
    for await (const name of merge([source('a'), source('b')], 2, never)) got.push(name)
    assert.deepEqual(got.join(''), 'abababab')
  })

  it('stops all of them when one fails, the reader leaves, or the caller says so', async () => {
    const ended: string[] = []
    /** Waits until it is told to stop. */
    const waits = (name: string) =>
      async function* (signal: AbortSignal): AsyncGenerator<number> {
        try {
          yield 1
          await sleep(60_000, undefined, { signal, ref: false })
        } finally {
          ended.push(name)
        }
      }
    const fails = async function* (): AsyncGenerator<number> {
      yield 2
      throw new Error('it broke')
    }
    const read = async (events: AsyncIterable<number>, count = Infinity) => {
      let seen = 0
      for await (const _ of events) if (++seen >= count) break
    }
    await assert.rejects(read(merge([waits('a'), waits('b'), fails], 3, never)), /it broke/)
    assert.deepEqual(ended.splice(0).sort(), ['a', 'b'])
    await read(merge([waits('c'), waits('d')], 2, never), 2)
    assert.deepEqual(ended.splice(0).sort(), ['c', 'd'])
    const caller = new AbortController()
    setTimeout(() => caller.abort(), 5)
    await assert.rejects(read(merge([waits('e'), waits('f')], 2, caller.signal)), { name: 'AbortError' })
    assert.deepEqual(ended.splice(0).sort(), ['e', 'f'])
  })
})
