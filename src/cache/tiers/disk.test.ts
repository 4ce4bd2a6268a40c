import assert from 'node:assert/strict'
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { after, describe, it } from 'node:test'
import { KvasirError } from '../../contract/errors.ts'
import { blockHashes } from '../identity.ts'
import { blockFileBytes, DiskTier, type DiskTierOptions } from './disk.ts'
import type { TierBlock } from './tier.ts'

const top = mkdtempSync(join(tmpdir(), 'kvasir-disk-'))
after(() => rmSync(top, { recursive: true }))
let nextFolder = 0
const freshFolder = () => join(top, `${nextFolder++}`)

const ROOT = '11'.repeat(32)
const OTHER_ROOT = '22'.repeat(32)
const BLOCK = blockFileBytes(4, 1000)

function chainOf(blocks: number, first: number, payloadBytes = 1000, root = ROOT): TierBlock[] {
  const tokens = Array.from({ length: 4 * blocks }, (_, i) => first + i)
  return blockHashes(root, tokens, 4).map((hash, i, all) => ({
    hash,
    parent: all[i - 1] ?? null,
    tokens: tokens.slice(4 * i, 4 * i + 4),
    payload: new Uint8Array(payloadBytes).fill(first + i + 1),
  }))
}
const names = (blocks: readonly TierBlock[]) => blocks.map((b) => b.hash)
const fileOf = (folder: string, b: TierBlock, root = ROOT) => join(folder, root, `${b.hash}.kvb`)
const open = (folder: string, over: Partial<DiskTierOptions> = {}, root = ROOT) =>
  DiskTier.open(folder, root, { maxBytes: 1e8, ...over })

async function store(folder: string, blocks: readonly TierBlock[], root = ROOT): Promise<void> {
  const tier = await open(folder, {}, root)
  for (const b of blocks) assert.ok(tier.put(b))
  await tier.close()
  assert.equal(tier.problem, null)
}
const files = (folder: string, root = ROOT) => readdirSync(join(folder, root)).sort()
const folderBytes = (folder: string) =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((f) => f.name.endsWith('.kvb'))
    .reduce((sum, f) => sum + statSync(join(f.parentPath, f.name)).size, 0)

describe('a folder that was left', () => {
  it('is found again, by names and in order of use', async () => {
    const folder = freshFolder()
    const [a, b] = [chainOf(3, 0), chainOf(3, 100)]
    const first = await open(folder)
    for (const block of [...a, ...b]) first.put(block)
    await first.flush()
    first.touch(names(a))
    await first.close()

    const second = await open(folder, { maxBytes: 4 * BLOCK })
    assert.deepEqual(
      [...a, ...b].map((x) => second.has(x.hash)),
      [true, true, true, true, false, false],
    )
    let n = 0
    for await (const payload of second.getMany(names(a))) assert.deepEqual(payload, a[n++]!.payload)
    assert.equal(n, 3)
    assert.ok(second.stats.readBytesPerSecond! > 0)
    await second.close()
    assert.equal(files(folder).length, 4)
  })

  it('is readable for its owner only', async () => {
    const folder = freshFolder()
    const chain = chainOf(1, 0)
    await store(folder, chain)
    const mode = (path: string) => statSync(path).mode & 0o777
    assert.deepEqual([mode(folder), mode(join(folder, ROOT)), mode(fileOf(folder, chain[0]!))], [0o700, 0o700, 0o600])
  })

  it('keeps roots apart, and one limit for all of them: the oldest go first', async () => {
    const folder = freshFolder()
    const other = chainOf(4, 0, 1000, OTHER_ROOT)
    await store(folder, other, OTHER_ROOT)
    for (const b of other) utimesSync(fileOf(folder, b, OTHER_ROOT), 1000, 1000)
    const tier = await open(folder, { maxBytes: 5 * BLOCK })
    assert.deepEqual([tier.stats.blocks, tier.stats.folderBytes], [0, 4 * BLOCK])
    assert.equal(tier.has(other[0]!.hash), false)
    assert.equal(await tier.get(other[0]!.hash), null)
    for (const b of chainOf(3, 0)) tier.put(b)
    await tier.close()
    assert.deepEqual([files(folder).length, files(folder, OTHER_ROOT).length], [3, 2])
  })

  it('is left alone where names are foreign, and stray temporary files go', async () => {
    const folder = freshFolder()
    const chain = chainOf(2, 0)
    await store(folder, chain)
    const inRoot = (name: string) => join(folder, ROOT, name)
    const foreign = [
      'readme.txt',
      'short.kvb',
      `${'A'.repeat(64)}.kvb`,
      `${'c'.repeat(64)}.KVB`,
      `.${'d'.repeat(64)}.kvb`,
    ]
    for (const name of foreign) writeFileSync(inRoot(name), 'mine')
    mkdirSync(inRoot(`${'e'.repeat(64)}.kvb`))
    symlinkSync('/etc/passwd', inRoot(`${'f'.repeat(64)}.kvb`))
    writeFileSync(join(folder, 'notes'), 'mine')
    mkdirSync(join(folder, 'not-a-root'))
    const host =
      hostname()
        .replace(/[^A-Za-z0-9]/g, '')
        .slice(0, 32) || 'host'
    const { pid } = spawnSync(process.execPath, ['-e', '']) // one that is gone
    const living = `tmp-${host}-${process.ppid}-aa`
    for (const name of [`tmp-${host}-${pid}-aa`, living, 'tmp-otherhost-1-aa']) writeFileSync(inRoot(name), 'half')

    const tier = await open(folder, { maxBytes: 1 }) // evicts all that it believes to be its own
    await tier.close()
    const left = [...foreign, `${'e'.repeat(64)}.kvb`, `${'f'.repeat(64)}.kvb`, living, 'tmp-otherhost-1-aa']
    assert.deepEqual(files(folder), left.sort())
    assert.ok(existsSync(join(folder, 'notes')) && existsSync(join(folder, 'not-a-root')))
    assert.ok(existsSync('/etc/passwd'))

    const later = await open(folder, { now: () => Date.now() + 3_600_000 })
    await later.close()
    assert.ok(!files(folder).some((n) => n.startsWith('tmp-')), 'nobody writes for an hour')
  })
})

describe('a file in doubt', () => {
  const folder = freshFolder()
  const [block] = chainOf(1, 7, 300)
  const path = fileOf(folder, block!)
  let whole: Buffer

  /** The file must be missed, counted and gone; and can be stored again. */
  async function mustBeMissed(what: string, content: Uint8Array | null): Promise<void> {
    if (content) writeFileSync(path, content)
    const tier = await open(folder)
    assert.equal(await tier.get(block!.hash), null, what)
    assert.deepEqual(
      [tier.stats.corrupt, tier.stats.misses, tier.stats.hits, tier.has(block!.hash)],
      [1, 1, 0, false],
      what,
    )
    await tier.close()
    assert.equal(existsSync(path), false, what)
    assert.equal(tier.problem, null)
  }

  it('is any with a flipped bit', async () => {
    await store(folder, [block!])
    whole = readFileSync(path)
    assert.equal(whole.length, blockFileBytes(4, 300))
    // every byte of the header, and some of the payload
    for (let at = 0; at < whole.length; at += at < 256 ? 1 : 37) {
      const bad = Buffer.from(whole)
      bad[at]! ^= 1 << (at % 8)
      await mustBeMissed(`byte ${at}`, bad)
    }
  })

  it('is any cut short or too long', async () => {
    for (const bytes of [0, 1, 7, 8, 100, 191, 192, 255, 256, 257, whole.length - 1])
      await mustBeMissed(`${bytes} bytes`, whole.subarray(0, bytes))
    await mustBeMissed('a byte too many', Buffer.concat([whole, Buffer.of(0)]))
    await mustBeMissed('zeros', Buffer.alloc(whole.length))
    await mustBeMissed('twice', Buffer.concat([whole, whole]))
  })

  it('is one under a wrong name, of a wrong root, or no file at all', async () => {
    const others = chainOf(1, 500, 300)
    await store(folder, others)
    await mustBeMissed('another block', readFileSync(fileOf(folder, others[0]!)))
    const elsewhere = freshFolder()
    await store(elsewhere, [block!], OTHER_ROOT)
    await mustBeMissed('another root', readFileSync(fileOf(elsewhere, block!, OTHER_ROOT)))
    writeFileSync(join(folder, 'target'), whole)
    symlinkSync(join(folder, 'target'), path)
    await mustBeMissed('a link', null)
  })

  it('that grew unreadable while known is a miss, too', async () => {
    await store(folder, [block!])
    const tier = await open(folder)
    truncateSync(path, 100)
    assert.equal(await tier.get(block!.hash), null)
    assert.ok(tier.put(block!), 'can be put at once')
    await tier.flush()
    assert.deepEqual(await tier.get(block!.hash), block!.payload)
    rmSync(path)
    assert.equal(await tier.get(block!.hash), null)
    assert.deepEqual([tier.stats.corrupt, tier.has(block!.hash), tier.problem], [1, false, null])
    await tier.close()
  })
})

describe('limits', () => {
  it('of bytes are kept at any time, as the folder shows', async () => {
    const folder = freshFolder()
    const tier = await open(folder, { maxBytes: 20 * BLOCK })
    for (let c = 0; c < 30; c++) {
      for (const b of chainOf(5, c * 1000)) tier.put(b)
      if (c % 3 === 0) await tier.flush()
      assert.ok(tier.stats.folderBytes <= 20 * BLOCK)
    }
    await tier.flush()
    assert.equal(folderBytes(folder), tier.stats.folderBytes)
    assert.ok(tier.stats.folderBytes > 15 * BLOCK && tier.stats.folderBytes <= 20 * BLOCK)
    assert.equal(tier.stats.blocks * BLOCK, tier.stats.bytes)
    await tier.close()
  })

  it('of the queue drop blocks, counted', async () => {
    const tier = await open(freshFolder(), { maxQueueBytes: 10 * BLOCK })
    const taken = chainOf(30, 0).map((b) => tier.put(b))
    assert.deepEqual(taken, [...Array(10).fill(true), ...Array(20).fill(false)])
    assert.deepEqual([tier.stats.dropped, tier.stats.queuedBytes], [20, 10 * BLOCK])
    await tier.flush()
    assert.deepEqual([tier.stats.written, tier.stats.queuedBytes], [10, 0])
    assert.ok(tier.put(chainOf(1, 5000)[0]!))
    await tier.close()
  })

  it('are checked', async () => {
    const isInvalid = (e: unknown) => e instanceof KvasirError && e.code === 'INVALID_ARGUMENT'
    await assert.rejects(open(top, { maxBytes: -1 }), isInvalid)
    await assert.rejects(open(top, { maxBytes: Number.NaN }), isInvalid)
    await assert.rejects(open(top, { writers: 0 }), isInvalid)
    await assert.rejects(open(top, {}, '../x'), isInvalid)
  })
})

describe('a disk in trouble', () => {
  it('turns the tier off with a text, and nothing rejects', async () => {
    const folder = freshFolder()
    const tier = await open(folder)
    const [good, ...bad] = chainOf(20, 0)
    tier.put(good!)
    await tier.flush()
    rmSync(join(folder, ROOT), { recursive: true })
    writeFileSync(join(folder, ROOT), 'a file where a folder should be') // as root, permissions stop nobody
    for (const b of bad) tier.put(b)
    await tier.flush()
    assert.match(tier.problem ?? '', /disk cache in .* is off: writing failed 3 times in a row.*ENOTDIR.*free space/)
    assert.deepEqual([tier.stats.dropped, tier.stats.blocks, tier.stats.queuedBytes], [19, 0, 0])
    assert.deepEqual([tier.put(bad[0]!), tier.has(good!.hash), await tier.get(good!.hash)], [false, false, null])
    for await (const _ of tier.getMany([good!.hash])) assert.fail()
    await tier.clear()
    await tier.close()
  })

  it('at opening gives a tier that is off', async () => {
    const file = join(top, 'file')
    writeFileSync(file, '')
    const tier = await open(join(file, 'folder'))
    assert.match(tier.problem ?? '', /off: it cannot be used: ENOTDIR/)
    assert.equal(tier.put(chainOf(1, 0)[0]!), false)
    await tier.close()
  })

  it('does not mind a folder that was removed by hand', async () => {
    const folder = freshFolder()
    const tier = await open(folder)
    const chain = chainOf(8, 0)
    tier.put(chain[0]!)
    await tier.flush()
    rmSync(folder, { recursive: true })
    for (const b of chain.slice(1)) tier.put(b)
    await tier.flush()
    assert.equal(await tier.get(chain[0]!.hash), null)
    assert.deepEqual(await tier.get(chain[7]!.hash), chain[7]!.payload)
    assert.equal(tier.problem, null)
    await tier.close()
  })
})

describe('several processes', () => {
  /** Writes chains until it is told to stop, or killed; says what was flushed. */
  const writer = (folder: string, first: number, chains: number, maxBytes: number) => `
    import { DiskTier } from ${JSON.stringify(new URL('./disk.ts', import.meta.url).href)}
    import { blockHashes } from ${JSON.stringify(new URL('../identity.ts', import.meta.url).href)}
    const chainOf = (blocks, first, payloadBytes, root) => {
      const tokens = Array.from({ length: 4 * blocks }, (_, i) => first + i)
      return blockHashes(root, tokens, 4).map((hash, i, all) => ({ hash, parent: all[i - 1] ?? null,
        tokens: tokens.slice(4 * i, 4 * i + 4), payload: new Uint8Array(payloadBytes).fill(first + i + 1) }))
    }
    const tier = await DiskTier.open(${JSON.stringify(folder)}, '${ROOT}', { maxBytes: ${maxBytes} })
    console.log('open')
    for (let c = 0; c < ${chains}; c++) {
      for (const b of chainOf(4, ${first} + c * 100, 100_000, '${ROOT}')) tier.put(b)
      await tier.flush()
      console.log('flushed ' + c)
    }
    await tier.close()
    console.log('done ' + JSON.stringify({ ...tier.stats, problem: tier.problem }))
  `
  const start = (code: string): ChildProcess =>
    spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '--eval', code], {
      stdio: ['ignore', 'pipe', 'inherit'],
      cwd: process.cwd(),
    })
  const lines = (child: ChildProcess) => createInterface({ input: child.stdout! })
  const isRight = (b: TierBlock, payload: Uint8Array) =>
    payload.length === 100_000 && payload.every((x) => x === b.payload[0])

  it('killed 20 times while writing leave nothing that is believed and wrong', async () => {
    const folder = freshFolder()
    let found = 0
    let strays = 0
    for (let round = 0; round < 20; round++) {
      const first = round * 100_000
      const child = start(writer(folder, first, 500, 1e9))
      const ended = once(child, 'exit') // until then its id is still taken
      let flushed = -1
      for await (const line of lines(child)) {
        if (line.startsWith('flushed')) flushed = Number(line.slice(8))
        if (line === 'open') setTimeout(() => child.kill('SIGKILL'), round * 3)
      }
      await ended
      strays += files(folder).filter((n) => n.startsWith('tmp-')).length
      const tier = await open(folder, { maxBytes: 1e9 })
      assert.deepEqual(
        files(folder).filter((n) => !n.endsWith('.kvb')),
        [],
        'stray files are gone',
      )
      for (let c = 0; c <= flushed + 1; c++)
        for (const b of chainOf(4, first + c * 100, 100_000)) {
          if (c <= flushed) assert.ok(tier.has(b.hash), 'what was flushed is there')
          if (!tier.has(b.hash)) continue
          assert.ok(isRight(b, (await tier.get(b.hash))!))
          found++
        }
      assert.equal(tier.stats.corrupt, 0)
      await tier.clear()
      await tier.close()
    }
    assert.ok(found > 50, `only ${found} blocks were found after 20 kills`)
    assert.ok(strays > 0, 'no kill came in the middle of a write')
  })

  it('share a folder, and its limit, without harm', async () => {
    const folder = freshFolder()
    const maxBytes = 6_000_000
    const children = [0, 1].map(() => start(writer(folder, 0, 25, maxBytes))) // the same blocks in both
    const mine = await open(folder, { maxBytes })
    const ends: string[] = []
    let reads = 0
    const reading = (async () => {
      while (ends.length < 2)
        for (let c = 0; c < 25 && ends.length < 2; c++)
          for (const b of chainOf(4, c * 100, 100_000)) {
            const payload = await mine.get(b.hash)
            if (payload) assert.ok(isRight(b, payload), 'what is found is right')
            if (payload) reads++
          }
    })()
    await Promise.all(
      children.map(async (child) => {
        let last = ''
        for await (const line of lines(child)) last = line
        ends.push(last)
      }),
    )
    await reading
    for (const end of ends) {
      assert.match(end, /^done/)
      const stats = JSON.parse(end.slice(5)) as { problem: string | null; corrupt: number }
      assert.deepEqual([stats.problem, stats.corrupt], [null, 0])
    }
    assert.deepEqual([mine.stats.corrupt, mine.problem], [0, null])
    assert.ok(reads > 0, 'blocks of others are found without opening again')
    assert.ok(folderBytes(folder) <= maxBytes * (1 + 2 / 8), `${folderBytes(folder)} bytes`)
    await mine.close()
  })
})

it('a copy of the folder is as good as the folder', async () => {
  const [from, to] = [freshFolder(), freshFolder()]
  const chain = chainOf(3, 0)
  await store(from, chain)
  mkdirSync(join(to, ROOT), { recursive: true })
  for (const b of chain) copyFileSync(fileOf(from, b), fileOf(to, b))
  const tier = await open(to)
  for (const b of chain) assert.deepEqual(await tier.get(b.hash), b.payload)
  await tier.close()
})
