import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import { choose, modelsOf } from './hub/choose.ts'
import { download } from './hub/download.ts'
import { FakeHub } from './hub/hub.fixture.ts'
import { parseHubName } from './hub/name.ts'
import type { RemoteFile } from './hub/remote.ts'
import { json, kvasir, Running } from './process.fixture.ts'

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')

describe('names of models on the hub', () => {
  it('are read', () => {
    assert.deepEqual(parseHubName('hf:Qwen/Qwen2.5-0.5B'), { repo: 'Qwen/Qwen2.5-0.5B', file: null })
    assert.deepEqual(parseHubName('hf:a/b:c/d.gguf'), { repo: 'a/b', file: 'c/d.gguf' })
  })

  it('cannot leave the cache folder', () => {
    for (const bad of [
      'hf:a',
      'hf:a/b/c',
      'hf:../b',
      'hf:a/..',
      'hf:a/b:',
      'hf:a/b:../c',
      'hf:a/b:/etc/x',
      'hf:',
      'hf:a/b:c\\..\\d',
    ])
      assert.throws(() => parseHubName(bad), /INVALID_ARGUMENT/, bad)
  })
})

describe('choosing a file', () => {
  const files = (...paths: string[]) => modelsOf(paths.map((path, i) => ({ path, bytes: 1000 + i })))
  const pick = (models: ReturnType<typeof files>, file: string | null = null) =>
    choose(models, { repo: 'a/b', file }).path

  it('prefers Q4_K_M, then Q8_0, then the only one', () => {
    assert.equal(pick(files('m-f16.gguf', 'm-q8_0.gguf', 'm-q4_k_m.gguf', 'README.md')), 'm-q4_k_m.gguf')
    assert.equal(pick(files('m-UD-Q4_K_M.gguf', 'm-Q4_K_M.gguf')), 'm-Q4_K_M.gguf')
    assert.equal(pick(files('m.Q8_0.gguf', 'm.F16.gguf', 'mmproj-Q4_K_M.gguf')), 'm.Q8_0.gguf')
    assert.equal(pick(files('m-IQ2_XS.gguf', 'config.json')), 'm-IQ2_XS.gguf')
    assert.throws(() => pick(files('m-IQ2_XS.gguf', 'm-F16.gguf')), /Choose one with hf:a\/b:FILE:\n.*m-IQ2_XS.gguf/)
    assert.throws(() => pick(files('model.safetensors')), /MODEL_NOT_FOUND.*no whole GGUF/)
  })

  it('takes a file, a part of one, or a quantisation by name', () => {
    const some = files('x/m-Q8_0-00001-of-00002.gguf', 'x/m-Q8_0-00002-of-00002.gguf', 'm-F16.gguf')
    assert.equal(some.length, 2)
    assert.equal(pick(some), 'x/m-Q8_0-00001-of-00002.gguf')
    assert.equal(pick(some, 'x/m-Q8_0-00002-of-00002.gguf'), 'x/m-Q8_0-00001-of-00002.gguf')
    assert.equal(pick(some, 'f16'), 'm-F16.gguf')
    assert.throws(() => pick(some, 'm-F17.gguf'), /Did you mean m-F16.gguf\?/)
  })

  it('overlooks split models of which parts are missing', () => {
    assert.equal(files('m-Q8_0-00001-of-00002.gguf').length, 0)
    assert.equal(files('m-Q8_0-00002-of-00002.gguf').length, 0)
  })
})

describe('download', () => {
  const bytes = randomBytes(700_000)
  let hub: FakeHub
  let folder: string
  let path: string
  let file: RemoteFile
  const options = () => ({
    hub: { url: hub.url, token: null },
    signal: new AbortController().signal,
    retryMs: [5, 5, 5],
  })

  beforeEach(async () => {
    hub = await FakeHub.start()
    folder = mkdtempSync(join(tmpdir(), 'kvasir-pull-'))
    path = join(folder, 'm.gguf')
    hub.files.set('m.gguf', bytes)
    const checksum = { kind: 'sha256', hex: sha256(bytes) } as const
    file = { path: 'm.gguf', bytes: bytes.length, url: `${hub.url}/${hub.repo}/resolve/main/m.gguf`, checksum }
  })
  afterEach(() => {
    hub[Symbol.dispose]()
    rmSync(folder, { recursive: true })
  })

  it('goes on by itself where connections broke off', async () => {
    hub.breakAfter = [200_000, 300_000]
    assert.equal(await download(file, path, options()), bytes.length)
    assert.ok(readFileSync(path).equals(bytes))
    // What was on its way when a connection broke off may be lost, no more.
    const [first, second, third] = hub.downloads.map((r) => Number(/^bytes=(\d+)-$/.exec(r.range!)![1]))
    assert.deepEqual([first, hub.downloads.length], [0, 3])
    assert.ok(0 < second! && second! <= 200_000, `${second}`)
    assert.ok(second! < third! && third! <= second! + 300_000, `${second}, ${third}`)
    assert.deepEqual(readdirSync(folder), ['m.gguf'])
  })

  it('gives up in the end, and another run goes on there', async () => {
    hub.breakAfter = [200_000, 0, 0, 0, 0]
    const failed = await download(file, path, options()).catch((e) => e)
    assert.ok(failed instanceof KvasirError)
    assert.match(failed.message, /DOWNLOAD_FAILED: .*broke off at \d+ KiB of 684 KiB.*continues it there/)
    const part = `m.gguf.${sha256(bytes).slice(0, 12)}.part`
    assert.deepEqual(readdirSync(folder), [part])
    const had = statSync(join(folder, part)).size
    assert.ok(had > 0 && had <= 200_000, `${had}`)
    hub.breakAfter = []
    assert.equal(await download(file, path, options()), bytes.length - had)
    assert.ok(readFileSync(path).equals(bytes))
  })

  it('throws wrong bytes away', async () => {
    hub.corrupt = true
    await assert.rejects(download(file, path, options()), /arrived wrong: its SHA-256 is [0-9a-f]{64}, it should be/)
    assert.deepEqual(readdirSync(folder), [])
    assert.equal(hub.downloads.length, 1)
    hub.corrupt = false
    await download(file, path, options())
    assert.ok(readFileSync(path).equals(bytes))
  })

  it('checks what an earlier run left', async () => {
    const part = `${path}.${sha256(bytes).slice(0, 12)}.part`
    writeFileSync(part, randomBytes(100_000))
    await assert.rejects(download(file, path, options()), /arrived wrong/)
    assert.deepEqual(readdirSync(folder), [])
    writeFileSync(part, randomBytes(bytes.length + 1))
    await download(file, path, options())
    assert.ok(readFileSync(path).equals(bytes))
  })

  it('does without ranges', async () => {
    hub.ignoreRanges = true
    hub.breakAfter = [200_000]
    await download(file, path, options())
    assert.ok(readFileSync(path).equals(bytes))
  })

  it('refuses more bytes than announced', async () => {
    await assert.rejects(download({ ...file, bytes: 1000 }, path, options()), /more bytes than it announced/)
    assert.ok(!readdirSync(folder).includes('m.gguf'))
  })

  it('does not ask again when refused', async () => {
    hub.gate = { token: 'x', status: 403 }
    await assert.rejects(download(file, path, options()), /DOWNLOAD_FAILED: .*HTTP 403/)
    assert.equal(hub.requests.length, 1)
    hub.gate = null
    hub.broken = 503
    await assert.rejects(download(file, path, options()), /HTTP 503/)
    assert.equal(hub.requests.length, 1 + 3)
  })

  it('stops on request', async () => {
    hub.pause = 20
    const stop = new AbortController()
    const running = download(file, path, {
      ...options(),
      signal: stop.signal,
      onProgress: (done) => done > 0 && stop.abort(),
    })
    await assert.rejects(running, /ABORTED/)
    assert.equal(readdirSync(folder).length, 1)
  })

  it('lets only one process write', async () => {
    writeFileSync(`${path}.lock`, String(process.ppid))
    await assert.rejects(download(file, path, options()), /is being downloaded by process/)
    // No process can have this id.
    writeFileSync(`${path}.lock`, String(2 ** 30))
    await download(file, path, options())
    assert.deepEqual(readdirSync(folder), ['m.gguf'])
  })
})

describe('kvasir pull', () => {
  let hub: FakeHub
  let cache: string
  const env = () => ({ HF_ENDPOINT: hub.url, KVASIR_CACHE: cache })
  const model = () => `hf:${hub.repo}`
  const folder = () => join(cache, 'models', ...hub.repo.split('/'))

  beforeEach(async () => {
    hub = await FakeHub.start()
    cache = mkdtempSync(join(tmpdir(), 'kvasir-cache-'))
    for (const name of ['m-f16.gguf', 'm-q8_0.gguf', 'm-q4_k_m.gguf', 'README.md'])
      hub.files.set(name, randomBytes(300_000))
    hub.inGit.add('README.md')
  })
  afterEach(() => {
    hub[Symbol.dispose]()
    rmSync(cache, { recursive: true, force: true })
  })

  it('chooses, fetches, and does nothing the second time', async () => {
    const first = await kvasir(['pull', model(), '--json'], { env: env() })
    assert.equal(first.code, 0, first.stderr)
    const path = join(folder(), 'm-q4_k_m.gguf')
    const bytes = hub.files.get('m-q4_k_m.gguf')!
    assert.deepEqual(json(first), {
      repo: hub.repo,
      file: 'm-q4_k_m.gguf',
      path,
      bytes: 300_000,
      parts: [{ file: 'm-q4_k_m.gguf', bytes: 300_000, checksum: `sha256 ${sha256(bytes)}` }],
      downloaded_bytes: 300_000,
    })
    assert.match(first.stderr, /\* m-q4_k_m.gguf/)
    assert.ok(readFileSync(path).equals(bytes))
    const second = await kvasir(['pull', model()], { env: env() })
    assert.match(second.stderr, /already complete/)
    assert.equal(second.stdout, `${path}\n`)
    assert.equal(hub.downloads.length, 1)
  })

  it('fetches all parts of a split model, and small ones that lie in git', async () => {
    for (const part of ['q/big-00001-of-00002.gguf', 'q/big-00002-of-00002.gguf'])
      hub.files.set(part, randomBytes(1000))
    hub.inGit.add('q/big-00002-of-00002.gguf')
    const done = await kvasir(['pull', `${model()}:q/big-00001-of-00002.gguf`, '-q', '--json'], { env: env() })
    assert.equal(done.stderr, '')
    assert.deepEqual(
      json(done).parts.map((p: { checksum: string }) => p.checksum.split(' ')[0]),
      ['sha256', 'git-blob'],
    )
    assert.deepEqual(readdirSync(join(folder(), 'q')).filter((f) => f.endsWith('gguf')).length, 2)
  })

  it('is stopped by Ctrl-C and goes on where it was', async () => {
    hub.files.set('m-q4_k_m.gguf', randomBytes(3_000_000))
    hub.pause = 30
    const running = new Running(['pull', model()], { env: env() })
    await running.until(() => hub.downloads.length > 0)
    await new Promise((r) => setTimeout(r, 300))
    running.child.kill('SIGINT')
    const stopped = await running.end()
    assert.equal(stopped.code, 130)
    assert.match(stopped.stderr, /error: ABORTED: the download was stopped/)
    assert.equal(stopped.stdout, '')
    assert.ok(readdirSync(folder())[0]!.endsWith('.part'))
    hub.pause = 0
    const done = await kvasir(['pull', model(), '--json'], { env: env() })
    assert.equal(done.code, 0)
    const got = json(done).downloaded_bytes
    assert.ok(got > 0 && got < 3_000_000, `${got}`)
    assert.ok(readFileSync(json(done).path).equals(hub.files.get('m-q4_k_m.gguf')!))
  })

  it('sends the token to the hub only', async () => {
    hub.gate = { token: 'secret', status: 401 }
    const refused = await kvasir(['pull', model()], { env: env() })
    assert.equal(refused.code, 1)
    assert.match(refused.stderr, /^error: DOWNLOAD_FAILED: .*private or gated.*HF_TOKEN/)
    const wrong = await kvasir(['pull', model(), '--json'], { env: { ...env(), HF_TOKEN: 'other' } })
    assert.deepEqual(Object.keys(json(wrong).error), ['code', 'message', 'details'])
    assert.match(json(wrong).error.message, /may not read it/)
    const done = await kvasir(['pull', model()], { env: { ...env(), HF_TOKEN: 'secret' } })
    assert.equal(done.code, 0, done.stderr)
    assert.deepEqual(
      hub.downloads.map((r) => r.authorization),
      [undefined],
    )
  })

  it('says what is missing', async () => {
    const noRepo = await kvasir(['pull', 'hf:owner/nothing'], { env: env() })
    assert.equal(noRepo.code, 1)
    assert.match(noRepo.stderr, /error: MODEL_NOT_FOUND: 127\.0\.0\.1:\d+ has no owner\/nothing/)
    const noFile = await kvasir(['pull', `${model()}:m-q5_0.gguf`], { env: env() })
    assert.match(noFile.stderr, /error: MODEL_NOT_FOUND: .*Did you mean m-/)
    const noHub = await kvasir(['pull', './model.gguf'], { env: env() })
    assert.match(noHub.stderr, /error: INVALID_ARGUMENT: .*hf:OWNER\/REPO/)
  })

  it('says where it cannot write', async () => {
    const failed = await kvasir(['pull', model(), '-q'], { env: { ...env(), KVASIR_CACHE: '/dev/null/x' } })
    assert.equal(failed.code, 1)
    assert.match(failed.stderr, /^error: DOWNLOAD_FAILED: \/dev\/null\/x.* could not be written: .*KVASIR_CACHE.*\n$/)
  })

  it('without a network names the host, and never shows a stack', async () => {
    const server = createServer().listen(0, '127.0.0.1')
    await new Promise((r) => server.once('listening', r))
    const { port } = server.address() as { port: number }
    await new Promise((r) => server.close(r))
    const failed = await kvasir(['pull', model()], { env: { ...env(), HF_ENDPOINT: `http://127.0.0.1:${port}` } })
    assert.equal(failed.code, 1)
    assert.match(failed.stderr, /^error: DOWNLOAD_FAILED: 127\.0\.0\.1:\d+ could not be reached \(.*ECONNREFUSED/)
    assert.doesNotMatch(failed.stderr, /\n\s+at /)
    assert.equal(failed.stderr.trim().split('\n').length, 1)
  })

  it('is done by commands that need the model, and models that are here need no hub', async () => {
    const house = readFileSync(new URL('../../models/house-5m/house-5m-q8_0.gguf', import.meta.url))
    hub.files.set('m-q4_k_m.gguf', house)
    const first = await kvasir(['inspect', model(), '--json'], { env: env() })
    assert.equal(json(first).architecture, 'llama', first.stderr)
    const before = hub.requests.length
    const again = await kvasir(['inspect', `${model()}:q4_k_m`, '--json'], { env: env() })
    assert.equal(json(again).architecture, 'llama')
    assert.equal(hub.requests.length, before)
  })
})
