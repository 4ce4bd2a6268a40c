import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import type { ToolFormat } from './format.ts'
import { ToolCallParser, type ToolEvent } from './parse.ts'

interface Answer {
  /** Text before, between and after calls. */
  readonly text: string
  readonly calls: readonly { readonly name: string; readonly json: string; readonly ended: boolean }[]
}

function events(format: ToolFormat, pieces: readonly string[]): ToolEvent[] {
  const parser = new ToolCallParser(format)
  return [...pieces.flatMap((piece) => parser.feed(piece)), ...parser.end()]
}

/** Also checks that indices count up and that events of a call stand between its beginning and its end. */
function read(format: ToolFormat, ...pieces: readonly string[]): Answer {
  let text = ''
  const calls: { name: string; json: string; ended: boolean }[] = []
  for (const event of events(format, pieces)) {
    if (event.kind === 'text') {
      assert.notEqual(event.text, '')
      text += event.text
      continue
    }
    if (event.kind === 'call') calls.push({ name: event.name, json: '', ended: false })
    assert.equal(event.index, calls.length - 1)
    const open = calls.at(-1)!
    assert.equal(open.ended, false)
    if (event.kind === 'arguments') open.json += event.json
    if (event.kind === 'call-end') open.ended = true
  }
  return { text, calls }
}

const done = (name: string, json: string) => ({ name, json, ended: true })
const HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ørsta"}}\n</tool_call>'

describe('ToolCallParser', () => {
  const CASES: [format: ToolFormat, name: string, answer: string, text: string, calls: Answer['calls']][] = [
    ['hermes', 'text alone', '  Hello <b>you</b>.\n', '  Hello <b>you</b>.\n', []],
    ['hermes', 'a call', HERMES, '', [done('weather', '{"city": "Ørsta"}')]],
    [
      'hermes',
      'text and calls',
      ` I look. \n${HERMES}\n${HERMES}\n`,
      ' I look.',
      Array(2).fill(done('weather', '{"city": "Ørsta"}')),
    ],
    ['hermes', 'text after a call', `${HERMES}\n So.\n`, 'So.\n', [done('weather', '{"city": "Ørsta"}')]],
    ['hermes', 'other white space', '<tool_call>{"name":"a","arguments":{}}</tool_call>', '', [done('a', '{}')]],
    [
      'hermes',
      'marks in arguments',
      '<tool_call>{"name":"a","arguments":{"x":"}\\"</tool_call><tool_call>{"}}</tool_call>',
      '',
      [done('a', '{"x":"}\\"</tool_call><tool_call>{"}')],
    ],
    [
      'hermes',
      'nested arguments',
      '<tool_call>{"name":"a","arguments":{"x":[{"y":{}}, "["]} } </tool_call>',
      '',
      [done('a', '{"x":[{"y":{}}, "["]}')],
    ],
    ['hermes', 'a missing closing mark', '<tool_call>{"name":"a","arguments":{}}\nDone.', 'Done.', [done('a', '{}')]],
    ['hermes', 'a missing brace', '<tool_call>{"name":"a","arguments":{}</tool_call>', '', [done('a', '{}')]],
    ['hermes', 'half a closing mark', '<tool_call>{"name":"a","arguments":{}}\n</tool', '', [done('a', '{}')]],
    [
      'hermes',
      'arguments cut off',
      '<tool_call>{"name":"a","arguments":{"x": "y',
      '',
      [{ name: 'a', json: '{"x": "y', ended: false }],
    ],
    ['hermes', 'a head cut off', 'So <tool_call>{"name":"a","argu', 'So <tool_call>{"name":"a","argu', []],
    ['hermes', 'half a mark', 'a < b <tool', 'a < b <tool', []],
    [
      'hermes',
      'a mark without a call',
      `<tool_call> is a mark. ${HERMES}`,
      '<tool_call> is a mark.',
      [done('weather', '{"city": "Ørsta"}')],
    ],
    [
      'hermes',
      'a mark within a mark',
      `<tool_call><<tool_call>{"name":"a","arguments":{}}</tool_call>`,
      '<tool_call><',
      [done('a', '{}')],
    ],
    [
      'hermes',
      'arguments that are no object',
      '<tool_call>{"name":"a","arguments":[]}</tool_call>',
      '<tool_call>{"name":"a","arguments":[]}</tool_call>',
      [],
    ],
    [
      'hermes',
      'a name with escapes',
      '<tool_call>{"name":"a\\"\\u00e9\\\\","arguments":{}}</tool_call>',
      '',
      [done('a"é\\', '{}')],
    ],
    [
      'hermes',
      'a name that is no JSON',
      '<tool_call>{"name":"a\\q","arguments":{}}</tool_call>',
      '<tool_call>{"name":"a\\q","arguments":{}}</tool_call>',
      [],
    ],
    [
      'hermes',
      'a head beyond all measure',
      `<tool_call>${' '.repeat(2000)}{"name":"a","arguments":{}}`,
      `<tool_call>${' '.repeat(2000)}{"name":"a","arguments":{}}`,
      [],
    ],
    ['generic', 'the same form', `Well:\n\n${HERMES}`, 'Well:', [done('weather', '{"city": "Ørsta"}')]],
    ['llama3', 'a call', '\n {"name": "a", "parameters": {"x": 1}}', '', [done('a', '{"x": 1}')]],
    [
      'llama3',
      'text',
      ' The object {"name": "a", "parameters": {}}',
      ' The object {"name": "a", "parameters": {}}',
      [],
    ],
    ['llama3', 'other JSON', '{"nam": 1}', '{"nam": 1}', []],
    ['llama3', 'text after a call', '{"name": "a", "parameters": {}}\n\nDone. ', 'Done. ', [done('a', '{}')]],
    ['llama3', 'other blanks', '\u00a0{"name": "a", "parameters": {}}', '\u00a0{"name": "a", "parameters": {}}', []],
    [
      'mistral',
      'calls',
      ' [{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}]',
      '',
      [done('a', '{"x": 1}'), done('b', '{}')],
    ],
    [
      'mistral',
      'ids',
      '[{"name": "a", "arguments": {}, "id": "123456789"},{"name": "b", "arguments": {}, "id":"x"}]',
      '',
      [done('a', '{}'), done('b', '{}')],
    ],
    ['mistral', 'a mark that is text', '[TOOL_CALLS] [{"name": "a", "arguments": {}}]', '', [done('a', '{}')]],
    ['mistral', 'lists that are text', '[1] Paris, [2] Rome', '[1] Paris, [2] Rome', []],
    ['mistral', 'a list in text', 'So: [{"name": "a", "arguments": {}}]', 'So: [{"name": "a", "arguments": {}}]', []],
    ['mistral', 'an open list', '[{"name": "a", "arguments": {}}', '', [done('a', '{}')]],
    ['mistral', 'text after a list', '[{"name": "a", "arguments": {}}] ok', 'ok', [done('a', '{}')]],
  ]
  for (const [format, name, answer, text, calls] of CASES)
    it(`${format}: ${name}`, () => {
      assert.deepEqual(read(format, answer), { text, calls })
      assert.deepEqual(read(format, ...answer), { text, calls })
    })

  it('gives the same for any cut of any text', () => {
    const scrap = fc.constantFrom(
      ...[
        '<tool_call>',
        '</tool_call>',
        '<tool',
        '[TOOL_CALLS]',
        '{"name": "',
        '{"name":"f", "arguments": {',
        '{"name":"f","parameters": {',
      ],
      ...['"}', '}', '}}', '[', ']', ',', '"', '\\', ' ', '\n', ';', 'word', '😀', '"x": 1', ', "id": "7"', HERMES],
    )
    const scraps = fc.array(fc.oneof({ weight: 8, arbitrary: scrap }, fc.string({ maxLength: 3 })), { maxLength: 14 })
    const begin = fc.constantFrom(
      '',
      ' ',
      'So <tool_call>{"name":"f","arguments":{',
      '{"name":"f","parameters":{',
      '[{"name":"f","arguments":{',
    )
    const text = fc.tuple(begin, scraps).map(([begin, scraps]) => [begin, ...scraps])
    const format = fc.constantFrom<ToolFormat>('hermes', 'llama3', 'mistral', 'generic')
    let withCalls = 0
    fc.assert(
      fc.property(format, text, fc.array(fc.nat(400), { maxLength: 8 }), (format, scraps, cuts) => {
        const answer = scraps.join('')
        const places = [0, ...cuts.map((cut) => cut % (answer.length + 1)).sort((a, b) => a - b), answer.length]
        const pieces = places.slice(1).map((to, i) => answer.slice(places[i], to))
        const whole = read(format, answer)
        assert.deepEqual(read(format, ...pieces), whole)
        assert.deepEqual(read(format, ...answer.split('')), whole)
        let at = 0
        for (const event of events(format, [answer])) {
          const piece = event.kind === 'text' ? event.text : event.kind === 'arguments' ? event.json : ''
          at = answer.indexOf(piece, at) + piece.length
          assert.ok(at >= piece.length, `${piece} is not there, or not in this order`)
        }
        if (whole.calls.length > 0) withCalls++
        else assert.equal(whole.text, answer)
      }),
      { numRuns: 3000 },
    )
    assert.ok(withCalls > 300, `only ${withCalls} with calls`)
  })

  it('holds back no more than it must', () => {
    const parser = new ToolCallParser('hermes')
    const text = (piece: string) =>
      parser.feed(piece).map((e) => (e.kind === 'arguments' ? e.json : e.kind === 'text' ? e.text : e.kind))
    assert.deepEqual(text('Hello'), ['Hello'])
    assert.deepEqual(text(', <b'), [', <b'])
    assert.deepEqual(text('> <tool_'), ['>'])
    assert.deepEqual(text('x'), [' <tool_x'])
    assert.deepEqual(text('<tool_call>\n{"name": "f", "arguments": '), [])
    assert.deepEqual(text('{"a": '), ['call', '{"a": '])
    assert.deepEqual(text('"b'), ['"b'])
    assert.deepEqual(text('"}'), ['"}'])
    assert.deepEqual(text('}'), ['call-end'])
    assert.deepEqual(text('\n</tool_call>'), [])
  })

  it('takes time in proportion to the text', () => {
    const time = (n: number) => {
      const parser = new ToolCallParser('hermes')
      const from = performance.now()
      for (let i = 0; i < n; i++) parser.feed(i % 3 ? '  ' : '<tool_call> {"name')
      parser.end()
      return performance.now() - from
    }
    time(1000)
    const [small, large] = [time(5000), time(40_000)]
    assert.ok(large < 8 * 4 * Math.max(small, 2), `${small} ms, 8 times as much in ${large} ms`)
  })
})
