/** Runs: one at a time, aborted from outside, on one backend or split over several. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import { Backend, type Runner, SingleRunner, SplitRunner } from './backend.ts'
import { Context } from './context.ts'
import { cpuDevice } from './device.ts'
import { Bench, backend, Random, runner } from './fixture.test.ts'
import { Graph } from './graph.ts'
import * as ops from './ops/index.ts'
import { liveNatives } from './owned.ts'
import type { Tensor } from './tensor.ts'

after(() => {
  runner.dispose()
  backend.dispose()
  assert.deepEqual(liveNatives(), {})
})

function isCode(code: string) {
  return (e: unknown) => e instanceof KvasirError && e.code === code
}

/** A chain of `steps` products of [n, n]: x <- a x / n. */
function chain(n: number, steps: number) {
  const c = new Context({ tensors: 2 * steps + 4, graphNodes: 4 * steps + 8 })
  const a = c.tensor('f32', n, n).asInput()
  let x: Tensor = c.tensor('f32', n, n).asInput()
  const first = x
  for (let i = 0; i < steps; i++) x = ops.scale(c, ops.mulMat(c, a, x), 1 / n)
  const graph = new Graph(c)
  graph.expand(x.asOutput())
  const feed = () => {
    a.set(new Float32Array(n * n).fill(1))
    first.set(new Float32Array(n * n).fill(3))
  }
  return { c, graph, out: x, feed }
}

test('abort ends a long run, and the backend runs the next one', async () => {
  const long = chain(512, 600)
  const short = chain(8, 2)
  using own = new Backend(cpuDevice())
  using runs = new SingleRunner(own)
  using shortRuns = new SingleRunner(own)
  runs.allocate(long.graph)
  shortRuns.allocate(short.graph)
  long.feed()
  const start = performance.now()
  const run = runs.runAsync(long.graph)
  setTimeout(() => runs.abort(), 20)
  assert.equal(await run, 'aborted')
  // 600 products of 512^3 take seconds; one takes milliseconds. Generous, for a busy machine.
  assert.ok(performance.now() - start < 1500)

  short.feed()
  assert.equal(shortRuns.run(short.graph), 'done')
  assert.equal(short.out.floats()[0], 3)
  short.feed()
  assert.equal(await shortRuns.runAsync(short.graph), 'done')
  assert.equal(short.out.floats()[0], 3)
  long.c.dispose()
  short.c.dispose()
})

test('nothing is disposed of, and nothing else runs, under a running graph', async () => {
  const long = chain(512, 600)
  const other = chain(8, 2)
  const own = new Backend(cpuDevice())
  const runs = new SingleRunner(own)
  using otherRuns = new SingleRunner(own)
  runs.allocate(long.graph)
  otherRuns.allocate(other.graph)
  long.feed()
  other.feed()
  const run = runs.runAsync(long.graph)
  const refused: (() => unknown)[] = [
    () => runs.run(long.graph),
    () => runs.allocate(long.graph),
    () => otherRuns.run(other.graph), // one backend, one work buffer
    () => own.dispose(),
    () => runs.dispose(),
    () => long.c.dispose(),
  ]
  for (const r of refused) assert.throws(r, isCode('NATIVE_FAILED'), r.toString())
  await assert.rejects(runs.runAsync(long.graph), isCode('NATIVE_FAILED'))
  runs.abort()
  assert.equal(await run, 'aborted')
  assert.equal(otherRuns.run(other.graph), 'done')
  runs.dispose()
  long.c.dispose()
  other.c.dispose()
  otherRuns.dispose()
  own.dispose()
})

test('a graph without memory, or with nodes added since, does not run', () => {
  const { c, graph, out, feed } = chain(8, 2)
  using own = new Backend(cpuDevice())
  using single = new SingleRunner(own)
  using split = new SplitRunner([own], 64)
  for (const r of [single, split]) assert.throws(() => r.run(graph), isCode('NATIVE_FAILED'))
  single.allocate(graph)
  assert.throws(() => split.run(graph), isCode('NATIVE_FAILED'))
  for (const r of [single, split]) assert.throws(() => r.allocate(graph), isCode('NATIVE_FAILED'))
  feed()
  assert.equal(single.run(graph), 'done')
  graph.expand(ops.neg(c, out))
  assert.throws(() => single.run(graph), isCode('NATIVE_FAILED'))
  c.dispose()
})

test('a larger graph takes the memory of those before; a smaller one shares it', () => {
  const small = chain(8, 2)
  const large = chain(64, 2)
  const again = chain(8, 2)
  {
    using runs = new SingleRunner(backend)
    runs.allocate(small.graph)
    runs.allocate(large.graph)
    assert.throws(() => runs.run(small.graph), isCode('DISPOSED'))
    assert.throws(() => runs.allocate(small.graph), isCode('DISPOSED'))
    assert.throws(() => small.out.floats(), isCode('DISPOSED'))
    for (const { graph, feed, out } of [large, again, large, again]) {
      if (!out.hasMemory) runs.allocate(graph)
      feed()
      assert.equal(runs.run(graph), 'done')
      assert.equal(out.floats()[0], 3)
    }
  }
  assert.throws(() => large.out.floats(), isCode('DISPOSED'))
  for (const { c } of [small, large, again]) c.dispose()
})

test('a graph is not laid out by the plan of the one before', () => {
  const numbers = Float32Array.of(3, 1, 2, 9, 8, 7)
  const run = (r: Runner, make: (c: Context, x: Tensor) => Tensor) => {
    using c = new Context({ tensors: 8, graphNodes: 16 })
    const x = c.tensor('f32', 3, 2).asInput()
    const out = make(c, ops.scale(c, x, 1)).asOutput()
    const graph = new Graph(c)
    graph.expand(out)
    r.allocate(graph)
    x.set(numbers)
    r.run(graph)
    return [...out.get(out.type === 'i32' ? new Int32Array(6) : new Float32Array(6))]
  }
  using own = new Backend(cpuDevice())
  using single = new SingleRunner(own)
  using split = new SplitRunner([own], 32)
  for (const r of [single, split]) {
    assert.deepEqual(
      run(r, (c, x) => ops.neg(c, x)),
      [-3, -1, -2, -9, -8, -7],
    ) // in place
    assert.deepEqual(
      run(r, (c, x) => ops.argsort(c, x, 'ascending')),
      [1, 2, 0, 2, 1, 0],
    ) // cannot be
    assert.deepEqual(
      run(r, (c, x) => ops.cont(c, ops.reshape(c, x, 3, 2))),
      [...numbers],
    )
  }
})

test('the scheduler on one CPU gives what a single runner gives, to the bit', async () => {
  const results = []
  for (const kind of ['single', 'split', 'split async'] as const) {
    using bench = new Bench()
    const [w, x] = bench.operands(new Random(3), { type: 'q8_0', ne: [64, 32] }, { type: 'f32', ne: [64, 5] }) as [
      Tensor,
      Tensor,
    ]
    const out = ops.silu(bench.c, ops.mulMat(bench.c, w, ops.rmsNorm(bench.c, x, 1e-6))).asOutput()
    const graph = new Graph(bench.c)
    graph.expand(out)
    using own = new Backend(cpuDevice())
    using runs: Runner = kind === 'single' ? new SingleRunner(own) : new SplitRunner([own], 400)
    runs.allocate(graph)
    assert.equal(kind === 'split async' ? await runs.runAsync(graph) : runs.run(graph), 'done')
    results.push([...out.floats()])
    assert.ok(runs.bytes > 0)
  }
  assert.deepEqual(results[1], results[0])
  assert.deepEqual(results[2], results[0])
})

test('a scheduler runs only the graph it allocated last, and none beyond its size', () => {
  const one = chain(8, 2)
  const two = chain(8, 3)
  const big = chain(8, 40)
  using own = new Backend(cpuDevice())
  using split = new SplitRunner([own], 32)
  split.allocate(one.graph)
  split.allocate(two.graph)
  assert.throws(() => split.run(one.graph), isCode('NATIVE_FAILED'))
  two.feed()
  assert.equal(split.run(two.graph), 'done')
  assert.throws(() => split.allocate(big.graph), isCode('CAPACITY'))
  assert.throws(() => new SplitRunner([], 32), isCode('INVALID_ARGUMENT'))
  assert.throws(() => new SplitRunner(Array(17).fill(own), 32), isCode('INVALID_ARGUMENT'))
  for (const { c } of [one, two, big]) c.dispose()
})

test('two threads, and one of them, give the same as one', () => {
  const results = [1, 2].map((threads) => {
    using bench = new Bench()
    const [w, x] = bench.operands(new Random(5), { type: 'f32', ne: [64, 48] }, { type: 'f32', ne: [64, 6] }) as [
      Tensor,
      Tensor,
    ]
    const out = ops.mulMat(bench.c, w, x).asOutput()
    const graph = new Graph(bench.c)
    graph.expand(out)
    using own = new Backend(cpuDevice(), threads)
    assert.equal(own.threads, threads)
    using runs = new SingleRunner(own)
    runs.allocate(graph)
    const runsOf = [threads, 1, 99].map((n) => {
      own.useThreads(n)
      assert.equal(runs.run(graph), 'done')
      return [...out.floats()]
    })
    assert.deepEqual(runsOf[1], runsOf[0])
    assert.deepEqual(runsOf[2], runsOf[0])
    return runsOf[0]
  })
  assert.deepEqual(results[1], results[0])
})

test('impossible numbers of threads are refused', () => {
  for (const threads of [0, -1, 1.5, Number.NaN, 513])
    assert.throws(() => new Backend(cpuDevice(), threads), isCode('INVALID_ARGUMENT'))
})
