import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import {
  appendFileSync,
  closeSync,
  copyFileSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { KvasirError } from '../contract/errors.ts'
import {
  blockHash,
  blockHashes,
  type CacheIdentity,
  fileDigest,
  identityDifferences,
  identityRoot,
  isBlockHash,
  type Plain,
} from './identity.ts'

const folder = mkdtempSync(join(tmpdir(), 'kvasir-identity-'))
after(() => rmSync(folder, { recursive: true }))

const base: CacheIdentity = {
  model: 'm'.repeat(64),
  tokenizer: 't'.repeat(64),
  adapters: [{ digest: 'a1', scale: 1 }],
  rope: { base: 10_000, scaling: 'yarn', factor: 2.5 },
  kv: { keys: 'f16', values: 'q8_0', layout: 'token-major.32' },
  policy: { name: 'snapkv', params: { budget: 1024, heads: [1, 2], deep: { on: true } } },
  tenant: 'acme',
  salt: '',
}
const isInvalid = (e: unknown) => e instanceof KvasirError && e.code === 'INVALID_ARGUMENT'

describe('the root', () => {
  it('changes with every field, and with nothing else', () => {
    const changed: CacheIdentity[] = [
      { ...base, model: 'other' },
      { ...base, tokenizer: 'other' },
      { ...base, adapters: [] },
      { ...base, adapters: [{ digest: 'a1', scale: 0.5 }] },
      { ...base, adapters: [{ digest: 'a2', scale: 1 }] },
      { ...base, adapters: [...base.adapters, ...base.adapters] },
      { ...base, rope: { ...base.rope, base: 10_001 } },
      { ...base, rope: { base: 10_000, scaling: 'yarn' } },
      { ...base, rope: { ...base.rope, factor: '2.5' } },
      { ...base, kv: { ...base.kv, keys: 'q8_0' } },
      { ...base, kv: { ...base.kv, values: 'f16' } },
      { ...base, kv: { ...base.kv, keys: 'q8_0', values: 'f16' } },
      { ...base, kv: { ...base.kv, layout: 'head-major.32' } },
      { ...base, policy: { ...base.policy, name: 'h2o' } },
      { ...base, policy: { ...base.policy, params: {} } },
      { ...base, policy: { ...base.policy, params: { ...base.policy.params, budget: 1025 } } },
      { ...base, policy: { ...base.policy, params: { ...base.policy.params, heads: [2, 1] } } },
      { ...base, policy: { ...base.policy, params: { ...base.policy.params, deep: { on: false } } } },
      { ...base, policy: { ...base.policy, params: { ...base.policy.params, deep: null } } },
      { ...base, tenant: 'acme2' },
      { ...base, tenant: 'ACME' },
      { ...base, tenant: '', salt: 'acme' },
      { ...base, salt: 's' },
      { ...base, more: 1 } as CacheIdentity,
    ]
    const roots = [base, ...changed].map(identityRoot)
    assert.equal(new Set(roots).size, roots.length)
    assert.ok(roots.every(isBlockHash))
    const turned = Object.fromEntries(Object.entries(structuredClone(base)).reverse()) as unknown as CacheIdentity
    assert.equal(identityRoot(turned), roots[0], 'the order of fields does not matter')
    assert.equal(identityRoot(JSON.parse(JSON.stringify(base)) as CacheIdentity), roots[0])
    const zero = (x: number) => identityRoot({ ...base, rope: { x } })
    assert.equal(zero(-0), zero(0), 'JSON knows no -0')
  })

  it('takes no two splits of the same characters for one', () => {
    const splits: CacheIdentity[] = []
    const text = 'abcdef'
    for (let i = 0; i <= text.length; i++) {
      splits.push({ ...base, tenant: text.slice(0, i), salt: text.slice(i) })
      splits.push({ ...base, model: text.slice(0, i), tokenizer: text.slice(i) })
      splits.push({ ...base, rope: { [text.slice(0, i)]: text.slice(i) } })
      splits.push({ ...base, policy: { name: text.slice(0, i), params: { p: text.slice(i) } } })
    }
    const nested: Plain[] = [
      [],
      [[]],
      [[], []],
      {},
      [{}],
      '',
      '[]',
      0,
      false,
      null,
      ['a', 'b'],
      ['ab'],
      [['a'], 'b'],
      { a: 'b' },
    ]
    for (const p of nested) splits.push({ ...base, policy: { name: 'p', params: { p } } })
    // lone surrogates: UTF-8 has one byte sequence for all of them
    for (const tenant of ['\ud800', '\ud801', '\ufffd']) splits.push({ ...base, tenant })
    assert.equal(new Set(splits.map(identityRoot)).size, splits.length)
  })

  it('needs all fields, and plain data', () => {
    for (const field of Object.keys(base)) {
      const { [field as 'model']: _, ...rest } = base
      assert.throws(() => identityRoot(rest as CacheIdentity), isInvalid, field)
    }
    for (const bad of [Number.NaN, Infinity, undefined, 1n, () => 1] as unknown as Plain[])
      assert.throws(() => identityRoot({ ...base, rope: { bad } }), isInvalid)
  })

  it('is the same as ever', () => {
    // these name files on users' disks: a change here must change the domain in identity.ts
    const root = identityRoot(base)
    assert.equal(root, '774f14ed46c695b79f751057632682f8973d7f2318106111966ebef28dda74d7')
    const tokens = Array.from({ length: 70 }, (_, i) => i * i)
    assert.deepEqual(blockHashes(root, tokens, 32), [
      '01cb57b331ec5008686928ff33a48e317c8db30d81c99b599ec9a2175826445c',
      '7668efea998a574bf36d96033626c9fdf85e113a7910ad2f26e62f1512af4bab',
    ])
  })
})

describe('block names', () => {
  const root = identityRoot(base)
  const tokens = Array.from({ length: 32 * 6 + 5 }, (_, i) => (i * 7919) % 50_000)

  it('are chained: a change reaches all blocks behind it, and none before', () => {
    const names = blockHashes(root, tokens, 32)
    assert.equal(names.length, 6)
    for (let at = 0; at < 192; at += 13) {
      const other = blockHashes(root, tokens.with(at, 50_001), 32)
      for (let b = 0; b < 6; b++)
        assert.equal(names[b] === other[b], b < Math.floor(at / 32), `token ${at}, block ${b}`)
    }
    assert.ok(blockHashes(identityRoot({ ...base, salt: 'x' }), tokens, 32).every((h) => !names.includes(h)))
  })

  it('are the same at once and one by one, from lists and typed arrays', () => {
    const names = blockHashes(root, tokens, 32)
    let parent = root
    for (let b = 0; b < 6; b++) {
      parent = blockHash(parent, Uint32Array.from(tokens.slice(b * 32, b * 32 + 32)))
      assert.equal(parent, names[b])
    }
    assert.deepEqual(blockHashes(names[1]!, tokens.slice(64), 32), names.slice(2))
    assert.deepEqual(blockHashes(root, tokens.slice(0, 31), 32), [])
  })

  it('depend on the length of blocks', () => {
    const all = [1, 2, 16, 32, 64].flatMap((page) => blockHashes(root, tokens, page))
    assert.equal(new Set(all).size, all.length)
  })

  it('follow the written rule', () => {
    const u32 = (...n: number[]) => Buffer.from(Uint32Array.from(n).buffer)
    const domain = 'kvasir.cache.block.v1'
    const message = [
      u32(domain.length),
      Buffer.from(domain),
      u32(32),
      Buffer.from(root, 'hex'),
      u32(3),
      u32(5, 6, 2 ** 32 - 1),
    ]
    const wanted = createHash('sha256').update(Buffer.concat(message)).digest('hex')
    assert.equal(blockHash(root, [5, 6, 2 ** 32 - 1]), wanted)
  })

  it('refuse what is not an id or a name', () => {
    for (const bad of [-1, 2 ** 32, 0.5, Number.NaN, undefined as unknown as number])
      assert.throws(() => blockHash(root, [1, bad]), isInvalid)
    for (const bad of ['', 'abc', root.toUpperCase(), `${root}0`, null as unknown as string])
      assert.throws(() => blockHashes(bad, tokens, 32), isInvalid)
    for (const page of [0, -1, 1.5]) assert.throws(() => blockHashes(root, tokens, page), isInvalid)
    assert.throws(() => blockHash(root, []), isInvalid)
  })

  it('take a few milliseconds for 32K tokens', () => {
    const long = Uint32Array.from({ length: 32_768 }, (_, i) => i)
    let best = Number.POSITIVE_INFINITY
    for (let run = 0; run < 10; run++) {
      const start = performance.now()
      assert.equal(blockHashes(root, long, 32).length, 1024)
      best = Math.min(best, performance.now() - start)
    }
    assert.ok(best < 20, `${best} ms`) // 3 ms measured; the machine may be busy
  })
})

describe('differences', () => {
  it('are named by field', () => {
    assert.deepEqual(identityDifferences(base, structuredClone(base)), [])
    const other: CacheIdentity = {
      ...base,
      adapters: [],
      kv: { ...base.kv, keys: 'q4_0' },
      policy: { name: 'snapkv', params: { ...base.policy.params, budget: 2048 } },
    }
    assert.deepEqual(identityDifferences(base, other), [
      { field: 'adapters', left: 'absent', right: '[]' },
      { field: 'adapters.0.digest', left: '"a1"', right: 'absent' },
      { field: 'adapters.0.scale', left: '1', right: 'absent' },
      { field: 'kv.keys', left: '"f16"', right: '"q4_0"' },
      { field: 'policy.params.budget', left: '1024', right: '2048' },
    ])
  })
})

describe('the digest of a file', () => {
  const cache = join(folder, 'digests')
  const path = join(folder, 'model.gguf')
  const bytes = Buffer.alloc(3_000_000, 'weights ')
  const sha = (data: Uint8Array) => createHash('sha256').update(data).digest('hex')
  const later = () => Date.now() + 60_000
  const overwrite = (at: number, text: string) => {
    const fd = openSync(path, 'r+')
    writeSync(fd, text, at)
    closeSync(fd)
  }
  /** The remembered digest is made a wrong one, so that it shows whether it was used. */
  const poison = () => {
    for (const name of readdirSync(cache)) {
      const entry = JSON.parse(readFileSync(join(cache, name), 'utf8')) as object
      writeFileSync(join(cache, name), JSON.stringify({ ...entry, sha256: 'f'.repeat(64) }))
    }
  }

  it('is SHA-256 of its bytes, for copies too', async () => {
    writeFileSync(path, bytes)
    copyFileSync(path, join(folder, 'copy.gguf'))
    assert.equal(await fileDigest(path, { cache: null }), sha(bytes))
    assert.equal(await fileDigest(join(folder, 'copy.gguf'), { cache: null }), sha(bytes))
    writeFileSync(join(folder, 'empty'), '')
    assert.equal(await fileDigest(join(folder, 'empty'), { cache: null }), sha(Buffer.alloc(0)))
  })

  it('is not remembered for a file that was just changed', async () => {
    assert.equal(await fileDigest(path, { cache }), sha(bytes))
    assert.throws(() => readdirSync(cache))
  })

  it('is remembered else, readable for the owner only', async () => {
    assert.equal(await fileDigest(path, { cache, now: later }), sha(bytes))
    assert.equal(statSync(join(cache, readdirSync(cache)[0]!)).mode & 0o777, 0o600)
    assert.equal(statSync(cache).mode & 0o777, 0o700)
    poison()
    assert.equal(await fileDigest(path, { cache, now: later }), 'f'.repeat(64))
  })

  it('is made again after a change in place that keeps size and modification time', async () => {
    const { atime, mtime } = statSync(path)
    overwrite(2_000_001, 'X')
    utimesSync(path, atime, mtime)
    const changed = Buffer.from(bytes)
    changed.write('X', 2_000_001)
    assert.equal(await fileDigest(path, { cache, now: later }), sha(changed))
  })

  it('is made again when the file grew, shrank, was replaced, or only its times changed', async () => {
    poison()
    appendFileSync(path, 'more')
    assert.equal(await fileDigest(path, { cache, now: later }), sha(readFileSync(path)))
    poison()
    rmSync(path)
    writeFileSync(path, bytes)
    assert.equal(await fileDigest(path, { cache, now: later }), sha(bytes))
    poison()
    utimesSync(path, 1, 1)
    assert.equal(await fileDigest(path, { cache, now: later }), sha(bytes))
  })

  it('does without memory that is damaged or cannot be written', async () => {
    for (const name of readdirSync(cache)) writeFileSync(join(cache, name), '{"sha256": 3')
    assert.equal(await fileDigest(path, { cache, now: later }), sha(bytes))
    assert.equal(await fileDigest(path, { cache: join(path, 'no', 'folder'), now: later }), sha(bytes))
    assert.deepEqual(
      readdirSync(cache).filter((n) => n.endsWith('.tmp')),
      [],
    )
  })

  it('says which file cannot be read', async () => {
    for (const bad of [join(folder, 'absent'), folder])
      await assert.rejects(fileDigest(bad), (e: KvasirError) => e.code === 'GGUF_IO' && e.message.includes(bad))
  })
})
