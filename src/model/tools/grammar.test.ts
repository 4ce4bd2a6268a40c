import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { Ajv2020 } from 'ajv/dist/2020.js'
import fc from 'fast-check'
import { KvasirError } from '../../contract/errors.ts'
import { liveNatives } from '../../ggml/owned.ts'
import { Sampler } from '../sampling/sampler.ts'
import type { SchemaObject } from '../sampling/schema-merge.ts'
import { Tokenizer } from '../tokenizer/tokenizer.ts'
import { HOUSE_MODEL, spaceFirstVocabulary } from '../tokenizer/vocabularies.fixture.ts'
import type { ToolFormat } from './format.ts'
import { type FunctionTool, type ToolChoice, type ToolGrammarOptions, toolGrammar } from './grammar.ts'
import { callsToken } from './mistral.ts'
import { ToolCallParser } from './parse.ts'
import { parameters } from './schemas.fixture.ts'

const tool = (name: string, parameters?: SchemaObject): FunctionTool => ({
  type: 'function',
  function: { name, ...(parameters && { parameters }) },
})
const WEATHER = tool('weather', {
  type: 'object',
  properties: { city: { type: 'string' }, days: { type: 'integer', minimum: 1, maximum: 9 } },
  required: ['city'],
})
const TOOLS = [WEATHER, tool('time'), tool('get_x-1', { properties: { x: { enum: ['a"b'] } }, required: ['x'] })]

/** Calls as the parser reads them from an answer cut at `cuts`. */
function read(format: ToolFormat, answer: string, cuts: readonly number[] = []) {
  const parser = new ToolCallParser(format)
  const places = [0, ...cuts.map((cut) => cut % (answer.length + 1)).sort((a, b) => a - b), answer.length]
  const events = places.slice(1).flatMap((to, i) => parser.feed(answer.slice(places[i], to)))
  const calls: { name: string; json: string; ended: boolean }[] = []
  let text = ''
  for (const event of [...events, ...parser.end()]) {
    if (event.kind === 'text') text += event.text
    else if (event.kind === 'call') calls.push({ name: event.name, json: '', ended: false })
    else if (event.kind === 'arguments') calls[event.index]!.json += event.json
    else calls[event.index]!.ended = true
  }
  return { text, calls }
}

describe('toolGrammar', () => {
  const before_ = liveNatives()
  let t: Tokenizer
  before(async () => {
    t = await Tokenizer.load(HOUSE_MODEL)
  })
  after(() => {
    t.dispose()
    assert.deepEqual(liveNatives(), before_)
  })

  const grammarOf = (format: ToolFormat, choice: ToolChoice, more: Partial<ToolGrammarOptions> = {}, tools = TOOLS) =>
    toolGrammar(tools, { format, choice, parallel: true, ...more })

  /** `ends`: the answer may end here; `open`: it may go on; `refused`: the grammar does not allow it. */
  function verdict(grammar: string, answer: string | readonly number[]): 'ends' | 'open' | 'refused' {
    using sampler = new Sampler(t, { grammar })
    for (const token of typeof answer === 'string' ? t.encode(answer) : answer) {
      if (!sampler.allows(token)) return 'refused'
      sampler.accept(token)
    }
    return sampler.allows(t.eos!) ? 'ends' : 'open'
  }

  /** Noise writes; `liked` texts are likelier than others. Null when the answer does not end. */
  function write(grammar: string, seed: number, liked: readonly string[], most = 400): string | null {
    using sampler = new Sampler(t, { temperature: 1.5, topK: 0, topP: 1, minP: 0, grammar, seed })
    let state = seed | 1
    const boosts = ['"', '}', ']', ',', ...liked].flatMap((text) => [...t.encode(text)])
    const tokens: number[] = []
    const logits = new Float32Array(t.vocabSize)
    for (let i = 0; i < most; i++) {
      for (let k = 0; k < logits.length; k++)
        logits[k] = ((state = (Math.imul(state, 1664525) + 1013904223) | 0) >>> 8) / 2 ** 22
      for (const token of boosts) logits[token]! += 5
      logits[t.eos!]! += 4 + i / 16
      const { token } = sampler.sample(logits)
      sampler.accept(token)
      if (t.isEndOfGeneration(token)) return t.decode(tokens)
      tokens.push(token)
    }
    return null
  }

  const MARKED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
  const TIME = '<tool_call>{"name":"time","arguments":{}}</tool_call>'
  const CASES: [name: string, grammar: () => string, ends: string[], open: string[], refused: string[]][] = [
    [
      'hermes, auto',
      () => grammarOf('hermes', 'auto'),
      [
        '',
        'Hello <b>, <tool',
        '<tool_cal',
        '<<tool_callx',
        'a\n\n',
        MARKED,
        `I look.\n${MARKED}\n${TIME}`,
        `<tool<tool_${TIME}`,
      ],
      ['<tool_call>', `${MARKED}\n`, '<tool_call>\n{"name": "time", "arguments": {}}'],
      [
        '<tool_call>x',
        `${MARKED} text`,
        '<tool_call>{"name":"other',
        MARKED.replace('"city"', '"town"'),
        MARKED.replace('arguments', 'parameters'),
      ],
    ],
    [
      'hermes, required',
      () => grammarOf('hermes', 'required'),
      [
        MARKED,
        ` ${TIME}`,
        `${TIME}\n${MARKED}`,
        MARKED.replace('"weather", "arguments": {"city": "Oslo"}', '"get_x-1", "arguments": {"x": "a\\"b"}'),
      ],
      ['', '<tool'],
      ['Hello', `${TIME}x`, TIME.replace('{}', '{"a": 1}')],
    ],
    [
      'generic, named, one call',
      () => grammarOf('generic', { name: 'time' }, { parallel: false }),
      [TIME],
      [''],
      [MARKED, `${TIME}${TIME}`, `${TIME}\n`],
    ],
    [
      'llama3, auto',
      () => grammarOf('llama3', 'auto'),
      ['', ' \n', 'A\n{"x"}\n', ' {"name": "weather", "parameters": {"city": ""}}', '{"name":"time","parameters":{}}'],
      ['{', ' {"name": "'],
      ['{x', '{"name":"time","arguments":{}}', '{"name":"time","parameters":{}}{', '{"name":"time","parameters":{}}; '],
    ],
    [
      'mistral, auto, no control token',
      () => grammarOf('mistral', 'auto'),
      [
        '',
        '[1] Paris',
        ' [ [',
        '[TOOL_CALLS',
        '[T]',
        'x [TOOL_CALLS',
        '[[TOOL_CALLx]',
        ' [\n]',
        ' [{"name": "time", "arguments": {}}, {"name":"time","arguments":{}}]',
      ],
      ['[{', '[{"name": "time", "arguments": {}}'],
      ['[TOOL_CALLS]', ' [[TOOL_CALLS]', 'x [TOOL_CALLS]', '[ {x', ' [{"name": "time", "arguments": {}}] x'],
    ],
    [
      'mistral, required, one call',
      () => grammarOf('mistral', 'required', { parallel: false }),
      ['[{"name": "time", "arguments": {}}]'],
      [],
      ['x', '[]', '[{"name": "time", "arguments": {}}, '],
    ],
  ]
  for (const [name, grammar, ends, open, refused] of CASES)
    it(name, () => {
      for (const [answers, expected] of [
        [ends, 'ends'],
        [open, 'open'],
        [refused, 'refused'],
      ] as const)
        for (const answer of answers) assert.equal(verdict(grammar(), answer), expected, JSON.stringify(answer))
    })

  it('mistral asks for its control token', async () => {
    using mistral = await spaceFirstVocabulary(['[INST]', '[TOOL_CALLS]'])
    const controlToken = callsToken(mistral)
    const [inst] = mistral.encode('[INST]', { parseSpecial: true }).slice(-1)
    assert.deepEqual([callsToken(t), mistral.isControl(controlToken!), mistral.isControl(inst!)], [null, true, true])
    const of = (choice: ToolChoice, ...parts: (string | number)[]) => {
      using sampler = new Sampler(mistral, { grammar: grammarOf('mistral', choice, { controlToken }) })
      for (const token of parts.flatMap((p) => (typeof p === 'number' ? p : [...mistral.encode(p)]))) {
        if (!sampler.allows(token)) return 'refused'
        sampler.accept(token)
      }
      return sampler.allows(mistral.eos!) ? 'ends' : 'open'
    }
    const list = '[{"name": "time", "arguments": {}}]'
    for (const choice of ['auto', 'required'] as const) {
      assert.equal(of(choice, controlToken!, list), 'ends')
      assert.equal(of(choice, controlToken!), 'open')
      assert.equal(of(choice, list), 'refused')
      assert.equal(of(choice, controlToken!, 'text'), 'refused')
      assert.equal(of(choice, controlToken!, controlToken!), 'refused')
      assert.equal(of(choice, inst!), 'refused')
    }
    assert.equal(of('auto', 'the bad'), 'ends')
    assert.equal(of('auto', 'the bad', controlToken!), 'refused')
    assert.equal(of('auto', '[TOOL_CALLS]'), 'refused')
    const answer = mistral.decode([controlToken!, ...mistral.encode(list)])
    assert.deepEqual(read('mistral', answer).calls, [{ name: 'time', json: '{}', ended: true }])
  })

  it('writes calls whose arguments parse and satisfy their schema, whatever the logits', () => {
    const LIKED: Record<ToolFormat, string[]> = {
      hermes: ['<tool_call>'],
      generic: ['<tool_call>'],
      llama3: ['{'],
      mistral: ['[{'],
    }
    const ajv = new Ajv2020({ strict: false, validateFormats: false })
    const kind = fc.record({
      format: fc.constantFrom<ToolFormat>('hermes', 'llama3', 'mistral', 'generic'),
      choice: fc.constantFrom<ToolChoice>('auto', 'required', { name: 'f1' }),
      parallel: fc.boolean(),
    })
    const schemas = fc.array(parameters, { minLength: 2, maxLength: 3 })
    const counts = { schemas: 0, calls: 0, several: 0, text: 0, endless: 0 }
    fc.assert(
      fc.property(schemas, kind, fc.nat(), fc.array(fc.nat(500), { maxLength: 6 }), (schemas, kind, seed, cuts) => {
        counts.schemas += schemas.length
        const grammar = toolGrammar(
          schemas.map((schema, i) => tool(`f${i}`, schema)),
          kind,
        )
        const answer = write(grammar, seed, LIKED[kind.format])
        if (answer === null) {
          counts.endless++
          return
        }
        const { text, calls } = read(kind.format, answer, cuts)
        for (const { name, json, ended } of calls) {
          assert.ok(ended, answer)
          const schema = schemas[Number(name.slice(1))]!
          assert.ok(ajv.validate(schema, JSON.parse(json)), `${json}: ${ajv.errorsText()}`)
        }
        if (kind.choice === 'auto' && calls.length === 0) assert.equal(text, answer)
        if (kind.choice !== 'auto') assert.deepEqual([text, calls.length > 0], ['', true], answer)
        if (typeof kind.choice === 'object') assert.ok(calls.every((call) => call.name === 'f1'))
        if (!kind.parallel || kind.format === 'llama3') assert.ok(calls.length <= 1, answer)
        counts.calls += calls.length
        if (calls.length > 1) counts.several++
        if (text !== '') counts.text++
      }),
      // The same runs each time; others with KVASIR_LONG=1.
      process.env['KVASIR_LONG'] ? { numRuns: 1000 } : { numRuns: 120, seed: 1203424919 },
    )
    assert.ok(
      counts.schemas >= 200 && counts.calls >= 40 && counts.several >= 1 && counts.text >= 10,
      JSON.stringify(counts),
    )
    assert.ok(counts.endless <= 30, JSON.stringify(counts))
    if (process.env['SHOW']) console.log(counts)
  })

  it('tells names apart that begin alike, and escapes them', () => {
    const names = ['get', 'get_a', 'get_ab', 'b"\\', 'b"', 'get']
    const grammar = grammarOf(
      'llama3',
      'required',
      {},
      names.map((name) => tool(name)),
    )
    for (const name of names)
      assert.equal(verdict(grammar, `{"name": ${JSON.stringify(name)}, "parameters": {}}`), 'ends', name)
    for (const name of ['ge', 'get_', 'get_abc', 'b'])
      assert.equal(verdict(grammar, `{"name": "${name}",`), 'refused', name)
  })

  it('takes an empty object for functions without parameters', () => {
    const EMPTY: (SchemaObject | undefined)[] = [
      undefined,
      {},
      { type: 'object', properties: {} },
      { type: 'object', required: [] },
    ]
    for (const schema of EMPTY) {
      const grammar = grammarOf('llama3', 'required', {}, [tool('f', schema)])
      assert.equal(verdict(grammar, '{"name": "f", "parameters": {}}'), 'ends')
      assert.equal(verdict(grammar, '{"name": "f", "parameters": {"a'), 'refused')
    }
    const free = grammarOf('llama3', 'required', {}, [tool('f', { type: 'object', additionalProperties: true })])
    assert.equal(verdict(free, '{"name": "f", "parameters": {"a": 1}}'), 'ends')
  })

  it('keeps arguments objects where the schema alone would not', () => {
    const schema = { anyOf: [{ type: 'string' }, { properties: { a: { const: 1 } }, required: ['a'] }] }
    const grammar = grammarOf('llama3', 'required', {}, [tool('f', schema)])
    assert.equal(verdict(grammar, '{"name": "f", "parameters": {"a": 1}}'), 'ends')
    assert.equal(verdict(grammar, '{"name": "f", "parameters": "'), 'refused')
  })

  it('names the tool and the place of a schema that no grammar can be made for', () => {
    const { type, function: loose } = tool('bad', {
      type: 'object',
      properties: { a: { type: 'array', uniqueItems: true } },
    })
    const bad = { type, function: { ...loose, strict: true } }
    assert.throws(
      () => grammarOf('hermes', 'auto', {}, [WEATHER, bad]),
      (e) => {
        assert.ok(e instanceof KvasirError && e.code === 'GRAMMAR_INVALID', String(e))
        assert.deepEqual(e.details, {
          path: '#/properties/a',
          keyword: 'uniqueItems',
          tool: 'bad',
          field: 'tools[1].function.parameters',
        })
        return /tools\[1\]\.function\.parameters of bad: JSON schema at #\/properties\/a/.test(e.message)
      },
    )
    assert.ok(grammarOf('hermes', { name: 'weather' }, {}, [WEATHER, bad]).includes('city'))
  })

  it('lets an answer that is no call be of a schema, where the two can be told apart', () => {
    const answer = {
      type: 'object',
      properties: { a: { type: 'integer' } },
      required: ['a'],
      additionalProperties: false,
    }
    const grammar = grammarOf('hermes', 'auto', { answer }, [WEATHER])
    assert.equal(verdict(grammar, '{"a": 1}'), 'ends')
    assert.equal(verdict(grammar, 'free text'), 'refused')
    assert.notEqual(verdict(grammar, '<tool_call>{"name": "'), 'refused')
    for (const format of ['llama3', 'mistral'] as const)
      assert.throws(() => grammarOf(format, 'auto', { answer }, [WEATHER]), { code: 'INVALID_ARGUMENT' })
  })

  it('is made and used quickly with 20 tools', () => {
    const schemas = fc.sample(parameters, { numRuns: 20, seed: 5 })
    const tools = schemas.map((schema, i) => tool(`get_something_${i}`, schema))
    const from = performance.now()
    const grammar = toolGrammar(tools, { format: 'hermes', choice: 'auto', parallel: true })
    const made = performance.now() - from
    new Sampler(t, { grammar }).dispose()
    const compiled = performance.now() - from - made
    using sampler = new Sampler(t, { grammar, temperature: 0 })
    const logits = new Float32Array(t.vocabSize)
    const tokens = t.encode(
      `Some words first. ${'On and on, <b>as usual</b>. '.repeat(30)}<tool_call>\n{"name": "get_something_1`,
    )
    const begun = performance.now()
    for (const token of tokens) {
      logits[token] = 9
      assert.equal(sampler.sample(logits).token, token)
      sampler.accept(token)
      logits[token] = 0
    }
    const perToken = (performance.now() - begun) / tokens.length
    if (process.env['SHOW']) console.log({ made, compiled, perToken, length: grammar.length })
    assert.ok(made < 500 && compiled < 500, `made in ${made} ms, compiled in ${compiled} ms`)
    assert.ok(perToken < 2, `${perToken} ms per token`)
  })
})
