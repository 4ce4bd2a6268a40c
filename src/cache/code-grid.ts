/** Scales and bases of codes: the numbers that each group of a head can be rounded to. */
import type { Codes } from '../contract/format.ts'
import { BLOCK_ROWS } from '../contract/format.ts'
import { fromHalves, toHalves } from './half.ts'

/**
 * f16 bits. With groups by token, group g has the numbers from g * size on; else one has `rows` rows of a channel, and the groups are
 * [d, all rows / rows].
 */
export interface Grid {
  readonly rows: number
  readonly scales: Uint16Array
  readonly bases: Uint16Array
}

/** The code at which all planes read 0. */
export function zeroCode(bits: Codes['bits']): number {
  return bits === 2 ? 1 : 5
}

/**
 * From the least number of each group to its largest, but for rounding.
 * @param y f32 [d, rows], a multiple of 32 rows
 */
export function gridOf(y: Float32Array, { bits, groups }: Codes, d: number): Grid {
  const rows = groups.by === 'tier' ? y.length / d : BLOCK_ROWS
  const { low, high } = groups.by === 'token' ? tokenRanges(y, groups.size) : channelRanges(y, d, rows)
  const scales = toHalves(low.map((l, g) => (high[g]! - l) / (2 ** bits - 1)))
  const rounded = fromHalves(scales)
  return { rows, scales, bases: toHalves(low.map((l, g) => l + zeroCode(bits) * rounded[g]!)) }
}

interface Ranges {
  readonly low: Float32Array
  readonly high: Float32Array
}

function tokenRanges(y: Float32Array, size: number): Ranges {
  const low = new Float32Array(y.length / size)
  const high = new Float32Array(y.length / size)
  for (let g = 0; g < low.length; g++) {
    let min = y[g * size]!
    let max = min
    for (let at = g * size + 1; at < (g + 1) * size; at++) {
      const value = y[at]!
      if (value < min) min = value
      if (value > max) max = value
    }
    low[g] = min
    high[g] = max
  }
  return { low, high }
}

/** [d, all rows / rows] */
function channelRanges(y: Float32Array, d: number, rows: number): Ranges {
  const low = new Float32Array(y.length / rows)
  const high = new Float32Array(y.length / rows)
  for (let g = 0; g < low.length; g += d) {
    const first = g * rows
    low.set(y.subarray(first, first + d), g)
    high.set(y.subarray(first, first + d), g)
    for (let at = first + d; at < first + rows * d; at += d)
      for (let i = 0; i < d; i++) {
        const value = y[at + i]!
        if (value < low[g + i]!) low[g + i] = value
        if (value > high[g + i]!) high[g + i] = value
      }
  }
  return { low, high }
}

/**
 * The code of each number: of the grid's numbers the nearest.
 * @param y f32 [d, rows]
 */
export function roundTo(
  { rows, scales, bases }: Grid,
  y: Float32Array,
  { bits, groups }: Codes,
  d: number,
): Uint8Array {
  const inverse = Float64Array.from(fromHalves(scales), (scale) => (scale > 0 ? 1 / scale : 0))
  const base = fromHalves(bases)
  const zero = zeroCode(bits) + 0.5
  const top = 2 ** bits - 1
  const codes = new Uint8Array(y.length)
  const code = (value: number, g: number) => {
    const t = (value - base[g]!) * inverse[g]! + zero
    return t <= 0 ? 0 : t >= top ? top : t | 0
  }
  if (groups.by === 'token')
    for (let g = 0, at = 0; g < base.length; g++)
      for (let i = 0; i < groups.size; i++, at++) codes[at] = code(y[at]!, g)
  else
    for (let g = 0, at = 0; g < base.length; g += d)
      for (let row = 0; row < rows; row++) for (let i = 0; i < d; i++, at++) codes[at] = code(y[at]!, g + i)
  return codes
}
