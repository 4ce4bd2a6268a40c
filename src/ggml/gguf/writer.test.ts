import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import fc from 'fast-check'
import { GGML_TYPES, type GgmlType } from '../types.ts'
import { thrown } from './forge.test.ts'
import type { GgufValue } from './format.ts'
import * as gguf from './index.ts'

const { writeGguf, readGguf } = gguf
const folder = mkdtempSync(join(tmpdir(), 'kvasir-write-'))
after(() => rmSync(folder, { recursive: true }))
const path = join(folder, 'm.gguf')

type Source = gguf.GgufTensorSource
const tensor = (over: Partial<Source> = {}): Source => ({
  name: 'a',
  type: 'f32',
  ne: [2],
  data: new Uint8Array(8),
  ...over,
})

/** Any value that GGUF can hold; `depth` bounds arrays in arrays. */
function anyValue(depth: number): fc.Arbitrary<GgufValue> {
  return fc.oneof(anyScalar, anyArray(depth))
}

const text = fc.string({ unit: 'grapheme' })
const anyScalar: fc.Arbitrary<GgufValue> = fc.oneof(
  fc.integer({ min: 0, max: 255 }).map(gguf.u8),
  fc.integer({ min: -128, max: 127 }).map(gguf.i8),
  fc.integer({ min: 0, max: 65535 }).map(gguf.u16),
  fc.integer({ min: -32768, max: 32767 }).map(gguf.i16),
  fc.nat({ max: 0xffffffff }).map(gguf.u32),
  fc.integer().map(gguf.i32),
  fc.float().map(gguf.f32),
  fc.double().map(gguf.f64),
  fc.maxSafeNat().map(gguf.u64),
  fc.maxSafeInteger().map(gguf.i64),
  fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n - 1n }).map(gguf.u64),
  fc.bigInt({ min: -(2n ** 63n), max: -(2n ** 53n) }).map(gguf.i64),
  fc.boolean().map(gguf.bool),
  text.map(gguf.str),
)

const anyArray = (depth: number): fc.Arbitrary<Extract<GgufValue, { type: 'array' }>> =>
  fc.oneof(
    fc.uint8Array().map(gguf.u8s),
    fc.int8Array().map(gguf.i8s),
    fc.uint16Array().map(gguf.u16s),
    fc.int16Array().map(gguf.i16s),
    fc.uint32Array().map(gguf.u32s),
    fc.int32Array().map(gguf.i32s),
    fc.float32Array().map(gguf.f32s),
    fc.float64Array().map(gguf.f64s),
    fc.bigUint64Array().map(gguf.u64s),
    fc.bigInt64Array().map(gguf.i64s),
    fc.array(fc.boolean()).map(gguf.bools),
    fc.array(text).map(gguf.strings),
    depth > 1 ? fc.array(anyArray(depth - 1), { maxLength: 3 }).map(gguf.arrays) : fc.constant(gguf.arrays([])),
  ) as fc.Arbitrary<Extract<GgufValue, { type: 'array' }>>

const name = (bytes: number) =>
  fc
    .string({ unit: 'binary', minLength: 1, maxLength: 30 })
    .filter((s) => Buffer.from(s).toString() === s && !s.includes('\0') && Buffer.byteLength(s) <= bytes)

const anyTensor: fc.Arbitrary<Source> = fc
  .tuple(
    name(63),
    fc.constantFrom(...(Object.keys(GGML_TYPES) as GgmlType[])),
    fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 1, maxLength: 4 }),
    fc.nat({ max: 255 }),
    fc.boolean(),
  )
  .map(([name, type, dims, fill, lazy]) => {
    const ne = [dims[0]! * GGML_TYPES[type].block, ...dims.slice(1)]
    const data = new Uint8Array(dims.reduce((a, b) => a * b) * GGML_TYPES[type].bytes).fill(fill)
    return { name, type, ne, data: lazy ? () => data : data }
  })

const dataOf = (t: Source) => (typeof t.data === 'function' ? t.data() : t.data)

describe('writeGguf', () => {
  it('writes what readGguf reads: any keys, any tensors, any alignment, split or not', () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.tuple(name(200), anyValue(4)), { selector: ([k]) => k, maxLength: 12 }),
        fc.uniqueArray(anyTensor, { selector: (t) => t.name, maxLength: 6 }),
        fc.constantFrom(8, 32, 64, 4096),
        fc.integer({ min: 1, max: 6 }),
        (metadata, tensors, alignment, splitMaxTensors) => {
          const paths = writeGguf(path, { metadata, tensors, alignment, splitMaxTensors })
          const file = readGguf(paths[0]!)
          assert.equal(file.version, 3)
          assert.equal(file.alignment, alignment)
          for (const [key, value] of metadata) assert.deepEqual(file.metadata.raw(key), value)
          assert.deepEqual(
            [...file.tensors.keys()],
            tensors.map((t) => t.name),
          )
          const contents = paths.map((p) => readFileSync(p))
          assert.ok(contents.every((c) => c.length % alignment === 0))
          for (const t of tensors) {
            const got = file.tensors.get(t.name)!
            assert.equal(got.type, t.type)
            assert.equal(got.nDims, t.ne.length)
            assert.deepEqual(got.ne, [...t.ne, 1, 1, 1].slice(0, 4))
            const stored = contents[got.part]!.subarray(got.offset, got.offset + got.bytes)
            assert.ok(stored.equals(dataOf(t)))
          }
        },
      ),
      { numRuns: 150 },
    )
  })

  it('gives back the bytes of strings that are not UTF-8, and the file byte for byte', () => {
    const bytes = Uint8Array.of(0xff, 0x41)
    const tokens: GgufValue = { type: 'array', of: 'string', value: ['a', '\ufffdA'], bytes: new Map([[1, bytes]]) }
    writeGguf(path, {
      metadata: [
        ['s', { type: 'string', value: '', bytes }],
        ['t', tokens],
      ],
      tensors: [tensor()],
    })
    const file = readGguf(path)
    assert.deepEqual(file.metadata.raw('s'), { type: 'string', value: '\ufffdA', bytes })
    assert.deepEqual(file.metadata.raw('t'), tokens)
    const again = join(folder, 'again.gguf')
    writeGguf(again, { metadata: file.metadata.entries(), tensors: [tensor()] })
    assert.deepEqual(readFileSync(again), readFileSync(path))
  })

  it('asks for data once, in order, and one at a time', () => {
    const asked: string[] = []
    const lazy = (name: string) => {
      const data = () => new Uint8Array(8).fill(asked.push(name))
      return tensor({ name, data })
    }
    writeGguf(path, { metadata: [], tensors: [lazy('x'), lazy('y'), lazy('z')] })
    assert.deepEqual(asked, ['x', 'y', 'z'])
  })

  it('takes the alignment from the keys too', () => {
    writeGguf(path, { metadata: [['general.alignment', gguf.u32(128)]], tensors: [tensor()] })
    assert.equal(readGguf(path).alignment, 128)
    writeGguf(path, { metadata: [['general.alignment', gguf.u32(32)]], tensors: [] })
    assert.equal(readGguf(path).alignment, 32)
  })

  it('leaves an older file alone and nothing behind when it fails', () => {
    const dir = mkdtempSync(join(folder, 'fail-'))
    const at = join(dir, 'm.gguf')
    writeFileSync(at, 'older')
    const failing = () => {
      throw new RangeError('mine')
    }
    const tensors = [tensor({ name: 'fine' }), tensor({ data: failing })]
    assert.throws(() => writeGguf(at, { metadata: [], tensors }), { name: 'RangeError', message: 'mine' })
    const short = [tensor({ data: () => new Uint8Array(7) })]
    assert.match(
      thrown(() => writeGguf(at, { metadata: [], tensors: short })).message,
      /"a" data are 7 bytes, must be 8/,
    )
    assert.throws(() => writeGguf(at, { metadata: [], tensors, splitMaxTensors: 1 }), RangeError)
    assert.deepEqual(readdirSync(dir), ['m.gguf'])
    assert.equal(readFileSync(at, 'latin1'), 'older')
  })

  it('reports what the system refuses as GGUF_IO', () => {
    mkdirSync(join(folder, 'd.gguf'))
    for (const bad of [join(folder, 'none', 'm.gguf'), join(folder, 'd.gguf')])
      assert.equal(thrown(() => writeGguf(bad, { metadata: [], tensors: [] })).code, 'GGUF_IO')
    assert.deepEqual(
      readdirSync(folder).filter((f) => f.endsWith('.tmp')),
      [],
    )
  })

  let deep = gguf.arrays([])
  for (let i = 0; i < 8; i++) deep = gguf.arrays([deep])
  const keys = (...metadata: [string, GgufValue][]) => ({ metadata, tensors: [] })
  const tensors = (...t: Source[]) => ({ metadata: [], tensors: t })
  const wrong: [what: string, options: gguf.GgufWriteOptions, field: string][] = [
    ['an empty key', keys(['', gguf.u8(1)]), 'key ""'],
    ['a key twice', keys(['k', gguf.u8(1)], ['k', gguf.u8(1)]), 'key "k"'],
    ['half a surrogate pair', keys(['k', gguf.str('\ud800')]), 'key "k"'],
    ['half a surrogate pair in an array', keys(['k', gguf.strings(['\udc00'])]), 'key "k"'],
    ['u8 256', keys(['k', gguf.u8(256)]), 'key "k"'],
    ['i8 -129', keys(['k', gguf.i8(-129)]), 'key "k"'],
    ['u32 1.5', keys(['k', gguf.u32(1.5)]), 'key "k"'],
    ['u32 NaN', keys(['k', gguf.u32(Number.NaN)]), 'key "k"'],
    ['f32 1e300', keys(['k', gguf.f32(1e300)]), 'key "k"'],
    ['u64 -1', keys(['k', gguf.u64(-1)]), 'key "k"'],
    ['u64 2^64', keys(['k', gguf.u64(2n ** 64n)]), 'key "k"'],
    ['i64 2^53', keys(['k', gguf.i64(2 ** 53)]), 'key "k"'],
    ['a bool of 1', keys(['k', gguf.bool(1 as never)]), 'key "k"'],
    ['an unknown type', keys(['k', { type: 'x' } as never]), 'key "k"'],
    ['no value', keys(['k', undefined as never]), 'key "k"'],
    ['a plain array of numbers', keys(['k', gguf.u8s([1] as never)]), 'key "k"'],
    ['arrays 9 deep', keys(['k', deep]), 'key "k"'],
    ['an alignment of 3', { ...keys(), alignment: 3 }, 'alignment'],
    ['an alignment of 4', { ...keys(), alignment: 4 }, 'alignment'],
    ['two alignments', { ...keys(['general.alignment', gguf.u32(64)]), alignment: 32 }, 'alignment'],
    ['an alignment that is no u32', keys(['general.alignment', gguf.i32(64)]), 'key "general.alignment"'],
    ['an empty name', tensors(tensor({ name: '' })), 'tensor "" name'],
    ['a long name', tensors(tensor({ name: 'x'.repeat(64) })), `tensor "${'x'.repeat(64)}" name`],
    ['a name twice', tensors(tensor(), tensor()), 'tensor "a" name'],
    ['an unknown tensor type', tensors(tensor({ type: 'toString' as never })), 'tensor "a" type'],
    ['no dimensions', tensors(tensor({ ne: [] })), 'tensor "a" dimension count'],
    ['five dimensions', tensors(tensor({ ne: [2, 1, 1, 1, 1] })), 'tensor "a" dimension count'],
    ['a dimension of 0', tensors(tensor({ ne: [2, 0] })), 'tensor "a" dimension 1'],
    ['half a block', tensors(tensor({ type: 'q8_0', ne: [16] })), 'tensor "a" dimension 0'],
    ['too little data', tensors(tensor({ ne: [3] })), 'tensor "a" data'],
    ['data of another type', tensors(tensor({ data: new Float32Array(8) as never })), 'tensor "a" data'],
    ['parts of no tensor', { ...tensors(tensor()), splitMaxTensors: 0 }, 'splitMaxTensors'],
    [
      'split keys of its own',
      { metadata: [['split.no', gguf.u16(0)]], tensors: [tensor(), tensor({ name: 'b' })], splitMaxTensors: 1 },
      'key "split.no"',
    ],
  ]
  for (const [what, options, field] of wrong)
    it(`refuses ${what}`, () => {
      const error = thrown(() => writeGguf(path, options))
      assert.equal(error.code, 'INVALID_ARGUMENT')
      assert.equal(error.details['field'], field)
    })
})
