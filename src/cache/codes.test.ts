/** Codes against the numbers they were made of, in float64, and their planes against ggml's own reading of them. */
import assert from 'node:assert/strict'
import { after, describe, it } from 'node:test'
import fc from 'fast-check'
import { KvasirError } from '../contract/errors.ts'
import type { Codes, Groups } from '../contract/format.ts'
import { BLOCK_ROWS } from '../contract/format.ts'
import { Buffer, hostBufferType } from '../ggml/buffer.ts'
import { Context } from '../ggml/context.ts'
import { backend, Random, rmsError, runner } from '../ggml/fixture.test.ts'
import { Graph } from '../ggml/graph.ts'
import * as ops from '../ggml/ops/index.ts'
import { liveNatives } from '../ggml/owned.ts'
import {
  blockCodeBytes,
  checkCodes,
  codeLayout,
  decode,
  type EncodedBlock,
  type EncodeOptions,
  encode,
  extrasBytes,
  sharedBytes,
} from './codes.ts'
import { fromHalves, toHalves } from './half.ts'
import { unpack } from './planes.ts'

after(() => {
  runner.dispose()
  backend.dispose()
  assert.deepEqual(liveNatives(), {})
})

const FIRST: EncodeOptions = { tier: null, balance: null, seed: 1 }
const CHANNEL: Groups = { by: 'channel' }
const TIER: Groups = { by: 'tier' }
const token = (size: number): Groups => ({ by: 'token', size })

function normals(r: Random, count: number): Float32Array {
  return Float32Array.from({ length: count }, () => r.normal())
}

/** Normal numbers whose channels have lengths, and middles, of their own. f32 [d, n] */
function channelled(r: Random, d: number, n: number): Float32Array {
  const [sizes, middles] = [normals(r, d), normals(r, d)]
  return Float32Array.from({ length: d * n }, (_, at) => r.normal() * 4 ** sizes[at % d]! + middles[at % d]!)
}

/** f32 [d, n] */
function decoded(blocks: readonly EncodedBlock[], c: Codes, d: number, n: number): Float32Array {
  return Float32Array.from(blocks.flatMap((block) => [...decode(block, c, d)])).subarray(0, d * n)
}

function roundTrip(x: Float32Array, c: Codes, d: number, o: EncodeOptions = FIRST): Float32Array {
  return decoded(encode(x, c, d, o).blocks, c, d, x.length / d)
}

/** Code - 1, or - 5, of each number, [d, n]. */
function steps(blocks: readonly EncodedBlock[], c: Codes, d: number, n: number): number[] {
  const inOrder = (v: Int8Array) =>
    c.groups.by === 'token' ? v.map((_, at) => v[(at % d) * BLOCK_ROWS + Math.floor(at / d)]!) : v
  return blocks.flatMap((block) => [...inOrder(unpack(block.planes, codeLayout(c, d).planes))]).slice(0, d * n)
}

describe('sizes of codes', () => {
  it('follow the closed form', () => {
    const d = 64
    for (const bits of [2, 4] as const) {
      const planes = (bits / 2) * (32 * d) * (66 / 256)
      assert.equal(blockCodeBytes({ bits, groups: CHANNEL }, d), planes + 4 * d)
      assert.equal(blockCodeBytes({ bits, groups: TIER }, d), planes)
      for (const size of [1, 16, 32, 64])
        assert.equal(blockCodeBytes({ bits, groups: token(size) }, d), planes + (4 * 32 * d) / size)
    }
    // 2.0625 bits a code, and 32 / 32 for the parameters of its group
    assert.equal((blockCodeBytes({ bits: 2, groups: CHANNEL }, d) * 8) / (32 * d), 3.0625)
  })

  it('are those of the arrays', () => {
    const [d, n, rank] = [32, 70, 3]
    const c: Codes = { bits: 4, groups: CHANNEL, outliers: 0.1, rank, evened: true }
    const { blocks } = encode(normals(new Random(1), d * n), c, d, FIRST)
    assert.equal(blocks.length, 3)
    for (const { planes, params, extras } of blocks) {
      assert.equal(planes.length + params.byteLength, blockCodeBytes(c, d))
      assert.equal(extrasBytes(extras), 4 * extras.outliers!.at.length + 2 * rank * BLOCK_ROWS)
      assert.equal(sharedBytes(extras), 2 * d + 2 * rank * d)
    }
    const outliers = blocks.reduce((sum, { extras }) => sum + extras.outliers!.at.length, 0)
    assert.equal(outliers, 2 * Math.floor(0.05 * n) * d)
    assert.equal(blocks[0]!.extras.lowRank!.b, blocks[2]!.extras.lowRank!.b)
    const plain = encode(normals(new Random(1), d * n), { bits: 4, groups: CHANNEL }, d, FIRST).blocks[0]!
    assert.equal(extrasBytes(plain.extras) + sharedBytes(plain.extras), 0)
  })
})

describe('what cannot be encoded', () => {
  const refuses = (run: () => unknown, message: RegExp) =>
    assert.throws(run, (e) => e instanceof KvasirError && e.code === 'INVALID_ARGUMENT' && message.test(e.message))
  const c: Codes = { bits: 2, groups: CHANNEL }
  const ones = new Float32Array(16).fill(1)

  it('is refused: formats', () => {
    for (const d of [0, -8, 12, 8.5, Number.NaN]) refuses(() => checkCodes(c, d), /multiple of 8/)
    refuses(() => checkCodes({ ...c, bits: 3 as 2 }, 8), /2 or 4 bits/)
    refuses(() => checkCodes({ ...c, groups: { by: 'row' as 'tier' } }, 8), /token, channel or tier/)
    for (const size of [0, 3, 16, 1.5]) refuses(() => checkCodes({ ...c, groups: token(size) }, 8), /divide/)
    for (const outliers of [-0.1, 1.1, Number.NaN]) refuses(() => checkCodes({ ...c, outliers }, 8), /share/)
    refuses(() => checkCodes({ ...c, outliers: 0.1 }, 4096), /2048/)
    for (const rank of [-1, 9, 0.5]) refuses(() => checkCodes({ ...c, rank }, 8), /rank/)
    checkCodes({ bits: 4, groups: token(8), outliers: 1, rank: 8, evened: true }, 8)
  })

  it('is refused: rows', () => {
    refuses(() => encode(new Float32Array(0), c, 8, FIRST), /no rows/)
    refuses(() => encode(new Float32Array(9), c, 8, FIRST), /no rows/)
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY])
      refuses(() => encode(ones.with(11, value), c, 8, FIRST), /number 11/)
  })

  it('is refused: what goes with them', () => {
    const half = (length: number) => new Uint16Array(length)
    const tier = (channelScale: Uint16Array | null, channelBase: Uint16Array | null) => ({
      ...FIRST,
      tier: { channelScale, channelBase },
    })
    for (const balance of [ones.subarray(0, 7), ones.subarray(0, 8).with(2, 0), ones.subarray(0, 8).with(2, Infinity)])
      refuses(() => encode(ones, c, 8, { ...FIRST, balance }), /balance/)
    refuses(() => encode(ones, { ...c, groups: TIER }, 8, tier(half(8), null)), /channelBase/)
    refuses(() => encode(ones, c, 8, tier(null, half(8))), /channelBase/)
    refuses(() => encode(ones, { ...c, evened: true }, 8, tier(null, null)), /channelScale/)
    refuses(() => encode(ones, c, 8, tier(half(7), null)), /7 numbers/)
  })
})

describe('planes', () => {
  it('are read by ggml as what they hold', () => {
    const r = new Random(2)
    for (const bits of [2, 4] as const)
      for (const d of [8, 24, 64]) {
        const c: Codes = { bits, groups: CHANNEL }
        const { blocks } = encode(normals(r, d * 100), c, d, FIRST)
        const { planes, planeBytes } = codeLayout(c, d)
        const rows = planes * blocks.length
        const read = readRows(Uint8Array.from(blocks.flatMap((block) => [...block.planes])), BLOCK_ROWS * d, rows)
        assert.equal(blocks[0]!.planes.length, planes * planeBytes)
        for (const [b, block] of blocks.entries()) {
          const sum = unpack(block.planes, planes)
          for (let at = 0; at < sum.length; at++) {
            let want = 0
            for (let p = 0; p < planes; p++) want += 4 ** p * read[(b * planes + p) * sum.length + at]!
            assert.equal(sum[at], want, `${bits} bits, d ${d}, block ${b}, number ${at}`)
          }
        }
        assert.deepEqual([...new Set(read)].sort(), [-1, 0, 1, 2])
      }
  })

  function readRows(bytes: Uint8Array, length: number, rows: number): Float32Array {
    const leafs = new Context({ tensors: 1 })
    const planes = leafs.tensor('tq2_0', length, rows)
    const buffer = Buffer.forContext(leafs, hostBufferType())
    const c = new Context({ tensors: 4, graphNodes: 8 })
    try {
      planes.set(bytes)
      const ids = c.tensor('i32', rows).asInput()
      const out = ops.getRows(c, planes, ids).asOutput() // f32 [length, rows]
      const graph = new Graph(c)
      graph.expand(out)
      runner.allocate(graph)
      ids.set(Int32Array.from({ length: rows }, (_, i) => i))
      runner.run(graph)
      return out.floats()
    } finally {
      c.dispose()
      buffer.dispose()
      leafs.dispose()
    }
  }
})

/** Formats without a low rank, for the bound of their error. */
const formats = fc.record({
  bits: fc.constantFrom(2 as const, 4 as const),
  groups: fc.constantFrom(CHANNEL, TIER, token(4), token(8)),
  outliers: fc.constantFrom(0, 0.05, 0.5),
  evened: fc.boolean(),
})

/** How far a decoded number may be off by: half a step, and what rounding scale and base to f16 shifts the ends of a range by. */
function bound({ params, extras }: EncodedBlock, c: Codes, d: number, at: number): number {
  const p = fromHalves(params)
  const group = c.groups.by === 'token' ? Math.floor((at % d) / c.groups.size) : 0
  const own = { token: group * BLOCK_ROWS + Math.floor(at / d), channel: at % d, tier: null }
  const g = own[c.groups.by]
  const factor = extras.channelScale ? fromHalves(extras.channelScale)[at % d]! : 1
  const base = g === null ? fromHalves(extras.channelBase!)[at % d]! : p[p.length / 2 + g]! * factor
  const scale = (g === null ? 1 : p[g]!) * factor
  const f16 = 2 ** -10 * (Math.abs(base) + (2 ** c.bits - 1) * scale) + factor * 2 ** -20
  return scale / 2 + f16
}

describe('decoded codes', () => {
  it('are off by half a step at most', () => {
    fc.assert(
      fc.property(
        formats,
        fc.constantFrom(8, 16, 40),
        fc.integer({ min: 1, max: 80 }),
        fc.integer(),
        fc.boolean(),
        (c, d, n, seed, isBalanced) => {
          const r = new Random(seed)
          const x = channelled(r, d, n)
          const balance = isBalanced ? Float32Array.from({ length: d }, () => 2 ** r.int(-6, 6)) : null
          const { blocks } = encode(x, c, d, { ...FIRST, balance })
          assert.equal(blocks.length, Math.ceil(n / BLOCK_ROWS))
          for (const [b, block] of blocks.entries()) {
            const got = decode(block, c, d)
            const exact = new Set(block.extras.outliers?.at)
            for (let at = 0; at < Math.min(got.length, x.length - b * got.length); at++) {
              const want = x[b * got.length + at]!
              // Below 2^-14 the numbers of f16 are 2^-24 apart, however small.
              const most = exact.has(at) ? 2 ** -11 * Math.abs(want) + 2 ** -25 : bound(block, c, d, at)
              assert.ok(Math.abs(got[at]! - want) <= most, `${want} became ${got[at]}, may be off by ${most}`)
            }
          }
        },
      ),
      { numRuns: 150 },
    )
  })

  it('are exact where the grid is: hand-made numbers', () => {
    const d = 8
    const x = Float32Array.from({ length: d * 32 }, (_, at) => (Math.floor(at / d) % 4) * (1 + (at % d)) - 3) // rows 0 to 3
    const c: Codes = { bits: 2, groups: CHANNEL }
    const { blocks } = encode(x, c, d, FIRST)
    assert.deepEqual(
      steps(blocks, c, d, 4),
      [-1, 0, 1, 2].flatMap((step) => Array(d).fill(step)),
    )
    assert.deepEqual([...fromHalves(blocks[0]!.params)], [1, 2, 3, 4, 5, 6, 7, 8, -2, -1, 0, 1, 2, 3, 4, 5])
    assert.deepEqual(decode(blocks[0]!, c, d), x)
  })

  it('lie with rows fastest where groups are by token', () => {
    const [d, size] = [8, 4]
    const x = Float32Array.from({ length: d * 32 }, (_, at) => (at % size) * (1 + Math.floor(at / size))) // group g: 0 to 3 (g + 1)
    const c: Codes = { bits: 2, groups: token(size) }
    const block = encode(x, c, d, FIRST).blocks[0]!
    const v = unpack(block.planes, 1)
    for (let channel = 0; channel < d; channel++)
      assert.deepEqual([...v.subarray(channel * 32, (channel + 1) * 32)], Array(32).fill((channel % size) - 1))
    const scales = Array.from({ length: 64 }, (_, i) => 1 + 2 * (i % 32) + Math.floor(i / 32)) // [32, 2]
    assert.deepEqual([...fromHalves(block.params)], [...scales, ...scales])
    assert.deepEqual(decode(block, c, d), x)
  })

  it('are a constant where the numbers are, with all planes at 0', () => {
    for (const bits of [2, 4] as const)
      for (const groups of [CHANNEL, TIER, token(8)]) {
        const c: Codes = { bits, groups }
        const { blocks } = encode(new Float32Array(8 * 5).fill(2.5), c, 8, FIRST)
        assert.deepEqual(steps(blocks, c, 8, 32), Array(8 * 32).fill(0))
        assert.deepEqual(decode(blocks[0]!, c, 8), new Float32Array(8 * 32).fill(2.5))
      }
  })

  it('stay finite where f16 ends', () => {
    const large = Float32Array.from({ length: 8 * 32 }, (_, at) => (at % 3) * 1e6 - 1e6)
    const small = large.map((value) => value * 1e-23)
    for (const x of [large, small])
      for (const groups of [CHANNEL, TIER, token(8)])
        for (const evened of [false, true])
          for (const balance of [null, new Float32Array(8).fill(1e9), new Float32Array(8).fill(1e-9)]) {
            const c: Codes = { bits: 2, groups, evened, outliers: 0.1, rank: 2 }
            const got = roundTrip(x, c, 8, { ...FIRST, balance })
            assert.ok(got.every(Number.isFinite), `${JSON.stringify(c)} of ${x[0]}, balance ${balance?.[0]}`)
          }
  })

  it('are encoded again as what they are', () => {
    const [d, n] = [16, 64]
    const x = channelled(new Random(3), d, n)
    for (const bits of [2, 4] as const)
      for (const groups of [CHANNEL, TIER, token(8)])
        for (const evened of [false, true]) {
          const c: Codes = { bits, groups, evened }
          const once = encode(x, c, d, FIRST)
          const twice = encode(decoded(once.blocks, c, d, n), c, d, { ...FIRST, tier: once.tier })
          assert.deepEqual(steps(twice.blocks, c, d, n), steps(once.blocks, c, d, n), JSON.stringify(c))
        }
  })
})

describe('the last block', () => {
  it('repeats the last row, which changes no range', () => {
    const [d, n] = [16, 37]
    const x = channelled(new Random(4), d, n)
    for (const groups of [CHANNEL, TIER, token(4)]) {
      const c: Codes = { bits: 2, groups }
      const last = encode(x, c, d, FIRST).blocks[1]!
      const rows = steps([last], c, d, 32)
      for (let row = 5; row < 32; row++)
        assert.deepEqual(rows.slice(row * d, (row + 1) * d), rows.slice(4 * d, 5 * d), `row ${row}`)
      if (groups.by === 'channel')
        assert.deepEqual(last.params, encode(x.subarray(32 * d), c, d, FIRST).blocks[0]!.params)
    }
  })

  it('has outliers and a low rank of its rows alone', () => {
    const [d, n, rank] = [16, 37, 4]
    const { blocks } = encode(
      channelled(new Random(5), d, n),
      { bits: 2, groups: CHANNEL, outliers: 1, rank },
      d,
      FIRST,
    )
    const { outliers, lowRank } = blocks[1]!.extras
    assert.ok(Math.max(...outliers!.at) < 5 * d, 'rows that are none have outliers')
    assert.deepEqual(outliers!.at, outliers!.at.toSorted())
    assert.ok(
      lowRank!.a.subarray(5 * rank).every((bits) => bits === 0),
      'rows that are none have a low rank',
    )
    assert.equal(lowRank!.a.length, rank * BLOCK_ROWS)
  })
})

describe('groups', () => {
  it('by channel bear a channel of large numbers, those by token do not', () => {
    const [d, n] = [64, 96]
    const r = new Random(6)
    const x = Float32Array.from({ length: d * n }, (_, at) => r.normal() * (at % d === 11 ? 50 : 1))
    const others = (all: Float32Array) => all.filter((_, at) => at % d !== 11)
    const error = (groups: Groups) => rmsError(others(roundTrip(x, { bits: 2, groups }, d)), others(x))
    assert.ok(error(CHANNEL) < 0.5, `by channel ${error(CHANNEL)}`)
    assert.ok(error(token(64)) > 2 * error(CHANNEL), `by token ${error(token(64))}`)
  })

  it('by tier do not depend on the order of rows', () => {
    const [d, n] = [16, 80]
    const r = new Random(7)
    const x = channelled(r, d, n)
    const order = Array.from({ length: n }, (_, i) => ({ i, key: r.next() }))
      .sort((p, q) => p.key - q.key)
      .map(({ i }) => i)
    const c: Codes = { bits: 4, groups: TIER }
    const [plain, mixed] = [x, Float32Array.from(order.flatMap((i) => [...x.subarray(i * d, (i + 1) * d)]))].map(
      (rows) => encode(rows, c, d, FIRST),
    ) as [ReturnType<typeof encode>, ReturnType<typeof encode>]
    const codes = steps(plain.blocks, c, d, n)
    assert.deepEqual(mixed.tier, plain.tier)
    assert.deepEqual(
      steps(mixed.blocks, c, d, n),
      order.flatMap((i) => codes.slice(i * d, (i + 1) * d)),
    )
  })

  it('by tier clamp later rows to the range of the first', () => {
    const [d, n] = [8, 32]
    const c: Codes = { bits: 4, groups: TIER }
    const { tier } = encode(normals(new Random(8), d * n), c, d, FIRST)
    const [low, high] = [-50, 50].map((value) => {
      const { blocks, tier: same } = encode(new Float32Array(d).fill(value), c, d, { ...FIRST, tier })
      assert.equal(same, tier)
      assert.equal(blocks[0]!.params.length, 0)
      return steps(blocks, c, d, 1)
    })
    assert.deepEqual([low, high], [Array(d).fill(-5), Array(d).fill(10)])
  })
})

describe('evened channels', () => {
  it('are divided by the root of their largest number, which stays for later rows', () => {
    const [d, n] = [16, 40]
    const c: Codes = { bits: 4, groups: token(16), evened: true }
    const x = channelled(new Random(9), d, n)
    for (let at = 3; at < x.length; at += d) x[at] = 0
    const { tier } = encode(x, c, d, FIRST)
    const roots = Float32Array.from({ length: d }, (_, i) => {
      const channel = x.filter((_, at) => at % d === i).map(Math.abs)
      return Math.sqrt(Math.max(...channel)) || 1
    })
    assert.deepEqual(tier.channelScale, toHalves(roots))
    assert.equal(tier.channelBase, null)
    const later = encode(channelled(new Random(10), d, n), c, d, { ...FIRST, tier })
    for (const { extras } of later.blocks) assert.equal(extras.channelScale, tier.channelScale)
  })

  it('have less error where channels differ', () => {
    const [d, n] = [64, 96]
    const r = new Random(11)
    const x = Float32Array.from({ length: d * n }, (_, at) => r.normal() * (at % d < 4 ? 20 : 1))
    const others = (all: Float32Array) => all.filter((_, at) => at % d >= 4)
    const error = (evened: boolean) =>
      rmsError(others(roundTrip(x, { bits: 4, groups: token(64), evened }, d)), others(x))
    assert.ok(error(true) < error(false) / 2, `${error(true)} evened, ${error(false)} not`)
  })
})

describe('balanced channels', () => {
  it('undo a pair of keys 30 times as long, whose queries are as much shorter', () => {
    const [d, n] = [64, 128]
    const r = new Random(12)
    const [keys, queries] = [normals(r, d * n), normals(r, d * 8)]
    const isPair = (at: number) => at % d === 5 || at % d === 37
    const [long, short] = [
      keys.map((k, at) => (isPair(at) ? 30 * k : k)),
      queries.map((q, at) => (isPair(at) ? q / 30 : q)),
    ]
    const c: Codes = { bits: 2, groups: token(64) }
    const error = (q: Float32Array, k: Float32Array, balance: Float32Array | null) =>
      rmsError(scores(q, roundTrip(k, c, d, { ...FIRST, balance }), d), scores(q, k, d))
    const plain = error(queries, keys, balanceOf(queries, keys, d))
    const balanced = error(short, long, balanceOf(short, long, d))
    const not = error(short, long, null)
    assert.ok(Math.abs(balanced - plain) < 0.02 * plain, `${balanced} balanced, ${plain} as they were`)
    assert.ok(not > 2 * plain, `${not} not balanced, ${plain} as they were`)
  })

  it('are balanced alike when they come later', () => {
    const [d, n] = [16, 32]
    const r = new Random(13)
    const balance = Float32Array.from({ length: d }, () => 4 ** r.normal())
    const c: Codes = { bits: 4, groups: token(16) }
    const { tier } = encode(normals(r, d * n), c, d, { ...FIRST, balance })
    assert.deepEqual(tier.channelScale, toHalves(balance.map((b) => 1 / b)))
    const x = normals(r, d * n)
    const later = encode(x, c, d, { ...FIRST, tier })
    assert.deepEqual(later.blocks, encode(x, c, d, { ...FIRST, balance }).blocks)
  })

  /** q . k of each query and key. */
  function scores(queries: Float32Array, keys: Float32Array, d: number): Float64Array {
    const out = new Float64Array((queries.length * keys.length) / d ** 2)
    for (let s = 0; s < out.length; s++) {
      const [q, k] = [Math.floor(s / (keys.length / d)) * d, (s % (keys.length / d)) * d]
      for (let i = 0; i < d; i++) out[s]! += queries[q + i]! * keys[k + i]!
    }
    return out
  }

  /** sqrt(max |q| / max |k|) by channel. */
  function balanceOf(queries: Float32Array, keys: Float32Array, d: number): Float32Array {
    const largest = (x: Float32Array, i: number) => Math.max(...x.filter((_, at) => at % d === i).map(Math.abs))
    return Float32Array.from({ length: d }, (_, i) => Math.sqrt(largest(queries, i) / largest(keys, i)))
  }
})

describe('what makes up for rounding', () => {
  const [d, n] = [32, 256]

  /** Tokens that drift, in few directions, with a few numbers far out: as in caches. */
  function correlated(r: Random): Float32Array {
    const directions = Array.from({ length: 6 }, () => normals(r, d))
    const at = new Float64Array(directions.length)
    const x = new Float32Array(d * n)
    for (let row = 0; row < n; row++) {
      for (let k = 0; k < at.length; k++) at[k] = 0.95 * at[k]! + 0.4 * r.normal()
      for (let i = 0; i < d; i++) {
        for (let k = 0; k < at.length; k++) x[row * d + i]! += at[k]! * directions[k]![i]!
        x[row * d + i]! += 0.3 * r.normal() + (r.chance(0.01) ? 20 * r.normal() : 0)
      }
    }
    return x
  }

  it('each helps: codes, with outliers, with a low rank, with both', () => {
    for (const bits of [2, 4] as const)
      for (const groups of [CHANNEL, TIER, token(32)]) {
        const x = correlated(new Random(14))
        const error = (outliers: number, rank: number) => rmsError(roundTrip(x, { bits, groups, outliers, rank }, d), x)
        const [D, S, L, SL] = [error(0, 0), error(0.07, 0), error(0, 4), error(0.07, 4)]
        const shown = `${bits} bits by ${groups.by}: ${[D, S, L, SL].map((e) => e.toFixed(4)).join(', ')}`
        assert.ok(S < D && L < D && SL < S && SL < L, shown)
      }
  })

  it('a low rank of all channels leaves what f16 loses', () => {
    for (const groups of [CHANNEL, TIER, token(32)])
      for (const outliers of [0, 0.1]) {
        const x = correlated(new Random(15))
        const error = rmsError(roundTrip(x, { bits: 2, groups, outliers, rank: d }, d), x)
        assert.ok(error < 1e-3, `by ${groups.by}, outliers ${outliers}: ${error}`)
      }
    const few = correlated(new Random(16)).subarray(0, 3 * d) // fewer rows than the rank
    const { blocks } = encode(few, { bits: 2, groups: token(32), rank: 8 }, d, FIRST)
    assert.equal(blocks[0]!.extras.lowRank!.b.length, 8 * d)
    const error = rmsError(decoded(blocks, { bits: 2, groups: token(32), rank: 8 }, d, 3), few)
    assert.ok(error < 1e-3, `of 3 rows: ${error}`)
  })

  it('all numbers can be outliers', () => {
    const x = correlated(new Random(17))
    const exact = fromHalves(toHalves(x))
    for (const groups of [CHANNEL, TIER, token(32)])
      for (const rank of [0, 2])
        assert.deepEqual(roundTrip(x, { bits: 2, groups, outliers: 1, rank }, d), exact, `by ${groups.by}`)
  })

  it('a low rank does not count what an outlier is off by beyond f16', () => {
    const x = correlated(new Random(19))
    x[7 * d + 3] = 1e6
    const c: Codes = { bits: 2, groups: CHANNEL, outliers: 2 / n, rank: 1 }
    const got = roundTrip(x, c, d)
    const others = (all: Float32Array) => all.filter((_, at) => at !== 7 * d + 3)
    const [error, without] = [got, roundTrip(x, { ...c, rank: 0 }, d)].map((y) => rmsError(others(y), others(x)))
    assert.equal(got[7 * d + 3], 65504)
    assert.ok(error! < 0.99 * without!, `${error} with a low rank, ${without} without`)
  })

  it('is the same for the same seed', () => {
    const x = correlated(new Random(18))
    const c: Codes = { bits: 2, groups: CHANNEL, rank: 2 }
    assert.deepEqual(encode(x, c, d, FIRST), encode(x, c, d, FIRST))
    assert.notDeepEqual(encode(x, c, d, FIRST), encode(x, c, d, { ...FIRST, seed: 2 }))
  })
})
