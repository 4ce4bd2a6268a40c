import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { KvasirError } from '../../contract/errors.ts'
import { liveNatives } from '../../ggml/owned.ts'
import { Tokenizer } from '../tokenizer/tokenizer.ts'
import { bpeVocabulary, HOUSE_MODEL } from '../tokenizer/vocabularies.fixture.ts'
import { CHATML, type ChatMessage, ChatTemplate } from './template.ts'
import { GEMMA, LLAMA3, MISTRAL, PHI3, QWEN25 } from './templates.fixture.ts'

const TOKENS = { bosToken: '<s>', eosToken: '</s>' }
const TALK: ChatMessage[] = [
  { role: 'system', content: 'Be brief.' },
  { role: 'user', content: ' Hi ' },
  { role: 'assistant', content: 'Hello.' },
  { role: 'user', content: 'Bye' },
]
const render = (source: string, messages: ChatMessage[], options = {}) =>
  new ChatTemplate(source, TOKENS).render(messages, options)

function says(text: RegExp) {
  return (error: unknown) =>
    error instanceof KvasirError && error.code === 'TEMPLATE_FAILED' && text.test(error.message)
}

describe('ChatTemplate', () => {
  it('renders well-known templates', () => {
    assert.equal(
      render(CHATML, TALK),
      '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n' +
        '<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n',
    )
    assert.equal(render(QWEN25, TALK), render(CHATML, TALK))
    assert.equal(
      render(LLAMA3, TALK.slice(0, 2)),
      '<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>' +
        '<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n',
    )
    assert.equal(render(MISTRAL, TALK.slice(1)), '<s>[INST]  Hi  [/INST]Hello.</s>[INST] Bye [/INST]')
    assert.equal(
      render(GEMMA, TALK.slice(1)),
      '<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n' +
        '<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n',
    )
    assert.equal(render(PHI3, TALK.slice(0, 2)), '<|system|>\nBe brief.<|end|>\n<|user|>\n Hi <|end|>\n<|assistant|>\n')
  })

  it('leaves the generation prompt out when told so', () => {
    assert.ok(render(PHI3, TALK, { addGenerationPrompt: false }).endsWith('Bye<|end|>\n</s>'))
    assert.ok(render(CHATML, TALK, { addGenerationPrompt: false }).endsWith('Bye<|im_end|>\n'))
  })

  it('gives tools and tool calls to templates, with arguments as data', () => {
    const tools = [{ type: 'function', function: { name: 'weather', parameters: { type: 'object', properties: {} } } }]
    const text = render(
      QWEN25,
      [
        { role: 'user', content: 'Weather in Ørsta?' },
        {
          role: 'assistant',
          content: null,
          tool_calls: [{ id: '1', type: 'function', function: { name: 'weather', arguments: '{"city": "Ørsta"}' } }],
        },
        { role: 'tool', tool_call_id: '1', content: 'rain' },
      ],
      { tools },
    )
    assert.match(text, /<tools>\n\{"type": "function", "function": \{"name": "weather"/)
    assert.match(
      text,
      /<tool_call>\n\{"name": "weather", "arguments": \{"city": "Ørsta"\}\}\n<\/tool_call><\|im_end\|>/,
    )
    assert.match(
      text,
      /<\|im_start\|>user\n<tool_response>\nrain\n<\/tool_response><\|im_end\|>\n<\|im_start\|>assistant\n$/,
    )
  })

  it('passes on what a template says', () => {
    assert.throws(() => render(GEMMA, TALK), says(/System role not supported/))
    assert.throws(() => render(MISTRAL, [TALK[1]!, TALK[1]!]), says(/must alternate/))
    assert.throws(() => render('{{ messages | nonsense }}', TALK), says(/nonsense/))
  })

  it('refuses a source that is not a template', () => {
    assert.throws(() => new ChatTemplate('{% if %}', TOKENS), says(/cannot be read/))
    assert.throws(() => new ChatTemplate('{% for m in messages %}', TOKENS), says(/cannot be read/))
  })

  it('refuses malformed messages with their index', () => {
    assert.throws(() => render(CHATML, []), says(/at least one/))
    assert.throws(() => render(CHATML, [{ role: 'user' }]), says(/messages\[0\]: content is missing/))
    assert.throws(() => render(CHATML, [TALK[0]!, { content: 'x' } as ChatMessage]), says(/messages\[1\]: role/))
    assert.throws(() => render(CHATML, [{ role: 'user', content: 5 as unknown as string }]), says(/content must be/))
  })

  it('joins text parts, hands other parts through', () => {
    const parts = [
      { type: 'text', text: 'a' },
      { type: 'text', text: 'b' },
    ]
    assert.equal(render('{{ messages[0].content }}', [{ role: 'user', content: parts }]), 'ab')
    const mixed = [...parts, { type: 'image_url', image_url: { url: 'x' } }]
    assert.equal(render('{{ messages[0].content[2].type }}', [{ role: 'user', content: mixed }]), 'image_url')
  })

  it('gives templates what transformers gives them', () => {
    const one: ChatMessage[] = [{ role: 'user', content: 'x' }]
    assert.match(render("{{ strftime_now('%d %b %Y') }}", one), /^\d\d [A-Z][a-z]{2} \d{4}$/)
    assert.equal(render('{{ tools is none }} {{ documents is none }}', one), 'true true')
    assert.equal(render('{{ enable_thinking }}', one, { extra: { enable_thinking: false } }), 'false')
    assert.equal(render('{{ enable_thinking is defined }}', one, { extra: { enable_thinking: undefined } }), 'false')
    assert.equal(
      render(
        '{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}',
        one,
      ),
      '1',
    )
    assert.equal(new ChatTemplate('[{{ bos_token }}]', { bosToken: null, eosToken: null }).render(one), '[]')
  })

  it('takes the template of a model file, ChatML for one without', async () => {
    const before = liveNatives()
    {
      using house = await Tokenizer.load(HOUSE_MODEL)
      const template = ChatTemplate.of(house)
      const text = template.render(TALK)
      assert.equal(
        text,
        '<s><|system|> Be brief.<|end|><|user|> Hi<|end|><|assistant|> Hello.<|end|><|user|> Bye<|end|><|assistant|>',
      )
      assert.equal(template.writesBos(text), true)
      const tokens = house.encode(text, { parseSpecial: true })
      assert.equal(tokens[0], house.bos)
      assert.equal(house.decode(tokens, { special: true }), text)
      using bpe = await bpeVocabulary()
      assert.equal(ChatTemplate.of(bpe).source, CHATML)
      assert.equal(
        bpe.encode(ChatTemplate.of(bpe).render(TALK), { parseSpecial: true })[0],
        bpe.encode('<|im_start|>', { parseSpecial: true })[0],
      )
    }
    assert.deepEqual(liveNatives(), before)
  })
})
