/** Reads the text format of Prometheus, strictly: whatever it would not take is thrown. */
import assert from 'node:assert/strict'

export interface Sample {
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

export interface Family {
  readonly name: string
  readonly type: string
  readonly help: string
  readonly samples: readonly Sample[]
}

export class Exposition {
  readonly families: ReadonlyMap<string, Family>

  constructor(text: string) {
    this.families = parse(text)
    for (const family of this.families.values()) check(family)
  }

  /** Value of the one sample with these labels. */
  value(name: string, labels: Readonly<Record<string, string>> = {}): number {
    const found = this.samples(name, labels)
    assert.equal(found.length, 1, `${name} ${JSON.stringify(labels)}: ${found.length} samples`)
    return found[0]!.value
  }

  /** Of all samples with these labels. */
  sum(name: string, labels: Readonly<Record<string, string>> = {}): number {
    return this.samples(name, labels).reduce((total, s) => total + s.value, 0)
  }

  samples(name: string, labels: Readonly<Record<string, string>> = {}): Sample[] {
    const family = this.families.get(name) ?? this.families.get(name.replace(/_(bucket|sum|count)$/, ''))
    assert.ok(family, `no metric is called ${name}`)
    const asked = Object.entries(labels)
    return family.samples.filter((s) => s.name === name && asked.every(([key, value]) => s.labels[key] === value))
  }
}

const SAMPLE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)/y

function parse(text: string): Map<string, Family> {
  assert.ok(text.endsWith('\n'), 'the last line has no end')
  const families = new Map<string, Family & { readonly samples: Sample[] }>()
  let help: RegExpExecArray | null = null
  let family: (Family & { readonly samples: Sample[] }) | undefined
  for (const line of text.split('\n')) {
    if (line === '') continue
    if (line.startsWith('# HELP ')) help = /^# HELP (\S+) (.+)$/.exec(line)
    else if (line.startsWith('# TYPE ')) {
      const [, name, type] = /^# TYPE (\S+) (counter|gauge|histogram)$/.exec(line) ?? []
      assert.ok(name && type && help?.[1] === name, `a type without its help: ${line}`)
      assert.ok(!families.has(name), `${name} comes twice`)
      family = { name, type, help: help[2]!, samples: [] }
      families.set(name, family)
    } else {
      assert.ok(!line.startsWith('#'), `unknown comment: ${line}`)
      const sample = parseSample(line)
      const suffixes = family?.type === 'histogram' ? ['_bucket', '_sum', '_count'] : ['']
      assert.ok(
        suffixes.some((s) => sample.name === family?.name + s),
        `${line} is not of ${family?.name}`,
      )
      family!.samples.push(sample)
    }
  }
  return families
}

function parseSample(line: string): Sample {
  const [, name, inner = '', number] = SAMPLE.exec(line) ?? []
  assert.ok(name && number, `no sample: ${line}`)
  const labels: Record<string, string> = {}
  LABEL.lastIndex = 0
  while (LABEL.lastIndex < inner.length) {
    const at = LABEL.lastIndex
    const match = LABEL.exec(inner)
    assert.ok(match, `labels end at ${at}: ${line}`)
    assert.ok(!(match[1]! in labels), `a label comes twice: ${line}`)
    labels[match[1]!] = match[2]!
  }
  const value = number === '+Inf' ? Number.POSITIVE_INFINITY : Number(number)
  assert.ok(!Number.isNaN(value), `no number: ${line}`)
  return { name, labels, value }
}

function check({ name, type, samples }: Family): void {
  const seen = new Set<string>()
  for (const { name: own, labels, value } of samples) {
    const series = own + JSON.stringify(Object.entries(labels).sort())
    assert.ok(!seen.has(series), `${series} comes twice`)
    seen.add(series)
    if (type === 'counter') assert.ok(value >= 0 && name.endsWith('_total'), `${name} ${value}`)
  }
  if (type === 'histogram') checkHistogram(name, samples)
}

/** Buckets grow, the last one holds all, and sum and count are there, once for each set of labels. */
function checkHistogram(name: string, samples: readonly Sample[]): void {
  const groups = new Map<string, Sample[]>()
  for (const sample of samples) {
    const { le: _, ...rest } = sample.labels
    const key = JSON.stringify(rest)
    groups.set(key, [...(groups.get(key) ?? []), sample])
  }
  for (const [key, group] of groups) {
    const buckets = group.filter((s) => s.name === `${name}_bucket`)
    const bounds = buckets.map((b) => (b.labels['le'] === '+Inf' ? Number.POSITIVE_INFINITY : Number(b.labels['le'])))
    for (const [i, bucket] of buckets.slice(1).entries()) {
      assert.ok(bounds[i + 1]! > bounds[i]!, `${name} ${key}: bounds do not grow`)
      assert.ok(bucket.value >= buckets[i]!.value, `${name} ${key}: buckets are not cumulative`)
    }
    assert.equal(bounds.at(-1), Number.POSITIVE_INFINITY)
    const [sum, ...sums] = group.filter((s) => s.name === `${name}_sum`)
    const [count, ...counts] = group.filter((s) => s.name === `${name}_count`)
    assert.ok(sum && count && !sums.length && !counts.length, `${name} ${key}: sum and count`)
    assert.equal(buckets.at(-1)!.value, count.value, `${name} ${key}: +Inf and count`)
    assert.ok(count.value > 0 || sum.value === 0, `${name} ${key}: a sum of nothing`)
  }
}
