/**
 * Mutants of valid files. Each must either parse to a result that is consistent in itself, or be refused with a typed
 * error; anything else (another exception, a range outside the file, a slow answer) is a fault.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { KvasirError } from '../../contract/errors.ts'
import { GGML_TYPES } from '../types.ts'
import { type Field, forge, le32, le64, leArray, leString } from './forge.test.ts'
import { type GgufFile, parseGguf, readGguf } from './index.ts'

const SEEDS = [
  forge({}),
  forge({
    keys: [
      ['general.architecture', 8, leString('llama')],
      ['general.alignment', 4, le32(64)],
      ['n', 10, le64(7)],
      ['flag', 7, Buffer.of(1)],
      ['tokens', 9, leArray(8, 3, leString('a'), leString('bc'), leString('ü'))],
      ['scores', 9, leArray(6, 4, Buffer.alloc(16))],
      ['nested', 9, leArray(9, 2, leArray(7, 2, Buffer.of(0, 1)), leArray(9, 1, leArray(0, 0)))],
    ],
    tensors: [
      { name: 'token_embd.weight', dims: [64, 3], type: 8, offset: 0 },
      { name: 'blk.0.attn_q.weight', dims: [256, 2], type: 12, offset: 256 },
      { name: 'output_norm.weight', dims: [8], type: 0, offset: 576 },
      { name: 'four', dims: [2, 2, 2, 2], type: 1, offset: 640 },
    ],
    alignment: 64,
    dataBytes: 672,
  }),
  forge({ version: 2, tensors: [{ name: 'a', dims: [1], type: 24, offset: 0 }], dataBytes: 1 }),
]

/** Numbers at which parsers break. */
const EDGES = [
  0,
  1,
  2,
  4,
  5,
  7,
  8,
  9,
  31,
  32,
  33,
  63,
  64,
  255,
  2 ** 16,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  2 ** 48,
]
const edges64 = [
  ...EDGES.map(BigInt),
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 32n,
  2n ** 64n - 1n,
]

type Mutation = (file: { bytes: Buffer; fields: Field[] }) => Buffer

/** Puts `now` in place of `size` bytes. */
const splice = (bytes: Buffer, at: number, size: number, now: Buffer) =>
  Buffer.concat([bytes.subarray(0, at), now, bytes.subarray(at + size)])
const at = (bytes: Buffer, r: number) => (bytes.length === 0 ? 0 : r % bytes.length)
const pick = (fields: Field[], r: number) => fields[r % fields.length]!
const number64 = (bytes: Buffer, f: Field) =>
  f.size === 8 && f.at + 8 <= bytes.length ? bytes.readBigUInt64LE(f.at) : undefined

const r = fc.nat({ max: 2 ** 30 })
const mutations: fc.Arbitrary<Mutation> = fc.oneof(
  r.chain((a) =>
    fc.nat({ max: 7 }).map(
      (bit): Mutation =>
        ({ bytes }) => {
          if (bytes.length > 0) bytes[at(bytes, a)]! ^= 1 << bit
          return bytes
        },
    ),
  ),
  // texts and values may mostly be anything, so these mutants often parse, and go on to the next mutation
  fc.tuple(r, r, fc.nat({ max: 127 })).map(
    ([a, b, now]): Mutation =>
      ({ bytes, fields }) => {
        const free = fields.filter((x) => (x.kind === 'text' || x.kind === 'value') && x.size > 0)
        if (free.length === 0) return bytes
        const f = pick(free, a)
        return splice(bytes, f.at + (b % f.size), 1, Buffer.of(now))
      },
  ),
  fc.tuple(r, fc.uint8Array({ minLength: 1, maxLength: 9 })).map(
    ([a, now]): Mutation =>
      ({ bytes }) =>
        splice(bytes, at(bytes, a), now.length, Buffer.from(now)),
  ),
  r.map(
    (a): Mutation =>
      ({ bytes }) =>
        bytes.subarray(0, at(bytes, a)),
  ),
  // a whole field gets an edge value, or one near its own
  fc.tuple(r, fc.constantFrom(...edges64)).map(
    ([a, value]): Mutation =>
      ({ bytes, fields }) => {
        const f = pick(fields, a)
        return splice(bytes, f.at, f.size, f.size === 4 ? le32(Number(value % 2n ** 32n)) : le64(value))
      },
  ),
  fc.tuple(r, fc.integer({ min: -3, max: 3 })).map(
    ([a, by]): Mutation =>
      ({ bytes, fields }) => {
        const f = pick(
          fields.filter((x) => x.size === 8 || x.size === 4),
          a,
        )
        const old = number64(bytes, f)
        if (old !== undefined) return splice(bytes, f.at, 8, le64(old + BigInt(by)))
        return f.at + 4 <= bytes.length ? splice(bytes, f.at, 4, le32(bytes.readUInt32LE(f.at) + by)) : bytes
      },
  ),
  fc.tuple(r, fc.constantFrom(-64, -32, 32, 64, 128, 2048)).map(
    ([a, by]): Mutation =>
      ({ bytes, fields }) => {
        const offsets = fields.filter((x) => x.kind === 'offset' || x.kind === 'dim')
        if (offsets.length === 0) return bytes
        const f = pick(offsets, a)
        return splice(bytes, f.at, 8, le64((number64(bytes, f) ?? 0n) + BigInt(by)))
      },
  ),
  fc.tuple(r, fc.integer({ min: 0, max: 45 })).map(
    ([a, id]): Mutation =>
      ({ bytes, fields }) => {
        const types = fields.filter((x) => x.kind === 'type')
        return types.length === 0 ? bytes : splice(bytes, pick(types, a).at, 4, le32(id))
      },
  ),
  // pieces removed, doubled, moved, or taken from another file
  fc.tuple(r, r).map(
    ([a, b]): Mutation =>
      ({ bytes, fields }) => {
        const [from, to] = [pick(fields, a), pick(fields, b)].sort((x, y) => x.at - y.at) as [Field, Field]
        return splice(bytes, from.at, to.at - from.at, Buffer.alloc(0))
      },
  ),
  fc.tuple(r, r).map(
    ([a, b]): Mutation =>
      ({ bytes, fields }) => {
        const [from, to] = [pick(fields, a), pick(fields, b)].sort((x, y) => x.at - y.at) as [Field, Field]
        return splice(bytes, to.at, 0, Buffer.from(bytes.subarray(from.at, to.at)))
      },
  ),
  fc.tuple(r, r, fc.constantFrom(...SEEDS)).map(
    ([a, b, other]): Mutation =>
      ({ bytes, fields }) =>
        Buffer.concat([bytes.subarray(0, pick(fields, a).at), other.bytes.subarray(pick(other.fields, b).at)]),
  ),
)

/** The ranges that a caller would map. */
function checkSelf(file: GgufFile, size: number): void {
  assert.equal(file.totalBytes, size)
  const ranges = [...file.tensors.values()].sort((a, b) => a.offset - b.offset)
  let end = file.parts[0]!.dataOffset
  assert.ok(Number.isSafeInteger(end) && end <= size)
  for (const t of ranges) {
    assert.ok(t.offset >= end && t.offset % file.alignment === 0)
    end = t.offset + t.bytes
    assert.ok(Number.isSafeInteger(end) && end <= size)
    const { block, bytes } = GGML_TYPES[t.type]
    assert.ok(t.ne.every((n) => Number.isSafeInteger(n) && n >= 1))
    assert.equal((t.ne.reduce((a, b) => a * b) / block) * bytes, t.bytes)
  }
  for (const [key, value] of file.metadata.entries()) assert.ok(key.length > 0 && value !== undefined)
}

function survives(bytes: Uint8Array, size = bytes.length): 'parsed' | 'refused' {
  let file: GgufFile
  try {
    file = parseGguf(bytes, size)
  } catch (error) {
    if (error instanceof KvasirError && (error.code === 'GGUF_INVALID' || error.code === 'MODEL_INVALID'))
      return 'refused'
    throw error
  }
  checkSelf(file, size)
  return 'parsed'
}

describe('mutants', () => {
  it('the files they start from are valid', () => {
    for (const seed of SEEDS) assert.equal(survives(seed.bytes), 'parsed')
  })

  it('of small files, one to three mutations each', () => {
    const seen = { parsed: 0, refused: 0 }
    const run = (start: (typeof SEEDS)[number], chain: Mutation[]) => {
      let bytes = Buffer.from(start.bytes)
      for (const mutate of chain) bytes = Buffer.from(mutate({ bytes, fields: start.fields }))
      seen[survives(bytes)]++
    }
    const some = fc.array(mutations, { minLength: 1, maxLength: 3 })
    fc.assert(fc.property(fc.constantFrom(...SEEDS), some, run), { numRuns: 12_000 })
    // both answers must be common, or the mutations test nothing
    assert.ok(seen.parsed > 300 && seen.refused > 300, JSON.stringify(seen))
  })

  it('every 4- and 8-byte field of a file with every edge value', () => {
    for (const { bytes, fields } of SEEDS)
      for (const f of fields.filter((x) => x.size === 4 || x.size === 8))
        for (const edge of edges64) {
          const now = f.size === 4 ? le32(Number(edge % 2n ** 32n)) : le64(edge)
          const mutant = splice(bytes, f.at, f.size, now)
          survives(mutant)
          survives(mutant, 2 ** 50) // as if the file were vast, so that large claims could be true
        }
  })

  it('of a real header', () => {
    const path = fileURLToPath(new URL('../../../models/house-5m/house-5m-q8_0.gguf', import.meta.url))
    const { totalBytes, parts } = readGguf(path)
    const header = readFileSync(path).subarray(0, parts[0]!.dataOffset)
    const change = fc.tuple(r, fc.constantFrom(...EDGES.filter((e) => e < 256)))
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 3 }), (changes) => {
        const bytes = Buffer.from(header)
        for (const [a, value] of changes) bytes[at(bytes, a)] = value
        survives(bytes, totalBytes)
      }),
      { numRuns: 150 },
    )
  })

  it('bytes of no file at all, behind a valid start', () => {
    const head = (tensors: number, keys: number) =>
      Buffer.concat([Buffer.from('GGUF'), le32(3), le64(tensors), le64(keys)])
    fc.assert(
      fc.property(fc.nat({ max: 3 }), fc.nat({ max: 3 }), fc.uint8Array({ maxLength: 400 }), (tensors, keys, rest) => {
        survives(Buffer.concat([head(tensors, keys), rest]))
        survives(Buffer.from(rest))
      }),
      { numRuns: 1000 },
    )
  })
})
