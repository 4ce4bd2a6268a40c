import assert from 'node:assert/strict'
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { type ErrorCode, KvasirError } from '../contract/errors.ts'
import type { CacheIdentity } from './identity.ts'
import { readSession, SESSION_VERSION, type SessionHead, writeSession } from './session-file.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-session-'))
after(() => rmSync(folder, { recursive: true }))
const path = join(folder, 'chat.session')

const identity: CacheIdentity = {
  model: 'm'.repeat(64),
  tokenizer: 't'.repeat(64),
  adapters: [],
  rope: { base: 10_000 },
  kv: { keys: 'f16', values: 'f16', layout: 'token-major.32' },
  policy: { name: 'full', params: {} },
  tenant: 'acme',
  salt: 'pepper',
}
const PAGE = 32
const head = (over: Partial<SessionHead> = {}): SessionHead => ({
  identity,
  tokens: Array.from({ length: 101 }, (_, i) => i * 3),
  rows: 100,
  pageTokens: PAGE,
  extra: { seed: 7, names: ['a', 'ü'] },
  ...over,
})
/** Four blocks for 100 rows; the last holds 4 rows. */
const payloads = [32, 32, 32, 4].map((rows, k) => Uint8Array.from({ length: rows * 10 }, (_, i) => i * 7 + k))

async function* stream(parts: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  for (const part of parts) {
    await new Promise(setImmediate)
    yield part
  }
}

async function readAll(from: string, as: CacheIdentity = identity): Promise<Uint8Array[]> {
  const session = await readSession(from, as)
  try {
    const got: Uint8Array[] = []
    for await (const payload of session.read()) got.push(payload)
    return got
  } finally {
    await session.close()
  }
}

const is = (code: ErrorCode, text: RegExp) => (e: unknown) => {
  assert.ok(e instanceof KvasirError, `${e}`)
  assert.equal(e.code, code, e.message)
  assert.match(e.message, text)
  return true
}
const refuses = (text: RegExp, as?: CacheIdentity) => assert.rejects(readAll(path, as), is('SESSION_INVALID', text))

/** Numbers in [0, n) that are the same in each run. */
function seeded(seed: number): (n: number) => number {
  let s = seed
  return (n) => {
    s = (Math.imul(s, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((s / 2 ** 32) * n)
  }
}

describe('a round trip', () => {
  it('gives all back, the last block partial', async () => {
    const bytes = await writeSession(path, head(), stream(payloads))
    assert.equal(statSync(path).size, bytes)
    assert.equal(statSync(path).mode & 0o777, 0o600)
    const session = await readSession(path, identity)
    assert.deepEqual([...session.tokens], head().tokens)
    assert.deepEqual([session.rows, session.pageTokens, session.blocks, session.fileBytes], [100, PAGE, 4, bytes])
    assert.deepEqual([session.identity, session.extra], [identity, head().extra])
    for (const round of [1, 2]) {
      let k = 0
      for await (const payload of session.read()) assert.deepEqual(payload, payloads[k++], `round ${round}`)
      assert.equal(k, 4)
    }
    await session.close()
    await session.close()
    await assert.rejects(session.read().next(), is('DISPOSED', /was closed/))
  })

  it('works for nothing, for one token, and for any number of blocks', async () => {
    await writeSession(path, head({ tokens: [], rows: 0 }), [])
    assert.deepEqual(await readAll(path), [])
    await writeSession(path, head({ tokens: [5], rows: 1 }), [Uint8Array.of(1)])
    assert.deepEqual(await readAll(path), [Uint8Array.of(1)])
    const ragged = Array.from({ length: 9 }, (_, k) => new Uint8Array(k)) // an empty one too
    await writeSession(path, head({ blocks: 9 }), ragged)
    assert.deepEqual(await readAll(path), ragged)
    await writeSession(path, head({ tokens: Uint32Array.of(2 ** 32 - 1), rows: 0 }), [])
    const session = await readSession(path, identity)
    assert.deepEqual([...session.tokens], [2 ** 32 - 1])
    await session.close()
  })

  it('asks for a block only when the one before is written, and holds one at a time', async () => {
    const one = new Uint8Array(4_000_000)
    let asked = 0
    const before = process.memoryUsage().arrayBuffers
    let most = 0
    const big = join(folder, 'big')
    await writeSession(big, head({ blocks: 40 }), {
      *[Symbol.iterator]() {
        for (; asked < 40; asked++) {
          one.fill(asked)
          yield one
        }
      },
    })
    const session = await readSession(big, identity)
    let k = 0
    for await (const payload of session.read()) {
      assert.ok(payload[0] === k && payload[3_999_999] === k)
      if (k % 8 === 7) {
        globalThis.gc?.()
        most = Math.max(most, process.memoryUsage().arrayBuffers - before)
      }
      k++
    }
    await session.close()
    rmSync(big)
    assert.equal(k, 40)
    assert.ok(most < 160_000_000, `${most} bytes`) // without gc() some buffers are still there
  })
})

describe('writing', () => {
  const temporary = () => readdirSync(folder).filter((n) => n.endsWith('.tmp'))

  it('replaces a session only by a whole one', async () => {
    await writeSession(path, head(), payloads)
    const whole = readFileSync(path)
    const boom = new Error('the arena is gone')
    const failing = async function* () {
      yield payloads[0]!
      throw boom
    }
    await assert.rejects(writeSession(path, head(), failing()), boom)
    await assert.rejects(
      writeSession(path, head(), payloads.slice(1)),
      is('INVALID_ARGUMENT', /4 blocks .* only 3 came/),
    )
    await assert.rejects(writeSession(path, head(), [...payloads, payloads[0]!]), is('INVALID_ARGUMENT', /more came/))
    assert.deepEqual(readFileSync(path), whole)
    assert.deepEqual(temporary(), [])
  })

  it('tells a source that is too long to stop', async () => {
    let ended = false
    const endless = async function* () {
      try {
        for (;;) yield payloads[0]!
      } finally {
        ended = true
      }
    }
    await assert.rejects(writeSession(path, head(), endless()), is('INVALID_ARGUMENT', /more came/))
    assert.ok(ended)
  })

  it('checks its head', async () => {
    const bad: [Partial<SessionHead>, RegExp][] = [
      [{ rows: 102 }, /102 rows of only 101 tokens/],
      [{ rows: -1 }, /rows must be/],
      [{ rows: 1.5 }, /rows must be/],
      [{ pageTokens: 0 }, /must be a whole number/],
      [{ blocks: -1 }, /blocks must be/],
      [{ tokens: Array(101).fill(-1) }, /token 0 is -1/],
      [{ identity: { ...identity, rope: { x: Number.NaN } } }, /identity.rope.x is NaN/],
      [{ extra: 'x'.repeat(2 ** 24) }, /at most 16.0 MiB/],
    ]
    for (const [over, text] of bad)
      await assert.rejects(writeSession(path, head(over), payloads), is('INVALID_ARGUMENT', text))
    assert.deepEqual(temporary(), [])
  })

  it('reports what the system refuses', async () => {
    await assert.rejects(
      writeSession(join(folder, 'no', 'such'), head(), payloads),
      is('GGUF_IO', /could not be written/),
    )
    mkdirSync(join(folder, 'taken', 'by a folder'), { recursive: true })
    await assert.rejects(writeSession(join(folder, 'taken'), head(), payloads), is('GGUF_IO', /could not be written/))
    assert.deepEqual(temporary(), [])
  })
})

describe('another identity', () => {
  it('is named field by field, without telling secrets', async () => {
    await writeSession(path, head(), payloads)
    await refuses(/another model: different are model \(the session's is "mmm.*…, this engine's "other"\)/, {
      ...identity,
      model: 'other',
    })
    const kv = { ...identity.kv, keys: 'q8_0' }
    await refuses(/other settings: different are kv.keys \(the session's is "f16", this engine's "q8_0"\)\. Load it/, {
      ...identity,
      kv,
    })
    await refuses(/policy.params.budget \(the session's is absent, this engine's 512\)/, {
      ...identity,
      policy: { name: 'full', params: { budget: 512 } },
    })
    await refuses(/different are salt, tenant\./, { ...identity, salt: 'vinegar', tenant: 'other' })
    const error = (await readAll(path, { ...identity, salt: 'vinegar' }).catch((e: unknown) => e)) as KvasirError
    assert.deepEqual(error.details['fields'], ['salt'])
    assert.doesNotMatch(error.message, /pepper|vinegar/)
    await refuses(/ and \d+ more/, {
      ...identity,
      model: 'x',
      tokenizer: 'y',
      kv,
      rope: {},
      policy: { name: 'z', params: {} },
    })
  })
})

describe('a damaged file', () => {
  let whole: Buffer
  const dataAt = () => whole.length - payloads.reduce((sum, p) => sum + 36 + p.length, 0)
  const tokensAt = () => dataAt() - 32 - 4 * 101

  it('of another version is refused with both numbers', async () => {
    await writeSession(path, head(), payloads)
    whole = readFileSync(path)
    const other = Buffer.from(whole)
    other.writeUInt32LE(SESSION_VERSION + 1, 8)
    writeFileSync(path, other)
    await refuses(/format version 2, this Kvasir reads version 1/)
  })

  it('says which region does not fit', async () => {
    const regions: [number, RegExp][] = [
      [0, /not a session file/],
      [7, /not a session file/],
      [12, /first 64 bytes are damaged/],
      [20, /first 64 bytes are damaged/],
      [30, /first 64 bytes are damaged/],
      [63, /first 64 bytes are damaged/],
      [64, /head is damaged/],
      [tokensAt() - 1, /head is damaged/],
      [tokensAt(), /tokens are damaged/],
      [dataAt() - 1, /tokens are damaged/],
      [dataAt(), /block 0 of 4/],
      [dataAt() + 3, /length of block 0 of 4 is damaged/],
      [dataAt() + 4, /block 0 of 4 is damaged/],
      [dataAt() + 36 + 320 + 50, /block 1 of 4 is damaged/],
      [whole.length - 33, /block 3 of 4 is damaged/],
      [whole.length - 1, /block 3 of 4 is damaged/],
    ]
    for (const [at, text] of regions) {
      const bad = Buffer.from(whole)
      bad[at]! ^= 0x40
      writeFileSync(path, bad)
      await refuses(text)
    }
  })

  it('cut short anywhere is refused, at once', async () => {
    for (let size = 0; size < whole.length; size += size < 70 ? 1 : 61) {
      writeFileSync(path, whole.subarray(0, size))
      await assert.rejects(
        readSession(path, identity),
        is('SESSION_INVALID', size === 0 ? /is empty/ : /is truncated: \d+ bytes/),
      )
    }
    writeFileSync(path, Buffer.concat([whole, Buffer.of(1)]))
    await refuses(/1 bytes too many/)
    writeFileSync(path, Buffer.alloc(whole.length))
    await refuses(/not a session file/)
  })

  it('whose blocks changed places is refused', async () => {
    const [a, b] = [dataAt(), dataAt() + 356]
    const bad = Buffer.concat([
      whole.subarray(0, a),
      whole.subarray(b, b + 356),
      whole.subarray(a, b),
      whole.subarray(b + 356),
    ])
    writeFileSync(path, bad)
    await refuses(/block 0 of 4 is damaged/)
  })

  it('that becomes shorter while it is read is refused', async () => {
    writeFileSync(path, whole)
    const session = await readSession(path, identity)
    const blocks = session.read()
    await blocks.next()
    truncateSync(path, dataAt() + 400)
    await assert.rejects(blocks.next(), is('SESSION_INVALID', /truncated: it ended inside block 1/))
    await session.close()
  })

  it('with up to 8 random flips, cuts and insertions never gives a wrong byte: 2,000 files', async () => {
    const seed = 77
    const random = seeded(seed)
    let refused = 0
    for (let run = 0; run < 2000; run++) {
      let bad = Buffer.from(whole)
      for (let k = 1 + random(8); k > 0; k--) {
        const kind = random(10)
        const at = random(bad.length)
        if (kind < 7 && bad.length > 0) bad[at]! ^= 1 << random(8)
        else if (kind < 8) bad = bad.subarray(0, at)
        else if (kind < 9) bad = Buffer.concat([bad.subarray(0, at), bad.subarray(at + 1 + random(50))])
        else bad = Buffer.concat([bad.subarray(0, at), Buffer.alloc(1 + random(50), random(256)), bad.subarray(at)])
      }
      if (bad.equals(whole)) continue
      writeFileSync(path, bad)
      await assert.rejects(readAll(path), is('SESSION_INVALID', /session .*: /), `seed ${seed}, run ${run}`)
      refused++
    }
    assert.ok(refused > 1900)
  })
})

describe('what is no file', () => {
  it('is reported', async () => {
    await assert.rejects(readSession(join(folder, 'absent'), identity), is('GGUF_IO', /could not be read: ENOENT/))
    await assert.rejects(readSession(folder, identity), is('SESSION_INVALID', /not a regular file/))
    writeFileSync(path, '')
    chmodSync(path, 0)
    await assert.rejects(readSession(path, identity), KvasirError) // root may read it, others may not
  })
})
