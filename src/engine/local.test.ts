/** The engine as its users call it, on the house model. */
import assert from 'node:assert/strict'
import { copyFileSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { KvasirError } from '../contract/errors.ts'
import { readGguf, str, writeGguf } from '../ggml/gguf/index.ts'
import { loadNative } from '../ggml/library.ts'
import { liveNatives } from '../ggml/owned.ts'
import { canGiveBack } from '../ggml/posix.ts'
import type { ChatMessage } from '../model/template/template.ts'
import { LocalEngine as Engine } from './local.ts'
import { type EngineOptions, modelPath } from './options.ts'
import type { GeneratePart, GenerateRequest } from './request.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-engine-'))
let engine: Engine
let natives: Record<string, number>

before(async () => {
  await loadNative()
  natives = liveNatives()
  engine = await Engine.load('house', { threads: 1, contextLength: 4096 })
})
after(async () => {
  await engine.dispose()
  rmSync(folder, { recursive: true })
  assert.deepEqual(liveNatives(), natives)
})

const greedy = { temperature: 0 }
const question: GenerateRequest = {
  messages: [
    {
      role: 'user',
      content:
        'Karin Osford keeps a hamster as a pet. Karin Osford plays the drums. Which animal does Karin Osford keep as a pet?',
    },
  ],
  sampling: greedy,
}
/** Some thousand tokens: enough for a prefill of tens of milliseconds and several chunks. */
const longPrompt = 'The ships left the harbour in the morning and came back in the evening. '.repeat(160)

interface Answer {
  readonly text: string
  readonly tokens: number[]
  readonly end: Extract<GeneratePart, { kind: 'end' }>
}

async function collect(request: GenerateRequest, on: Engine = engine): Promise<Answer> {
  let text = ''
  const tokens: number[] = []
  let end: Answer['end'] | undefined
  for await (const part of on.generate(request)) {
    text += part.text
    if (part.kind === 'token') tokens.push(part.token)
    else end = part
  }
  return { text, tokens, end: end! }
}

const code = (wanted: string) => (e: KvasirError) => {
  assert.equal(e.code, wanted, e.message)
  return true
}

describe('an answer', () => {
  it('is right, ends by itself, and comes with its timings', async () => {
    const { text, tokens, end } = await collect(question)
    assert.match(text, /Karin Osford has a pet hamster\./)
    assert.equal(end.reason.kind, 'end-of-answer')
    const { timings } = end
    assert.equal(timings.prompt_tokens, engine.encodePrompt(question).length)
    assert.equal(timings.generated_tokens, tokens.length + 1)
    assert.ok(timings.prompt_ms > 0 && timings.generated_ms > 0 && timings.ttft_ms >= timings.prompt_ms)
    assert.ok(timings.compute_ms <= timings.prompt_ms + timings.generated_ms)
    assert.equal(engine.model.tokenizer.decode(tokens), text)
  })

  it('is the same for messages, their text and their tokens', async () => {
    const want = (await collect(question)).tokens
    const prompt = engine.chatTemplate.render(question.messages!)
    assert.deepEqual((await collect({ prompt, sampling: greedy })).tokens, want)
    const tokens = engine.encodePrompt(question)
    assert.deepEqual((await collect({ tokens, sampling: greedy })).tokens, want)
  })

  it('begins with BOS unless told otherwise', async () => {
    const { bos } = engine.model.tokenizer
    const [first, ...rest] = await engine.tokenize({ prompt: 'The ship' })
    assert.equal(first, bos)
    assert.deepEqual([...(await engine.tokenize({ prompt: 'The ship', addSpecial: false }))], rest)
    const { end } = await collect({ prompt: 'The ship', addSpecial: false, maxTokens: 1 })
    assert.equal(end.timings.prompt_tokens, rest.length)
  })

  it('knows the tools and the template options of its request', async () => {
    const name = 'look_up_weather'
    const tools = [{ type: 'function', function: { name, parameters: { type: 'object', properties: {} } } }]
    const { messages } = question as { messages: ChatMessage[] }
    const text = engine.model.tokenizer.decode(await engine.tokenize({ messages, tools }), { special: true })
    assert.ok(text.includes(name), text)
    const { end } = await collect({ ...question, tools, maxTokens: 1 })
    assert.equal(end.timings.prompt_tokens, (await engine.tokenize({ messages, tools })).length)
    const open = { add_generation_prompt: false }
    const bare = await engine.tokenize({ messages, templateOptions: open })
    const whole = await engine.tokenize({ messages })
    assert.ok(bare.length < whole.length)
    assert.deepEqual(bare, whole.slice(0, bare.length))
  })

  it('is the same when its prompt is still in the cache', async () => {
    await collect({ prompt: 'Something else.', sampling: greedy, maxTokens: 4 })
    const cold = await collect(question)
    const warm = await collect(question)
    assert.deepEqual(warm.tokens, cold.tokens)
    const { timings } = warm.end
    assert.equal(timings.cached_tokens, 32 * Math.floor((timings.prompt_tokens - 1) / 32), 'all whole blocks')
    assert.ok(timings.cached_tokens > 0)
    await engine.clearCache()
    assert.equal((await collect(question)).end.timings.cached_tokens, 0)
  })

  it('stops at a text that is split over tokens, and does not give it out', async () => {
    const whole = await collect(question)
    const stop = 'pet ham'
    const { text, end } = await collect({ ...question, stop: ['nowhere', stop] })
    assert.deepEqual(end.reason, { kind: 'stop', stop })
    assert.equal(text, whole.text.slice(0, whole.text.indexOf(stop)))
  })

  it('stops at a token, at its length, at the end of the context', async () => {
    const whole = await collect(question)
    const third = whole.tokens[2]!
    assert.deepEqual((await collect({ ...question, stopTokens: [third] })).end.reason, { kind: 'stop', stop: third })
    const short = await collect({ ...question, maxTokens: 2 })
    assert.deepEqual(short.tokens, whole.tokens.slice(0, 2))
    assert.equal(short.end.reason.kind, 'max-tokens')
    using small = await Engine.load('house', { threads: 1, contextLength: 256 })
    const tokens = Int32Array.from({ length: 250 }, (_, i) => 300 + i)
    // A grammar keeps it from ending by itself.
    const full = await collect({ tokens, sampling: { ...greedy, grammar: 'root ::= "a" root' } }, small)
    assert.equal(full.end.reason.kind, 'context-full')
    assert.equal(full.tokens.length, 6)
  })

  it('repeats with its seed, and tells log-probabilities', async () => {
    const sampling = { temperature: 1.5, seed: 42, logprobs: 3 }
    const once = await collect({ ...question, sampling, maxTokens: 12 })
    const again = await collect({ ...question, sampling, maxTokens: 12 })
    assert.deepEqual(again.tokens, once.tokens)
    const chosen = await collect({ ...question, sampling: { temperature: 1.5 }, maxTokens: 12 })
    const repeated = { temperature: 1.5, seed: chosen.end.seed }
    assert.deepEqual((await collect({ ...question, sampling: repeated, maxTokens: 12 })).tokens, chosen.tokens)
    const parts = engine.generate({ ...question, sampling })
    const first = (await parts.next()).value as GeneratePart
    await parts.return()
    assert.ok(first.kind === 'token' && first.logprob !== undefined && first.logprob < 0 && first.top?.length === 3)
  })

  it('tells the bytes of its tokens, which are its text', async () => {
    const jsonSchema = { const: 'Grüße 👋' }
    const bytes: number[] = []
    let text = ''
    for await (const part of engine.generate({ ...question, sampling: { ...greedy, jsonSchema, logprobs: 2 } })) {
      text += part.text
      if (part.kind !== 'token') continue
      bytes.push(...part.bytes!)
      for (const t of part.top!)
        assert.deepEqual(t.bytes, [...engine.model.tokenizer.piece(t.token, { special: true })])
    }
    assert.equal(text, JSON.stringify(jsonSchema.const))
    assert.equal(Buffer.from(bytes).toString('utf8'), text)
  })

  it('obeys a JSON schema', async () => {
    const jsonSchema = { type: 'object', properties: { pet: { enum: ['cat', 'hamster'] } }, required: ['pet'] }
    const { text } = await collect({ ...question, sampling: { ...greedy, jsonSchema }, maxTokens: 200 })
    assert.ok(['cat', 'hamster'].includes(JSON.parse(text).pet), text)
  })
})

describe('stopping', () => {
  it('in the middle of prefill ends at once, and the next answer is right', async () => {
    const want = await collect(question)
    const start = performance.now()
    await collect({ prompt: `${longPrompt} One.`, sampling: greedy, maxTokens: 1 })
    const whole = performance.now() - start
    const abort = new AbortController()
    setTimeout(() => abort.abort(), whole / 4)
    const stopped = performance.now()
    await assert.rejects(
      collect({ prompt: `Two. ${longPrompt}`, sampling: greedy, signal: abort.signal }),
      code('ABORTED'),
    )
    const took = performance.now() - stopped
    assert.ok(took < whole, `stopped after ${took} ms of ${whole}`)
    assert.deepEqual((await collect(question)).tokens, want.tokens)
  })

  it('in the middle of decoding keeps what came before', async () => {
    const want = await collect(question)
    const abort = new AbortController()
    let text = ''
    await assert.rejects(async () => {
      for await (const part of engine.generate({ ...question, signal: abort.signal })) {
        text += part.text
        if (text.length > 8) abort.abort()
      }
    }, code('ABORTED'))
    assert.ok(text.length > 8 && want.text.startsWith(text))
    assert.deepEqual((await collect(question)).tokens, want.tokens)
  })

  it('before it began, or while it waits for another, costs nothing', async () => {
    await assert.rejects(collect({ ...question, signal: AbortSignal.abort() }), code('ABORTED'))
    const first = engine.generate({ prompt: longPrompt, sampling: greedy, maxTokens: 3 })
    await first.next()
    const abort = new AbortController()
    const second = collect({ ...question, signal: abort.signal })
    const third = collect(question)
    await sleep(5)
    abort.abort()
    await assert.rejects(second, code('ABORTED'))
    for await (const part of first) assert.ok(part)
    assert.match((await third).text, /hamster/)
  })

  it('by leaving the loop frees the engine for the next', async () => {
    for await (const part of engine.generate({ prompt: longPrompt, sampling: greedy })) {
      assert.ok(part)
      break
    }
    assert.match((await collect(question)).text, /hamster/)
  })

  it('is possible because the event loop runs during a prefill', async () => {
    let ticks = 0
    const timer = setInterval(() => ticks++, 5)
    await collect({ prompt: `Three. ${longPrompt}`, sampling: greedy, maxTokens: 1 })
    clearInterval(timer)
    assert.ok(ticks >= 3, `${ticks} ticks`)
  })
})

describe('many requests', () => {
  it('are served in the order in which they came', async () => {
    const order: number[] = []
    const ask = async (i: number) => {
      const { text } = await collect(question)
      order.push(i)
      return text
    }
    const texts = await Promise.all([0, 1, 2, 3].map(ask))
    assert.deepEqual(order, [0, 1, 2, 3])
    assert.equal(new Set(texts).size, 1)
  })

  it('do not make native memory grow: 1000 generations', async () => {
    const generate = (i: number) =>
      collect({ prompt: `Request ${i}: the ship`, sampling: { temperature: 1, seed: i }, maxTokens: 3 })
    for (let i = 0; i < 200; i++) await generate(i)
    const live = liveNatives()
    const rss = process.memoryUsage().rss
    for (let i = 200; i < 1200; i++) await generate(i)
    assert.deepEqual(liveNatives(), live)
    const grown = (process.memoryUsage().rss - rss) / 2 ** 20
    // A leak of one step's graph context (about 300 KiB) a generation would be 300 MiB.
    assert.ok(grown < 48, `${grown.toFixed(1)} MiB`)
  })
})

it('memory that nobody uses goes back to the system within seconds', {
  skip: !canGiveBack && 'Linux only',
}, async () => {
  const { store } = engine
  const giveBack = store.giveBack.bind(store)
  let given = 0
  store.giveBack = (idleMs) => {
    const bytes = giveBack(idleMs)
    given += bytes
    return bytes
  }
  const first = await collect({ prompt: longPrompt, maxTokens: 4, sampling: greedy })
  await engine.clearCache()
  const from = performance.now()
  while (given < store.home.pageBytes * 64 && performance.now() - from < 20_000) await sleep(50)
  assert.ok(given >= store.home.pageBytes * 64, `${given} bytes after 20 s`)
  store.giveBack = giveBack
  assert.equal((await collect({ prompt: longPrompt, maxTokens: 4, sampling: greedy })).text, first.text)
})

describe('errors name what is wrong and how to mend it', () => {
  const refuses = (model: string, options: EngineOptions, wanted: string, text: RegExp) =>
    assert.rejects(Engine.load(model, options), (e: KvasirError) => {
      assert.equal(e.code, wanted, e.message)
      assert.match(e.message, text)
      return true
    })

  it('a missing file', () => refuses(join(folder, 'no.gguf'), {}, 'MODEL_NOT_FOUND', /no\.gguf/))

  it('a truncated file', async () => {
    const path = join(folder, 'short.gguf')
    copyFileSync(modelPath('house'), path)
    truncateSync(path, 3_000_000)
    await refuses(path, {}, 'GGUF_INVALID', /short\.gguf.*3000000/s)
  })

  it('something that is no GGUF', async () => {
    const path = join(folder, 'text.gguf')
    writeFileSync(path, 'hello world, this is no model at all')
    await refuses(path, {}, 'GGUF_INVALID', /text\.gguf/)
  })

  /** The house model with other metadata or without some tensors. */
  function changed(name: string, change: { architecture?: string; without?: string; add?: string }): string {
    const file = readGguf(modelPath('house'))
    const bytes = readFileSync(file.path)
    const tensors = [...file.tensors.values()]
      .filter((t) => t.name !== change.without)
      .map((t) => ({
        name: t.name,
        type: t.type,
        ne: t.ne.slice(0, t.nDims),
        data: bytes.subarray(t.offset, t.offset + t.bytes),
      }))
    if (change.add) tensors.push({ name: change.add, type: 'f32', ne: [32], data: Buffer.alloc(128) })
    const metadata = [...file.metadata.entries()].map(([key, value]) =>
      key === 'general.architecture' && change.architecture
        ? ([key, str(change.architecture)] as const)
        : ([key, value] as const),
    )
    const path = join(folder, name)
    writeGguf(path, { metadata, tensors })
    return path
  }

  it('an architecture that is not known', async () => {
    await refuses(changed('arch.gguf', { architecture: 'lama' }), {}, 'MODEL_UNSUPPORTED', /"lama".*llama/)
  })
  it('a tensor that is missing', async () => {
    await refuses(
      changed('missing.gguf', { without: 'blk.3.ffn_up.weight' }),
      {},
      'MODEL_INVALID',
      /blk\.3\.ffn_up\.weight/,
    )
  })
  it('a tensor that would be left out silently', async () => {
    await refuses(changed('more.gguf', { add: 'blk.0.attn_sinks.weight' }), {}, 'MODEL_UNSUPPORTED', /attn_sinks/)
  })

  it('not enough memory: refused before loading, with the figures', () =>
    refuses('house', { contextLength: 2 ** 23 }, 'OUT_OF_MEMORY', /KV cache of 8388608 tokens .*GiB.*are free/))

  it('a prompt longer than the context', async () => {
    const prompt = longPrompt.repeat(4)
    await assert.rejects(collect({ prompt }), (e: KvasirError) => {
      assert.equal(e.code, 'CONTEXT_OVERFLOW')
      assert.match(e.message, /\d{4,} tokens, and the context holds 4096/)
      return true
    })
    const exact = Int32Array.from({ length: 4096 }, () => 300)
    await assert.rejects(collect({ tokens: exact }), code('CONTEXT_OVERFLOW'))
    const { end } = await collect({ tokens: exact.subarray(1), sampling: greedy })
    assert.equal(end.timings.generated_tokens, 1)
  })

  it('bad options and bad requests', async () => {
    await refuses('house', { treads: 2 } as EngineOptions, 'INVALID_ARGUMENT', /did you mean "threads"/)
    await refuses('house', { threads: 0 }, 'INVALID_ARGUMENT', /threads is 0/)
    await refuses(
      'house',
      { keyType: 'q3_0' as 'q8_0' },
      'INVALID_ARGUMENT',
      /keyType is "q3_0"; it must be one of f16/,
    )
    await refuses('house', { device: 'CUDA7' }, 'INVALID_ARGUMENT', /no device "CUDA7".*CPU/)
    for (const bad of [
      {},
      { prompt: 'a', messages: [] },
      { prompt: 'a', maxTokens: 0 },
      { prompt: 'a', sampling: { temperature: -1 } },
      { prompt: 'a', sampling: { topk: 3 } },
      { prompt: 'a', stop: '' },
      { prompt: 'a', max_tokens: 3 },
      { prompt: 'a', tools: [] },
      { prompt: 'a', templateOptions: {} },
      { messages: question.messages, addSpecial: false },
      { messages: question.messages, tools: {} },
      { messages: question.messages, tools: [1] },
      { messages: question.messages, templateOptions: [] },
      { prompt: 'a', addSpecial: 1 },
      { prompt: 7 },
      { tokens: [5000] },
      { tokens: [] },
    ])
      await assert.rejects(collect(bad as GenerateRequest), code('INVALID_ARGUMENT'), JSON.stringify(bad))
    await assert.rejects(collect({ prompt: 'a', sampling: { grammar: 'root ::= "' } }), code('GRAMMAR_INVALID'))
  })

  it('use after dispose, and dispose during a request', async () => {
    const own = await Engine.load('house', { threads: 1, contextLength: 512 })
    const running = own.generate({ prompt: 'The ship', sampling: greedy, maxTokens: 4 })
    await running.next()
    assert.throws(() => own[Symbol.dispose](), code('INVALID_ARGUMENT'))
    const rest = (async () => {
      for await (const part of running) assert.ok(part)
    })()
    await Promise.all([own.dispose(), assert.rejects(rest, code('ABORTED'))])
    await own.dispose()
    await assert.rejects(collect({ prompt: 'a' }, own), code('DISPOSED'))
  })
})

describe('cache types, lowerings and threads', () => {
  for (const options of [
    { lowering: 'flash' },
    { lowering: 'grouped' },
    { keyType: 'q8_0', valueType: 'q8_0' },
    { keyType: 'bf16', valueType: 'f32' },
    { keyType: 'q8_0', valueType: 'f16' },
    { threads: 2, tokenBudget: 64 },
  ] satisfies EngineOptions[])
    it(`${JSON.stringify(options)} answers as well`, async () => {
      using own = await Engine.load('house', { threads: 1, contextLength: 1024, ...options })
      assert.match((await collect(question, own)).text, /hamster/)
    })
})
