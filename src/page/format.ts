/** Numbers for people. */

export function count(n: number): string {
  return Math.round(n).toLocaleString('en')
}

export function bytes(n: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  const power = n < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(n) / 10))
  return `${significant(n / 2 ** (10 * power))} ${units[power]}`
}

export function ms(n: number): string {
  return n < 1000 ? `${significant(n)} ms` : seconds(n)
}

export function seconds(milliseconds: number): string {
  const s = milliseconds / 1000
  return s < 120 ? `${significant(s)} s` : `${count(s / 60)} min`
}

/** Three digits at most, no zeros behind the point. */
export function significant(n: number): string {
  return n >= 100 ? count(n) : String(Number(n.toPrecision(n >= 10 ? 3 : 2)))
}

export function percent(part: number, whole: number): string {
  return whole > 0 ? `${Math.round((100 * part) / whole)} %` : '–'
}
