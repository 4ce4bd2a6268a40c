/** Memory of tensors: reading, writing, and buffers over a mapped file. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import koffi from 'koffi'
import { KvasirError } from '../contract/errors.ts'
import { Buffer, hostBufferType, supportsWeight } from './buffer.ts'
import { Context } from './context.ts'
import { cpuDevice } from './device.ts'
import { backend, bytesOf, runner } from './fixture.test.ts'
import { Graph } from './graph.ts'
import { canMap, Mapping } from './mapping.ts'
import * as ops from './ops/index.ts'
import { liveNatives } from './owned.ts'
import { canGiveBack } from './posix.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-'))

after(() => {
  rmSync(folder, { recursive: true })
  runner.dispose()
  backend.dispose()
  assert.deepEqual(liveNatives(), {})
})

function isCode(code: string) {
  return (e: unknown) => e instanceof KvasirError && e.code === code
}

test('a tensor without memory can be neither read nor written', () => {
  using c = new Context({ tensors: 2 })
  const t = c.tensor('f32', 4)
  assert.throws(() => t.floats(), isCode('NATIVE_FAILED'))
  assert.throws(() => t.set(new Float32Array(4)), isCode('NATIVE_FAILED'))
  using _ = Buffer.forContext(c, hostBufferType())
  t.set(Float32Array.of(1, 2, 3, 4))
  assert.deepEqual([...t.floats()], [1, 2, 3, 4])
})

test('parts are read and written by byte; ranges outside are refused', () => {
  using c = new Context({ tensors: 4 })
  const t = c.tensor('f32', 4)
  const turned = ops.transpose(c, c.tensor('f32', 2, 3))
  using buffer = Buffer.forContext(c, hostBufferType())
  buffer.clear()
  assert.deepEqual([...t.floats()], [0, 0, 0, 0])
  buffer.clear(0xff)
  assert.ok(t.floats().every(Number.isNaN))
  t.set(Float32Array.of(1, 2, 3, 4))
  t.set(Float32Array.of(9), 8)
  assert.deepEqual([...t.get(new Float32Array(3), 4)], [2, 9, 4])
  t.set(Float32Array.of(5, 6, 7).subarray(1, 2))
  assert.equal(t.floats()[0], 6)
  for (const [bytes, offset] of [
    [20, 0],
    [4, 16],
    [4, -4],
    [4, Number.NaN],
    [4, 0.5],
    [16, 4],
    [0, 17],
  ] as const) {
    assert.throws(() => t.set(new Uint8Array(bytes), offset), isCode('SHAPE'), `${bytes} at ${offset}`)
    assert.throws(() => t.get(new Uint8Array(bytes), offset), isCode('SHAPE'), `${bytes} at ${offset}`)
  }
  assert.throws(() => turned.floats(), isCode('SHAPE'))
  assert.throws(() => c.tensor('f16', 4).floats(), isCode('SHAPE'))
})

test('a second buffer for one context, or one for nothing, is refused', () => {
  using empty = new Context({ tensors: 1 })
  assert.throws(() => Buffer.forContext(empty, hostBufferType()), isCode('INVALID_ARGUMENT'))
  using c = new Context({ tensors: 1 })
  c.tensor('f32', 4)
  using _ = Buffer.forContext(c, hostBufferType())
  assert.throws(() => Buffer.forContext(c, hostBufferType()), KvasirError)
})

test('more memory than there is: an error, not the end', () => {
  using c = new Context({ tensors: 1 })
  c.tensor('f32', 2 ** 20, 2 ** 20, 2 ** 6) // 256 TiB
  assert.throws(() => Buffer.forContext(c, hostBufferType()), isCode('OUT_OF_MEMORY'))
})

test('a graph too large for memory: an error, and the runner can go on', () => {
  using c = new Context({ tensors: 4, graphNodes: 8 })
  const graph = new Graph(c)
  graph.expand(ops.repeat(c, c.tensor('f32', 1), 2 ** 20, 2 ** 20, 2 ** 6).asOutput())
  assert.throws(() => runner.allocate(graph), isCode('OUT_OF_MEMORY'))
  assert.throws(() => runner.run(graph), isCode('DISPOSED'))
  using c2 = new Context({ tensors: 4, graphNodes: 8 })
  const small = new Graph(c2)
  small.expand(ops.neg(c2, c2.tensor('f32', 4)))
  runner.allocate(small)
  assert.equal(runner.run(small), 'done')
})

test('a mapped file is used where it lies', { skip: canMap ? false : 'no mmap here' }, () => {
  const path = join(folder, 'numbers')
  const numbers = Float32Array.from({ length: 3000 }, (_, i) => i / 7)
  writeFileSync(path, bytesOf(numbers))
  using map = new Mapping(path, numbers.byteLength)
  assert.equal(map.bytes, 12000)
  using buffer = Buffer.overMemory(map.ptr, map.bytes)
  using c = new Context({ tensors: 8, graphNodes: 16 })
  const t = c.tensor('f32', 1000)
  const behind = c.tensor('f32', 1000)
  buffer.bind(t, map.ptr + 1024n)
  assert.deepEqual(t.floats(), numbers.subarray(256, 1256))
  assert.throws(() => buffer.bind(t, map.ptr), isCode('INVALID_ARGUMENT')) // has an address
  for (const address of [map.ptr - 32n, map.ptr + 8032n, map.ptr + 12000n])
    assert.throws(() => buffer.bind(behind, address), isCode('INVALID_ARGUMENT'))
  buffer.bind(behind, map.ptr + 8000n) // up to the last byte
  const sum = ops.add(c, t, behind).asOutput()
  const graph = new Graph(c)
  graph.expand(sum)
  runner.allocate(graph)
  runner.run(graph)
  assert.equal(sum.floats()[999], Math.fround(numbers[1255]! + numbers[2999]!))
})

test('buffers over memory: alignment, and only those bind', { skip: canMap ? false : 'no mmap here' }, () => {
  const path = join(folder, 'zeros')
  writeFileSync(path, new Uint8Array(4096))
  using map = new Mapping(path, 4096)
  assert.throws(() => Buffer.overMemory(map.ptr + 16n, 64), isCode('INVALID_ARGUMENT'))
  using c = new Context({ tensors: 1 })
  c.tensor('f32', 4)
  using own = Buffer.forContext(c, hostBufferType())
  using other = new Context({ tensors: 1 })
  assert.throws(() => own.bind(other.tensor('f32', 4), map.ptr), isCode('INVALID_ARGUMENT'))
})

test('files that cannot be mapped', { skip: canMap ? false : 'no mmap here' }, () => {
  const path = join(folder, 'short')
  writeFileSync(path, new Uint8Array(100))
  assert.throws(() => new Mapping(path, 101), isCode('GGUF_IO'))
  assert.throws(() => new Mapping(path, 0), isCode('GGUF_IO'))
  assert.throws(() => new Mapping(join(folder, 'none'), 1), isCode('GGUF_IO'))
  using map = new Mapping(path, 100)
  assert.equal(new Uint8Array(koffi.view(map.ptr, 100))[99], 0)
})

test('which weights a buffer type can take', () => {
  using c = new Context({ tensors: 8 })
  const repack = cpuDevice()
    .packingBufferTypes()
    .find((t) => t.name === 'CPU_REPACK')
  const product = (type: 'f32' | 'q4_0', m: number) => {
    const weight = c.tensor(type, 64, m)
    return { weight, op: ops.mulMat(c, weight, c.tensor('f32', 64, 4)) }
  }
  const { weight, op } = product('q4_0', 16)
  assert.equal(supportsWeight(cpuDevice().ptr, hostBufferType(), weight, op), true)
  if (repack) {
    const never = product('f32', 16)
    assert.equal(supportsWeight(cpuDevice().ptr, repack, never.weight, never.op), false)
  }
  assert.equal(weight.hasMemory, false)
})

test('large memory that is cleared is 0 and takes none until it is written to', () => {
  using c = new Context({ tensors: 1 })
  const elements = 2 ** 26
  const t = c.tensor('f32', elements)
  using buffer = Buffer.forContext(c, hostBufferType())
  const resident = () => process.memoryUsage().rss
  buffer.clear()
  const before = resident()
  const probe = (at: number) => t.get(new Float32Array(3), 4 * at)
  for (const at of [0, 1000, elements / 2, elements - 3]) {
    t.set(Float32Array.of(1, 2, 3), 4 * at)
    assert.deepEqual([...probe(at)], [1, 2, 3])
  }
  buffer.clear(0xff)
  if (process.platform === 'linux') assert.ok(resident() - before > 0.9 * buffer.bytes)
  buffer.clear()
  for (const at of [0, 1000, elements / 2, elements - 3]) assert.deepEqual([...probe(at)], [0, 0, 0])
  if (process.platform === 'linux') assert.ok(resident() - before < 0.1 * buffer.bytes)
})

test('part of a buffer goes back to the system, and nothing beside it', { skip: !canGiveBack && 'Linux only' }, () => {
  using c = new Context({ tensors: 2 })
  const [before, t] = [c.tensor('f32', 1000), c.tensor('f32', 300_000)]
  using buffer = Buffer.forContext(c, hostBufferType())
  buffer.clear(0xff)
  assert.equal(buffer.giveBack(t, 5000, 4000), 0, 'no whole page of the system')
  const [from, to] = [5000, 1_000_004]
  const given = buffer.giveBack(t, from, to - from)
  assert.ok(given > to - from - 2 * 65536 && given <= to - from, `${given}`)
  const floats = t.floats()
  const zeros = floats.reduce((sum, x) => sum + (x === 0 ? 1 : 0), 0)
  assert.equal(4 * zeros, given)
  assert.ok(floats.subarray(0, from / 4).every(Number.isNaN) && floats.subarray(to / 4).every(Number.isNaN))
  assert.ok(before.floats().every(Number.isNaN))
  t.set(Float32Array.of(1, 2), from + 8)
  assert.deepEqual([...t.get(new Float32Array(2), from + 8)], [1, 2])
  assert.throws(() => buffer.giveBack(t, 1_200_000, 4), isCode('SHAPE'))
})
