/** What holds for every policy, and that every policy has all that belongs to one. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { BLOCK_ROWS } from '../contract/format.ts'
import type { Observation } from '../contract/observation.ts'
import type { ModelDims, PolicyDefinition } from '../contract/policy.ts'
import {
  append,
  asComputed,
  attention,
  type Cache,
  DIMS,
  fullCache,
  observe,
  stateOf,
  total,
} from './attention.fixture.ts'
import { choosePolicy, POLICIES } from './index.ts'
import { answerStep, type Held, prefill, rowsStoredIn, stateFor } from './run.fixture.ts'

const POLICY_LIST = Object.values<PolicyDefinition>(POLICIES)
/** Those whose options say what the cache holds. */
const hasBudget = (name: string) => choosePolicy(name).definition.takesBudget !== false
/** Every policy as it is, with each of its divisions of the budget or formats, and with each way to read the prompt. */
const SPECS = POLICY_LIST.flatMap(({ name, options }) => [
  name,
  ...['layers', 'heads', 'prefill', 'bits', 'backbone', 'scores', 'hi'].flatMap((option) => {
    const spec = options[option]
    return spec?.kind === 'choice' ? spec.choices.map((choice) => `${name}?${option}=${choice}`) : []
  }),
])

/** What a policy needs before it works at all, and how near it comes to the budget: rows per layer and KV head, on average. */
interface Limits {
  readonly layers: number
  readonly budget: number
  /** From fewest to most rows after the prompt, of which `rows` would be due. */
  readonly after: (rows: number) => readonly [number, number]
  /** The same after `step` rows of the answer. */
  readonly decoding: (rows: number, step: number) => readonly [number, number]
}

/** Those that cannot do with any model, or do not meet the budget to the row. */
const LIMITS: Readonly<Record<string, Limits>> = {
  // Other heads all get the same number of rows; what the answer adds waits to be folded, or stays.
  razorattention: {
    layers: 1,
    budget: 1,
    after: (rows) => [rows - 1, rows],
    decoding: (rows, step) => [rows - 1, rows + step],
  },
  // A ladder needs two layers, sinks, and rows before and behind it. It frees R rows at once, more in a stretched pass: two
  // layers less the overlap make R = 1, three R = 2.
  lacache: { layers: 2, budget: 11, after: (rows) => [rows / 2, rows + 1], decoding: (rows) => [rows / 2, rows + 1] },
  // What the answer adds waits to be merged.
  kvmerger: { layers: 1, budget: 1, after: (rows) => [rows, rows], decoding: (rows, step) => [rows, rows + step] },
}

const limitsOf = (spec: string): Limits | undefined => LIMITS[spec.split('?')[0]!]

const settingFor = (spec: string) =>
  fc
    .record({
      layers: fc.integer({ min: limitsOf(spec)?.layers ?? 1, max: 4 }),
      kvHeads: fc.integer({ min: 1, max: 3 }),
      group: fc.integer({ min: 1, max: 4 }),
      n: fc.integer({ min: 1, max: 48 }),
      budget: fc.integer({ min: limitsOf(spec)?.budget ?? 1, max: 50 }),
      seed: fc.integer({ min: 1, max: 1000 }),
    })
    .map(({ layers, kvHeads, group, ...rest }) => ({
      dims: { layers, kvHeads, heads: kvHeads * group, headDim: 8 },
      ...rest,
    }))

/** The function that reads rows stays the same one. */
const copyOf = ({ rows, ...data }: Observation): Observation => ({
  ...structuredClone(data),
  ...(rows ? { rows } : {}),
})

const rowsIn = (cache: Cache) => total(cache.flat().map((p) => p.length))

function checkRows(cache: Cache, [fewest, most]: readonly [number, number]): void {
  const heads = cache.flat().length
  const rows = rowsIn(cache)
  assert.ok(rows >= fewest * heads && rows <= most * heads, `${rows / heads} rows a head, not ${fewest} to ${most}`)
}

/** In order, without doubles, among the positions that there are; no head is empty. */
function checkCache(cache: Cache, seen: number): void {
  for (const positions of cache.flat()) {
    assert.ok(positions.length > 0, 'a head without rows')
    for (const [j, p] of positions.entries())
      assert.ok(p < seen && (j === 0 ? p >= 0 : p > positions[j - 1]!), String(positions))
    assert.equal(positions.at(-1), seen - 1, 'the newest row stays')
  }
}

function checkPure(spec: string, dims: ModelDims, n: number): void {
  const chosen = choosePolicy(spec)
  const { definition, options } = chosen
  const budget = definition.takesBudget === false ? n : 12
  const seen = observe(attention(dims, n, 5), dims, definition.observes(options))
  const before = copyOf(seen)
  const state = stateFor(chosen, { cache: fullCache(dims, n) }, { dims, budget })
  const plan = definition.afterPrefill(seen, state, options)
  assert.deepEqual(definition.afterPrefill(copyOf(seen), state, options), plan)
  assert.deepEqual(seen, before)
}

for (const spec of SPECS.filter((s) => s !== 'full' && hasBudget(s)))
  describe(spec, () => {
    const chosen = choosePolicy(spec)
    const limits = limitsOf(spec)
    const exactly = limits ? 'about' : 'exactly'

    it(`keeps ${exactly} the budget, or everything if it fits; plans can be carried out`, () => {
      fc.assert(
        fc.property(settingFor(spec), ({ dims, n, budget, seed }) => {
          const { cache } = prefill(spec, { dims, n, budget, seed })
          checkCache(cache, n)
          const rows = Math.min(n, budget)
          checkRows(cache, n > budget && limits ? limits.after(rows) : [rows, rows])
        }),
        { numRuns: 40 },
      )
    })

    it(`holds ${exactly} the budget in the answer, if it goes on there`, () => {
      fc.assert(
        fc.property(settingFor(spec), ({ dims, n, budget, seed }) => {
          let held: Held = prefill(spec, { dims, n, budget, seed })
          for (let step = 1; step <= 6; step++) {
            held = answerStep(chosen, held, { dims, budget, seed })
            checkCache(held.cache, n + step)
            const rows = chosen.definition.afterDecode ? Math.min(n + step, budget) : Math.min(n, budget) + step
            checkRows(held.cache, n + step > budget && limits ? limits.decoding(rows, step) : [rows, rows])
          }
        }),
        { numRuns: 25 },
      )
    })

    if (chosen.definition.afterDecode && !limits)
      it('each head keeps its length in the answer, once the budget is full', () => {
        const lengths = (cache: Cache) => cache.map((heads) => heads.map((p) => p.length))
        fc.assert(
          fc.property(settingFor(spec), ({ dims, n, budget, seed }) => {
            fc.pre(n >= budget)
            let held: Held = prefill(spec, { dims, n, budget, seed })
            const before = lengths(held.cache)
            for (let step = 1; step <= 6; step++) held = answerStep(chosen, held, { dims, budget, seed })
            assert.deepEqual(lengths(held.cache), before)
          }),
          { numRuns: 25 },
        )
      })

    it('asks for nothing it does not need when all fits', () => {
      const { definition, options } = chosen
      const cache = fullCache(DIMS, 20)
      assert.deepEqual(definition.afterPrefill({}, stateOf(DIMS, cache, 20), options), { kind: 'keep-all' })
      const grown = append(cache, 20)
      if (definition.afterDecode)
        assert.deepEqual(definition.afterDecode({}, stateOf(DIMS, grown, 21), options), { kind: 'keep-all' })
    })

    it('same input, same plan; the input stays as it was', () => checkPure(spec, DIMS, 40))
  })

const storingSetting = fc
  .record({
    layers: fc.integer({ min: 1, max: 2 }),
    kvHeads: fc.integer({ min: 1, max: 2 }),
    group: fc.integer({ min: 1, max: 2 }),
    n: fc.integer({ min: 1, max: 200 }),
    seed: fc.integer({ min: 1, max: 1000 }),
  })
  .map(({ layers, kvHeads, group, n, seed }) => ({
    dims: { layers, kvHeads, heads: kvHeads * group, headDim: 32 },
    ...{ n, budget: n, seed },
  }))

/** All rows are there; those in a format fill whole blocks, as many in each head. */
function checkStored(spec: string, held: Held, seen: number, dims: ModelDims): void {
  checkCache(held.cache, seen)
  checkRows(held.cache, [seen, seen])
  const { definition, options } = choosePolicy(spec)
  const formats = definition.formats?.(dims, options) ?? []
  for (const format of formats.keys()) {
    const counts = held.cache.flatMap((heads, layer) =>
      heads.map((_, kvHead) => rowsStoredIn(held, format + 1, layer, kvHead).length),
    )
    for (const count of counts) {
      assert.equal(count % BLOCK_ROWS, 0, `${count} rows are in format ${format}`)
      assert.equal(count, counts[0])
    }
  }
}

for (const spec of SPECS.filter((s) => !hasBudget(s)))
  describe(spec, () => {
    const chosen = choosePolicy(spec)

    it('keeps all rows, in whole blocks of its formats; plans can be carried out', () => {
      fc.assert(
        fc.property(storingSetting, (setting) => checkStored(spec, prefill(spec, setting), setting.n, setting.dims)),
        { numRuns: 10 },
      )
    })

    it('so it does in the answer; a row that is in a format stays in it', () => {
      fc.assert(
        fc.property(storingSetting, (setting) => {
          let held: Held = prefill(spec, setting)
          for (let step = 1; step <= 100; step++) {
            held = answerStep(chosen, held, setting)
            if (step % 20 === 0) checkStored(spec, held, setting.n + step, setting.dims)
          }
        }),
        { numRuns: 4 },
      )
    })

    if (chosen.definition.formats)
      it('leaves a text of less than a block as it was computed', () => {
        const setting = { dims: { ...DIMS, headDim: 32 }, n: 20, budget: 20 }
        let held: Held = prefill(spec, setting)
        for (let step = 1; step < BLOCK_ROWS - 20; step++) held = answerStep(chosen, held, setting)
        assert.deepEqual(held.formats, asComputed(held.cache))
      })

    it('same input, same plan; the input stays as it was', () => checkPure(spec, { ...DIMS, headDim: 32 }, 200))
  })

describe('completeness', () => {
  const root = fileURLToPath(new URL('../..', import.meta.url))
  const here = dirname(fileURLToPath(import.meta.url))
  const FAMILIES = ['eviction', 'merging', 'quantization'] as const
  const files = FAMILIES.flatMap((family) =>
    readdirSync(join(here, family))
      .filter((f) => f.endsWith('.ts') && !f.endsWith('.test.ts'))
      .map((f) => ({ family, name: f.slice(0, -'.ts'.length), path: join(here, family, f) })),
  )
  const page = (name: string) => join(root, 'docs/policies', `${name}.md`)

  it('every file is a policy of that name and family, and every policy has its file', () => {
    for (const { name, family } of files)
      assert.equal((POLICIES as Record<string, PolicyDefinition>)[name]?.family, family, name)
    assert.deepEqual([...files.map((f) => f.name), 'full'].sort(), Object.keys(POLICIES).sort())
    for (const [name, policy] of Object.entries(POLICIES)) assert.equal(policy.name, name)
  })

  it('policies know the contract and each other, no engine', () => {
    const sources = readdirSync(here, { recursive: true, encoding: 'utf8' }).filter(
      (f) => f.endsWith('.ts') && !/\.(test|fixture)\.ts$/.test(f),
    )
    assert.ok(sources.length > 20)
    for (const source of sources)
      for (const [, target] of readFileSync(join(here, source), 'utf8').matchAll(/(?:from|import\()\s*'([^']+)'/g)) {
        const path = relative(here, resolve(here, dirname(source), target!))
        const isNear = target!.startsWith('.') && (!path.startsWith('..') || path.startsWith('../contract/'))
        // Files of other people's policies have to be found.
        const isNode = source === 'modules.ts' && target!.startsWith('node:')
        assert.ok(isNear || isNode, `${source}: ${target}`)
      }
  })

  it('every policy has a test', () => {
    for (const { path } of files) assert.ok(existsSync(path.replace(/\.ts$/, '.test.ts')), path)
  })

  it('every policy has a paper, besides those that are measures for others; the file names it', () => {
    const without = POLICY_LIST.filter((p) => p.paper === null).map((p) => p.name)
    assert.deepEqual(without, ['full', 'random', 'window'])
    for (const { name, path } of files) {
      const { paper } = (POLICIES as Record<string, PolicyDefinition>)[name]!
      if (paper) assert.ok(readFileSync(path, 'utf8').includes(`arXiv ${paper.arxiv}`), path)
    }
  })

  it('every policy has a page with its options, their defaults, and what else a reader asks', () => {
    for (const { name, paper, options } of POLICY_LIST) {
      const text = readFileSync(page(name), 'utf8')
      assert.ok(text.startsWith(`# ${name}\n`), name)
      if (paper) assert.ok(text.includes(paper.title) && text.includes(`https://arxiv.org/abs/${paper.arxiv}`), name)
      for (const [option, spec] of Object.entries(options))
        assert.ok(
          text.includes(`| \`${option}\` | ${spec.default} |`),
          `${name}.md: \`${option}\` with default ${spec.default}`,
        )
      for (const heading of ['Keeps', 'Looks at the question', 'Chunks and stored prefixes', 'Limits'])
        assert.ok(text.includes(`**${heading}.**`), `${name}.md: ${heading}`)
    }
  })

  it('every page is about a policy', () => {
    const pages = readdirSync(join(root, 'docs/policies')).filter((f) => f !== 'README.md')
    assert.deepEqual(
      pages.sort(),
      Object.keys(POLICIES)
        .map((name) => `${name}.md`)
        .sort(),
    )
  })
})
