/**
 * The one builder of cache keys. Prefix index, disk and remote tiers, router and session files all name a block by what
 * comes from here, so that bytes computed under other circumstances are never found.
 *
 *   root      = H("kvasir.cache.identity.v1", identity)                  once per (engine, tenant, salt)
 *   block[0]  = H("kvasir.cache.block.v1", root,       its token ids)
 *   block[i]  = H("kvasir.cache.block.v1", block[i-1], its token ids)  so a name says all before it
 *
 * H is SHA-256 over length-prefixed, type-tagged parts. It stays at 256 bits: tenants share one store, and whoever may
 * choose prompts could look for a collision of 128 bits with 2^64 work; the longer name costs 16 bytes a block.
 */
import { createHash, randomBytes } from 'node:crypto'
import { type FileHandle, mkdir, open, readFile, realpath, rename, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { KvasirError } from '../contract/errors.ts'
import type { BlockHash } from '../contract/events.ts'
import { cacheFolder } from '../folders.ts'

/** Data that JSON can hold. Numbers are finite. */
export type Plain = null | boolean | number | string | readonly Plain[] | { readonly [key: string]: Plain }
export type PlainRecord = { readonly [key: string]: Plain }

/**
 * All that cached bytes depend on, besides the tokens. Plain data: it is also written into session files. Whatever else
 * changes the bytes (a lowering that rounds differently, a page layout) belongs into `kv.layout`; with images in the
 * prompt, their digest belongs into `salt`.
 */
export interface CacheIdentity {
  /** Of the weights: {@link fileDigest}; those of a split model joined by `+`. */
  readonly model: string
  /** Of vocabulary, merges and whatever else decides how text becomes tokens. */
  readonly tokenizer: string
  /** In the order in which they are applied. */
  readonly adapters: readonly { readonly digest: string; readonly scale: number }[]
  /** Every number that positions go through: base, scaling, factors. */
  readonly rope: PlainRecord
  /** Types of cached keys and values, and how rows lie in a block. */
  readonly kv: { readonly keys: string; readonly values: string; readonly layout: string }
  /** Who decides what is kept of a block; `full` with no parameters keeps all. */
  readonly policy: { readonly name: string; readonly params: PlainRecord }
  /** Blocks are not shared between tenants. */
  readonly tenant: string
  /** Whoever does not know it cannot find the blocks; empty: none. */
  readonly salt: string
}

/** A field in which two identities differ; values as JSON text, `absent` where there is none. */
export interface IdentityDifference {
  /** E.g. `kv.keys`, `policy.params.budget`. */
  readonly field: string
  readonly left: string
  readonly right: string
}

const ROOT_DOMAIN = 'kvasir.cache.identity.v1'
const BLOCK_DOMAIN = 'kvasir.cache.block.v1'
const HASH_BYTES = 32

const FIELDS: { readonly [K in keyof CacheIdentity]: true } = {
  model: true,
  tokenizer: true,
  adapters: true,
  rope: true,
  kv: true,
  policy: true,
  tenant: true,
  salt: true,
}

/** Whether a text is a block's or a root's name: 64 digits of lower-case hex. */
export function isBlockHash(text: unknown): text is BlockHash {
  return typeof text === 'string' && /^[0-9a-f]{64}$/.test(text)
}

/**
 * Name of all chains of one identity.
 * @throws KvasirError INVALID_ARGUMENT for missing fields and values that are not plain data
 */
export function identityRoot(identity: CacheIdentity): BlockHash {
  for (const field of Object.keys(FIELDS))
    if (!Object.hasOwn(identity, field)) throw invalid(`a cache identity needs "${field}"`)
  const parts: Uint8Array[] = []
  encode(ROOT_DOMAIN, 'domain', parts)
  encode(identity as unknown as Plain, 'identity', parts)
  const hash = createHash('sha256')
  for (const part of parts) hash.update(part)
  return hash.digest('hex')
}

/**
 * Names of all full blocks of a text, each chained to the one before it; a rest shorter than a block has no name. 1024
 * blocks take about 3 ms.
 * @param parent the root, or the block that stands before `tokens`
 * @param tokens ids in [0, 2^32)
 * @throws KvasirError INVALID_ARGUMENT
 */
export function blockHashes(parent: BlockHash, tokens: ArrayLike<number>, pageTokens: number): BlockHash[] {
  if (!isBlockHash(parent)) throw invalid(`a parent must be 64 digits of lower-case hex, got ${String(parent)}`)
  if (!Number.isInteger(pageTokens) || pageTokens < 1)
    throw invalid(`pageTokens must be a whole number above 0, got ${pageTokens}`)
  const domain = Buffer.from(BLOCK_DOMAIN, 'latin1')
  const parentAt = 4 + domain.length + 4
  const countAt = parentAt + HASH_BYTES
  const tokensAt = countAt + 4
  const message = Buffer.alloc(tokensAt + 4 * pageTokens)
  message.writeUInt32LE(domain.length, 0)
  domain.copy(message, 4)
  message.writeUInt32LE(HASH_BYTES, parentAt - 4)
  message.write(parent, parentAt, 'hex')
  message.writeUInt32LE(pageTokens, countAt)

  const names: BlockHash[] = []
  for (let from = 0; from + pageTokens <= tokens.length; from += pageTokens) {
    for (let i = 0; i < pageTokens; i++) {
      const token = tokens[from + i]!
      // a silent `>>> 0` would give two texts one name
      if (token >>> 0 !== token) throw invalid(`token ${from + i} is ${token}; an id is a whole number in [0, 2^32)`)
      message.writeUInt32LE(token, tokensAt + 4 * i)
    }
    const digest = createHash('sha256').update(message).digest()
    digest.copy(message, parentAt)
    names.push(digest.toString('hex'))
  }
  return names
}

/** Name of the one block that holds `tokens` and follows `parent` (a block, or the root). */
export function blockHash(parent: BlockHash, tokens: ArrayLike<number>): BlockHash {
  if (tokens.length === 0) throw invalid('a block has at least one token')
  return blockHashes(parent, tokens, tokens.length)[0]!
}

/** Where two identities differ, in the order of the fields' names; empty when they are equal. */
export function identityDifferences(left: CacheIdentity, right: CacheIdentity): IdentityDifference[] {
  const a = new Map<string, string>()
  const b = new Map<string, string>()
  flatten(left as unknown as Plain, '', a)
  flatten(right as unknown as Plain, '', b)
  return [...new Set([...a.keys(), ...b.keys()])]
    .sort()
    .map((field) => ({ field, left: a.get(field) ?? 'absent', right: b.get(field) ?? 'absent' }))
    .filter((d) => d.left !== d.right)
}

function flatten(value: Plain, field: string, into: Map<string, string>): void {
  if (value === null || typeof value !== 'object') {
    into.set(field, JSON.stringify(value) ?? 'absent')
    return
  }
  const entries = Object.entries(value)
  if (entries.length === 0) into.set(field, Array.isArray(value) ? '[]' : '{}')
  for (const [key, inner] of entries) flatten(inner, field === '' ? key : `${field}.${key}`, into)
}

/** Appends tag, length and bytes of a value; no two values give the same bytes. Keys of records are sorted. */
function encode(value: Plain, where: string, into: Uint8Array[]): void {
  if (value === null) into.push(prefix('0', 0))
  else if (typeof value === 'boolean') into.push(prefix(value ? 't' : 'f', 0))
  else if (typeof value === 'number') {
    if (!Number.isFinite(value)) throw invalid(`${where} is ${value}; only finite numbers can be part of an identity`)
    const bytes = Buffer.alloc(8)
    bytes.writeDoubleLE(value === 0 ? 0 : value) // -0 is 0, as JSON has it
    into.push(prefix('n', 8), bytes)
  } else if (typeof value === 'string') {
    // UTF-16: in UTF-8 all lone surrogates would become one and the same U+FFFD
    const bytes = Buffer.from(value, 'utf16le')
    into.push(prefix('s', bytes.length), bytes)
  } else if (isArray(value)) {
    into.push(prefix('a', value.length))
    for (let i = 0; i < value.length; i++) encode(value[i]!, `${where}[${i}]`, into)
  } else if (typeof value === 'object') {
    const keys = Object.keys(value).sort()
    into.push(prefix('r', keys.length))
    for (const key of keys) {
      encode(key, where, into)
      encode(value[key]!, `${where}.${key}`, into)
    }
  } else
    throw invalid(`${where} is ${typeof value}; an identity is made of texts, numbers, booleans, lists and records`)
}

/** `Array.isArray` does not narrow readonly arrays. */
function isArray(value: Plain): value is readonly Plain[] {
  return Array.isArray(value)
}

function prefix(tag: string, count: number): Buffer {
  const bytes = Buffer.alloc(5)
  bytes.write(tag, 0, 'latin1')
  bytes.writeUInt32LE(count, 1)
  return bytes
}

function invalid(message: string): KvasirError {
  return new KvasirError('INVALID_ARGUMENT', message)
}

// digest of a model file ----------------------------------------------------------------------------------------------

export interface FileDigestOptions {
  /** Folder for remembered digests; null: none. Default: `digests` in Kvasir's cache folder. */
  readonly cache?: string | null
  /** Wall clock in ms; for tests. */
  readonly now?: () => number
}

/** What says that a file is still the one that was read. Texts, because nanoseconds do not fit a number. */
interface Remembered {
  readonly size: string
  readonly mtimeNs: string
  readonly ctimeNs: string
  readonly ino: string
  readonly dev: string
  readonly samples: string
  readonly sha256: string
}

const CHUNK_BYTES = 1 << 20
const HEAD_SAMPLE_BYTES = 1 << 20
const SAMPLES = 64
const SAMPLE_BYTES = 4096
/** A file changed less than this ago may change again under the same time stamp (FAT counts in steps of 2 s). */
const SETTLED_MS = 5000

/**
 * SHA-256 of a file, as hex. Its bytes alone decide, so that copies, other machines and other workers come to the same
 * name; a digest with mtime in it would make each copy a stranger, and a digest of header and samples alone would take
 * a model fine-tuned in a few tensors for its base.
 *
 * The whole is read once (about 0.8 s per GB here); then the digest is remembered beside size, mtime, ctime, inode and
 * device, and found again in about 10 ms. Writing in place changes ctime, which programs cannot set, and the header and
 * 64 samples are compared as well, for file systems that keep time badly. What changed within the last 5 s is not
 * remembered, since a second change could leave the same times. Any difference: it is read again.
 *
 * The file must not change between this call and the loading of the weights; ask again after loading, it is cheap.
 * @throws KvasirError GGUF_IO also when the file changes meanwhile
 */
export async function fileDigest(path: string, options: FileDigestOptions = {}): Promise<string> {
  const folder = options.cache === undefined ? defaultDigestFolder() : options.cache
  const now = options.now ?? Date.now
  let handle: FileHandle | null = null
  try {
    handle = await open(path, 'r')
    const before = await stamp(handle, path)
    const entry = folder === null ? null : join(folder, `${await nameOf(path)}.json`)
    const samples = await sampleDigest(handle, Number(before.size))
    const known = entry === null ? null : await recall(entry)
    if (known && known.samples === samples && isSameStamp(known, before)) return known.sha256

    const startMs = now()
    const sha256 = await contentDigest(handle)
    const after = await stamp(handle, path)
    if (!isSameStamp(before, after))
      throw new KvasirError('GGUF_IO', `${path} was changed while it was read; is it still being written?`, {
        file: path,
      })
    const changedMs = Math.max(Number(before.mtimeNs), Number(before.ctimeNs)) / 1e6
    if (entry !== null && changedMs + SETTLED_MS < startMs) await remember(entry, { ...texts(before), samples, sha256 })
    return sha256
  } catch (error) {
    if (error instanceof KvasirError) throw error
    const { message, code } = error as NodeJS.ErrnoException
    throw new KvasirError('GGUF_IO', `${path} could not be read: ${message}`, { file: path, cause: code }, error)
  } finally {
    await handle?.close()
  }
}

function defaultDigestFolder(): string {
  return join(cacheFolder(), 'digests')
}

async function nameOf(path: string): Promise<string> {
  return createHash('sha256')
    .update(await realpath(path))
    .digest('hex')
    .slice(0, 32)
}

interface Stamp {
  readonly size: bigint
  readonly mtimeNs: bigint
  readonly ctimeNs: bigint
  readonly ino: bigint
  readonly dev: bigint
}

async function stamp(handle: FileHandle, path: string): Promise<Stamp> {
  const s = await handle.stat({ bigint: true })
  if (!s.isFile()) throw new KvasirError('GGUF_IO', `${path} is not a regular file`, { file: path })
  return { size: s.size, mtimeNs: s.mtimeNs, ctimeNs: s.ctimeNs, ino: s.ino, dev: s.dev }
}

function texts(s: Stamp): Omit<Remembered, 'samples' | 'sha256'> {
  return {
    size: `${s.size}`,
    mtimeNs: `${s.mtimeNs}`,
    ctimeNs: `${s.ctimeNs}`,
    ino: `${s.ino}`,
    dev: `${s.dev}`,
  }
}

function isSameStamp(a: Remembered | Stamp, b: Stamp): boolean {
  return (['size', 'mtimeNs', 'ctimeNs', 'ino', 'dev'] as const).every((k) => `${a[k]}` === `${b[k]}`)
}

async function contentDigest(handle: FileHandle): Promise<string> {
  const hash = createHash('sha256')
  // two buffers: the next is read while this one is hashed
  let [buffer, spare] = [Buffer.allocUnsafeSlow(CHUNK_BYTES), Buffer.allocUnsafeSlow(CHUNK_BYTES)]
  let at = 0
  let { bytesRead } = await handle.read(buffer, 0, CHUNK_BYTES, at)
  while (bytesRead > 0) {
    at += bytesRead
    const next = handle.read(spare, 0, CHUNK_BYTES, at)
    hash.update(buffer.subarray(0, bytesRead))
    ;({ bytesRead } = await next)
    ;[buffer, spare] = [spare, buffer]
  }
  return hash.digest('hex')
}

/** Of the first MiB (a GGUF file's metadata and tensor table), 64 places spread over the data, and the end. */
async function sampleDigest(handle: FileHandle, size: number): Promise<string> {
  const hash = createHash('sha256')
  const buffer = Buffer.allocUnsafeSlow(HEAD_SAMPLE_BYTES)
  const sample = async (at: number, bytes: number) => {
    const { bytesRead } = await handle.read(buffer, 0, bytes, Math.max(0, at))
    hash.update(`${at}:${bytesRead};`).update(buffer.subarray(0, bytesRead))
  }
  await sample(0, HEAD_SAMPLE_BYTES)
  if (size > HEAD_SAMPLE_BYTES)
    for (let i = 1; i <= SAMPLES; i++) await sample(Math.floor((i / SAMPLES) * (size - SAMPLE_BYTES)), SAMPLE_BYTES)
  return hash.digest('hex')
}

async function recall(entry: string): Promise<Remembered | null> {
  try {
    const known = JSON.parse(await readFile(entry, 'utf8')) as Remembered
    return isBlockHash(known?.sha256) ? known : null
  } catch {
    return null
  }
}

/** Failing to remember only costs time. */
async function remember(entry: string, what: Remembered): Promise<void> {
  const temporary = `${entry}.${process.pid}.${randomBytes(4).toString('hex')}.tmp`
  try {
    await mkdir(join(entry, '..'), { recursive: true, mode: 0o700 })
    await writeFile(temporary, JSON.stringify(what), { mode: 0o600, flag: 'wx' })
    await rename(temporary, entry)
  } catch {
    await unlink(temporary).catch(() => {})
  }
}
