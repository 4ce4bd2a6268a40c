import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { gone, json, knowsChildren, kvasir, Running, type RunOptions } from './process.fixture.ts'

/** One thread: the machine's other cores may be busy, and compute threads spin. */
const SERVE = ['serve', '--port', '0', '-t', '1', '--context', '2048']

interface Ready {
  readonly url: string
  readonly models: readonly string[]
  readonly pid: number
}

async function started(args: readonly string[] = [], options: RunOptions = {}): Promise<Running & { ready: Ready }> {
  const running = new Running([...SERVE, '--json', ...args], options)
  await running.until((r) => r.stdout.endsWith('\n'))
  return Object.assign(running, { ready: JSON.parse(running.stdout) as Ready })
}

/** Runs `work` against a server, and ends it whatever happens. */
async function serving(args: readonly string[], work: (server: Running & { ready: Ready }) => Promise<void>) {
  const server = await started(args)
  try {
    await work(server)
  } finally {
    server.child.kill('SIGKILL')
    await server.end()
  }
}

/** The first bytes of an answer, which has begun then, and all of it. */
async function begun(response: Response): Promise<{ readonly rest: Promise<string> }> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  const { value } = await reader.read()
  assert.equal(response.status, 200, value)
  const rest = async () => {
    let text = value!
    try {
      for (let next = await reader.read(); !next.done; next = await reader.read()) text += next.value
    } catch {
      // The connection broke.
    }
    return text
  }
  return { rest: rest() }
}

/** A chat whose answer goes on for so many tokens. */
async function chat({ url }: Ready, tokens: number, headers: Readonly<Record<string, string>> = {}): Promise<Response> {
  return await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify({
      ...{ messages: [{ role: 'user', content: 'Hello' }], stream: true, max_tokens: tokens },
      // Visible from the first token on, and never the end of an answer.
      grammar: 'root ::= l l l l l l l l\nl ::= [a-z]{1900}\n',
    }),
  })
}

/** Of a stream that was read to its end: how many chunks had text, and whether it ended as it should. */
function summary(stream: string): { texts: number; done: boolean } {
  const events = stream.split('\n\n').filter((event) => event.startsWith('data: {'))
  const deltas = events.map((event) => JSON.parse(event.slice(6)).choices?.[0]?.delta?.content)
  return { texts: deltas.filter(Boolean).length, done: stream.endsWith('data: [DONE]\n\n') }
}

/** The status, or null where nobody listens. */
async function status(url: string): Promise<number | null> {
  try {
    return (await fetch(url, { headers: { connection: 'close' } })).status
  } catch {
    return null
  }
}

describe('kvasir serve', () => {
  it('says on stdout that it is ready, and answers', async () => {
    await serving(['small=house', 'house', '--api-key', 'key-of-one,key-of-two'], async (server) => {
      const { ready, child } = server
      assert.match(ready.url, /^http:\/\/127\.0\.0\.1:\d+$/)
      assert.deepEqual({ ...ready, url: '' }, { url: '', models: ['small', 'house'], pid: child.pid })
      assert.equal((await chat(ready, 1)).status, 401)
      const answer = await chat(ready, 3, { authorization: 'Bearer key-of-two' })
      assert.equal(summary(await answer.text()).done, true)
      assert.equal(server.stdout.split('\n').length, 2)
      assert.doesNotMatch(server.stderr, /key-of/)
    })
  })

  it('loads the first model at the start, or all', async () => {
    const states = async ({ url }: Ready) => {
      const { data } = (await (await fetch(`${url}/v1/models`)).json()) as { data: { kvasir: { state: string } }[] }
      return data.map((model) => model.kvasir.state)
    }
    await serving(['house', 'b=house'], async ({ ready }) =>
      assert.deepEqual(await states(ready), ['loaded', 'unloaded']),
    )
    await serving(['house', 'b=house', '--preload'], async ({ ready }) =>
      assert.deepEqual(await states(ready), ['loaded', 'loaded']),
    )
  })

  it('tells people what there is', async () => {
    const server = new Running([...SERVE, 'house', 'b=house', '--log-format', 'text'])
    await server.until((r) => r.stderr.includes('curl '))
    server.child.kill('SIGTERM')
    const { stdout, stderr, code } = await server.end()
    assert.equal(code, 0)
    assert.equal(stdout, '')
    assert.match(stderr, /\d info {2}model loaded {2}file=\S+house-5m-q8_0\.gguf {2}ms=\d+\n/)
    assert.match(stderr, /\nKvasir \d+\.\d+\.\d+ is ready\.\n/)
    assert.match(stderr, /\n {2}OpenAI {2}http:\/\/127\.0\.0\.1:\d+\/v1 /)
    assert.match(stderr, /\n {2}models {2}house {2}context 2048 tokens, KV memory .*MiB, on CPU\n {10}b {6}loaded when/)
    assert.match(stderr, /\n {2}curl http:\S+\/v1\/chat\/completions \\\n.* -d '\{"model":"house",.*\}'\n/)
    assert.match(stderr, /\d info {2}shutting down: running answers get 30s to end; .*signal=SIGTERM\n/)
  })

  it('logs JSON where nobody looks on, and can be silent', async () => {
    const quiet = await started(['--log-level', 'error'])
    quiet.child.kill('SIGTERM')
    assert.doesNotMatch((await quiet.end()).stderr, /"level":"info"/)
    const server = await started()
    server.child.kill('SIGTERM')
    const lines = (await server.end()).stderr.split('\n').filter((line) => line.startsWith('{'))
    const messages = lines.map((line) => JSON.parse(line).msg)
    for (const text of ['model loaded', 'ready', 'shut down'])
      assert.ok(messages.includes(text), `${text}: ${messages}`)
  })
})

describe('kvasir serve: who may call', () => {
  it('beyond this machine, only with a key', async () => {
    const refused = await kvasir([...SERVE, '--host', '0.0.0.0', '--json'])
    assert.equal(refused.code, 1)
    assert.equal(json(refused).error.code, 'INVALID_ARGUMENT')
    assert.match(refused.stderr, /whoever reaches 0\.0\.0\.0 could use this server: give it an API key .*--insecure/)
  })

  it('or when that is meant, with a warning', async () => {
    await serving(['--host', '0.0.0.0', '--insecure'], async (server) => {
      assert.match(server.ready.url, /^http:\/\/127\.0\.0\.1:/)
      await server.until((r) => /"level":"warn".*whoever reaches 0\.0\.0\.0 may use this server/.test(r.stderr))
      assert.equal(await status(`${server.ready.url}/health`), 200)
    })
    await serving(['--host', '0.0.0.0', '--api-key', 'k'], async (server) => {
      assert.equal(await status(`${server.ready.url}/v1/models`), 401)
      assert.doesNotMatch(server.stderr, /"level":"warn"/)
    })
  })
})

describe('kvasir serve: its end', { skip: knowsChildren ? false : 'no /proc here' }, () => {
  it('SIGTERM lets a running answer end, and takes no more', async () => {
    const server = await started()
    const children = server.children()
    assert.ok(children.length > 0)
    const answer = await begun(await chat(server.ready, 400))
    server.child.kill('SIGTERM')
    await server.until((r) => r.stderr.includes('shutting down'))
    assert.ok([null, 503].includes(await status(`${server.ready.url}/v1/models`)))
    const { texts, done } = summary(await answer.rest)
    const endedAt = performance.now()
    assert.ok(texts > 100, `${texts} pieces of text`)
    assert.equal(done, true)
    assert.equal((await server.end()).code, 0)
    // Not only when the client's idle connection has timed out.
    assert.ok(performance.now() - endedAt < 10_000, `took ${performance.now() - endedAt} ms`)
    await gone(children)
  })

  it('Ctrl-C does the same, with its own exit code', async () => {
    const server = await started()
    const children = server.children()
    const answer = await begun(await chat(server.ready, 100))
    server.child.kill('SIGINT')
    assert.equal(summary(await answer.rest).done, true)
    assert.equal((await server.end()).code, 130)
    await gone(children)
  })

  it('an answer gets --drain to end, then it is stopped', async () => {
    const server = await started(['--drain', '300ms'])
    const children = server.children()
    const answer = await begun(await chat(server.ready, 1900))
    server.child.kill('SIGTERM')
    const { texts, done } = summary(await answer.rest)
    assert.ok(texts > 0 && texts < 1900, `${texts} pieces of text`)
    assert.equal(done, false)
    assert.equal((await server.end()).code, 0)
    await gone(children)
  })

  for (const [first, second, code] of [
    ['SIGTERM', 'SIGTERM', 143],
    ['SIGINT', 'SIGINT', 130],
  ] as const)
    it(`a second ${second} ends it at once`, async () => {
      const server = await started()
      const children = server.children()
      const answer = await begun(await chat(server.ready, 1900))
      server.child.kill(first)
      // Twice at once is one press of Ctrl-C, which npm passes on beside the terminal.
      server.child.kill(first)
      await server.until((r) => r.stderr.includes('shutting down'))
      await sleep(400)
      assert.equal(server.child.exitCode, null)
      server.child.kill(second)
      assert.equal((await server.end()).code, code)
      assert.equal(summary(await answer.rest).done, false)
      await gone(children)
    })

  it('SIGKILL leaves no process behind', async () => {
    const server = await started()
    const children = server.children()
    const answer = await begun(await chat(server.ready, 1900))
    server.child.kill('SIGKILL')
    await server.end()
    assert.equal(summary(await answer.rest).done, false)
    await gone(children)
  })

  it('nor does a signal while a model is loaded', async () => {
    const server = new Running([...SERVE, '--json'])
    await server.until((r) => r.children().length > 0)
    const children = server.children()
    server.child.kill('SIGTERM')
    assert.equal((await server.end()).code, 143)
    await gone(children)
  })
})

describe('kvasir serve: what is wrong', () => {
  let folder: string
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'kvasir-serve-'))
  })
  after(() => rmSync(folder, { recursive: true }))

  it('a port that is in use', async () => {
    const other = createServer().listen(0, '127.0.0.1')
    await new Promise((resolve) => other.once('listening', resolve))
    const { port } = other.address() as { port: number }
    const failed = await kvasir(['serve', '--port', String(port), '-t', '1', '--json'])
    other.close()
    assert.equal(failed.code, 1)
    assert.equal(json(failed).error.code, 'INVALID_ARGUMENT')
    assert.match(failed.stderr, new RegExp(`error: INVALID_ARGUMENT: port ${port} is in use: .*--port`))
  })

  it('flags, variables, files and models, before anything is loaded', async () => {
    const file = join(folder, 'c.json')
    writeFileSync(file, '{"prot": 1}')
    const cases: [string[], Record<string, string>, number, RegExp][] = [
      [['--prot', '1'], {}, 2, /unknown option '--prot'\n\(Did you mean --port\?\)/],
      [['--drain', '30'], {}, 2, /'--drain <time>' argument '30' is invalid\. It must be a duration such as/],
      [[], { KVASIR_DRAIN: '30' }, 1, /INVALID_ARGUMENT: KVASIR_DRAIN: "30" cannot be used/],
      [['--config', file], {}, 1, /c\.json: there is no setting "prot"; did you mean "port"\?/],
      [['house', '/no/such.gguf'], {}, 1, /MODEL_NOT_FOUND: there is no file \/no\/such\.gguf/],
      [['house', 'house'], {}, 1, /two models are called "house": give one of them another name/],
    ]
    for (const [args, env, code, text] of cases) {
      const failed = await kvasir([...SERVE, ...args], { env })
      assert.equal(failed.code, code, failed.stderr)
      assert.match(failed.stderr, text)
    }
  })

  it('can be found with --print-config, which loads nothing', async () => {
    const file = join(folder, 'good.json')
    writeFileSync(file, '{"host": "::1", "port": 1, "apiKey": ["s3cret"]}')
    const env = { KVASIR_CONFIG: file, KVASIR_PORT: '2' }
    const printed = await kvasir(['serve', '/no/such.gguf', '--drain', '5s', '--print-config'], { env })
    assert.equal(printed.code, 0, printed.stderr)
    const { config, host, port, drain, apiKey, models } = json(printed)
    assert.deepEqual(config, { value: file, source: 'env', at: 'KVASIR_CONFIG' })
    assert.deepEqual(host, { value: '::1', source: 'file', at: `${file}: host` })
    assert.deepEqual(port, { value: 2, source: 'env', at: 'KVASIR_PORT' })
    assert.deepEqual(drain, { value: '5s', source: 'flag', at: '--drain' })
    assert.deepEqual(apiKey.value, ['***'])
    assert.equal(models[0].name, 'such')
  })
})
