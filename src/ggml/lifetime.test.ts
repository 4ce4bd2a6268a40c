/** Owners, capacities, and what happens after dispose. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import { Backend, SingleRunner } from './backend.ts'
import { Buffer, hostBufferType } from './buffer.ts'
import { Context } from './context.ts'
import { cpuDevice } from './device.ts'
import { Bench, backend, Random, runner } from './fixture.test.ts'
import { Graph } from './graph.ts'
import { ffi } from './library.ts'
import * as ops from './ops/index.ts'
import { liveNatives } from './owned.ts'
import type { Tensor } from './tensor.ts'

const atStart = liveNatives()

after(() => {
  assert.deepEqual(liveNatives(), atStart, 'something was not disposed of')
  runner.dispose()
  backend.dispose()
  assert.deepEqual(liveNatives(), {})
})

function isCode(code: string) {
  return (e: unknown) => e instanceof KvasirError && e.code === code
}

test('a context holds as many tensors as it says, and a graph beside them', () => {
  for (const tensors of [1, 2, 7, 64, 1000])
    for (const graphNodes of [0, 1, 33, 2048]) {
      using c = new Context({ tensors, graphNodes })
      if (graphNodes) new Graph(c)
      for (let i = 0; i < tensors; i++) c.tensor('f32', 4)
      assert.equal(c.tensorCount, tensors)
      assert.throws(() => c.tensor('f32', 4), isCode('CAPACITY'))
    }
})

test('a full context refuses views and ops too', () => {
  using c = new Context({ tensors: 2 })
  const a = c.tensor('f32', 4)
  ops.view(c, a, [2])
  assert.throws(() => ops.view(c, a, [2]), isCode('CAPACITY'))
  assert.throws(() => ops.add(c, a, a), isCode('CAPACITY'))
  assert.throws(() => ops.topK(c, a, 1), isCode('CAPACITY'))
})

test('one graph to a context, if it was made for one', () => {
  using none = new Context({ tensors: 4 })
  assert.throws(() => new Graph(none), isCode('CAPACITY'))
  using one = new Context({ tensors: 4, graphNodes: 8 })
  new Graph(one)
  assert.throws(() => new Graph(one), isCode('CAPACITY'))
})

test('a graph that could overflow is refused before it does', () => {
  using leafs = new Context({ tensors: 64 })
  const far = Array.from({ length: 64 }, () => leafs.tensor('f32', 4))
  using c = new Context({ tensors: 64, graphNodes: 8 })
  const graph = new Graph(c)
  let x: Tensor = c.tensor('f32', 4)
  for (let i = 0; i < 7; i++) x = ops.neg(c, x)
  graph.expand(x) // one leaf and seven nodes
  assert.equal(graph.nodes, 7)
  const more = ops.add(c, x, far[0]!)
  assert.throws(() => graph.expand(more), isCode('CAPACITY'))
})

test('leafs of other contexts count as well', () => {
  using leafs = new Context({ tensors: 16 })
  using c = new Context({ tensors: 16, graphNodes: 12 })
  const graph = new Graph(c)
  let x: Tensor = leafs.tensor('f32', 4)
  for (let i = 0; i < 7; i++) x = ops.add(c, x, leafs.tensor('f32', 4))
  assert.throws(() => graph.expand(x), isCode('CAPACITY'))
})

test('a graph filled to its capacity computes', () => {
  using c = new Context({ tensors: 400, graphNodes: 400 })
  const graph = new Graph(c)
  const a = c.tensor('f32', 4).asInput()
  let x: Tensor = a
  for (let i = 0; i < 399; i++) x = ops.neg(c, x)
  graph.expand(x.asOutput())
  runner.allocate(graph)
  a.set(Float32Array.of(1, 2, 3, 4))
  assert.equal(runner.run(graph), 'done')
  assert.deepEqual([...x.floats()], [-1, -2, -3, -4])
})

test('reset makes room again and outdates what was made before', () => {
  using c = new Context({ tensors: 1, graphNodes: 4 })
  const old = c.tensor('f32', 4)
  new Graph(c)
  c.reset()
  new Graph(c)
  const a = c.tensor('f32', 4)
  assert.equal(c.tensorCount, 1)
  assert.throws(() => ops.neg(c, old), isCode('DISPOSED'))
  assert.throws(() => old.floats(), isCode('DISPOSED'))
  assert.throws(() => ops.neg(c, a), isCode('CAPACITY'))
})

test('use after dispose is refused', () => {
  const c = new Context({ tensors: 8, graphNodes: 8 })
  const a = c.tensor('f32', 4)
  const graph = new Graph(c)
  const sum = ops.add(c, a, a)
  graph.expand(sum)
  const buffer = Buffer.forContext(c, hostBufferType())
  a.set(new Float32Array(4))
  using own = new Backend(cpuDevice())
  const gone = new SingleRunner(own)
  gone.allocate(graph)

  buffer.dispose()
  assert.equal(buffer.disposed, true)
  assert.throws(() => buffer.clear(), isCode('DISPOSED'))
  assert.throws(() => a.floats(), isCode('DISPOSED'))
  assert.throws(() => a.set(new Float32Array(4)), isCode('DISPOSED'))
  assert.throws(() => gone.run(graph), isCode('DISPOSED'))

  c.dispose()
  c.dispose() // the second does nothing
  const uses: (() => unknown)[] = [
    () => c.tensor('f32', 4),
    () => c.reset(),
    () => new Graph(c),
    () => graph.nodes,
    () => graph.expand(sum),
    () => a.named('a'),
    () => a.asInput(),
    () => a.asOutput(),
    () => a.floats(),
    () => ops.neg(c, a),
    () => ops.mulMat(c, a, a),
    () => Buffer.forContext(c, hostBufferType()),
    () => gone.allocate(graph),
    () => gone.run(graph),
  ]
  for (const use of uses) assert.throws(use, isCode('DISPOSED'), use.toString())

  // Sources in a context that is gone
  using other = new Context({ tensors: 4 })
  const b = other.tensor('f32', 4)
  assert.throws(() => ops.add(other, b, a), isCode('DISPOSED'))
  assert.throws(() => ops.view(other, a, [2]), isCode('DISPOSED'))

  gone.dispose()
  assert.throws(() => gone.bytes, isCode('DISPOSED'))
})

test('a runner or a backend that is gone does not run', () => {
  using c = new Context({ tensors: 8, graphNodes: 8 })
  const graph = new Graph(c)
  graph.expand(ops.neg(c, c.tensor('f32', 4)))
  const own = new Backend(cpuDevice())
  const first = new SingleRunner(own)
  first.allocate(graph)
  assert.equal(first.run(graph), 'done')
  first.dispose()
  assert.throws(() => first.run(graph), isCode('DISPOSED'))
  const second = new SingleRunner(own)
  using c2 = new Context({ tensors: 8, graphNodes: 8 })
  const graph2 = new Graph(c2)
  graph2.expand(ops.neg(c2, c2.tensor('f32', 4)))
  second.allocate(graph2)
  own.dispose()
  assert.throws(() => second.run(graph2), isCode('DISPOSED'))
  assert.throws(() => own.abort(), isCode('DISPOSED'))
  second.dispose()
})

test('dispose happens when a block ends, by exception too', () => {
  const before = liveNatives()
  assert.throws(() => {
    using _c = new Context({ tensors: 1 })
    throw new RangeError('out')
  }, RangeError)
  assert.deepEqual(liveNatives(), before)
})

test('a thousand rounds leave no memory behind', () => {
  const before = liveNatives()
  const round = (seed: number) => {
    using bench = new Bench()
    const [a, b] = bench.operands(
      new Random(seed),
      { type: 'q8_0', ne: [256, 64] },
      { type: 'f32', ne: [256, 16] },
    ) as [Tensor, Tensor]
    using own = new SingleRunner(backend)
    const out = ops.mulMat(bench.c, a, b).asOutput()
    const graph = new Graph(bench.c)
    graph.expand(out)
    own.allocate(graph)
    assert.equal(own.run(graph), 'done')
    assert.ok(Number.isFinite(out.floats()[0]))
  }
  for (let i = 0; i < 150; i++) round(i)
  const start = nativeBytes()
  for (let i = 0; i < 1000; i++) round(i)
  const growth = nativeBytes() - start
  // A round takes over 100 KB: one forgotten buffer or context each would be 35 MB and more.
  assert.ok(growth < 8e6, `grew by ${growth} bytes`)
  assert.deepEqual(liveNatives(), before)
})

/** Resident bytes without the JS heap. */
function nativeBytes(): number {
  const { rss, heapTotal, external } = process.memoryUsage()
  return rss - heapTotal - external
}

test('used bytes of a context stay under what it was given', () => {
  using c = new Context({ tensors: 100, graphNodes: 300 })
  new Graph(c)
  for (let i = 0; i < 100; i++) c.tensor('f32', 1)
  const given = 100 * ffi.ggml_tensor_overhead() + ffi.ggml_graph_overhead_custom(300, false) + 1024
  assert.ok(ffi.ggml_used_mem(c.ptr) <= given)
})
