/** Every op against plain loops in f64, and every shape on the TypeScript side against the C struct. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { Bench, backend, Random, read, rmsError, runner, structMismatch, type Values } from '../fixture.test.ts'
import { ffi } from '../library.ts'
import { fromFloats, toFloats } from '../numbers.ts'
import type { Tensor } from '../tensor.ts'
import { type GgmlType, isQuantized } from '../types.ts'
import { CASES } from './cases.test.ts'

/** Random cases per op. */
const SEEDS = 24

after(() => {
  runner.dispose()
  backend.dispose()
})

for (const [name, draw] of Object.entries(CASES))
  test(`${name}: result and shape`, () => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const r = new Random(seed)
      const spec = draw(r)
      using bench = new Bench()
      const operands = bench.operands(
        r,
        ...spec.operands.map(({ ne, fill, types }) => ({
          ne,
          fill: fill ?? 'normal',
          type: r.pick<GgmlType>(types ?? ['f32']),
        })),
      )
      const label = `${name}, seed ${seed}: ${operands.map((t) => `${t.type} [${t.ne}]`).join(', ')}`
      const before = operands.map(read)
      const used = ffi.ggml_used_mem(bench.c.ptr)
      const out = spec.call(bench.c, ...operands)
      assert.equal(ffi.ggml_used_mem(bench.c.ptr) - used, ffi.ggml_tensor_overhead(), `${label}: not one tensor`)
      for (const t of [...operands, out]) assert.equal(structMismatch(t), null, label)
      const got = bench.compute(out)
      const want = spec.reference(...before)
      assert.deepEqual(got.ne, want.ne, label)
      const comparable = spec.comparable ? spec.comparable(got, ...before) : got
      const error = rmsError(comparable.data, QUANTISING.has(name) ? stored(out.type, want) : want.data)
      assert.ok(error <= tolerance(name, operands, out), `${label}: rms error ${error.toExponential(2)}`)
      assert.deepEqual(bench.changed(), spec.writes === undefined ? [] : bench.changed(), `${label}: wrote elsewhere`)
    }
  })

/** Ops that turn exact numbers into a quantised type; the others only move blocks. */
const QUANTISING = new Set(['addQuantized', 'setRows', 'cast', 'copy'])

function stored(type: GgmlType, want: Values): ArrayLike<number> {
  if (!isQuantized(type)) return want.data
  return toFloats(type, fromFloats(type, Float32Array.from(want.data), want.ne[0]), want.data.length)
}

/** Relative root mean square error that arithmetic of these types must stay under. */
function tolerance(name: string, operands: readonly Tensor[], out: Tensor): number {
  const has = (...types: GgmlType[]) => [...operands, out].some((t) => types.includes(t.type))
  // f32 angles of up to 50 rad, and rows of up to 600 keys: worst seen 1e-6
  let bound = 4e-6
  // gelu and silu on f16 go through an f16 table; mulMat rounds the second operand to f16
  if (has('f16')) bound = 1e-3
  // sums of an f16 V are f16 (see flashAttention), 600 keys: worst seen 1.2e-3
  if (name === 'flashAttention' && has('f16')) bound = 3e-3
  if (name.startsWith('geglu') || name === 'gelu') bound = 1e-3 // f16 table for f32 too
  // 8 bits of mantissa
  if (has('bf16')) bound = 4e-3
  // activations are rounded to q8_0 or q8_K blocks: 6e-3 on average, 1.2e-2 worst seen in sums of 256
  if (operands.some((t) => isQuantized(t.type))) bound = Math.max(bound, 2e-2)
  // iq4_nl: the op searches scales less thoroughly than ggml_quantize_chunk: other blocks, as good within 5 %
  if (out.type === 'iq4_nl') bound = 0.1
  return bound
}
