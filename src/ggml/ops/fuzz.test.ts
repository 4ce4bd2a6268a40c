/**
 * Random operands for every op: types, shapes and layouts that may or may not go together. Each call must either throw a
 * KvasirError or give a graph that computes, without ending the process and, where the op is one of `cases.test.ts`, with the
 * right numbers. It runs in a child process (this file again), so that an abort is a failure with its seed.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { writeSync } from 'node:fs'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { KvasirError } from '../../contract/errors.ts'
import {
  Bench,
  type Layout,
  type Operand,
  Random,
  read,
  rmsError,
  structMismatch,
  type Values,
} from '../fixture.test.ts'
import { show, type Tensor } from '../tensor.ts'
import { GGML_TYPES, type GgmlType, isQuantized } from '../types.ts'
import { CASES, type Case, type Shape } from './cases.test.ts'
import * as ops from './index.ts'

const SEEDS = Number(process.env['KVASIR_FUZZ_SEEDS'] ?? 3000)
const FIRST = Number(process.env['KVASIR_FUZZ_FIRST'] ?? 1)
/** Then the run stops: each crash costs a new child. */
const MOST_FAILURES = Number(process.env['KVASIR_FUZZ_FAILURES'] ?? 20)
/** Of the root mean square: far above any rounding of the types, far below what wrong elements give. */
const WRONG = 0.2

function spawnChild(from: number): Promise<{ code: number | null; signal: string | null; out: string; error: string }> {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env
  const own = {
    ...env,
    KVASIR_FUZZ_CHILD: '1',
    KVASIR_FUZZ_FIRST: `${from}`,
    KVASIR_FUZZ_SEEDS: `${FIRST + SEEDS - from}`,
  }
  return new Promise((resolve) => {
    const proc = spawn(process.execPath, ['--import', 'tsx', fileURLToPath(import.meta.url)], {
      env: own,
      timeout: 60_000,
    })
    let [out, error] = ['', '']
    proc.stdout.on('data', (d) => (out += d))
    proc.stderr.on('data', (d) => (error += d))
    proc.on('close', (code, signal) => resolve({ code, signal, out, error }))
  })
}

function child(): void {
  const names = [...Object.keys(CASES), 'view', 'view', 'view']
  for (let seed = FIRST; seed < FIRST + SEEDS; seed++) {
    const r = new Random(seed * 7919)
    const name = r.pick(names)
    try {
      const failure = name === 'view' ? tryView(r, seed) : tryCase(r, name, seed)
      if (failure) writeSync(1, `FAIL seed ${seed} ${failure}\n`)
    } catch (error) {
      writeSync(1, `FAIL seed ${seed} ${name} threw ${error}\n`)
    }
  }
}

function say(seed: number, text: string): void {
  writeSync(1, `seed ${seed} ${text}\n`)
}

/** Throws what is no KvasirError; null when it was refused. */
function attempt<T>(make: () => T): T | null {
  try {
    return make()
  } catch (error) {
    if (error instanceof KvasirError) return null
    throw error
  }
}

function tryCase(r: Random, name: string, seed: number): string | null {
  const spec = CASES[name]!(r)
  const wanted = bend(r, spec)
  using bench = new Bench()
  const operands = attempt(() => bench.operands(r, ...wanted))
  if (!operands) return null
  const label = `${name}(${operands.map((t, i) => `${show(t)} ${wanted[i]!.layout}`).join(', ')})`
  const before = operands.map(read)
  say(seed, label)
  // Results of other ops, unlike leafs, may be overwritten in place.
  const given = operands.map((t, i) =>
    t.type === 'f32' && t.isContiguous && spec.writes !== i && r.chance(0.3)
      ? (attempt(() => ops.scale(bench.c, t, 1)) ?? t)
      : t,
  )
  const out = attempt(() => spec.call(bench.c, ...given))
  if (!out) return null
  const mismatch = structMismatch(out)
  if (mismatch) return `${label}: ${mismatch}`
  const got = bench.compute(out)
  writeSync(1, `built ${name}\n`)
  const wrote = bench.changed()
  if (wrote.some((i) => i !== spec.writes)) return `${label}: wrote over operand ${wrote}`
  if ([...operands, out].some((t) => t.type === 'q8_1' || t.type === 'q8_K')) return null // no numbers to compare
  return compare(label, spec, got, before, out)
}

function compare(label: string, spec: Case, got: Values, before: Values[], out: Tensor): string | null {
  const want = spec.reference(...before)
  if (got.ne.join() !== want.ne.join()) return `${label}: gave [${got.ne}] instead of [${want.ne}]`
  const error = rmsError((spec.comparable ? spec.comparable(got, ...before) : got).data, want.data)
  // Few bits keep little: what matters is that the elements are the right ones.
  const limit = isQuantized(out.type) ? 0.8 : out.type[0] === 'i' ? 1 : WRONG
  return error <= limit ? null : `${label}: rms error ${error.toPrecision(2)}`
}

const TYPES = Object.keys(GGML_TYPES) as GgmlType[]
const LAYOUTS: readonly Layout[] = ['plain', 'plain', 'plain', 'gaps', 'permuted', 'permuted-gaps']

function bend(r: Random, spec: Case): Operand[] {
  const wild = r.chance(0.6)
  const wanted = spec.operands.map((o: Shape): Operand => {
    const type =
      wild && r.chance(0.5) ? r.pick(r.chance(0.5) ? ['f32', 'f16', 'bf16', 'i32'] : TYPES) : r.pick(o.types ?? ['f32'])
    const ne = o.ne.map((n) => (r.chance(wild ? 0.06 : 0.02) ? Math.max(1, r.pick([1, n - 1, n + 1, 2 * n])) : n))
    const { block } = GGML_TYPES[type as GgmlType]
    ne[0] = Math.ceil(ne[0]! / block) * block
    return { type: type as GgmlType, ne, fill: o.fill ?? 'normal', layout: r.pick(LAYOUTS) }
  })
  // Indices are the caller's duty: keep them inside the rows that are there.
  const rows = wanted[0]!.ne[1] ?? 1
  return wanted.map((w) => (typeof w.fill === 'object' ? { ...w, fill: { rows: Math.min(w.fill.rows, rows) } } : w))
}

/** Any numbers as sizes, strides and offset. What is accepted must lie inside and read the right bytes. */
function tryView(r: Random, seed: number): string | null {
  const type = r.pick<GgmlType>(['f32', 'f16', 'q8_0', 'q4_K', 'i8', 'i64'])
  const { block } = GGML_TYPES[type]
  const ne = [block * r.int(1, 3), r.int(1, 4), r.int(1, 3), r.int(1, 2)]
  using bench = new Bench()
  const [a] = bench.operands(r, { type, ne, layout: r.pick(LAYOUTS) }) as [Tensor]
  const odd = () => r.pick([-1, -64, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, 0, 1, 3])
  const or = (n: number) => (r.chance(0.04) ? odd() : n)
  const sizes = ne.map((n, i) => or(i === 0 ? block * r.int(1, n / block + 1) : r.int(1, n + 1)))
  const strides = r.chance(0.5)
    ? undefined
    : [1, 2, 3].map((i) => or(r.chance(0.5) ? a.nb[i]! : a.nb[r.int(0, 3)]! * r.int(0, 3)))
  const offset = or(r.chance(0.5) ? 0 : a.nb[r.int(0, 3)]! * r.int(0, 2))
  const label = `view(${show(a)} nb [${a.nb}], [${sizes}], [${strides}], ${offset})`
  say(seed, label)
  const v = attempt(() => ops.view(bench.c, a, sizes, strides?.slice(0, r.int(1, 3)), offset))
  if (!v) return null
  const mismatch = structMismatch(v)
  if (mismatch) return `${label}: ${mismatch}`
  const out = attempt(() => ops.cont(bench.c, v))
  if (!out) return null
  const want = read(v)
  const error = rmsError(bench.compute(out).data, want.data)
  writeSync(1, 'built view\n')
  return error === 0 ? null : `${label}: cont gave other numbers, rms error ${error}`
}

if (process.env['KVASIR_FUZZ_CHILD']) child()
else
  test('random calls either throw or compute', async () => {
    const failures: string[] = []
    let from = FIRST
    const built = new Map([...Object.keys(CASES), 'view'].map((name) => [name, 0]))
    // A crash ends the child: note its seed and go on behind it, so that one run shows all holes.
    while (from < FIRST + SEEDS && failures.length < MOST_FAILURES) {
      const run = await spawnChild(from)
      const lines = run.out.trim().split('\n')
      failures.push(...lines.filter((l) => l.startsWith('FAIL')))
      for (const name of lines.filter((l) => l.startsWith('built')).map((l) => l.split(' ')[1]!))
        built.set(name, built.get(name)! + 1)
      if (run.code === 0) break
      const last = lines.findLast((l) => l.startsWith('seed'))
      assert.ok(last, `the child did not start: ${run.error}`)
      failures.push(`CRASH ${run.code ?? run.signal} ${last} ${run.error.trim().split('\n').slice(-1)}`)
      from = Number(last.split(' ')[1]) + 1
    }
    assert.deepEqual(failures, [])
    const rare = [...built].filter(([, n]) => n < 3)
    assert.deepEqual(rare, [], `hardly ever accepted, of ${SEEDS} calls: the fuzz tests nothing there`)
  })
