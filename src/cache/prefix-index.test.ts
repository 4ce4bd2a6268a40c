import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import { checkPrefixIndex, PrefixIndex, type PrefixNode } from './prefix-index.ts'

const PAGE = 4
const make = (over: object = {}) => new PrefixIndex<number>({ pageTokens: PAGE, ...over })
const ids = (blocks: number, first = 0) => Array.from({ length: blocks * PAGE }, (_, i) => first + i)
const names = (nodes: readonly PrefixNode<number>[]) => nodes.map((n) => n.hash)
const isInvalid = (e: unknown) => e instanceof KvasirError && e.code === 'INVALID_ARGUMENT'

/** Numbers in [0, 1) that are the same in each run. */
function seeded(seed: number): () => number {
  let s = seed >>> 0
  return () => {
    s = (s + 0x6d2b79f5) >>> 0
    let t = Math.imul(s ^ (s >>> 15), 1 | s)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

describe('storing and finding', () => {
  it('gives the longest stored beginning', () => {
    const index = make()
    assert.deepEqual(names(index.insert(['a', 'b', 'c'], ids(3), [1, 2, 3])), ['a', 'b', 'c'])
    assert.deepEqual(names(index.insert(['a', 'b', 'd'], ids(3), [7, 8, 9])), ['d'])
    assert.deepEqual(names(index.longest(['a', 'b', 'd', 'e'])), ['a', 'b', 'd'])
    assert.deepEqual(names(index.longest(['b', 'd'])), [], 'only from the beginning on')
    assert.deepEqual(names(index.longest([])), [])
    assert.equal(index.match(['a', 'b', 'c', 'x']), 3)
    assert.equal(index.size, 4)
    const d = index.get('d')!
    assert.deepEqual([d.position, d.place, d.parent?.hash, [...d.tokens]], [8, 9, 'b', [8, 9, 10, 11]])
    assert.equal(index.get('a')!.place, 1, 'the place of a known block stays')
    checkPrefixIndex(index)
  })

  it('goes on behind a known block', () => {
    const index = make()
    const [a] = index.insert(['a'], ids(1), [1])
    const [b] = index.insert(['b'], ids(1), [2], a)
    assert.deepEqual([b!.parent, b!.position], [a, PAGE])
    index.remove(a!)
    assert.throws(() => index.insert(['c'], ids(1), [3], b), isInvalid)
    checkPrefixIndex(index)
  })

  it('refuses names that are not chained, and then stores nothing', () => {
    const index = make()
    index.insert(['a', 'b'], ids(2), [1, 2])
    for (const wrong of [['b'], ['x', 'b'], ['x', 'y', 'x'], ['a', 'a'], ['x', 'x']])
      assert.throws(() => index.insert(wrong, ids(4), [1, 2, 3, 4]), isInvalid, wrong.join())
    assert.throws(() => index.insert(['x', 'y'], ids(1), [1, 2]), isInvalid)
    assert.throws(() => index.insert(['x', 'y'], ids(2), [1]), isInvalid)
    assert.equal(index.size, 2)
    checkPrefixIndex(index)
  })

  it('shows all, parents first, with the medium of their place', () => {
    const index = make({ mediumOf: (p: number) => (p > 1 ? 'host' : 'device') })
    index.insert(['a', 'b'], ids(2), [1, 2])
    index.insert(['c'], ids(1, 50), [1])
    assert.deepEqual(index.snapshot(), [
      { hash: 'a', parent: null, tokens: [0, 1, 2, 3], medium: 'device' },
      { hash: 'b', parent: 'a', tokens: [4, 5, 6, 7], medium: 'host' },
      { hash: 'c', parent: null, tokens: [50, 51, 52, 53], medium: 'device' },
    ])
  })
})

describe('victims', () => {
  it('are leaves, the least recently used first', () => {
    const index = make({ attentionParity: 1e12 })
    index.insert(['a', 'b'], ids(2), [0, 0])
    index.insert(['a', 'c'], ids(2), [0, 0])
    index.insert(['x'], ids(1), [0])
    index.longest(['a', 'b'])
    assert.equal(index.victim()!.hash, 'c')
    assert.deepEqual(names(index.evict(9)), ['c', 'x', 'b', 'a'])
    assert.equal(index.victim(), null)
    checkPrefixIndex(index)
  })

  it('are cheap to compute again before dear ones of the same age, but age wins in the end', () => {
    // the second block costs twice as much as a first one: one half-life
    const index = make({ attentionParity: PAGE, halfLife: 10 })
    index.insert(['a', 'deep'], ids(2), [0, 0])
    index.insert(['late'], ids(1), [0])
    assert.equal(index.victim()!.hash, 'late')
    for (let i = 0; i < 12; i++) index.longest(['late'])
    assert.equal(index.victim()!.hash, 'deep')
  })

  it('are never pinned, nor before a pinned one', () => {
    const index = make()
    const chain = index.insert(['a', 'b', 'c'], ids(3), [0, 0, 0])
    index.insert(['a', 'x'], ids(2), [0, 0])
    index.pin(chain[1]!)
    index.pin(chain[1]!)
    assert.equal(index.evictable, 2)
    assert.deepEqual(names(index.evict(9)).sort(), ['c', 'x'])
    index.unpin(chain[1]!)
    assert.equal(index.victim(), null)
    checkPrefixIndex(index)
    index.unpin(chain[1]!)
    assert.deepEqual([index.evictable, names(index.evict(9))], [2, ['b', 'a']])
    assert.throws(() => index.unpin(chain[1]!), /not pinned/)
    assert.throws(() => index.pin(chain[1]!), /removed/)
  })

  it('are counted by group', () => {
    const index = make({ groupOf: (place: number) => place % 10 })
    const chain = index.insert(['a', 'b', 'c'], ids(3), [1, 11, 21])
    index.insert(['x', 'y'], ids(2, 50), [2, 12])
    assert.deepEqual([index.evictableOf(1), index.evictableOf(2), index.evictableOf(3)], [3, 2, 0])
    index.pin(chain[1]!)
    assert.deepEqual([index.evictableOf(1), index.evictableOf(2), index.evictable], [1, 2, 3])
    index.remove(chain[1]!)
    assert.deepEqual([index.evictableOf(1), index.evictableOf(2)], [1, 2])
    index.unpin(chain[1]!)
    index.evict(9)
    assert.equal(index.evictable, 0)
    checkPrefixIndex(index)
  })

  it('spare a block as long as it grows: what follows it counts as its use', () => {
    const index = make({ attentionParity: 1e12 })
    const [a] = index.insert(['a'], ids(1), [0])
    index.insert(['old'], ids(1), [0])
    index.insert(['b'], ids(1), [0], a)
    assert.deepEqual(names(index.evict(3)), ['old', 'b', 'a'])
  })
})

describe('removing', () => {
  it('takes all that follows, pinned or not, children first', () => {
    const index = make()
    const [, b, c] = index.insert(['a', 'b', 'c'], ids(3), [0, 0, 0])
    index.insert(['a', 'b', 'd'], ids(3), [0, 0, 0])
    index.pin(c!)
    const gone = names(index.remove(b!))
    assert.deepEqual([gone.length, gone[2], gone.slice(0, 2).sort()], [3, 'b', ['c', 'd']])
    assert.deepEqual(index.remove(b!), [])
    assert.deepEqual([index.size, index.evictable, index.victim()!.hash], [1, 1, 'a'])
    index.unpin(c!)
    index.touch(c!)
    checkPrefixIndex(index)
  })

  it('of everything gives everything', () => {
    const index = make()
    const chain = index.insert(['a', 'b'], ids(2), [5, 6])
    index.pin(chain[1]!)
    assert.deepEqual(
      index.clear().map((n) => n.place),
      [6, 5],
    )
    index.unpin(chain[1]!)
    assert.deepEqual([index.size, index.evictable, index.victim()], [0, 0, null])
    checkPrefixIndex(index)
    index.insert(['a'], ids(1), [1])
    checkPrefixIndex(index)
  })
})

describe('against a plain model', () => {
  interface Known {
    readonly parent: string | null
    readonly depth: number
    pins: number
    score: number
    readonly order: number
  }

  it('30,000 random commands', () => {
    const seed = 20_240_611
    const random = seeded(seed)
    const pick = (n: number) => Math.floor(random() * n)
    const parity = 16
    const index = make({ attentionParity: parity, groupOf: (place: number) => place % 3 })
    const model = new Map<string, Known>()
    const pinned: PrefixNode<number>[] = []
    let now = 0
    let order = 0

    /** A chain's name is its path; few branches, so that chains meet. */
    const path = () => {
      const hashes: string[] = []
      let name = ''
      for (let depth = 1 + pick(10); depth > 0; depth--) hashes.push((name += `${pick(3)}`))
      return hashes
    }
    const use = (hashes: readonly string[]) => {
      now++
      for (const h of hashes) {
        const known = model.get(h)!
        known.score = now + Math.max(64, model.size) * Math.log2(1 + (known.depth * PAGE) / parity)
      }
    }
    const stored = (hashes: readonly string[]) => {
      let n = 0
      while (n < hashes.length && model.has(hashes[n]!)) n++
      return hashes.slice(0, n)
    }
    const children = (hash: string) => [...model].filter(([, k]) => k.parent === hash).map(([h]) => h)
    const isHeld = (hash: string): boolean => model.get(hash)!.pins > 0 || children(hash).some(isHeld)
    const victim = () => {
      let best: string | null = null
      const parents = new Set([...model.values()].map((k) => k.parent))
      for (const [h, k] of model) {
        if (parents.has(h) || k.pins > 0) continue
        const b = best === null ? null : model.get(best)!
        if (!b || k.score < b.score || (k.score === b.score && k.order < b.order)) best = h
      }
      return best
    }

    for (let step = 0; step < 30_000; step++) {
      const where = `seed ${seed}, step ${step}`
      const command = pick(100)
      if (command < 30) {
        const hashes = path()
        const known = stored(hashes).length
        const fresh = index.insert(hashes, ids(hashes.length), hashes.map(Number))
        assert.deepEqual(names(fresh), hashes.slice(known), where)
        for (let i = known; i < hashes.length; i++)
          model.set(hashes[i]!, { parent: hashes[i - 1] ?? null, depth: i, pins: 0, score: 0, order: order++ })
        now += fresh.length
        use(hashes)
      } else if (command < 55) {
        const hashes = path()
        const wanted = stored(hashes)
        assert.equal(index.match(hashes), wanted.length, where)
        assert.deepEqual(names(index.longest(hashes)), wanted, where)
        if (wanted.length > 0) use(wanted)
      } else if (command < 65) {
        const found = stored(path())
        if (found.length === 0) continue
        const node = index.get(found.at(-1)!)!
        index.pin(node)
        model.get(node.hash)!.pins++
        pinned.push(node)
      } else if (command < 76) {
        if (pinned.length === 0) continue
        const [node] = pinned.splice(pick(pinned.length), 1)
        index.unpin(node!)
        if (node!.stored) model.get(node!.hash)!.pins--
      } else if (command < 79) {
        const found = stored(path())
        if (found.length < 3) continue // whole trees only seldom
        const gone = names(index.remove(index.get(found.at(-1)!)!))
        const wanted = [...model.keys()].filter((h) => h.startsWith(found.at(-1)!))
        assert.deepEqual(gone.toSorted(), wanted.toSorted(), where)
        for (const h of wanted) model.delete(h)
      } else if (command < 99) {
        const count = 1 + pick(4)
        const gone = names(index.evict(count))
        const wanted: string[] = []
        for (let v: string | null; wanted.length < count && (v = victim()) !== null; wanted.push(v)) model.delete(v)
        assert.deepEqual(gone, wanted, where)
      } else if (pick(20) === 0) {
        assert.equal(index.clear().length, model.size, where)
        model.clear()
      }
      assert.equal(index.size, model.size, where)
      if (step % 97 > 0) continue
      checkPrefixIndex(index)
      assert.equal(index.evictable, [...model.keys()].filter((h) => !isHeld(h)).length, where)
      assert.deepEqual(new Set(index.snapshot().map((b) => `${b.hash} ${b.parent}`)).size, model.size)
    }
  })

  it('evicts 20,000 blocks out of 20,000 without walking them', () => {
    const index = make()
    for (let c = 0; c < 200; c++) {
      const hashes = Array.from({ length: 100 }, (_, i) => `${c}-${i}`)
      index.insert(hashes, ids(100), hashes.map(Number))
    }
    const start = performance.now()
    for (let i = 0; i < 20_000; i++) assert.equal(index.evict(1).length, 1)
    const ms = performance.now() - start
    assert.equal(index.size, 0)
    assert.ok(ms < 1000, `${ms} ms`) // 20 ms measured; a walk per block would take seconds
  })
})
