import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import fc from 'fast-check'
import { KvasirError } from '../../contract/errors.ts'
import { liveNatives } from '../../ggml/owned.ts'
import { Tokenizer } from '../tokenizer/tokenizer.ts'
import { HOUSE_MODEL } from '../tokenizer/vocabularies.fixture.ts'
import { JSON_GRAMMAR, type JsonSchema, schemaToGrammar } from './json-schema.ts'
import { Sampler } from './sampler.ts'

// biome-ignore lint/suspicious/noExplicitAny: schemas and values of any kind
type S = Record<string, any>

/** A second, plain reading of JSON Schema, for what the random schemas use. */
function isValid(schema: JsonSchema, value: S[string], root: JsonSchema = schema): boolean {
  if (typeof schema === 'boolean') return schema
  const s = schema as S
  const sub = (inner: JsonSchema, v: unknown) => isValid(inner, v, root)
  const same = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b)
  if (s['$ref'] && !sub(s['$ref'] === '#' ? root : (root as S)['$defs'][s['$ref'].slice(8)], value)) return false
  if (s['allOf'] && !s['allOf'].every((b: JsonSchema) => sub(b, value))) return false
  if (s['anyOf'] && !s['anyOf'].some((b: JsonSchema) => sub(b, value))) return false
  if (s['oneOf'] && s['oneOf'].filter((b: JsonSchema) => sub(b, value)).length !== 1) return false
  if ('const' in s && !same(s['const'], value)) return false
  if (s['enum'] && !s['enum'].some((v: unknown) => same(v, value))) return false
  const kind = value === null ? 'null' : Array.isArray(value) ? 'array' : typeof value
  const types = [s['type'] ?? [kind]].flat()
  if (!types.includes(kind) && !(Number.isInteger(value) && types.includes('integer'))) return false
  if (kind === 'string') {
    const length = [...value].length
    if (length < (s['minLength'] ?? 0) || length > (s['maxLength'] ?? Infinity)) return false
    return s['pattern'] === undefined || new RegExp(s['pattern'], 'u').test(value)
  }
  if (kind === 'number')
    return (
      value >= (s['minimum'] ?? -Infinity) &&
      value <= (s['maximum'] ?? Infinity) &&
      value > (s['exclusiveMinimum'] ?? -Infinity) &&
      value < (s['exclusiveMaximum'] ?? Infinity)
    )
  if (kind === 'array') {
    if (value.length < (s['minItems'] ?? 0) || value.length > (s['maxItems'] ?? Infinity)) return false
    return value.every((v: unknown, i: number) => sub(s['prefixItems']?.[i] ?? s['items'] ?? true, v))
  }
  if (kind !== 'object') return true
  if (s['required']?.some((key: string) => !Object.hasOwn(value, key))) return false
  return Object.entries(value).every(([key, v]) => {
    const own = s['properties'] && Object.hasOwn(s['properties'], key) ? s['properties'][key] : undefined
    return sub(own ?? s['additionalProperties'] ?? true, v)
  })
}

const bounds = (low: string, high: string, of: fc.Arbitrary<number>) =>
  fc.tuple(of, of, fc.nat(3)).map(([a, b, which]) => ({
    ...(which & 1 && { [low]: Math.min(a, b) }),
    ...(which & 2 && { [high]: Math.max(a, b) }),
  }))
const key = fc.oneof(fc.constantFrom('a', 'ab', 'b', 'id', 'né', 'x"y', 'a b', '__proto_'), fc.string({ maxLength: 4 }))
const PATTERNS = [
  '^[a-z]{2,4}$',
  '^(foo|ba[rz])+$',
  '^\\d{3}-\\w+$',
  '^[^"\\\\a-z]{1,5}$',
  'x',
  '^a|b$',
  '^.?"\\n\\t$',
  '^\\s?é😀*$',
]

const { schema } = fc.letrec<{ schema: S; leaf: S }>((tie) => ({
  leaf: fc.oneof(
    fc.constantFrom<S>({ type: 'boolean' }, { type: 'null' }, { type: ['integer', 'null'] }, { type: 'number' }),
    fc.constantFrom(...PATTERNS).map((pattern) => ({ type: 'string', pattern })),
    bounds('minLength', 'maxLength', fc.nat(6)).map((b) => ({ type: 'string', ...b })),
    bounds('minimum', 'maximum', fc.oneof(fc.integer(), fc.integer({ min: -20, max: 120 }))).map((b) => ({
      type: 'integer',
      ...b,
    })),
    bounds('exclusiveMinimum', 'exclusiveMaximum', fc.integer({ min: -5, max: 5 }))
      .filter((b: S) => !(b['exclusiveMaximum'] - b['exclusiveMinimum'] < 2))
      .map((b) => ({ type: 'integer', ...b })),
    bounds(
      'minimum',
      'maximum',
      fc.integer({ min: -3000, max: 3000 }).map((x) => x / 100),
    ).map((b) => ({ type: 'number', ...b })),
    bounds('minimum', 'maximum', fc.integer({ min: -9, max: 12 })).map((b) => ({ type: 'number', ...b })),
    fc.array(fc.jsonValue({ maxDepth: 1 }), { minLength: 1, maxLength: 4 }).map((values) => ({ enum: values })),
    fc.jsonValue({ maxDepth: 2 }).map((value) => ({ const: value })),
  ) as fc.Arbitrary<S>,
  schema: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    tie('leaf'),
    fc
      .tuple(
        bounds('minItems', 'maxItems', fc.nat(4)),
        tie('schema'),
        fc.array(tie('schema'), { maxLength: 2 }),
        fc.boolean(),
      )
      .map(([b, items, prefix, closed]) => ({
        type: 'array',
        ...b,
        ...(prefix.length > 0 && { prefixItems: prefix }),
        items: closed && (b as S)['minItems'] === undefined ? false : items,
      })),
    fc
      .tuple(
        fc.uniqueArray(fc.tuple(key, tie('schema'), fc.boolean()), { maxLength: 4, selector: ([k]) => k }),
        fc.nat(2),
        tie('leaf'),
      )
      .map(([members, extra, leaf]) => ({
        type: 'object',
        properties: Object.fromEntries(members.map(([k, s]) => [k, s])),
        required: members.filter(([, , needed]) => needed).map(([k]) => k),
        ...(extra === 1 && { additionalProperties: false }),
        ...(extra === 2 && { additionalProperties: leaf }),
      })),
    fc.array(tie('schema'), { minLength: 1, maxLength: 3 }).map((branches) => ({ anyOf: branches })),
    fc.tuple(tie('schema'), tie('schema')).map(([a, b]) => ({
      oneOf: [
        { type: 'object', properties: { kind: { const: 'a' }, v: a }, required: ['kind'] },
        { type: 'object', properties: { kind: { enum: ['b', 'c'] }, v: b }, required: ['kind'] },
        { type: 'null' },
      ],
    })),
    fc.tuple(tie('leaf'), tie('leaf')).map(([a, b]) => ({
      allOf: [
        { type: 'object', properties: { p: a, q: {} }, required: ['p'] },
        { properties: { r: b }, required: ['r'] },
      ],
    })),
  ) as fc.Arbitrary<S>,
}))

describe('schemaToGrammar', () => {
  const before_ = liveNatives()
  let t: Tokenizer
  before(async () => {
    t = await Tokenizer.load(HOUSE_MODEL)
  })
  after(() => {
    t.dispose()
    assert.deepEqual(liveNatives(), before_)
  })

  /** Whether the grammar allows this text as a whole. */
  function allows(grammar: string, text: string): boolean {
    using sampler = new Sampler(t, { grammar })
    for (const token of t.encode(text)) {
      if (!sampler.allows(token)) return false
      sampler.accept(token)
    }
    return sampler.allows(t.eos!)
  }

  /** Lets random logits write under the grammar. Null when the text does not end. */
  function write(grammar: string, seed: number): string | null {
    using sampler = new Sampler(t, { temperature: 1, topK: 0, topP: 1, minP: 0, grammar, seed })
    let state = seed | 1
    const closing = ['"', '}', ']', ','].map((c) => t.encode(c)[0]!)
    const text: number[] = []
    for (let i = 0; i < 300; i++) {
      const logits = new Float32Array(t.vocabSize)
      for (let k = 0; k < logits.length; k++)
        logits[k] = ((state = (Math.imul(state, 1664525) + 1013904223) | 0) >>> 8) / 2 ** 22
      for (const token of closing) logits[token]! += 4
      logits[t.eos!]! += 8
      const { token } = sampler.sample(logits)
      sampler.accept(token)
      if (t.isEndOfGeneration(token)) return t.decode(text)
      text.push(token)
    }
    return null
  }

  it('makes random logits write valid JSON, for random schemas', () => {
    let [ended, endless, refused] = [0, 0, 0]
    fc.assert(
      fc.property(schema, fc.nat(), (s, seed) => {
        let grammar: string
        try {
          grammar = schemaToGrammar(s)
        } catch (error) {
          // a random enum may contradict the rest
          assert.ok(error instanceof KvasirError && error.code === 'GRAMMAR_INVALID', String(error))
          assert.match(error.message, /value|type|within|satisf|allowed|items/)
          refused++
          return
        }
        const text = write(grammar, seed)
        if (text === null) {
          endless++
          return
        }
        ended++
        assert.ok(isValid(s, JSON.parse(text)), text)
      }),
      { numRuns: 250 },
    )
    assert.ok(ended > 3 * endless + 3 * refused, `${ended} ended, ${endless} did not, ${refused} were refused`)
  })

  it('writes any JSON object for json: true', () => {
    for (let seed = 0; seed < 12; seed++) {
      const text = write(JSON_GRAMMAR, seed)
      if (text !== null) assert.equal(typeof JSON.parse(text), 'object')
    }
    const ok = [
      '{}',
      '{ }',
      '{"a": [1, -2.5e10, true, null, "x\\u00e9\\n"], "b": {"c": {}}}',
      '{\n  "a": 1,\n  "b": []\n}',
    ]
    for (const text of ok) assert.ok(allows(JSON_GRAMMAR, text), text)
    for (const text of ['[]', '1', '{"a"}', '{"a": 01}', "{'a': 1}", '{"a": 1,}', '{} ', '{"a": "\\ud800"}'])
      assert.ok(!allows(JSON_GRAMMAR, text), text)
  })

  /** Texts that the grammar of a schema must allow, and others that it must not. */
  const CASES: [name: string, schema: JsonSchema, yes: string[], no: string[]][] = [
    ['anything', {}, ['1', '"a"', '[[], {"a": null}]'], ['a', '']],
    ['true', true, ['1'], ['x']],
    ['list of types', { type: ['string', 'null'] }, ['"a"', 'null'], ['1']],
    ['implied types', { properties: { a: true } }, ['{}', '{"a": 1}'], ['1', '{"b": 1}']],
    ['integers', { type: 'integer' }, ['0', '-1', '123456789012345'], ['-0', '01', '1.0', '1e3']],
    [
      'integers from',
      { type: 'integer', minimum: 17 },
      ['17', '18', '20', '99', '100', '5000'],
      ['16', '9', '-20', '017'],
    ],
    ['integers to', { type: 'integer', maximum: -3 }, ['-3', '-10', '-999'], ['-2', '0', '3']],
    [
      'integers within',
      { type: 'integer', minimum: -12, exclusiveMaximum: 105 },
      ['-12', '-9', '0', '104', '99'],
      ['-13', '105', '110'],
    ],
    ['integers from a fraction', { type: 'integer', minimum: 0.5, maximum: 2.5 }, ['1', '2'], ['0', '3']],
    ['numbers', { type: 'number' }, ['0', '-0.5', '1e-7', '3.25E+10'], ['.5', '1.', '+1', '1e']],
    [
      'numbers within',
      { type: 'number', minimum: 0, maximum: 1 },
      ['0', '0.5', '1', '1.0', '0.999'],
      ['1.01', '-0.1', '2', '10'],
    ],
    [
      'open bounds',
      { type: 'number', exclusiveMinimum: 0, exclusiveMaximum: 2 },
      ['0.001', '1', '1.99'],
      ['0', '0.0', '2', '2.0'],
    ],
    [
      'fractional bounds',
      { type: 'number', minimum: -0.25, maximum: 10.5 },
      ['-0.25', '-0.1', '0', '10.5', '9.99'],
      ['-0.26', '-1', '10.51', '11'],
    ],
    [
      'negative bounds',
      { type: 'number', minimum: -3, exclusiveMaximum: -1 },
      ['-3', '-3.0', '-1.01', '-2'],
      ['-1', '-3.1', '-0.5', '1'],
    ],
    [
      'lengths',
      { type: 'string', minLength: 2, maxLength: 3 },
      ['"ab"', '"é😀x"', '"\\n\\u00e9"'],
      ['"a"', '"abcd"', '""'],
    ],
    [
      'long lengths',
      { type: 'string', minLength: 1500, maxLength: 3700 },
      [1500, 2600, 3700].map((k) => `"${'x'.repeat(k)}"`),
      [1499, 3701].map((k) => `"${'x'.repeat(k)}"`),
    ],
    [
      'pattern',
      { type: 'string', pattern: '^[A-Z]\\d{2,}(?:-(a|bc))?$' },
      ['"A12"', '"Z999-bc"'],
      ['"A1"', '"A12-b"', '"xA12"'],
    ],
    ['free pattern', { pattern: 'b"' }, ['"b\\""', '"ab\\"c"'], ['"b"', '"b"c"']],
    ['pattern of escapes', { pattern: '^[\\\\\\n"]{3}\\x01$' }, ['"\\\\\\n\\"\\u0001"'], ['"\\\\\\n"']],
    [
      'date',
      { format: 'date' },
      ['"2024-02-28"', '"2023-12-31"', '"1999-04-30"'],
      ['"2024-02-30"', '"2024-04-31"', '"2024-13-01"', '"24-01-01"'],
    ],
    [
      'date-time',
      { format: 'date-time' },
      ['"2024-02-28T23:59:59Z"', '"2024-02-28T00:00:00.123+05:30"'],
      ['"2024-02-28"', '"2024-02-28T24:00:00Z"'],
    ],
    ['uuid', { format: 'uuid' }, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']],
    ['enum', { enum: ['a', 1, null, { b: [2] }] }, ['"a"', '1', 'null', '{"b":[2]}'], ['"b"', '2']],
    ['enum beside type', { enum: ['a', 1, 2.5], type: ['integer', 'string'] }, ['"a"', '1'], ['2.5']],
    [
      'tuple',
      { prefixItems: [{ const: 1 }, { const: 2 }], items: false, minItems: 1 },
      ['[1]', '[1, 2]'],
      ['[]', '[2]', '[1,2,3]'],
    ],
    [
      'old tuple',
      { items: [{ const: 1 }], additionalItems: { const: 2 } },
      ['[]', '[1]', '[1, 2, 2]'],
      ['[2]', '[1, 1]'],
    ],
    [
      'items',
      { items: { type: 'null' }, minItems: 2, maxItems: 3 },
      ['[null,null]', '[ null, null, null ]'],
      ['[null]', '[null,null,null,null]'],
    ],
    ['no items', { type: 'array', maxItems: 0 }, ['[]', '[ ]'], ['[1]']],
    [
      'properties in order, optional ones left out',
      {
        properties: { a: { const: 1 }, b: { const: 2 }, c: { const: 3 } },
        required: ['b'],
        additionalProperties: false,
      },
      ['{"b": 2}', '{"a":1,"b":2}', '{"a": 1, "b": 2, "c": 3}', '{"b": 2, "c": 3}'],
      ['{}', '{"a": 1}', '{"b": 2, "a": 1}', '{"b": 2, "d": 4}', '{"b": 3}'],
    ],
    [
      'more properties',
      { properties: { ab: { const: 1 } }, additionalProperties: { const: 2 } },
      ['{}', '{"ab": 1}', '{"ab": 1, "a": 2, "abc": 2, "": 2}', '{"b": 2}'],
      ['{"ab": 2}', '{"a": 1}', '{"a": 2, "ab": 2}', '{"\\u0061b": 2}'],
    ],
    [
      'more properties beside names that need escapes',
      { properties: { '"a': { const: 1 }, 'b\\': { const: 1 } }, additionalProperties: { const: 2 } },
      ['{}', '{"\\"a": 1}', '{"\\"a": 1, "b\\\\": 1, "a": 2, "b": 2}', '{"a": 2}'],
      ['{""a": 2}', '{"": 2a": 2}', '{"\\"a": 2}', '{"b\\": 2}'],
    ],
    [
      'required but not listed',
      { required: ['x'], additionalProperties: { const: 2 } },
      ['{"x": 2}', '{"x": 2, "y": 2}'],
      ['{}', '{"y": 2}'],
    ],
    [
      'forbidden property',
      { properties: { a: false, b: true }, additionalProperties: true },
      ['{"b": 1}', '{"c": 1}'],
      ['{"a": 1}'],
    ],
    [
      'counts',
      { type: 'object', minProperties: 1, maxProperties: 2 },
      ['{"a":1}', '{"a":1,"b":1}'],
      ['{}', '{"a":1,"b":1,"c":1}'],
    ],
    [
      'anyOf beside others',
      {
        type: 'object',
        properties: { a: { const: 1 } },
        anyOf: [{ properties: { b: { const: 2 } }, required: ['b'] }, { required: ['a'] }],
      },
      ['{"a":1}', '{"a":1,"b":2}', '{"b":2}'],
      ['{}'],
    ],
    ['oneOf by type', { oneOf: [{ type: 'integer' }, { type: 'string' }] }, ['1', '"a"'], ['null']],
    [
      'allOf',
      { allOf: [{ minimum: 3, type: 'number' }, { maximum: 5 }, { type: 'integer' }] },
      ['3', '5'],
      ['2', '6', '3.5'],
    ],
    [
      'allOf of closed objects',
      {
        allOf: [
          { properties: { a: true, b: true }, additionalProperties: false },
          { properties: { a: { const: 1 }, c: true } },
        ],
      },
      ['{"a": 1}', '{"b": 0}'],
      ['{"a": 2}', '{"c": 1}'],
    ],
    [
      'recursion',
      {
        $defs: {
          node: {
            type: 'object',
            properties: { v: { type: 'integer' }, next: { anyOf: [{ $ref: '#/$defs/node' }, { type: 'null' }] } },
            required: ['v'],
          },
        },
        $ref: '#/$defs/node',
      },
      ['{"v": 1}', '{"v": 1, "next": {"v": 2, "next": null}}'],
      ['{}', '{"v": 1, "next": 3}'],
    ],
    ['root recursion', { type: 'array', items: { $ref: '#' } }, ['[]', '[[], [[]]]'], ['[1]']],
    [
      'reference beside others',
      { definitions: { 'a/b': { type: 'integer' } }, $ref: '#/definitions/a~1b', minimum: 5, title: 'x' },
      ['5', '60'],
      ['4', '"a"'],
    ],
  ]
  for (const [name, s, yes, no] of CASES)
    it(name, () => {
      const grammar = schemaToGrammar(s)
      for (const text of yes) assert.ok(allows(grammar, text), `should allow ${text.slice(0, 80)}`)
      for (const text of no) assert.ok(!allows(grammar, text), `should refuse ${text.slice(0, 80)}`)
    })

  it('integers within any bounds', () => {
    const range = fc.tuple(fc.integer({ min: -1200, max: 1200 }), fc.nat(300))
    fc.assert(
      fc.property(range, ([min, width]) => {
        const max = min + width
        const grammar = schemaToGrammar({ type: 'integer', minimum: min, maximum: max })
        const probes = [
          min - 1,
          min,
          min + 1,
          max - 1,
          max,
          max + 1,
          Math.trunc((min + max) / 2),
          -min,
          0,
          min * 10,
          max * 10,
        ]
        for (const x of probes)
          if (!Object.is(x, -0))
            assert.equal(allows(grammar, String(x)), x >= min && x <= max, `${x} in ${min}..${max}`)
      }),
      { numRuns: 60 },
    )
  })

  const BAD: [schema: unknown, path: string, keyword: string | null, says: RegExp][] = [
    [{ properties: { a: { not: {} } } }, '#/properties/a', 'not', /not supported/],
    [{ items: { requird: [] } }, '#/items', 'requird', /did you mean "required"/],
    [{ type: 'array', uniqueItems: true }, '#', 'uniqueItems', /not supported/],
    [{ type: 'strin' }, '#', 'type', /known are/],
    [{ $ref: 'http://x' }, '#', '$ref', /only references/],
    [{ $ref: '#/$defs/x' }, '#/$ref (#/$defs/x)', null, /a schema is/],
    [{ $ref: '#' }, '#/$ref', '$ref', /itself/],
    [{ pattern: '^(?=a)$' }, '#', 'pattern', /ahead/],
    [{ pattern: '(a)\\1' }, '#', 'pattern', /uses \\1/],
    [{ pattern: '\\p{L}' }, '#', 'pattern', /uses \\p/],
    [{ pattern: '[' }, '#', 'pattern', /not a regular expression/],
    [{ pattern: 'a', maxLength: 3 }, '#', 'pattern', /cannot be joined/],
    [{ format: 'email' }, '#', 'format', /known are date/],
    [{ oneOf: [{ type: 'integer' }, { type: 'number' }] }, '#', 'oneOf', /branches 0 and 1/],
    [{ type: 'integer', minimum: 5, maximum: 4 }, '#', null, /within the bounds/],
    [{ allOf: [{ type: 'string' }, { type: 'null' }] }, '#', 'type', /no type is left/],
    [{ properties: { a: false }, required: ['a'] }, '#/properties/a', null, /no value/],
    [{ type: 'object', minProperties: 3 }, '#', 'minProperties', /more than 1/],
    [{ minLength: -1 }, '#', 'minLength', /whole number/],
    [{ type: 'string', maxLength: 1e9 }, '', null, /repetitions/],
    [{ required: 'a' }, '#', 'required', /list/],
    ['object', '#', null, /a schema is/],
  ]
  for (const [s, path, keyword, says] of BAD)
    it(`refuses ${JSON.stringify(s)}`, () => {
      assert.throws(
        () => schemaToGrammar(s as JsonSchema),
        (e) => {
          assert.ok(e instanceof KvasirError && e.code === 'GRAMMAR_INVALID', String(e))
          if (path) assert.deepEqual([e.details['path'], e.details['keyword']], [path, keyword])
          return says.test(e.message)
        },
      )
    })
})
