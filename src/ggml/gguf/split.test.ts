import assert from 'node:assert/strict'
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { type Forged, forge, le32, leString, thrown } from './forge.test.ts'
import { readGguf, str, writeGguf } from './index.ts'
import { splitName, splitPath } from './split.ts'

const root = mkdtempSync(join(tmpdir(), 'kvasir-split-'))
after(() => rmSync(root, { recursive: true }))
const folder = () => mkdtempSync(join(root, 'f-'))

const u16 = (n: number) => Buffer.of(n & 255, n >> 8)
const names = (count: number) => Array.from({ length: count }, (_, i) => splitPath('', 'm', i, count))

/** A part with one tensor of 32 bytes, as gguf-split writes it. */
const part = (no: number, count: number, over: { tensor?: string; total?: number; extra?: Forged['keys'] } = {}) =>
  forge({
    keys: [
      ['split.no', 2, u16(no)],
      ['split.count', 2, u16(count)],
      ['split.tensors.count', 5, le32(over.total ?? count)],
      ...(over.extra ?? []),
    ],
    tensors: [{ name: over.tensor ?? `t${no}`, dims: [8], type: 0, offset: 0 }],
    dataBytes: 32,
  }).bytes

/** Writes parts into a fresh folder; gives the path of the first. */
function save(...parts: Buffer[]): string {
  const dir = folder()
  for (const [i, bytes] of parts.entries()) writeFileSync(join(dir, names(parts.length)[i]!), bytes)
  return join(dir, names(parts.length)[0]!)
}

describe('split files', () => {
  it('have names that count from 1', () => {
    assert.deepEqual(splitName('/d/my-model-00002-of-00003.gguf'), { prefix: 'my-model', no: 1, count: 3 })
    assert.equal(splitName('/d/my-model.gguf'), undefined)
    assert.equal(splitPath('/d/any', 'my-model', 1, 3), join('/d', 'my-model-00002-of-00003.gguf'))
  })

  it('are read as one model', () => {
    const path = save(part(0, 3, { extra: [['general.name', 8, leString('whole')]] }), part(1, 3), part(2, 3))
    const file = readGguf(path)
    assert.equal(file.path, path)
    assert.equal(file.metadata.getString('general.name'), 'whole')
    assert.equal(file.parts.length, 3)
    assert.equal(
      file.totalBytes,
      file.parts.reduce((sum, p) => sum + p.size, 0),
    )
    assert.deepEqual(
      [...file.tensors.values()].map((t) => [t.name, t.part]),
      [
        ['t0', 0],
        ['t1', 1],
        ['t2', 2],
      ],
    )
    for (const t of file.tensors.values()) assert.equal(t.offset, file.parts[t.part]!.dataOffset)
  })

  it('merged into one by gguf-split say split.count 0', () => {
    const path = join(folder(), 'merged.gguf')
    writeFileSync(path, part(0, 0))
    assert.equal(readGguf(path).parts.length, 1)
  })

  it('are written by writeGguf, each with its alignment', () => {
    const tensors = Array.from({ length: 5 }, (_, i) => ({
      name: `t${i}`,
      type: 'f32' as const,
      ne: [3],
      data: () => new Uint8Array(12).fill(i),
    }))
    const paths = writeGguf(join(folder(), 'm.gguf'), {
      metadata: [['general.name', str('m')]],
      tensors,
      alignment: 64,
      splitMaxTensors: 2,
    })
    assert.equal(paths.length, 3)
    const file = readGguf(paths[0]!)
    assert.deepEqual(
      file.parts.map((p) => p.path),
      paths,
    )
    assert.deepEqual(
      [...file.tensors.values()].map((t) => t.part),
      [0, 0, 1, 1, 2],
    )
    assert.equal(file.alignment, 64)
    assert.ok([...file.tensors.values()].every((t) => t.offset % 64 === 0))
  })

  const wrong: [what: string, path: () => string, code: string, field: string | undefined, text: RegExp][] = [
    [
      'a later part opened',
      () => save(part(0, 2), part(1, 2)).replace('00001', '00002'),
      'GGUF_INVALID',
      'key "split.no"',
      /part 2 of 2; open the first: m-00001-of-00002\.gguf/,
    ],
    [
      'a part missing',
      () => {
        const path = save(part(0, 2), part(1, 2))
        rmSync(path.replace('00001', '00002'))
        return path
      },
      'MODEL_NOT_FOUND',
      undefined,
      /m-00002-of-00002\.gguf: part 2 of 2 is missing.*pull it again/,
    ],
    [
      'a part renamed',
      () => {
        const path = save(part(0, 2), part(1, 2))
        copyFileSync(path, path.replace(/m-.*/, 'renamed.gguf'))
        return path.replace(/m-.*/, 'renamed.gguf')
      },
      'GGUF_INVALID',
      'key "split.count"',
      /part 1 of a split model, but the file was renamed/,
    ],
    [
      'two parts with swapped names',
      () => save(part(1, 2), part(0, 2)),
      'GGUF_INVALID',
      'key "split.no"',
      /named as part 1/,
    ],
    [
      'a part twice',
      () => save(part(0, 3), part(1, 3), part(1, 3)),
      'GGUF_INVALID',
      'key "split.no"',
      /is 1, must be 2/,
    ],
    [
      'a part of another split',
      () => save(part(0, 2), part(1, 3)),
      'GGUF_INVALID',
      'key "split.count"',
      /is 3, but the first part says 2/,
    ],
    [
      'a count that is not the name',
      () => save(part(0, 3), part(1, 3)),
      'GGUF_INVALID',
      'key "split.count"',
      /is 3, but the file is named as one of 2/,
    ],
    [
      'a tensor in two parts',
      () => save(part(0, 2), part(1, 2, { tensor: 't0' })),
      'GGUF_INVALID',
      'tensor "t0"',
      /m-00002.*is in m-00001-of-00002\.gguf too/,
    ],
    [
      'too few tensors',
      () => save(part(0, 2, { total: 3 }), part(1, 2)),
      'GGUF_INVALID',
      'key "split.tensors.count"',
      /is 3, but the parts hold 2/,
    ],
    [
      'too many tensors',
      () => save(part(0, 2, { total: 1 }), part(1, 2)),
      'GGUF_INVALID',
      'key "split.tensors.count"',
      /is 1, but/,
    ],
    [
      'a damaged part',
      () => save(part(0, 2), part(1, 2).subarray(0, 150)),
      'GGUF_INVALID',
      'tensor data',
      /m-00002-of-00002\.gguf/,
    ],
    ['a part that is no part', () => save(part(0, 2), forge({}).bytes), 'GGUF_INVALID', 'key "split.no"', /is missing/],
    [
      'split.count of another type',
      () => {
        const path = join(folder(), 'a.gguf')
        writeFileSync(path, forge({ keys: [['split.count', 8, leString('2')]] }).bytes)
        return path
      },
      'GGUF_INVALID',
      'key "split.count"',
      /is string "2", must be an integer/,
    ],
  ]
  for (const [what, path, code, field, text] of wrong)
    it(`refuse ${what}`, () => {
      const at = path()
      const error = thrown(() => readGguf(at))
      assert.equal(error.code, code)
      assert.equal(error.details['field'], field)
      assert.match(error.message, text)
    })
})
