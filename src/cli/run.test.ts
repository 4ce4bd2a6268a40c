import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { gone, json, knowsChildren, kvasir, Running } from './process.fixture.ts'

const HOUSE = new URL('../../models/house-5m/house-5m-q8_0.gguf', import.meta.url)
const FACT = 'The secret code for Anna is 4711.'
const QUESTION = 'What is the secret code for Anna?'
/** One thread: the machine's other cores may be busy, and compute threads spin. */
const GREEDY = ['-t', '1', '--temperature', '0']

let folder: string
before(() => {
  folder = mkdtempSync(join(tmpdir(), 'kvasir-run-'))
})
after(() => rmSync(folder, { recursive: true }))

function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name)
  writeFileSync(path, content)
  return path
}

describe('kvasir run', () => {
  it('streams the answer to stdout and a summary to stderr', async () => {
    const done = await kvasir(['run', '-p', `${FACT} ${QUESTION}`, ...GREEDY])
    assert.equal(done.code, 0, done.stderr)
    assert.equal(done.stdout.trim(), FACT)
    assert.match(done.stderr, /^first token \d+ ms, prompt \d+ tokens at .* tok\/s, answer \d+ tokens at .* tok\/s\n$/)
  })

  it('prints one JSON object with --json', async () => {
    const done = await kvasir(['run', 'house', '-p', `${FACT} ${QUESTION}`, ...GREEDY, '--json'])
    const { text, finish_reason, timings, model, ...rest } = json(done)
    assert.deepEqual(rest, {})
    assert.equal(text.trim(), FACT)
    assert.equal(finish_reason, 'end-of-answer')
    assert.equal(model, 'house')
    assert.deepEqual(Object.keys(timings), [
      'prompt_tokens',
      'prompt_ms',
      'generated_tokens',
      'generated_ms',
      'cached_tokens',
      'ttft_ms',
    ])
    for (const value of Object.values(timings)) assert.equal(typeof value, 'number')
    assert.equal(done.stderr, '')
  })

  it('reads the prompt from a file and from stdin', async () => {
    const both = await kvasir(['run', '-f', file('fact.txt', `${FACT}\n`), '-p', QUESTION, ...GREEDY, '--json'])
    assert.equal(json(both).text.trim(), FACT)
    const stdin = await kvasir(['run', '-f', '-', ...GREEDY, '--json'], { stdin: `${FACT} ${QUESTION}\n` })
    assert.equal(json(stdin).text.trim(), FACT)
  })

  it('continues raw text, stops at texts and after --max-tokens', async () => {
    const raw = ['run', '--raw', '-p', 'One, two, three, four,', ...GREEDY, '--json']
    const limited = json(await kvasir([...raw, '-n', '3']))
    assert.equal(limited.finish_reason, 'max-tokens')
    assert.equal(limited.timings.generated_tokens, 3)
    const chat = ['run', '-p', `${FACT} ${QUESTION}`, ...GREEDY, '--json']
    const stopped = json(await kvasir([...chat, '--stop', 'nowhere', '--stop', ' is']))
    assert.equal(stopped.finish_reason, 'stop')
    assert.equal(stopped.text.trim(), 'The secret code for Anna')
  })

  it('keeps to a JSON schema', async () => {
    const schema = file('schema.json', '{"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}')
    const done = await kvasir(['run', '-p', 'x', '--json-schema', schema, ...GREEDY, '--json', '-n', '200'])
    assert.match(JSON.stringify(JSON.parse(json(done).text)), /"n":7/)
  })

  it('gives the same answer for the same seed', async () => {
    const args = ['run', '--raw', '-p', 'Once', '-n', '12', '--seed', '5', '--temperature', '1.5', '-t', '1', '--json']
    assert.equal(json(await kvasir(args)).text, json(await kvasir(args)).text)
  })

  // Endless enough to be stopped, and never the end of an answer.
  const endless = () => ['--grammar', file('long.gbnf', `root ::= l l l l l l l l\nl ::= [a-z ]{1900}\n`)]

  it('is stopped by Ctrl-C in the middle of an answer', async () => {
    const running = new Running(['run', '-p', 'x', ...GREEDY, ...endless()])
    await running.until((r) => r.stdout.length > 20)
    running.child.kill('SIGINT')
    const done = await running.end()
    assert.equal(done.code, 130)
    assert.match(done.stderr, /^error: ABORTED: the answer was stopped\n$/)
    assert.ok(done.stdout.endsWith('\n'))
  })

  it('is stopped by Ctrl-C in the middle of a prompt, with --json too', async () => {
    const long = file('long.txt', 'A few words to fill the context. '.repeat(700))
    const running = new Running(['run', '-f', long, ...GREEDY, '--json', ...endless()])
    await new Promise((r) => setTimeout(r, 1500))
    running.child.kill('SIGINT')
    const done = await running.end()
    assert.equal(done.code, 130)
    // Before the program has taken over Ctrl-C, it ends the process in the plain way.
    if (done.stdout) assert.equal(json(done).error.code, 'ABORTED')
  })

  it('ends quietly when nobody reads on', async () => {
    const running = new Running(['run', '-p', 'x', ...GREEDY, ...endless()])
    await running.until((r) => r.stdout.length > 0)
    running.child.stdout!.destroy()
    assert.equal((await running.end()).code, 0)
  })
})

describe('kvasir run: what stays behind', () => {
  const endless = () => ['--grammar', file('long.gbnf', `root ::= l l l l l l l l\nl ::= [a-z ]{1900}\n`)]
  const skip = knowsChildren ? false : 'no /proc here'

  for (const signal of ['SIGINT', 'SIGKILL'] as const)
    it(`is no process, after ${signal}`, { skip }, async () => {
      const running = new Running(['run', '-p', 'x', ...GREEDY, ...endless()])
      await running.until((r) => r.stdout.length > 0)
      const children = running.children()
      assert.ok(children.length > 0)
      running.child.kill(signal)
      await running.end()
      await gone(children)
    })

  it('is no process, after Ctrl-C while the model is loaded', { skip }, async () => {
    const running = new Running(['run', '-p', 'x', ...GREEDY, ...endless()])
    await running.until((r) => r.children().length > 0)
    const children = running.children()
    running.child.kill('SIGINT')
    assert.equal((await running.end()).code, 130)
    await gone(children)
  })

  it('is what --disk-cache keeps', async () => {
    const cache = join(folder, 'disk-cache')
    const again = ['--disk-cache', cache, '--disk-cache-bytes', '64MiB', '--kv-memory', '32MiB', '--json']
    const args = ['run', '-p', `${FACT} ${QUESTION} `.repeat(6), ...GREEDY, ...again]
    const [first, second] = [json(await kvasir(args)), json(await kvasir(args))]
    assert.equal(first.timings.cached_tokens, 0)
    assert.ok(second.timings.cached_tokens >= 64, `${second.timings.cached_tokens} tokens were found`)
    assert.equal(second.text, first.text)
  })
})

describe('errors', () => {
  const usage: [string[], RegExp][] = [
    [['run'], /nothing to answer: give a prompt with -p TEXT or -f FILE/],
    [['run', '-p', 'x', '--temprature', '1'], /unknown option '--temprature'\n\(Did you mean --temperature\?\)/],
    [['run', '-p', 'x', '--top-k', 'many'], /must be a number/],
    [['run', '-p', 'x', '--cache-type-k', 'q9'], /Allowed choices are .*q5_1.*iq4_nl/],
    [
      ['run', '-p', 'x', '--kv-memory', '2X'],
      /--kv-memory <size>' argument '2X' is invalid\. It must be a size such as/,
    ],
    [['run', '-p', 'x', '--scheduler', 'fcfs'], /unknown option '--scheduler'/],
    [['rum'], /unknown command 'rum'/],
  ]
  for (const [args, says] of usage)
    it(`usage: ${args.join(' ')}`, async () => {
      const failed = await kvasir(args)
      assert.equal(failed.code, 2)
      assert.match(failed.stderr, says)
      assert.equal(failed.stdout, '')
    })

  it('usage, with --json', async () => {
    const failed = await kvasir(['run', '--json'])
    assert.equal(failed.code, 2)
    assert.equal(json(failed).error.code, 'USAGE')
  })

  it('a missing file, and one that looks like a model of the hub', async () => {
    const failed = await kvasir(['run', '/no/such.gguf', '-p', 'x'])
    assert.equal(failed.code, 1)
    assert.match(failed.stderr, /^error: MODEL_NOT_FOUND: \/no\/such\.gguf/)
    const hub = await kvasir(['run', 'owner/repo', '-p', 'x', '--json'])
    assert.equal(hub.code, 1)
    const { code, message, details } = json(hub).error
    assert.equal(code, 'MODEL_NOT_FOUND')
    assert.match(message, /hf:owner\/repo/)
    assert.deepEqual(details, { file: 'owner/repo' })
  })

  it('a truncated file', async () => {
    const short = file('short.gguf', readFileSync(HOUSE).subarray(0, 100_000))
    for (const args of [
      ['run', short, '-p', 'x'],
      ['inspect', short],
    ]) {
      const failed = await kvasir(args)
      assert.equal(failed.code, 1)
      assert.match(failed.stderr, /^error: GGUF_INVALID: /)
      assert.doesNotMatch(failed.stderr, /\n\s+at /)
    }
  })

  it('arguments that only the library can judge', async () => {
    const failed = await kvasir(['run', '-p', 'x', '--top-p', '7', '-t', '1', '--json'])
    assert.equal(failed.code, 1)
    assert.equal(json(failed).error.code, 'INVALID_ARGUMENT')
    const tooLong = await kvasir(['run', '-p', 'word '.repeat(300), '-c', '256', '-t', '1'])
    assert.equal(tooLong.code, 1)
    assert.match(tooLong.stderr, /^error: CONTEXT_OVERFLOW: /)
    const little = await kvasir(['run', '-p', 'x', '--kv-memory', '100k', '-t', '1'])
    assert.equal(little.code, 1)
    assert.match(little.stderr, /^error: KV_BUDGET: kvMemory of 100 KiB does not hold /)
  })
})
