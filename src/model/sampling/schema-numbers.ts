/** Grammars of numbers within bounds. All return alternatives without outer parentheses, or null for no number at all. */
import { literal } from './gbnf.ts'

/** Digits before the point where a bound is missing. */
const DIGITS = 15
const FRACTION = `"." [0-9]{1,${DIGITS}}`

export interface Bounds {
  readonly min: Bound | null
  readonly max: Bound | null
}

export interface Bound {
  readonly value: number
  readonly exclusive: boolean
}

export function integersWithin({ min, max }: Bounds): string | null {
  const low = min && BigInt(Math.ceil(min.value)) + (min.exclusive && Number.isInteger(min.value) ? 1n : 0n)
  const high = max && BigInt(Math.floor(max.value)) - (max.exclusive && Number.isInteger(max.value) ? 1n : 0n)
  return signed(low, high, 0)
}

/** Numbers without exponents. Bounds may have up to 15 digits before and after the point, see {@link decimalsOf}. */
export function numbersWithin(bounds: Bounds): string | null {
  const { min, max } = bounds
  const places = Math.max(min ? decimalsOf(min.value)! : 0, max ? decimalsOf(max.value)! : 0)
  if (places === 0) return wholeBounds(bounds)
  const parts: string[] = []
  for (let d = 0; d <= Math.max(places, 6); d++) {
    const scale = 10n ** BigInt(d)
    const unit = 10n ** BigInt(places)
    // exact: value * 10^places is whole
    const low = min && divideUp(scaled(min.value, places) * scale + (min.exclusive ? 1n : 0n), unit)
    const high = max && -divideUp(-(scaled(max.value, places) * scale - (max.exclusive ? 1n : 0n)), unit)
    const part = signed(low, high, d)
    if (part !== null) parts.push(part)
  }
  return parts.length > 0 ? parts.join(' | ') : null
}

/** Places behind the point, null for numbers that are too long for a grammar. */
export function decimalsOf(value: number): number | null {
  const [mantissa = '', exponent = '0'] = String(Math.abs(value)).split('e')
  const places = Math.max(0, (mantissa.split('.')[1] ?? '').length - Number(exponent))
  return places <= DIGITS && Math.abs(value) < 1e15 ? places : null
}

function scaled(value: number, places: number): bigint {
  return BigInt(value.toFixed(places).replace('.', ''))
}

function divideUp(a: bigint, b: bigint): bigint {
  const q = a / b
  return a % b > 0n ? q + 1n : q
}

/** Bounds are whole: any fraction may follow a whole part that is not at a bound. */
function wholeBounds({ min, max }: Bounds): string | null {
  const low = min && { value: BigInt(min.value), exclusive: min.exclusive }
  const high = max && { value: BigInt(max.value), exclusive: max.exclusive }
  const flip = (b: { value: bigint; exclusive: boolean }) => ({ value: -b.value, exclusive: b.exclusive })
  const parts: string[] = []
  if (!low || low.value < 0n) {
    const near = high && high.value <= 0n ? flip(high) : { value: 0n, exclusive: false }
    const negative = distances(near, low && flip(low))
    if (negative !== null) parts.push(`"-" (${negative})`)
  }
  if (!high || high.value >= 0n) {
    const near = low && low.value >= 0n ? low : { value: 0n, exclusive: false }
    const positive = distances(near, high)
    if (positive !== null) parts.push(positive)
  }
  return parts.length > 0 ? parts.join(' | ') : null
}

/** Numbers from `near` to `far`, both at least 0. */
function distances(
  near: { value: bigint; exclusive: boolean },
  far: { value: bigint; exclusive: boolean } | null,
): string | null {
  if (far && (far.value < near.value || (far.value === near.value && (far.exclusive || near.exclusive)))) return null
  const last = far ? far.value - 1n : largest(near.value)
  const parts: string[] = []
  if (near.exclusive && near.value <= last) parts.push(`"${near.value}." [0-9]{0,${DIGITS - 1}} [1-9]`)
  const whole = unsigned(near.value + (near.exclusive ? 1n : 0n), last, 0)
  if (whole !== null) parts.push(`(${whole}) (${FRACTION})?`)
  if (far && !far.exclusive) parts.push(`"${far.value}" ("." "0"{1,${DIGITS}})?`)
  return parts.length > 0 ? parts.join(' | ') : null
}

/** Numbers n / 10^places for whole n from `low` to `high`. */
function signed(low: bigint | null, high: bigint | null, places: number): string | null {
  const most = (bound: bigint) => largest(bound, DIGITS + places)
  const parts: string[] = []
  if (low === null || low < 0n) {
    const near = high !== null && high < 0n ? -high : 1n
    const negative = unsigned(near, low === null ? most(near) : -low, places)
    if (negative !== null) parts.push(`"-" (${negative})`)
  }
  if (high === null || high >= 0n) {
    const near = low !== null && low > 0n ? low : 0n
    const positive = unsigned(near, high ?? most(near), places)
    if (positive !== null) parts.push(positive)
  }
  return parts.length > 0 ? parts.join(' | ') : null
}

/** Where numbers without an upper bound end: 15 digits, or one more than the lower bound has. */
function largest(low: bigint, digits = DIGITS): bigint {
  return 10n ** BigInt(Math.max(digits, String(low).length + 1)) - 1n
}

function unsigned(low: bigint, high: bigint, places: number): string | null {
  const parts: string[] = []
  const longest = Math.max(String(high).length, places + 1)
  for (let length = places + 1; length <= longest; length++) {
    const least = length === places + 1 ? 0n : 10n ** BigInt(length - 1)
    const most = 10n ** BigInt(length) - 1n
    const [from, to] = [low > least ? low : least, high < most ? high : most]
    if (from > to) continue
    const pad = (n: bigint) => String(n).padStart(length, '0')
    parts.push(between(pad(from), pad(to), length - places))
  }
  return parts.length > 0 ? parts.join(' | ') : null
}

/** Digit strings of one length from `low` to `high`, with the point before index `point` where that lies inside. */
function between(low: string, high: string, point: number): string {
  if (low === high) return literal(withPoint(low, point))
  let same = 0
  while (low[same] === high[same]) same++
  if (same > 0) {
    const rest = between(low.slice(same), high.slice(same), point - same)
    const dot = point === same ? '.' : ''
    return `${literal(withPoint(low.slice(0, same), point) + dot)} (${rest})`
  }
  const rest = low.length - 1
  const dot = point === 1 && rest > 0 ? '"." ' : ''
  let [from, to] = [Number(low[0]), Number(high[0])]
  const parts: string[] = []
  if (!/^0*$/.test(low.slice(1))) {
    parts.push(`"${from}" ${dot}(${between(low.slice(1), '9'.repeat(rest), point - 1)})`)
    from++
  }
  const wholeLast = /^9*$/.test(high.slice(1))
  if (!wholeLast) to--
  if (from <= to) parts.push(`[${from}-${to}] ${dot}${anyDigits(rest, point - 1)}`.trim())
  if (!wholeLast) parts.push(`"${to + 1}" ${dot}(${between('0'.repeat(rest), high.slice(1), point - 1)})`)
  return parts.join(' | ')
}

function withPoint(digits: string, point: number): string {
  return point > 0 && point < digits.length ? `${digits.slice(0, point)}.${digits.slice(point)}` : digits
}

function anyDigits(n: number, point: number): string {
  if (n === 0) return ''
  if (point <= 0 || point >= n) return `[0-9]{${n}}`
  return `[0-9]{${point}} "." [0-9]{${n - point}}`
}
