/**
 * One random case per op: operands that go together, the call, and what it must give, in plain loops. The op tests run them
 * as they are; the fuzz test bends their shapes, types and layouts. Not a test itself, but kept out of the build by its name.
 */

import type { Context } from '../context.ts'
import { at, type Fill, type Random, type Values, values } from '../fixture.test.ts'
import type { Tensor } from '../tensor.ts'
import { GGML_TYPES, type GgmlType } from '../types.ts'
import * as ops from './index.ts'

export interface Shape {
  readonly ne: readonly number[]
  readonly fill?: Fill
  /** Types that this operand has in a case that must work; default f32. */
  readonly types?: readonly GgmlType[]
}

export interface Case {
  readonly operands: readonly Shape[]
  readonly call: (c: Context, ...t: Tensor[]) => Tensor
  /** The result in f64. */
  readonly reference: (...v: Values[]) => Values
  /** Where several results are right, maps a result to one that can be compared. */
  readonly comparable?: (result: Values, ...v: Values[]) => Values
  /** Operand that the op writes into. */
  readonly writes?: number
}

const all = Object.keys(GGML_TYPES) as GgmlType[]
const QUANTS = all.filter((t) => GGML_TYPES[t].block > 1 && t !== 'q8_1' && t !== 'q8_K')
const HALVES: readonly GgmlType[] = ['f32', 'f16', 'bf16']
/** Types with a kernel that quantises to them. */
const TARGETS: readonly GgmlType[] = [
  'f32',
  'f16',
  'bf16',
  'q8_0',
  'q4_0',
  'q4_1',
  'q5_0',
  'q5_1',
  'q4_K',
  'q6_K',
  'iq4_nl',
]

/** Sizes of dimensions 1 to 3: mostly small, often 1. */
const tail = (r: Random): [number, number, number] => [r.int(1, 5), r.pick([1, 1, 2, 3]), r.pick([1, 1, 2])]
/** A row that every type's block divides. */
const blocks = (r: Random) => 256 * r.int(1, 2)
const anyRow = (r: Random) => r.pick([1, 2, 7, 16, 32, 33, 64, 96])

const UNARY: Readonly<Record<string, readonly [(c: Context, a: Tensor) => Tensor, (x: number) => number, Fill?]>> = {
  sqr: [ops.sqr, (x) => x * x],
  sqrt: [ops.sqrt, Math.sqrt, 'positive'],
  log: [ops.log, Math.log, 'positive'],
  exp: [ops.exp, Math.exp],
  neg: [ops.neg, (x) => -x],
  abs: [ops.abs, Math.abs],
  tanh: [ops.tanh, Math.tanh],
  relu: [ops.relu, (x) => Math.max(x, 0)],
  sigmoid: [ops.sigmoid, (x) => 1 / (1 + Math.exp(-x))],
  silu: [ops.silu, silu],
  gelu: [ops.gelu, gelu],
}

const BINARY: Readonly<Record<string, readonly [typeof ops.add, (x: number, y: number) => number]>> = {
  add: [ops.add, (x, y) => x + y],
  sub: [ops.sub, (x, y) => x - y],
  mul: [ops.mul, (x, y) => x * y],
  div: [ops.div, (x, y) => x / y],
}

export const CASES: Readonly<Record<string, (r: Random) => Case>> = {
  ...mapped(UNARY, ([call, f, fill]) => (r) => ({
    operands: [{ ne: [anyRow(r), ...tail(r)], fill: fill ?? 'normal', types: ['f32', 'f16'] }],
    call: (c, a) => call(c, a!),
    reference: (a) => each(a!, f),
  })),
  ...mapped(BINARY, ([call, f]) => (r) => {
    const ne = [anyRow(r), ...tail(r)]
    const over = ne.map((n) => (r.chance(0.3) ? 1 : n))
    return {
      operands: [
        { ne, types: ['f32', 'f16'] },
        { ne: over, fill: 'positive' },
      ],
      call: (c, a, b) => call(c, a!, b!),
      reference: (a, b) => values(a!.ne, (...i) => f(at(a!, ...i), at(b!, ...i))),
    }
  }),
  addQuantized: (r) => {
    const ne = [blocks(r), ...tail(r)]
    return {
      operands: [{ ne, types: ['q8_0', 'q4_0', 'q4_K', 'q6_K'] }, { ne }],
      call: (c, a, b) => ops.add(c, a!, b!),
      reference: (a, b) => values(a!.ne, (...i) => at(a!, ...i) + at(b!, ...i)),
    }
  },
  scale: (r) => {
    const bias = r.pick([0, -0.5])
    return {
      operands: [{ ne: [anyRow(r), ...tail(r)] }],
      call: (c, a) => ops.scale(c, a!, 1.5, bias),
      reference: (a) => each(a!, (x) => x * 1.5 + bias),
    }
  },
  swigluSplit: (r) => gated(r, ops.swigluSplit, silu),
  gegluSplit: (r) => gated(r, ops.gegluSplit, gelu),
  swiglu: (r) => {
    const half = r.int(1, 40)
    return {
      operands: [{ ne: [2 * half, ...tail(r)], types: ['f32', 'f16'] }],
      call: (c, a) => ops.swiglu(c, a!),
      reference: (a) => {
        const n = a!.ne[0] / 2
        return values([n, ...a!.ne.slice(1)], (i, ...j) => silu(at(a!, i, ...j)) * at(a!, i + n, ...j))
      },
    }
  },

  sumRows: (r) => reduced(r, ops.sumRows, (row) => sum(row)),
  mean: (r) => reduced(r, ops.mean, (row) => sum(row) / row.length),
  cumsum: (r) => ({
    operands: [{ ne: [anyRow(r), ...tail(r)] }],
    call: (c, a) => ops.cumsum(c, a!),
    reference: (a) => values(a!.ne, (i, ...j) => sum(rowOf(a!, ...j).slice(0, i + 1))),
  }),
  argmax: (r) => ({
    operands: [{ ne: [anyRow(r), r.int(1, 6)] }],
    call: (c, a) => ops.argmax(c, a!),
    reference: (a) => values([a!.ne[1]], (i) => rowOf(a!, i).indexOf(Math.max(...rowOf(a!, i)))),
  }),
  argsort: (r) => {
    const order = r.pick(['ascending', 'descending'] as const)
    const sign = order === 'ascending' ? 1 : -1
    return {
      operands: [{ ne: [anyRow(r), ...tail(r)] }],
      call: (c, a) => ops.argsort(c, a!, order),
      reference: (a) => values(a!.ne, (i, ...j) => rowOf(a!, ...j).sort((x, y) => sign * (x - y))[i]!),
      comparable: chosen,
    }
  },
  topK: (r) => {
    const n = anyRow(r)
    const k = r.int(1, n)
    return {
      operands: [{ ne: [n, ...tail(r)] }],
      call: (c, a) => ops.topK(c, a!, k),
      reference: (a) => values([k, ...a!.ne.slice(1)], (i, ...j) => rowOf(a!, ...j).sort((x, y) => y - x)[i]!),
      // in no promised order
      comparable: (ids, a) => {
        const picked = chosen(ids, a!)
        return values(ids.ne, (i, ...j) => rowOf(picked, ...j).sort((x, y) => y - x)[i]!)
      },
    }
  },

  rmsNorm: (r) => normed(r, ops.rmsNorm, (row) => [0, Math.sqrt(sum(row.map((x) => x * x)) / row.length + 1e-5)]),
  layerNorm: (r) =>
    normed(r, ops.layerNorm, (row) => {
      const m = sum(row) / row.length
      return [m, Math.sqrt(sum(row.map((x) => (x - m) ** 2)) / row.length + 1e-5)]
    }),
  mulMat: (r) => {
    const k = r.chance(0.5) ? blocks(r) : anyRow(r)
    const [a2, a3] = [r.int(1, 2), r.int(1, 2)]
    return {
      operands: [
        { ne: [k, r.int(1, 9), a2, a3], types: k % 256 ? HALVES : [...HALVES, ...QUANTS] },
        { ne: [k, r.int(1, 5), a2 * r.int(1, 3), a3 * r.int(1, 2)] },
      ],
      call: (c, a, b) => ops.mulMat(c, a!, b!),
      reference: product,
    }
  },
  outProd: (r) => {
    const k = r.int(1, 5)
    return {
      operands: [{ ne: [r.chance(0.5) ? blocks(r) : anyRow(r), k] }, { ne: [anyRow(r), k, r.int(1, 3), r.int(1, 2)] }],
      call: (c, a, b) => ops.outProd(c, a!, b!),
      reference: (a, b) => {
        const [g2, g3] = [b!.ne[2] / a!.ne[2], b!.ne[3] / a!.ne[3]]
        return values([a!.ne[0], b!.ne[0], b!.ne[2], b!.ne[3]], (i, j, z, w) => {
          let total = 0
          for (let x = 0; x < a!.ne[1]; x++)
            total += at(a!, i, x, Math.floor(z / g2), Math.floor(w / g3)) * at(b!, j, x, z, w)
          return total
        })
      },
    }
  },

  hadamard: (r) => {
    const k = 2 ** r.int(0, 8)
    return {
      // The CPU does not read the matrix: any numbers do.
      operands: [{ ne: [k, k] }, { ne: [k, ...tail(r)] }],
      call: (c, matrix, x) => ops.hadamard(c, matrix!, x!),
      reference: (_, x) => {
        const odd = (bits: number) => bits.toString(2).replaceAll('0', '').length % 2 === 1
        return values(x!.ne, (i, ...j) =>
          sum(rowOf(x!, ...j).map((v, at) => ((odd(i & at) ? -1 : 1) * v) / Math.sqrt(k))),
        )
      },
    }
  },

  getRows: (r) => {
    const [n, rows, b2, b3] = [r.chance(0.6) ? blocks(r) : anyRow(r), r.int(1, 6), r.int(1, 3), r.int(1, 2)]
    return {
      operands: [
        { ne: [n, rows, b2, b3], types: n % 256 ? [...HALVES, 'i32'] : [...HALVES, 'i32', ...QUANTS] },
        { ne: [r.int(1, 7), b2, b3], fill: { rows }, types: ['i32'] },
      ],
      call: (c, a, ids) => ops.getRows(c, a!, ids!),
      reference: (a, ids) =>
        values([a!.ne[0], ids!.ne[0], ids!.ne[1], ids!.ne[2]], (i, j, z, w) => at(a!, i, at(ids!, j, z, w), z, w)),
    }
  },
  setRows: (r) => {
    const [n, rows, b2, b3] = [r.chance(0.6) ? blocks(r) : anyRow(r), r.int(1, 6), r.int(1, 3), r.int(1, 2)]
    const k = r.int(1, rows)
    return {
      operands: [
        { ne: [n, rows, b2, b3], types: n % 256 ? HALVES : TARGETS },
        { ne: [n, k, b2, b3] },
        { ne: [k, r.chance(0.5) ? b2 : 1, r.chance(0.5) ? b3 : 1], fill: { rows }, types: ['i64', 'i32'] },
      ],
      call: (c, into, source, ids) => ops.setRows(c, into!, source!, ids!),
      reference: (into, source, ids) => {
        const out = values(into!.ne, (...i) => at(into!, ...i))
        const [n0, n1, n2] = out.ne
        for (let w = 0; w < source!.ne[3]; w++)
          for (let z = 0; z < source!.ne[2]; z++)
            for (let j = 0; j < source!.ne[1]; j++)
              for (let i = 0; i < n0; i++)
                out.data[i + n0 * (at(ids!, j, z, w) + n1 * (z + n2 * w))] = at(source!, i, j, z, w)
        return out
      },
      writes: 0,
    }
  },

  cont: (r) => {
    const ne = [r.chance(0.5) ? blocks(r) : anyRow(r), ...tail(r)] as const
    return {
      operands: [{ ne, types: ne[0] % 256 ? HALVES : all }],
      call: (c, a) => ops.cont(c, a!),
      reference: (a) => a!,
    }
  },
  contAs: (r) => {
    const ne = [r.chance(0.5) ? 512 : 2 * anyRow(r), ...tail(r)] as const
    const to = r.pick([
      [ne[0] / 2, ne[1] * 2, ne[2], ne[3]],
      [ne[0], ne[1] * ne[2] * ne[3]],
      [ne[0] * ne[1], ne[3], ne[2]],
    ])
    return {
      operands: [{ ne, types: ne[0] % 512 ? HALVES : [...HALVES, 'q8_0', 'q4_K'] }],
      call: (c, a) => ops.cont(c, a!, ...to),
      reference: (a) => ({ ne: values(to, () => 0).ne, data: a!.data }),
    }
  },
  reshape: (r) => {
    const ne = [r.chance(0.5) ? 512 : 2 * anyRow(r), ...tail(r)] as const
    const to = r.pick([
      [ne[0] / 2, ne[1] * 2, ne[2], ne[3]],
      [ne[0], ne[1] * ne[2] * ne[3]],
      [ne[0] * ne[1], ne[3], ne[2]],
    ])
    return {
      operands: [{ ne, types: ne[0] % 512 ? HALVES : [...HALVES, ...QUANTS] }],
      call: (c, a) => ops.reshape(c, a!, ...to),
      reference: (a) => ({ ne: values(to, () => 0).ne, data: a!.data }),
    }
  },
  permute: (r) => {
    const quant = r.chance(0.5)
    const axes = r.pick<[number, number, number, number]>(
      quant
        ? [
            [0, 2, 1, 3],
            [0, 3, 2, 1],
          ]
        : [
            [1, 0, 2, 3],
            [2, 0, 1, 3],
            [3, 2, 1, 0],
            [0, 2, 3, 1],
          ],
    )
    const a: Shape = { ne: [quant ? blocks(r) : anyRow(r), ...tail(r)], types: quant ? QUANTS : [...HALVES, 'i32'] }
    return {
      operands: [a],
      call: (c, t) => ops.permute(c, t!, ...axes),
      reference: (v) => {
        const ne = [1, 1, 1, 1]
        axes.forEach((to, i) => {
          ne[to] = v!.ne[i]!
        })
        return values(ne, (...i) => at(v!, ...(axes.map((to) => i[to]!) as [number, number, number, number])))
      },
    }
  },
  transpose: (r) => ({
    operands: [{ ne: [anyRow(r), ...tail(r)], types: [...HALVES, 'i32'] }],
    call: (c, a) => ops.transpose(c, a!),
    reference: (a) => values([a!.ne[1], a!.ne[0], a!.ne[2], a!.ne[3]], (i, j, ...k) => at(a!, j, i, ...k)),
  }),
  slice: (r) => {
    const ne = [blocks(r), ...tail(r)] as const
    const dim = r.pick([1, 2, 3] as const)
    const from = r.int(0, ne[dim] - 1)
    const to = r.int(from + 1, ne[dim])
    const shift = [0, 0, 0, 0].map((_, i) => (i === dim ? from : 0))
    return {
      operands: [{ ne, types: all.filter((t) => t !== 'q8_1' && t !== 'q8_K') }],
      call: (c, a) => ops.slice(c, a!, dim, from, to),
      reference: (a) =>
        values(
          a!.ne.map((n, i) => (i === dim ? to - from : n)),
          (...i) => at(a!, i[0], i[1] + shift[1]!, i[2] + shift[2]!, i[3] + shift[3]!),
        ),
    }
  },
  cast: (r) => {
    const quant = r.chance(0.6)
    const [from, to] = r.pick<readonly [readonly GgmlType[], GgmlType]>(
      quant
        ? [
            [['f32'], r.pick(TARGETS)],
            [QUANTS, 'f32'],
            [['f16', 'bf16'], 'q8_0'],
          ]
        : [
            [HALVES, r.pick(HALVES)],
            [['f32'], 'i32'],
            [['i32'], 'f32'],
          ],
    )
    return {
      operands: [{ ne: [quant ? blocks(r) : anyRow(r), ...tail(r)], types: from }],
      call: (c, a) => ops.cast(c, a!, to),
      reference: (a) => (to === 'i32' ? each(a!, Math.trunc) : a!),
    }
  },
  copy: (r) => {
    const ne = [blocks(r), ...tail(r)] as const
    return {
      operands: [
        { ne, types: ['f32'] },
        { ne: r.chance(0.7) ? ne : [ne[0] * ne[1], ne[2], ne[3]], types: TARGETS },
      ],
      call: (c, a, into) => ops.copy(c, a!, into!),
      reference: (a, into) => ({ ne: into!.ne, data: a!.data }),
      writes: 1,
    }
  },
  concat: (r) => {
    const dim = r.pick([0, 1, 2, 3] as const)
    const ne = [r.chance(0.4) ? blocks(r) : anyRow(r), ...tail(r)]
    const other = ne.map((n, i) => (i !== dim ? n : i === 0 ? (n % 256 ? anyRow(r) : blocks(r)) : r.int(1, 3)))
    const type = r.pick(
      ne[0]! % 256 || other[0]! % 256 ? [...HALVES, 'i32' as const] : [...HALVES, 'i32' as const, ...QUANTS],
    )
    return {
      operands: [
        { ne, types: [type] },
        { ne: other, types: [type] },
      ],
      call: (c, a, b) => ops.concat(c, a!, b!, dim),
      reference: (a, b) => {
        const size = a!.ne.map((n, i) => (i === dim ? n + b!.ne[i]! : n))
        const cut = a!.ne[dim]
        return values(size, (...i) => {
          if (i[dim]! < cut) return at(a!, ...i)
          return at(b!, ...(i.map((x, j) => (j === dim ? x - cut : x)) as [number, number, number, number]))
        })
      },
    }
  },
  repeat: (r) => {
    const ne = [anyRow(r), ...tail(r)]
    const to = ne.map((n) => n * r.int(1, 2))
    return {
      operands: [{ ne, types: ['f32', 'f16', 'i32', 'i16'] }],
      call: (c, a) => ops.repeat(c, a!, ...to),
      reference: (a) => values(to, (...i) => at(a!, ...i)),
    }
  },

  softMax: (r) => {
    const [n, T, H, B] = [anyRow(r), r.int(1, 4), r.int(1, 4), r.int(1, 2)]
    const masked = r.chance(0.6)
    const mask: Shape = {
      ne: [n, T + r.int(0, 2), r.pick([1, H]), r.pick([1, B])],
      fill: 'mask',
      types: ['f16', 'f32'],
    }
    return {
      operands: masked ? [{ ne: [n, T, H, B] }, mask] : [{ ne: [n, T, H, B] }],
      call: (c, a, m) => ops.softMax(c, a!, m ?? null, 0.7),
      reference: (a, m) =>
        values(a!.ne, (i, ...j) => softmax(rowOf(a!, ...j).map((x, k) => x * 0.7 + (m ? at(m, k, ...j) : 0)))[i]!),
    }
  },
  flashAttention: (r) => {
    const [d, dv] = [r.pick([32, 64, 80]), r.pick([32, 64])]
    const [n, T, Hkv, B] = [r.pick([1, 5, 32, 64, 70, 192, 600]), r.pick([1, 3, 64, 66]), r.int(1, 2), r.int(1, 2)]
    const H = Hkv * r.int(1, 3)
    const softcap = T < 64 || n % 64 === 0 ? r.pick([0, 0, 2]) : 0
    const types = (row: number): readonly GgmlType[] =>
      row % 32 ? HALVES : [...HALVES, 'q8_0', 'q4_0', 'q5_1', 'iq4_nl']
    const mask: Shape = {
      ne: [n + r.int(0, 1) * 8, T + r.int(0, 2), r.pick([1, H]), r.pick([1, B])],
      fill: 'mask',
      types: ['f16'],
    }
    const base: Shape[] = [
      { ne: [d, T, H, B] },
      { ne: [d, n, Hkv, B], types: types(d) },
      { ne: [dv, n, Hkv, B], types: types(dv) },
    ]
    return {
      operands: r.chance(0.6) ? [...base, mask] : base,
      call: (c, q, k, v, m) => ops.flashAttention(c, q!, k!, v!, m ?? null, 0.3, softcap),
      reference: (q, k, v, m) => attention(q!, k!, v!, m ?? null, 0.3, softcap),
    }
  },
  rope: (r) => {
    const d = 2 * r.int(1, 20)
    const dims = 2 * r.int(1, d / 2)
    const T = r.int(1, 5)
    const pairs = r.pick(['norm', 'neox'] as const)
    const options: ops.RopeOptions = {
      dims,
      pairs,
      base: 1000,
      frequencyScale: r.pick([1, 0.5]),
      extFactor: 0,
      attentionFactor: r.pick([1, 1.2]),
      betaFast: 32,
      betaSlow: 1,
      originalContext: 512,
    }
    const base: Shape[] = [
      { ne: [d, r.int(1, 3), T, r.int(1, 2)], types: ['f32', 'f16'] },
      { ne: [T], fill: { rows: 50 }, types: ['i32'] },
    ]
    return {
      operands: r.chance(0.4) ? [...base, { ne: [dims / 2 + r.int(0, 2)], fill: 'positive' }] : base,
      call: (c, a, positions, factors) => ops.rope(c, a!, positions!, factors ?? null, options),
      reference: (a, positions, factors) => rotated(a!, positions!, factors ?? null, options),
    }
  },
}

function mapped<T>(
  table: Readonly<Record<string, T>>,
  f: (x: T) => (r: Random) => Case,
): Record<string, (r: Random) => Case> {
  return Object.fromEntries(Object.entries(table).map(([name, x]) => [name, f(x)]))
}

function gated(r: Random, call: typeof ops.swigluSplit, f: (x: number) => number): Case {
  const ne = [anyRow(r), ...tail(r)]
  const type = r.pick(['f32', 'f16'] as const)
  return {
    operands: [
      { ne, types: [type] },
      { ne, types: [type] },
    ],
    call: (c, a, b) => call(c, a!, b!),
    reference: (a, b) => values(a!.ne, (...i) => f(at(a!, ...i)) * at(b!, ...i)),
  }
}

function reduced(r: Random, call: typeof ops.sumRows, f: (row: number[]) => number): Case {
  return {
    operands: [{ ne: [anyRow(r), ...tail(r)] }],
    call: (c, a) => call(c, a!),
    reference: (a) => values([1, ...a!.ne.slice(1)], (_, ...j) => f(rowOf(a!, ...j))),
  }
}

/** `shiftAndScale`: what is taken off a row, and what it is then divided by. */
function normed(r: Random, call: typeof ops.rmsNorm, shiftAndScale: (row: number[]) => [number, number]): Case {
  return {
    operands: [{ ne: [anyRow(r), ...tail(r)] }],
    call: (c, a) => call(c, a!, 1e-5),
    reference: (a) =>
      values(a!.ne, (i, ...j) => {
        const [shift, by] = shiftAndScale(rowOf(a!, ...j))
        return (at(a!, i, ...j) - shift) / by
      }),
  }
}

function silu(x: number): number {
  return x / (1 + Math.exp(-x))
}

/** The tanh form, as ggml has it. */
function gelu(x: number): number {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * x * (1 + 0.044715 * x * x)))
}

function each(a: Values, f: (x: number) => number): Values {
  return { ne: a.ne, data: a.data.map(f) }
}

function rowOf(a: Values, i1 = 0, i2 = 0, i3 = 0): number[] {
  return Array.from({ length: a.ne[0] }, (_, i) => at(a, i, i1, i2, i3))
}

function sum(row: readonly number[]): number {
  return row.reduce((x, y) => x + y, 0)
}

/** The elements of `a` that the indices name. */
function chosen(ids: Values, a: Values): Values {
  return values(ids.ne, (i, ...j) => at(a, at(ids, i, ...j), ...j))
}

function softmax(row: readonly number[]): number[] {
  const top = Math.max(...row)
  const e = row.map((x) => Math.exp(x - top))
  const total = sum(e)
  return e.map((x) => x / total)
}

function product(a: Values, b: Values): Values {
  const [g2, g3] = [b.ne[2] / a.ne[2], b.ne[3] / a.ne[3]]
  return values([a.ne[1], b.ne[1], b.ne[2], b.ne[3]], (i, t, z, w) => {
    let total = 0
    for (let k = 0; k < a.ne[0]; k++) total += at(a, k, i, Math.floor(z / g2), Math.floor(w / g3)) * at(b, k, t, z, w)
    return total
  })
}

function attention(q: Values, k: Values, v: Values, m: Values | null, scale: number, softcap: number): Values {
  const [d, T, H, B] = q.ne
  const [, n, Hkv] = k.ne
  const out = values([v.ne[0], H, T, B], () => 0)
  const G = H / Hkv
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let t = 0; t < T; t++) {
        const kv = Math.floor(h / G)
        const scores = Array.from({ length: n }, (_, j) => {
          let s = 0
          for (let i = 0; i < d; i++) s += at(q, i, t, h, b) * at(k, i, j, kv, b)
          s *= scale
          if (softcap) s = softcap * Math.tanh(s / softcap)
          return s + (m ? at(m, j, t, h, b) : 0)
        })
        const p = softmax(scores)
        for (let i = 0; i < v.ne[0]; i++) {
          let o = 0
          for (let j = 0; j < n; j++) o += p[j]! * at(v, i, j, kv, b)
          out.data[i + v.ne[0] * (h + H * (t + T * b))] = o
        }
      }
  return out
}

function rotated(a: Values, positions: Values, factors: Values | null, o: ops.RopeOptions): Values {
  const out = values(a.ne, (...i) => at(a, ...i))
  const [d, H, T, B] = a.ne
  for (let b = 0; b < B; b++)
    for (let t = 0; t < T; t++)
      for (let h = 0; h < H; h++)
        for (let i = 0; i < o.dims / 2; i++) {
          const angle =
            (at(positions, t) * o.frequencyScale * o.base ** ((-2 * i) / o.dims)) / (factors ? at(factors, i) : 1)
          const [c, s] = [Math.cos(angle) * o.attentionFactor, Math.sin(angle) * o.attentionFactor]
          const [i0, i1] = o.pairs === 'norm' ? [2 * i, 2 * i + 1] : [i, i + o.dims / 2]
          const [x, y] = [at(a, i0, h, t, b), at(a, i1, h, t, b)]
          out.data[i0 + d * (h + H * (t + T * b))] = x * c - y * s
          out.data[i1 + d * (h + H * (t + T * b))] = x * s + y * c
        }
  return out
}
