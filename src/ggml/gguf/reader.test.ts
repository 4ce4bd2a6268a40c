import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import { GGML_TYPES } from '../types.ts'
import { type Forged, type ForgedTensor, forge, le32, le64, leArray, leString, thrown } from './forge.test.ts'
import { LIMITS } from './format.ts'
import { parseGguf, readGguf } from './index.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-gguf-'))
after(() => rmSync(folder, { recursive: true }))

const parse = (spec: Forged) => parseGguf(forge(spec).bytes, undefined, 'x.gguf')
const tensor = (over: Partial<ForgedTensor> = {}): ForgedTensor => ({
  name: 'a',
  dims: [8],
  type: 0,
  offset: 0,
  ...over,
})
const one = (over: Partial<ForgedTensor>, dataBytes = 32): Forged => ({ tensors: [tensor(over)], dataBytes })
const key = (type: number, value: Uint8Array, name: string | Uint8Array = 'k'): Forged => ({
  keys: [[name, type, value]],
})

describe('a valid file', () => {
  it('gives all 13 value types', () => {
    const f64 = Buffer.alloc(8)
    f64.writeDoubleLE(-1.5)
    const f32 = Buffer.alloc(4)
    f32.writeFloatLE(0.25)
    const m = parse({
      keys: [
        ['u8', 0, Buffer.of(200)],
        ['i8', 1, Buffer.of(200)],
        ['u16', 2, Buffer.of(0xfe, 0xff)],
        ['i16', 3, Buffer.of(0xfe, 0xff)],
        ['u32', 4, le32(0xfffffffe)],
        ['i32', 5, le32(-2)],
        ['f32', 6, f32],
        ['bool', 7, Buffer.of(1)],
        ['string', 8, leString('grüße')],
        ['array', 9, leArray(2, 2, Buffer.of(1, 0, 0, 1))],
        ['u64', 10, le64(2 ** 53 - 1)],
        ['i64', 11, le64(-5)],
        ['f64', 12, f64],
        ['big', 10, le64(2n ** 64n - 1n)],
        ['low', 11, le64(-(2n ** 63n))],
        ['nested', 9, leArray(9, 2, leArray(7, 1, Buffer.of(1)), leArray(8, 1, leString('in')))],
      ],
    }).metadata
    const numbers = ['u8', 'i8', 'u16', 'i16', 'u32', 'i32', 'f32', 'u64', 'i64', 'f64'].map((k) => m.getNumber(k))
    assert.deepEqual(numbers, [200, -56, 65534, -2, 0xfffffffe, -2, 0.25, 2 ** 53 - 1, -5, -1.5])
    assert.equal(m.getBool('bool'), true)
    assert.equal(m.getString('string'), 'grüße')
    assert.deepEqual(m.getNumberArray('array'), Uint16Array.of(1, 256))
    assert.deepEqual(m.raw('big'), { type: 'u64', value: 2n ** 64n - 1n })
    assert.deepEqual(m.raw('low'), { type: 'i64', value: -(2n ** 63n) })
    assert.deepEqual(m.raw('nested'), {
      type: 'array',
      of: 'array',
      value: [
        { type: 'array', of: 'bool', value: Uint8Array.of(1) },
        { type: 'array', of: 'string', value: ['in'] },
      ],
    })
    assert.equal([...m.keys()].length, m.size)
  })

  it('gives tensors of every type with absolute offsets, in file order', () => {
    const types = Object.entries(GGML_TYPES)
    let offset = 0
    const tensors = types.map(([name, t]) => {
      const at = offset
      offset += Math.ceil((t.bytes * 6) / 64) * 64
      return { name, dims: [t.block * 2, 3], type: t.id, offset: at }
    })
    const alignment: Forged['keys'] = [['general.alignment', 4, le32(64)]]
    const file = parse({ keys: alignment, tensors, alignment: 64, dataBytes: offset })
    assert.equal(file.alignment, 64)
    assert.deepEqual(
      [...file.tensors.keys()],
      types.map(([name]) => name),
    )
    for (const [i, t] of [...file.tensors.values()].entries()) {
      assert.equal(t.type, types[i]![0])
      assert.deepEqual(t.ne, [types[i]![1].block * 2, 3, 1, 1])
      assert.equal(t.bytes, types[i]![1].bytes * 6)
      assert.equal(t.offset, file.parts[0]!.dataOffset + tensors[i]!.offset)
      assert.equal(t.offset % 64, 0)
    }
  })

  it('may be of version 2, have its tensors in any order, gaps between them, and no padding at its end', () => {
    const tensors = [tensor({ name: 'late', offset: 128 }), tensor({ name: 'early' })]
    const file = parse({ version: 2, tensors, dataBytes: 128 + 32 })
    assert.equal(file.version, 2)
    assert.equal(file.tensors.get('late')!.offset + 32, file.totalBytes)
    assert.deepEqual([...file.tensors.keys()], ['late', 'early'])
  })

  it('may be empty of keys and tensors', () => {
    const file = parse({})
    assert.equal(file.tensors.size, 0)
    assert.equal(file.parts[0]!.dataOffset, 24)
  })

  it('may hold strings that are not UTF-8: as U+FFFD, with their bytes beside', () => {
    const bad = Buffer.of(0x61, 0xff)
    const real = leString('\ufffd')
    const m = parse({
      keys: [
        ['s', 8, leString(bad)],
        ['a', 9, leArray(8, 3, leString('x'), leString(bad), real)],
      ],
    }).metadata
    assert.equal(m.getString('s'), 'a\ufffd')
    assert.deepEqual(m.raw('s'), { type: 'string', value: 'a\ufffd', bytes: Uint8Array.from(bad) })
    const value = ['x', 'a\ufffd', '\ufffd']
    assert.deepEqual(m.raw('a'), { type: 'array', of: 'string', value, bytes: new Map([[1, Uint8Array.from(bad)]]) })
  })

  it('parses from its header alone', () => {
    const { bytes } = forge(one({}))
    const header = bytes.subarray(0, bytes.length - 32)
    assert.deepEqual(parseGguf(header, bytes.length), parseGguf(bytes))
    assert.match(thrown(() => parseGguf(header.subarray(0, 40), bytes.length)).message, /past the 40 bytes given/)
    assert.equal(thrown(() => parseGguf(bytes, 3)).code, 'INVALID_ARGUMENT')
  })

  it('parses a vocabulary of 150K tokens in well under a second', () => {
    const n = 150_000
    const tokens = Array.from({ length: n }, (_, i) => leString(`token${i}ü`))
    const path = join(folder, 'vocab.gguf')
    const scores: readonly [string, number, Uint8Array] = ['scores', 9, leArray(6, n, Buffer.alloc(4 * n))]
    writeFileSync(
      path,
      forge({ ...one({}), keys: [['tokens', 9, leArray(8, n, Buffer.concat(tokens))], scores] }).bytes,
    )
    const start = performance.now()
    const { metadata } = readGguf(path)
    const ms = performance.now() - start
    const got = metadata.getStringArray('tokens')
    assert.ok(got.every((t, i) => t === `token${i}ü`))
    assert.equal(metadata.getNumberArray('scores').length, n)
    assert.ok(ms < 1000, `${ms} ms`) // 40 ms on the slowest machine seen
  })

  it('is the model in this repository', () => {
    const path = fileURLToPath(new URL('../../../models/house-5m/house-5m-q8_0.gguf', import.meta.url))
    const file = readGguf(path)
    assert.equal(file.metadata.getString('general.architecture'), 'llama')
    assert.equal(file.metadata.getNumber('llama.block_count'), 6)
    assert.equal(
      file.metadata.getStringArray('tokenizer.ggml.tokens').length,
      file.metadata.getNumber('llama.vocab_size'),
    )
    assert.equal(file.tensors.size, 56)
    assert.equal(file.totalBytes, statSync(path).size)
    const data = [...file.tensors.values()].reduce((sum, t) => sum + Math.ceil(t.bytes / 32) * 32, 0)
    assert.equal(file.parts[0]!.dataOffset + data, file.totalBytes)
    const prefix = readFileSync(path).subarray(0, file.parts[0]!.dataOffset)
    assert.deepEqual(parseGguf(prefix, file.totalBytes).tensors, file.tensors)
  })
})

describe('a file that breaks a rule is GGUF_INVALID', () => {
  const deep = (n: number): Buffer => (n === 0 ? leArray(0, 0) : leArray(9, 1, deep(n - 1)))
  const two = (over: Partial<ForgedTensor>): Forged => ({
    tensors: [tensor(), tensor({ name: 'b', offset: 32, ...over })],
    dataBytes: 64,
  })
  const align = (type: number, value: Buffer): Forged => ({ ...one({}), ...key(type, value, 'general.alignment') })
  const rules: [what: string, spec: Forged, field: string, text: RegExp][] = [
    ['no magic', { magic: 'GGML' }, 'magic', /starts with "GGML"; this is not a GGUF file/],
    ['a Git LFS pointer', { magic: 'version https://git-lfs.github.com/spec/v1' }, 'magic', /git lfs pull/],
    ['a web page', { magic: '<!DOCTYPE html>' }, 'magic', /web page/],
    ['version 1', { version: 1 }, 'version', /is 1, must be 2 or 3; convert/],
    ['version 4', { version: 4 }, 'version', /is 4, must be 2 or 3/],
    ['version 0', { version: 0 }, 'version', /is 0/],
    ['big-endian', { version: 0x03000000 }, 'version', /big-endian/],
    ['tensor count past the file', { tensorCount: 2 ** 40 }, 'tensor count', /at most 0: the file is damaged/],
    ['negative tensor count', { tensorCount: -1 }, 'tensor count', /18446744073709551615/],
    ['key count past the file', { keyCount: 2 ** 31 }, 'key count', /at most 0/],
    ['one key too few', { ...key(0, Buffer.of(1)), keyCount: 2, dataBytes: 64 }, 'key 1 name', /has 0 bytes/],
    ['an empty key', { ...key(0, Buffer.of(1), ''), dataBytes: 8 }, 'key 0 name', /has 0 bytes, must have 1 to 65535/],
    ['a long key', key(0, Buffer.of(1), 'k'.repeat(65536)), 'key 0 name', /has 65536 bytes/],
    ['a key with NUL', key(0, Buffer.of(1), 'a\0b'), 'key 0 name', /NUL/],
    ['a key not UTF-8', key(0, Buffer.of(1), Buffer.of(0xc0, 0x80)), 'key 0 name', /not valid UTF-8/],
    [
      'a key twice',
      {
        keys: [
          ['k', 0, Buffer.of(1)],
          ['k', 4, le32(1)],
        ],
      },
      'key 1 name',
      /is "k" again/,
    ],
    ['an unknown value type', key(13, Buffer.of(1)), 'key "k"', /has type 13, must be 0 to 12/],
    ['a bool of 2', key(7, Buffer.of(2)), 'key "k"', /bool 2, must be 0 or 1/],
    ['a bool of 2 in an array', key(9, leArray(7, 3, Buffer.of(0, 1, 2))), 'key "k"[2]', /bool 2/],
    [
      'a value past the end',
      key(4, Buffer.of(1, 2)),
      'key "k"',
      /needs 4 bytes at byte 37, but the file ends at byte 39/,
    ],
    ['a long string', key(8, le64(1e6)), 'key "k"', /length is 1000000, but the 0 bytes left/],
    ['a string of 2^64-1', key(8, le64(-1)), 'key "k"', /length is 18446744073709551615/],
    [
      'a long array',
      key(9, leArray(4, 10, le32(1))),
      'key "k"',
      /element count is 10, but the 4 bytes left in the file hold at most 1/,
    ],
    ['an array of unknown type', key(9, leArray(99, 0)), 'key "k"', /has element type 99/],
    ['a long string in an array', key(9, leArray(8, 2, leString('a'), le64(99))), 'key "k"[1]', /length is 99/],
    ['arrays 9 deep', key(9, deep(8)), 'key "k"', /deeper than 8/],
    [
      'too many nested arrays',
      key(9, leArray(9, 2 ** 16 + 1, Buffer.alloc(2 ** 20))),
      'key "k"',
      /more than 65536 nested arrays/,
    ],
    ['alignment of another type', align(5, le32(32)), 'key "general.alignment"', /is of type i32, must be u32/],
    ['alignment 0', align(4, le32(0)), 'key "general.alignment"', /is 0, must be a power of two/],
    ['alignment 4', align(4, le32(4)), 'key "general.alignment"', /is 4, .*at least 8/],
    ['alignment 48', align(4, le32(48)), 'key "general.alignment"', /is 48/],
    ['an empty tensor name', one({ name: '' }), 'tensor 0 name', /has 0 bytes, must have 1 to 63/],
    ['a tensor name of 64 bytes', one({ name: 'ü'.repeat(32) }), 'tensor 0 name', /has 64 bytes/],
    ['a tensor name with NUL', one({ name: 'a\0' }), 'tensor 0 name', /NUL/],
    ['a tensor name not UTF-8', one({ name: Buffer.of(0xff) }), 'tensor 0 name', /not valid UTF-8/],
    ['a tensor name twice', two({ name: 'a' }), 'tensor 1 name', /is "a" again/],
    ['0 dimensions', one({ dims: [], nDims: 0 }), 'tensor "a" dimension count', /is 0, must be 1 to 4/],
    ['5 dimensions', one({ dims: [1, 1, 1, 1, 1] }), 'tensor "a" dimension count', /is 5/],
    ['a dimension of 0', one({ dims: [8, 0] }), 'tensor "a" dimension 1', /is 0, must be 1/],
    ['a negative dimension', one({ dims: [8, -1] }), 'tensor "a" dimension 1', /is 18446744073709551615/],
    ['too many elements', one({ dims: [2 ** 40, 2 ** 20] }), 'tensor "a" shape', /2\^53/],
    ['too many bytes', one({ dims: [2 ** 40, 2 ** 12] }), 'tensor "a" shape', /2\^53/],
    [
      'a row of half a block',
      one({ dims: [48], type: 8 }),
      'tensor "a" dimension 0',
      /is 48, must be a multiple of 32, the block of q8_0/,
    ],
    ['an unknown tensor type', one({ type: 1000 }), 'tensor "a" type', /is 1000, which is no tensor type/],
    ['a removed tensor type', one({ type: 31 }), 'tensor "a" type', /Q4_0_4_4.*removed; quantize/],
    [
      'an offset off the grid',
      two({ offset: 40 }),
      'tensor "b" offset',
      /is 40, must be a multiple of the alignment, 32/,
    ],
    ['an offset of 2^64-32', two({ offset: -32 }), 'tensor "b" offset', /is 18446744073709551584, past any file/],
    ['an offset past the file', two({ offset: 2 ** 52 }), 'tensor "b" data', /the file ends at byte/],
    ['data in the same place', two({ offset: 0 }), 'tensor "b" offset', /inside those of "a"/],
    [
      'data that overlap',
      { tensors: [tensor({ dims: [9] }), tensor({ name: 'b', offset: 32 })], dataBytes: 64 },
      'tensor "b" offset',
      /inside/,
    ],
    [
      'data cut off',
      one({}, 31),
      'tensor "a" data',
      /bytes 64 to 96, .* incomplete: 95 of at least 96 bytes; pull it again/,
    ],
  ]
  for (const [what, spec, field, text] of rules)
    it(what, () => {
      const error = thrown(() => parse(spec))
      assert.equal(error.code, 'GGUF_INVALID')
      assert.equal(error.details['field'], field)
      assert.equal(error.details['file'], 'x.gguf')
      assert.equal(typeof error.details['offset'], 'number')
      assert.match(error.message, text)
      assert.ok(error.message.startsWith('GGUF_INVALID: x.gguf: '))
    })

  it('empty, or cut anywhere', () => {
    const { bytes } = forge({ ...one({}), ...key(9, leArray(8, 2, leString('ab'), leString('c'))) })
    assert.match(thrown(() => parseGguf(new Uint8Array(0))).message, /the file is empty/)
    for (let n = 0; n < bytes.length; n++) {
      const error = thrown(() => parseGguf(bytes.subarray(0, n)))
      assert.equal(error.code, 'GGUF_INVALID', `cut at ${n}`)
    }
  })

  it('a header larger than any model needs, without reading it', () => {
    // a sparse file of 1 TiB that claims arrays to match: refused by the claim
    const size = 2 ** 40
    const parseSparse = (spec: Forged) => thrown(() => parseGguf(forge(spec).bytes, size))
    assert.match(parseSparse(key(9, leArray(0, 2 ** 39))).message, /header would pass/)
    assert.match(parseSparse(key(8, le64(2 ** 39))).message, /header would pass/)
    assert.match(parseSparse(key(9, leArray(8, LIMITS.strings + 1))).message, /more than 4194304 strings/)
    assert.match(
      parseSparse({ tensorCount: 2 ** 30 }).message,
      /tensor count is 1073741824, more than the 262144|header would pass/,
    )
    assert.match(parseSparse({ keyCount: 2 ** 20 }).message, /key count is 1048576, more than the 65536/)
  })

  it('more strings than the limit that are not UTF-8', () => {
    const n = LIMITS.invalidStrings + 1
    const value = leArray(8, n, Buffer.concat(Array.from({ length: n }, () => leString(Buffer.of(0xff)))))
    assert.match(thrown(() => parse(key(9, value))).message, /more than 65536 strings that are not UTF-8/)
  })
})

describe('readGguf', () => {
  it('reads what parseGguf parses', () => {
    const { bytes } = forge({ ...one({}), ...key(8, leString('v'.repeat(300_000))) })
    const path = join(folder, 'a.gguf')
    writeFileSync(path, bytes)
    assert.deepEqual(readGguf(path), parseGguf(bytes, undefined, path))
  })

  it('reads a value larger than its chunks from several places of a large header', () => {
    const path = join(folder, 'large.gguf')
    const values = Array.from({ length: 40 }, (_, i) => Buffer.alloc(65_521 + i, i)) // lengths that drift over the chunks
    const keys = values.map((v, i) => [`k${i}`, 9, leArray(0, v.length, v)] as const)
    const texts = values.map((_, i) => [`t${i}`, 8, leString(`${i}`.repeat(50_000 + i))] as const)
    writeFileSync(path, forge({ keys: [...keys, ...texts] }).bytes)
    const { metadata } = readGguf(path)
    for (const [i, v] of values.entries()) {
      assert.deepEqual(metadata.getNumberArray(`k${i}`), Uint8Array.from(v))
      assert.equal(metadata.getString(`t${i}`), `${i}`.repeat(50_000 + i))
    }
  })

  it('says what is wrong with the path', () => {
    mkdirSync(join(folder, 'dir.gguf'))
    assert.equal(thrown(() => readGguf(join(folder, 'none.gguf'))).code, 'MODEL_NOT_FOUND')
    assert.equal(thrown(() => readGguf(join(folder, 'x'.repeat(5000)))).code, 'MODEL_NOT_FOUND')
    assert.equal(thrown(() => readGguf(join(folder, 'dir.gguf'))).code, 'GGUF_IO')
    assert.equal(thrown(() => readGguf('/dev/zero')).code, process.platform === 'win32' ? 'MODEL_NOT_FOUND' : 'GGUF_IO')
    assert.equal(thrown(() => readGguf('a\0b')).code, 'GGUF_IO')
    assert.equal(thrown(() => readGguf('')).code, 'INVALID_ARGUMENT')
    const locked = join(folder, 'locked.gguf')
    writeFileSync(locked, forge({}).bytes, { mode: 0o000 })
    if (process.getuid?.() !== 0 && process.platform !== 'win32')
      assert.equal(thrown(() => readGguf(locked)).code, 'GGUF_IO') // root may read it all the same
  })
})

describe('metadata', () => {
  const m = parse({
    keys: [
      ['general.name', 8, leString('x')],
      ['n', 4, le32(7)],
      ['big', 10, le64(2n ** 60n)],
      ['small64', 9, leArray(11, 1, le64(-3))],
      ['big64', 9, leArray(10, 1, le64(2n ** 60n))],
      ['flags', 9, leArray(7, 2, Buffer.of(1, 0))],
    ],
  }).metadata

  it('gives defaults for what is missing only', () => {
    assert.equal(m.getNumber('nope', 3), 3)
    assert.equal(m.getString('nope', ''), '')
    assert.equal(m.getBool('nope', false), false)
    assert.deepEqual(m.getStringArray('nope', []), [])
    assert.deepEqual(m.getNumberArray('nope', Int32Array.of(1)), Int32Array.of(1))
    assert.equal(m.has('nope'), false)
    assert.equal(thrown(() => m.getNumber('general.name', 3)).code, 'MODEL_INVALID')
  })

  it('turns 64-bit arrays into doubles where that is exact', () => {
    assert.deepEqual(m.getNumberArray('small64'), Float64Array.of(-3))
    assert.match(thrown(() => m.getNumberArray('big64')).message, /key "big64" must be an array of numbers up to 2\^53/)
    assert.deepEqual(m.getBoolArray('flags'), [true, false])
  })

  it('names file and key in MODEL_INVALID', () => {
    const cases: [() => unknown, RegExp][] = [
      [() => m.getString('general.nam'), /x\.gguf: key "general\.nam" is missing; the nearest is "general\.name"/],
      [() => m.getNumber('general.name'), /must be a number, is string "x"/],
      [() => m.getNumber('big'), /must be a number up to 2\^53, is 1152921504606846976/],
      [() => m.getString('n'), /must be a string, is u32 7/],
      [() => m.getBool('n'), /must be a bool/],
      [() => m.getNumberArray('flags'), /must be an array of numbers, is an array of 2 bool/],
      [() => m.getStringArray('flags'), /must be an array of strings/],
      [() => m.getBoolArray('n'), /must be an array of bools/],
    ]
    for (const [act, text] of cases) {
      const error = thrown(act)
      assert.equal(error.code, 'MODEL_INVALID')
      assert.equal(error.details['file'], 'x.gguf')
      assert.match(error.message, text)
    }
  })
})
