/**
 * Blocks in files, to be found again after a restart and by other processes.
 *
 *   FOLDER/ROOT/HASH.kvb           one block; ROOT is the identity's name, so that wrong models never meet
 *   FOLDER/ROOT/tmp-HOST-PID-…     being written
 *
 * One file per block: at 30 to 400 KB a block, opening costs less than reading, each block is evicted for itself, and a
 * rename is all that a crash can interrupt. A file is written under another name, synced, renamed; the folder is synced
 * later, for many at once. So a name says that a whole block was here, and nothing is believed on the name alone: each
 * load checks size, header and payload, and whatever is in doubt is deleted and missed.
 *
 * Checksums are SHA-256: 0.3 ms for 400 KB with the CPU's SHA instructions, less than reading them takes, and a damaged
 * block would silently change answers. (zlib.crc32 exists only from Node 20.15 on, and in JavaScript it would be slower
 * than this.)
 *
 * File, little-endian; the header is a multiple of 64 bytes, so that the payload is aligned in memory:
 *
 *     0  "KVASIRKB"          24  payload bytes, u64         160  SHA-256 of the header without these 32 bytes
 *     8  version, u32        32  root, 32 bytes             192  token ids, u32 [tokens]; zeros
 *    12  header bytes, u32   64  hash, 32 bytes               …  payload
 *    16  tokens, u32         96  parent, 32 bytes; zeros if flag 1 is not set
 *    20  flags, u32         128  SHA-256 of the payload
 *
 * Order of use lives in memory and, as modification times, on the disk. The limit is the folder's, over all roots:
 * blocks of a model that is gone are the oldest, and go first. Others may write there too, so the folder is listed
 * again each time this process has written an eighth of the limit; that is also how far each process may pass it.
 */
import { createHash, randomBytes } from 'node:crypto'
import { constants, type Stats, statSync } from 'node:fs'
import { type FileHandle, mkdir, open, readdir, rename, rmdir, unlink, utimes } from 'node:fs/promises'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { KvasirError } from '../../contract/errors.ts'
import type { BlockHash } from '../../contract/events.ts'
import { isBlockHash } from '../identity.ts'
import { checkTierBlock, Lru, RateMeter, type Tier, type TierBlock, type TierStats } from './tier.ts'

export interface DiskTierOptions {
  /** Bytes of block files in the folder, those of other roots included. */
  readonly maxBytes: number
  /** Bytes that may wait for the disk; what does not fit is dropped. Default 64 MiB. */
  readonly maxQueueBytes?: number
  /** Blocks written at once. Default 2: they share Node's four I/O threads with reading and computing. */
  readonly writers?: number
  /** Blocks read at once, and read ahead of a chain. Default 2. */
  readonly readers?: number
  /** Wall clock in ms; for tests. */
  readonly now?: () => number
}

export interface DiskTierStats extends TierStats {
  /** What the limit counts: block files of all roots. */
  readonly folderBytes: number
  /** Bytes that wait for the disk. */
  readonly queuedBytes: number
}

interface Entry {
  readonly root: BlockHash
  readonly hash: BlockHash
  /** Whether a file is there; false while it waits or is being written. */
  stored: boolean
}

interface Waiting {
  readonly block: TierBlock
  readonly entry: Entry
  readonly bytes: number
}

interface Listed extends Entry {
  readonly bytes: number
  readonly mtimeMs: number
}

const MAGIC = Buffer.from('KVASIRKB', 'latin1')
const VERSION = 1
const HAS_PARENT = 1
const TOKENS_AT = 192
const HEADER_SUM_AT = 160
const MAX_TOKENS = 1 << 16
const MAX_FILE_BYTES = 2 ** 30
const SUFFIX = '.kvb'
const MIB = 2 ** 20

/** Failures in a row after which the tier is off. */
const MAX_FAILURES = 3
/** How long changes of names and times may stay unsynced, ms. */
const SETTLE_MS = 1000
/** A temporary file of a process that cannot be asked is stray after this, ms. */
const STRAY_MS = 10 * 60_000
/** File times further in the future than this are not believed, ms. */
const AHEAD_MS = 60_000
/** Files looked at before others get a turn: about 1 ms. */
const STAT_BATCH = 256

// the file ------------------------------------------------------------------------------------------------------------

export function blockFileBytes(tokens: number, payloadBytes: number): number {
  return headerBytes(tokens) + payloadBytes
}

function headerBytes(tokens: number): number {
  return Math.ceil((TOKENS_AT + 4 * tokens) / 64) * 64
}

function encodeHeader(root: BlockHash, { hash, parent, tokens, payload }: TierBlock): Buffer {
  const header = Buffer.alloc(headerBytes(tokens.length))
  MAGIC.copy(header)
  header.writeUInt32LE(VERSION, 8)
  header.writeUInt32LE(header.length, 12)
  header.writeUInt32LE(tokens.length, 16)
  header.writeUInt32LE(parent === null ? 0 : HAS_PARENT, 20)
  header.writeBigUInt64LE(BigInt(payload.byteLength), 24)
  header.write(root, 32, 'hex')
  header.write(hash, 64, 'hex')
  if (parent !== null) header.write(parent, 96, 'hex')
  createHash('sha256').update(payload).digest().copy(header, 128)
  for (let i = 0; i < tokens.length; i++) header.writeUInt32LE(tokens[i]! >>> 0, TOKENS_AT + 4 * i)
  headerSum(header).copy(header, HEADER_SUM_AT)
  return header
}

function headerSum(header: Buffer): Buffer {
  return createHash('sha256').update(header.subarray(0, HEADER_SUM_AT)).update(header.subarray(TOKENS_AT)).digest()
}

/** The payload of a whole file's bytes, as a view of them; null if anything is not as it should be. */
export function decodeBlockFile(file: Buffer, root: BlockHash, hash: BlockHash): Uint8Array | null {
  if (file.length < TOKENS_AT || !file.subarray(0, 8).equals(MAGIC) || file.readUInt32LE(8) !== VERSION) return null
  const tokens = file.readUInt32LE(16)
  if (tokens > MAX_TOKENS || file.readUInt32LE(12) !== headerBytes(tokens) || file.length < headerBytes(tokens))
    return null
  const header = file.subarray(0, headerBytes(tokens))
  const payload = file.subarray(header.length)
  if (!headerSum(header).equals(header.subarray(HEADER_SUM_AT, TOKENS_AT))) return null
  if (header.toString('hex', 32, 64) !== root || header.toString('hex', 64, 96) !== hash) return null
  if (payload.length === 0 || header.readBigUInt64LE(24) !== BigInt(payload.length)) return null
  if (!createHash('sha256').update(payload).digest().equals(header.subarray(128, 160))) return null
  return new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength)
}

// the folder ----------------------------------------------------------------------------------------------------------

const host =
  hostname()
    .replace(/[^A-Za-z0-9]/g, '')
    .slice(0, 32) || 'host'

function temporaryName(): string {
  return `tmp-${host}-${process.pid}-${randomBytes(6).toString('hex')}`
}

/**
 * Whether nobody writes a temporary file any more: its process is gone, or of another machine and the file old. A wrong
 * yes is harmless: that write fails, and the block is dropped.
 * @param changedMs ctime: mtime is set to the time of use
 */
function isStray(name: string, changedMs: number, nowMs: number): boolean {
  const isOld = nowMs - changedMs > STRAY_MS
  const [, itsHost, itsPid] = name.split('-')
  const pid = Number(itsPid)
  if (itsHost !== host || !Number.isInteger(pid) || pid <= 0) return isOld
  // in containers, the process before this one often had the same id
  if (pid === process.pid) return changedMs < performance.timeOrigin
  try {
    process.kill(pid, 0)
    return isOld
  } catch (error) {
    return isOld || errorCode(error) === 'ESRCH'
  }
}

/** All blocks of all roots, by their names. Removes stray temporary files, and empty folders of other roots. */
async function list(folder: string, own: BlockHash, nowMs: number): Promise<Listed[]> {
  const found: Listed[] = []
  for (const root of (await readdir(folder)).filter(isBlockHash)) {
    const path = join(folder, root)
    const files = await readdir(path, { withFileTypes: true }).catch(() => [])
    for (const [i, file] of files.entries()) {
      if (i % STAT_BATCH === STAT_BATCH - 1) await nextTurn()
      if (!file.isFile()) continue
      const hash = file.name.slice(0, -SUFFIX.length)
      const isBlock = file.name.endsWith(SUFFIX) && isBlockHash(hash)
      if (!isBlock && !file.name.startsWith('tmp-')) continue
      const s = lookAt(join(path, file.name))
      if (!s) continue
      if (isBlock) found.push({ root, hash, stored: true, bytes: s.size, mtimeMs: s.mtimeMs })
      else if (isStray(file.name, s.ctimeMs, nowMs)) await unlink(join(path, file.name)).catch(() => {})
    }
    if (files.length === 0 && root !== own) {
      const s = lookAt(path)
      if (s && nowMs - s.mtimeMs > STRAY_MS) await rmdir(path).catch(() => {})
    }
  }
  return found
}

/** Synchronous: 3 µs against 40 µs through the thread pool, and there may be many thousands. */
function lookAt(path: string): Stats | null {
  try {
    return statSync(path)
  } catch {
    return null
  }
}

async function syncFolder(path: string): Promise<void> {
  if (process.platform === 'win32') return // folders cannot be synced there
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

function errorCode(error: unknown): string {
  return (error as NodeJS.ErrnoException)?.code ?? ''
}

// the tier ------------------------------------------------------------------------------------------------------------

export class DiskTier implements Tier {
  readonly medium = 'disk'
  readonly folder: string
  readonly root: BlockHash
  readonly maxBytes: number
  readonly #maxQueueBytes: number
  readonly #writers: number
  readonly #readers: number
  readonly #now: () => number
  /** Keys are hashes, for blocks of other roots `root/hash`. */
  readonly #lru: Lru<Entry>
  readonly #meter = new RateMeter(() => performance.now())
  /** In order. */
  readonly #queue = new Map<BlockHash, Waiting>()
  readonly #writing = new Map<BlockHash, Waiting>()
  readonly #unlinking = new Map<BlockHash, Promise<void>>()
  readonly #readWaiters: (() => void)[] = []
  readonly #flushWaiters: (() => void)[] = []
  /** Times to be written. */
  readonly #touched = new Set<BlockHash>()
  #reading = 0
  #queuedBytes = 0
  #ownBlocks = 0
  #ownBytes = 0
  #writtenSinceList = 0
  #listing: Promise<void> | null = null
  /** What was removed since the listing began; it may still be in the list. */
  readonly #goneWhileListing = new Set<string>()
  #settling: Promise<void> | null = null
  #isFolderDirty = false
  #settleTimer: NodeJS.Timeout | null = null
  #failures = 0
  #isClosing = false
  #isClosed = false
  #problem: string | null = null
  #counts = { hits: 0, misses: 0, corrupt: 0, dropped: 0, written: 0, evicted: 0 }

  private constructor(folder: string, root: BlockHash, options: DiskTierOptions) {
    this.folder = folder
    this.root = root
    this.maxBytes = options.maxBytes
    this.#maxQueueBytes = options.maxQueueBytes ?? 64 * MIB
    this.#writers = options.writers ?? 2
    this.#readers = options.readers ?? 2
    this.#now = options.now ?? Date.now
    this.#lru = new Lru(this.#now)
  }

  /**
   * Opens a folder, making it if need be, and finds what is there by names only. A folder that cannot be used gives a
   * tier that is off and says why in `problem`.
   * @throws KvasirError INVALID_ARGUMENT
   */
  static async open(folder: string, root: BlockHash, options: DiskTierOptions): Promise<DiskTier> {
    if (!isBlockHash(root)) throw new KvasirError('INVALID_ARGUMENT', `a root has 64 digits of hex, got ${root}`)
    const { maxBytes, maxQueueBytes = 0, writers = 1, readers = 1 } = options
    if (!(maxBytes >= 0 && maxQueueBytes >= 0))
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `maxBytes ${maxBytes} and maxQueueBytes ${maxQueueBytes} must be 0 or more`,
      )
    if (!(Number.isInteger(writers) && writers > 0 && Number.isInteger(readers) && readers > 0))
      throw new KvasirError('INVALID_ARGUMENT', `writers ${writers} and readers ${readers} must be 1 or more`)
    const tier = new DiskTier(folder, root, options)
    try {
      await tier.#makeFolder()
      await tier.#list()
    } catch (error) {
      tier.#turnOff(`it cannot be used: ${(error as Error).message}`)
    }
    return tier
  }

  get stats(): DiskTierStats {
    const off = this.#isOff
    return {
      blocks: off ? 0 : this.#ownBlocks,
      bytes: off ? 0 : this.#ownBytes,
      ...this.#counts,
      readBytesPerSecond: this.#meter.bytesPerSecond,
      folderBytes: this.#lru.bytes,
      queuedBytes: this.#queuedBytes,
    }
  }

  get problem(): string | null {
    return this.#problem
  }

  has(hash: BlockHash): boolean {
    return !this.#isOff && isBlockHash(hash) && this.#lru.has(hash)
  }

  put(block: TierBlock): boolean {
    checkTierBlock(block)
    if (block.tokens.length > MAX_TOKENS)
      throw new KvasirError('INVALID_ARGUMENT', `a block has at most ${MAX_TOKENS} tokens, got ${block.tokens.length}`)
    if (this.#isOff || this.#isClosing) return false
    if (this.#lru.has(block.hash)) return true
    const bytes = blockFileBytes(block.tokens.length, block.payload.byteLength)
    if (bytes > Math.min(this.maxBytes, MAX_FILE_BYTES) || this.#queuedBytes + bytes > this.#maxQueueBytes) {
      this.#counts.dropped++
      return false
    }
    const entry: Entry = { root: this.root, hash: block.hash, stored: false }
    this.#lru.add(block.hash, entry, bytes, block.parent)
    this.#ownBlocks++
    this.#ownBytes += bytes
    if (!this.#keepLimit(block.hash)) {
      // all others are worth more, e.g. the chain that it belongs to
      this.#counts.dropped++
      return false
    }
    this.#queue.set(block.hash, { block, entry, bytes })
    this.#queuedBytes += bytes
    this.#pump()
    return true
  }

  async get(hash: BlockHash): Promise<Uint8Array | null> {
    const payload = await this.#fetch(hash)
    this.#counts[payload ? 'hits' : 'misses']++
    if (payload) this.touch([hash])
    return payload
  }

  async *getMany(hashes: readonly BlockHash[]): AsyncGenerator<Uint8Array, void, undefined> {
    const ahead: Promise<Uint8Array | null>[] = []
    let asked = 0
    let given = 0
    try {
      while (given < hashes.length) {
        // one more than are read at once: the disk works while the block in hand is used
        while (ahead.length <= this.#readers && asked < hashes.length) ahead.push(this.#fetch(hashes[asked++]!))
        const payload = await ahead.shift()!
        this.#counts[payload ? 'hits' : 'misses']++
        if (!payload) return
        given++
        yield payload
      }
    } finally {
      this.touch(hashes.slice(0, given))
    }
  }

  touch(hashes: readonly BlockHash[]): void {
    if (this.#isOff) return
    this.#lru.touch(hashes)
    for (const hash of hashes) if (this.#lru.get(hash)?.stored) this.#touched.add(hash)
    if (this.#touched.size > 0) this.#settleLater()
  }

  delete(hash: BlockHash): void {
    if (!this.#isOff && isBlockHash(hash)) this.#remove(hash)
  }

  async clear(): Promise<void> {
    if (this.#isOff) return
    const own = [...this.#lru.entries()].filter((e) => e.value.root === this.root)
    for (const { key } of own) this.#remove(key)
    await this.flush()
  }

  async flush(): Promise<void> {
    for (;;) {
      if (this.#queue.size > 0 || this.#writing.size > 0)
        await new Promise<void>((resolve) => this.#flushWaiters.push(resolve))
      else if (this.#unlinking.size > 0) await Promise.all(this.#unlinking.values())
      else if (this.#listing) await this.#listing
      else if (this.#settling) await this.#settling
      else if (!this.#isOff && (this.#isFolderDirty || this.#touched.size > 0)) await this.#settle()
      else return
    }
  }

  async close(): Promise<void> {
    this.#isClosing = true
    await this.flush()
    this.#isClosed = true
    if (this.#settleTimer) clearTimeout(this.#settleTimer)
    this.#settleTimer = null
  }

  // -------------------------------------------------------------------------------------------------------------------

  get #isOff(): boolean {
    return this.#isClosed || this.#problem !== null
  }

  #path(entry: { readonly root: BlockHash; readonly hash: BlockHash }): string {
    return join(this.folder, entry.root, `${entry.hash}${SUFFIX}`)
  }

  async #makeFolder(): Promise<void> {
    await mkdir(join(this.folder, this.root), { recursive: true, mode: 0o700 })
  }

  /** Takes an entry out of order, queue and folder. */
  #remove(key: string): void {
    const entry = this.#lru.get(key)
    if (!entry) return
    const bytes = this.#lru.bytesOf(key)
    this.#lru.delete(key)
    this.#touched.delete(entry.hash)
    if (entry.root === this.root) {
      this.#ownBlocks--
      this.#ownBytes -= bytes
    }
    if (entry.stored) this.#unlink(key, entry)
    // a file that is being written is removed by its writer, who sees that the entry is gone
    else if (this.#queue.get(entry.hash)?.entry === entry) this.#unqueue(entry.hash)
  }

  #unqueue(hash: BlockHash): void {
    this.#queuedBytes -= this.#queue.get(hash)?.bytes ?? 0
    this.#queue.delete(hash)
    this.#wakeFlushers()
  }

  /** Removes a file behind; a later write of the same block waits for it. */
  #unlink(key: string, entry: Entry): void {
    const done = unlink(this.#path(entry))
      .catch((error: unknown) => {
        if (errorCode(error) !== 'ENOENT') this.#fail('removing', error)
      })
      .finally(() => {
        if (this.#unlinking.get(key) === done) this.#unlinking.delete(key)
      })
    this.#unlinking.set(key, done)
    if (this.#listing) this.#goneWhileListing.add(key)
    this.#isFolderDirty = true
  }

  /** Evicts what is too much; no: the turn came to `fresh`, and it is gone. */
  #keepLimit(fresh: string | null = null): boolean {
    while (this.#lru.bytes > this.maxBytes) {
      const oldest = this.#lru.oldest!
      this.#remove(oldest)
      if (oldest === fresh) return false
      this.#counts.evicted++
    }
    return true
  }

  // reading -----------------------------------------------------------------------------------------------------------

  /** Never rejects; counts no hits. */
  async #fetch(hash: BlockHash): Promise<Uint8Array | null> {
    if (this.#isOff || !isBlockHash(hash)) return null
    const waiting = this.#queue.get(hash) ?? this.#writing.get(hash)
    if (waiting && this.#lru.get(hash) === waiting.entry) return waiting.block.payload
    if (this.#reading >= this.#readers) await new Promise<void>((resolve) => this.#readWaiters.push(resolve))
    else this.#reading++
    this.#meter.start()
    let readBytes = 0
    try {
      const file = await this.#read(hash)
      if (file === null) {
        // another process may have evicted it
        if (this.#lru.get(hash)?.stored) this.#remove(hash)
        return null
      }
      const payload = file === 'doubtful' ? null : decodeBlockFile(file, this.root, hash)
      if (payload === null) {
        this.#counts.corrupt++
        if (this.#lru.has(hash)) this.#remove(hash)
        else this.#unlink(hash, { root: this.root, hash, stored: true })
        return null
      }
      readBytes = payload.byteLength
      this.#failures = 0
      if (!this.#lru.has(hash) && !this.#isOff) this.#adopt(hash, (file as Buffer).length)
      return payload
    } catch (error) {
      this.#fail('reading', error)
      return null
    } finally {
      this.#meter.end(readBytes)
      // the place goes over to whoever waits
      const next = this.#readWaiters.shift()
      if (next) next()
      else this.#reading--
    }
  }

  /** All bytes of a block's file; null: there is none. Finds also what others wrote since the folder was listed. */
  async #read(hash: BlockHash): Promise<Buffer | 'doubtful' | null> {
    let handle: FileHandle
    try {
      // a link or a pipe in place of a file must neither be followed nor waited for
      const flags = constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0)
      handle = await open(this.#path({ root: this.root, hash }), flags)
    } catch (error) {
      if (errorCode(error) === 'ENOENT') return null
      if (errorCode(error) === 'ELOOP') return 'doubtful'
      throw error
    }
    try {
      const s = await handle.stat()
      if (!s.isFile() || s.size > MAX_FILE_BYTES) return 'doubtful'
      const file = Buffer.allocUnsafeSlow(s.size)
      let at = 0
      while (at < file.length) {
        const { bytesRead } = await handle.read(file, at, file.length - at, at)
        if (bytesRead === 0) return 'doubtful'
        at += bytesRead
      }
      return file
    } finally {
      await handle.close()
    }
  }

  #adopt(hash: BlockHash, bytes: number): void {
    this.#lru.add(hash, { root: this.root, hash, stored: true }, bytes)
    this.#ownBlocks++
    this.#ownBytes += bytes
    this.#keepLimit()
  }

  // writing -----------------------------------------------------------------------------------------------------------

  #pump(): void {
    for (const [hash, waiting] of this.#queue) {
      if (this.#writing.size >= this.#writers) return
      if (this.#writing.has(hash)) continue
      this.#queue.delete(hash)
      this.#writing.set(hash, waiting)
      void this.#write(waiting.block, waiting.entry).finally(() => {
        this.#writing.delete(hash)
        this.#queuedBytes -= waiting.bytes
        this.#pump()
        this.#wakeFlushers()
      })
    }
  }

  #wakeFlushers(): void {
    if (this.#queue.size === 0 && this.#writing.size === 0) for (const wake of this.#flushWaiters.splice(0)) wake()
  }

  /** Never rejects. */
  async #write(block: TierBlock, entry: Entry): Promise<void> {
    const isWanted = () => this.#lru.get(block.hash) === entry && this.#problem === null
    const temporary = join(this.folder, this.root, temporaryName())
    const path = this.#path(entry)
    try {
      await this.#unlinking.get(block.hash)
      if (!isWanted()) return
      const handle = await this.#create(temporary)
      try {
        await handle.writeFile(encodeHeader(this.root, block))
        await handle.writeFile(block.payload)
        const usedSeconds = this.#lru.usedMs(block.hash) / 1000
        await handle.utimes(usedSeconds, usedSeconds).catch(() => {}) // only an order of eviction
        await handle.sync()
      } finally {
        await handle.close()
      }
      if (!isWanted()) {
        await unlink(temporary)
        return
      }
      await rename(temporary, path)
      this.#failures = 0
      this.#isFolderDirty = true
      if (!isWanted()) {
        await unlink(path)
        return
      }
      entry.stored = true
      this.#counts.written++
      this.#writtenSinceList += this.#lru.bytesOf(block.hash)
      if (this.#writtenSinceList > this.maxBytes / 8) this.#listBehind()
      this.#settleLater()
    } catch (error) {
      await unlink(temporary).catch(() => {})
      this.#counts.dropped++
      if (this.#lru.get(block.hash) === entry) this.#remove(block.hash)
      this.#fail('writing', error)
    }
  }

  /** The folder may have been removed while this process runs: caches are removed by hand. */
  async #create(path: string): Promise<FileHandle> {
    try {
      return await open(path, 'wx', 0o600)
    } catch (error) {
      if (errorCode(error) !== 'ENOENT') throw error
      await this.#makeFolder()
      return await open(path, 'wx', 0o600)
    }
  }

  #settleLater(): void {
    if (this.#settleTimer || this.#isOff) return
    this.#settleTimer = setTimeout(() => {
      this.#settleTimer = null
      void this.#settle()
    }, SETTLE_MS)
    this.#settleTimer.unref()
  }

  /** Syncs names, and writes times of use. Never rejects. */
  #settle(): Promise<void> {
    this.#settling ??= this.#settleNow().finally(() => {
      this.#settling = null
    })
    return this.#settling
  }

  async #settleNow(): Promise<void> {
    const touched = [...this.#touched]
    this.#touched.clear()
    for (const hash of touched) {
      const entry = this.#lru.get(hash)
      if (!entry?.stored) continue
      const usedSeconds = this.#lru.usedMs(hash) / 1000
      await utimes(this.#path(entry), usedSeconds, usedSeconds).catch(() => {})
    }
    if (!this.#isFolderDirty) return
    this.#isFolderDirty = false
    try {
      await syncFolder(join(this.folder, this.root))
    } catch (error) {
      // some file systems cannot sync folders; these two mean that the disk is in trouble
      if (['EIO', 'ENOSPC'].includes(errorCode(error))) this.#fail('syncing', error)
    }
  }

  // listing -----------------------------------------------------------------------------------------------------------

  #listBehind(): void {
    if (this.#listing || this.#isOff) return
    this.#writtenSinceList = 0
    this.#listing = this.#list()
      .catch((error: unknown) => this.#fail('listing', error))
      .finally(() => {
        this.#listing = null
      })
  }

  /** Brings the order in line with what is in the folder. */
  async #list(): Promise<void> {
    this.#goneWhileListing.clear()
    for (const key of this.#unlinking.keys()) this.#goneWhileListing.add(key)
    const before = new Set([...this.#lru.entries()].filter((e) => e.value.stored).map((e) => e.value))
    const listed = await list(this.folder, this.root, this.#now())
    const nowMs = this.#now()
    const all = new Map<string, { value: Entry; bytes: number; usedMs: number }>()
    for (const { root, hash, bytes, mtimeMs } of listed) {
      const key = root === this.root ? hash : `${root}/${hash}`
      // a clock that was far ahead must not keep blocks for ever; times of long chains may be a little ahead
      if (!this.#goneWhileListing.has(key))
        all.set(key, {
          value: { root, hash, stored: true },
          bytes,
          usedMs: mtimeMs > nowMs + AHEAD_MS ? nowMs : mtimeMs,
        })
    }
    for (const { key, value, bytes, usedMs } of this.#lru.entries()) {
      const seen = all.get(key)
      // what was stored before, and is not there now, another process removed
      if (!seen && before.has(value)) continue
      all.set(key, { value, bytes: seen?.bytes ?? bytes, usedMs: Math.max(usedMs, seen?.usedMs ?? 0) })
    }
    const order = [...all].sort(([, a], [, b]) => a.usedMs - b.usedMs)
    this.#lru.clear()
    this.#ownBlocks = this.#ownBytes = 0
    for (const [key, { value, bytes, usedMs }] of order) {
      this.#lru.addNewest(key, value, bytes, usedMs)
      if (value.root !== this.root) continue
      this.#ownBlocks++
      this.#ownBytes += bytes
    }
    this.#keepLimit()
  }

  // failing -----------------------------------------------------------------------------------------------------------

  #fail(what: string, error: unknown): void {
    this.#failures++
    if (this.#failures >= MAX_FAILURES)
      this.#turnOff(`${what} failed ${this.#failures} times in a row, at last with: ${(error as Error).message}`)
  }

  #turnOff(reason: string): void {
    if (this.#problem !== null) return
    this.#problem = `the disk cache in ${this.folder} is off: ${reason}. Everything else goes on without it; free space, mend the permissions or choose another folder, and start again`
    for (const hash of [...this.#queue.keys()]) {
      this.#counts.dropped++
      this.#unqueue(hash)
    }
    this.#lru.clear()
    this.#touched.clear()
    this.#ownBlocks = this.#ownBytes = 0
  }
}
