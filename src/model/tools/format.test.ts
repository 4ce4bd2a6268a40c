import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { CHATML, type ChatMessage, ChatTemplate } from '../template/template.ts'
import {
  GEMMA,
  GEMMA3,
  LLAMA3,
  LLAMA31,
  MISTRAL,
  MISTRAL_V3,
  PHI3,
  QWEN3,
  QWEN25,
} from '../template/templates.fixture.ts'
import { Tokenizer } from '../tokenizer/tokenizer.ts'
import { HOUSE_MODEL } from '../tokenizer/vocabularies.fixture.ts'
import { toolsText } from './generic.ts'

const TOOLS = [
  {
    type: 'function',
    function: { name: 'weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } },
  },
  { type: 'function', function: { name: 'time', description: 'The time.' } },
]
const call = (id: string, city: string) => ({
  id,
  type: 'function',
  function: { name: 'weather', arguments: `{"city":"${city}"}` },
})
const TALK: ChatMessage[] = [
  { role: 'user', content: 'Where does it rain?' },
  { role: 'assistant', content: null, tool_calls: [call('000000001', 'Ørsta'), call('000000002', 'Oslo')] },
  { role: 'tool', tool_call_id: '000000001', content: 'rain' },
  { role: 'tool', tool_call_id: '000000002', content: 'sun' },
  { role: 'assistant', content: 'In Ørsta.' },
  { role: 'user', content: 'Thanks' },
]
const CALLS =
  '<tool_call>\n{"name": "weather", "arguments": {"city":"Ørsta"}}\n</tool_call>\n' +
  '<tool_call>\n{"name": "weather", "arguments": {"city":"Oslo"}}\n</tool_call>'
const RESULTS = '<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>'
const template = (source: string) => new ChatTemplate(source, { bosToken: '<s>', eosToken: '</s>' })

describe('toolFormat', () => {
  const KNOWN = { QWEN25: 'hermes', QWEN3: 'hermes', LLAMA31: 'llama3', MISTRAL_V3: 'mistral' }
  for (const [name, source] of Object.entries({
    QWEN25,
    QWEN3,
    LLAMA31,
    MISTRAL_V3,
    CHATML,
    LLAMA3,
    MISTRAL,
    GEMMA,
    GEMMA3,
    PHI3,
  }))
    it(`of ${name}`, () => {
      assert.equal(template(source).toolFormat, KNOWN[name as keyof typeof KNOWN] ?? 'generic')
    })

  it('is generic where calls have another form', () => {
    const xml = QWEN25.replace('{"name": "\' }}', "<function=' }}")
    assert.notEqual(xml, QWEN25)
    assert.equal(template(xml).toolFormat, 'generic')
  })

  it('is generic where tools are listed but calls cannot be shown', () => {
    assert.equal(template(`{{ tools | tojson }}${MISTRAL}`).toolFormat, 'generic')
  })

  it('takes calls whose arguments come first for hermes', () => {
    const old = `{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>
{"arguments": {{ c.function.arguments | tojson }}, "name": "{{ c.function.name }}"}
</tool_call>{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}`
    assert.equal(template(old).toolFormat, 'hermes')
  })
})

describe('tools without the template', () => {
  it('are explained in a system message', () => {
    const text = template(CHATML).render(TALK, { tools: TOOLS })
    assert.equal(
      text,
      `<|im_start|>system\n${toolsText(TOOLS)}<|im_end|>\n<|im_start|>user\nWhere does it rain?<|im_end|>\n` +
        `<|im_start|>assistant\n${CALLS}<|im_end|>\n<|im_start|>user\n${RESULTS}<|im_end|>\n` +
        '<|im_start|>assistant\nIn Ørsta.<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n',
    )
    assert.match(
      text,
      /\n\{"name":"weather","parameters":\{.*\}\}\n\{"name":"time","description":"The time."\}\n<\/tools>/,
    )
  })

  it('are explained in the words that the documentation shows', () => {
    const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
    const example = { type: 'function', function: { name: 'weather', description: 'Weather of a city.', parameters } }
    const page = readFileSync(new URL('../../../docs/tools.md', import.meta.url), 'utf8')
    assert.ok(page.includes(`\n${toolsText([example])}\n`), toolsText([example]))
  })

  it('join the system message that is there', () => {
    const text = template(PHI3).render([{ role: 'system', content: 'Be brief.' }, TALK[0]!], { tools: TOOLS })
    assert.ok(text.startsWith(`<|system|>\nBe brief.\n\n${toolsText(TOOLS)}<|end|>\n<|user|>\n`), text)
  })

  it('join the first user message where the template has no system role', () => {
    for (const [source, before] of [
      [GEMMA, '<s><start_of_turn>user\n'],
      [MISTRAL, '<s>[INST] '],
    ] as const)
      assert.ok(
        template(source)
          .render(TALK, { tools: TOOLS })
          .startsWith(`${before}${toolsText(TOOLS)}\n\nWhere does`),
      )
    const deaf = '{% for m in messages %}{% if m.role != "system" %}{{ m.content }}{% endif %}{% endfor %}'
    assert.equal(template(deaf).render([TALK[0]!], { tools: TOOLS }), `${toolsText(TOOLS)}\n\nWhere does it rain?`)
  })

  it('are a system message where the template moves it into the first user turn', () => {
    const text = template(GEMMA3).render(TALK, { tools: TOOLS })
    assert.ok(
      text.startsWith(`<s><start_of_turn>user\n${toolsText(TOOLS)}\n\nWhere does it rain?<end_of_turn>\n`),
      text,
    )
    assert.ok(
      text.includes(`<start_of_turn>model\n${CALLS}<end_of_turn>\n<start_of_turn>user\n${RESULTS}<end_of_turn>`),
    )
  })

  it('keep turns alternating', () => {
    const stopped = [...TALK.slice(0, 4), { role: 'user', content: 'Never mind' }]
    assert.match(template(GEMMA).render(stopped), /<\/tool_response>\n\nNever mind<end_of_turn>/)
  })

  it('turn into text in a history, also when no tools are given any more', () => {
    const text = template(CHATML).render(TALK)
    assert.ok(text.includes(CALLS) && text.includes(RESULTS) && !text.includes('# Tools'), text)
    const spoke = [TALK[0]!, { ...TALK[1]!, content: 'I look.' }, ...TALK.slice(2)]
    assert.ok(template(CHATML).render(spoke).includes(`assistant\nI look.\n${CALLS}<|im_end|>`))
  })

  it('leave parts that are no text in place', () => {
    const image = { type: 'image_url', image_url: { url: 'x' } }
    const source = '{% for p in messages[0].content %}[{{ p.type }}:{{ p.text }}]{% endfor %}'
    const refuses = `{% if messages[0].role == "system" %}{{ raise_exception("no") }}{% endif %}${source}`
    const text = template(refuses).render([{ role: 'user', content: [image] }], { tools: TOOLS })
    assert.equal(text, `[text:${toolsText(TOOLS)}\n\n][image_url:]`)
  })

  it('still refuse malformed messages', () => {
    assert.throws(
      () => template(CHATML).render([{ role: 'tool' }], { tools: TOOLS }),
      /messages\[0\]: content is missing/,
    )
  })

  it('reach the house model', async () => {
    using tokenizer = await Tokenizer.load(HOUSE_MODEL)
    const house = ChatTemplate.of(tokenizer)
    assert.equal(house.toolFormat, 'generic')
    const text = house.render(TALK, { tools: TOOLS })
    assert.ok(text.startsWith(`<s><|system|> ${toolsText(TOOLS)}<|end|><|user|> Where`), text)
    assert.ok(text.includes(`<|assistant|> ${CALLS}<|end|><|user|> ${RESULTS}<|end|>`), text)
  })
})

describe('templates that know tools', () => {
  it('are left to themselves', () => {
    const text = template(LLAMA31).render([TALK[0]!, { ...TALK[1]!, tool_calls: [call('1', 'Oslo')] }, TALK[2]!], {
      tools: TOOLS,
    })
    assert.match(text, /Respond in the format \{"name": function name/)
    assert.match(text, /\{"name": "weather", "parameters": \{"city": "Oslo"\}\}<\|eot_id\|>/)
    assert.ok(!text.includes('# Tools'))
    const qwen = template(QWEN3).render(TALK, { tools: TOOLS, extra: { enable_thinking: false } })
    assert.ok(
      qwen.includes(
        `assistant\n${CALLS.replaceAll('"city":', '"city": ')}<|im_end|>\n<|im_start|>user\n${RESULTS}<|im_end|>`,
      ),
      qwen,
    )
    assert.ok(qwen.endsWith('<|im_start|>assistant\n<think>\n\n</think>\n\n'))
    const mistral = template(MISTRAL_V3).render(TALK.slice(0, 4), { tools: TOOLS })
    assert.match(mistral, /\[AVAILABLE_TOOLS\] \[\{"type": "function", "function": \{"name": "weather"/)
    assert.match(
      mistral,
      /\[TOOL_CALLS\] \[\{"name": "weather", "arguments": \{"city": "Ørsta"\}, "id": "000000001"\}, /,
    )
  })

  it('get ids of calls in the form that Mistral insists on', () => {
    const ids = (text: string) => [...text.matchAll(/"(?:call_)?id": "([a-zA-Z0-9]{9})"/g)].map((m) => m[1])
    const long = TALK.slice(0, 4).map((m) => ({
      ...m,
      ...(m.tool_calls && { tool_calls: m.tool_calls.map((c) => ({ ...c, id: `call_${c.id}` })) }),
      ...(m.tool_call_id && { tool_call_id: `call_${m.tool_call_id}` }),
    }))
    const [a, b, ...results] = ids(template(MISTRAL_V3).render(long, { tools: TOOLS }))
    assert.notEqual(a, b)
    assert.deepEqual(results, [a, b])
    assert.deepEqual(ids(template(MISTRAL_V3).render(TALK.slice(0, 4))), [
      '000000001',
      '000000002',
      '000000001',
      '000000002',
    ])
  })

  it('see no empty list of calls', () => {
    const talk = [TALK[0]!, { role: 'assistant', content: 'Hello.', tool_calls: [] }, TALK[5]!]
    for (const source of [LLAMA31, CHATML]) {
      const text = template(source).render(talk, { tools: TOOLS })
      assert.match(text, /Hello\.<\|(?:eot_id|im_end)\|>/)
    }
  })
})
