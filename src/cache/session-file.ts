/**
 * A sequence's cached rows in one file, to go on with it later. Written as a stream, read as a stream, and believed
 * only as far as it was checked.
 *
 *   prelude   64 bytes: "KVSESSN\n"; version, u32; head bytes, u32; file bytes, u64; 8 zeros; SHA-256 of these 32 bytes
 *   head      JSON: identity, counts, the writer's own data; then SHA-256 of it
 *   tokens    ids, u32 [tokens]; then SHA-256 of them
 *   block k   bytes, u32; payload; then SHA-256 of ("block", k, bytes, payload), so that blocks cannot change places
 *
 * Little-endian. The prelude is written last and states the file's size, so a file that was cut short is known at once.
 * The identity stands there in full, not as a hash: then an error can say what is different.
 */
import { createHash, randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, rename, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'
import { KvasirError, showBytes } from '../contract/errors.ts'
import {
  type CacheIdentity,
  type IdentityDifference,
  identityDifferences,
  identityRoot,
  type Plain,
} from './identity.ts'

/** What is known of a session besides its blocks. */
export interface SessionHead {
  readonly identity: CacheIdentity
  /** Ids of the whole text. */
  readonly tokens: ArrayLike<number>
  /** How many of the tokens have cached rows: the first ones. */
  readonly rows: number
  /** Rows of a full block; the last block may hold fewer. */
  readonly pageTokens: number
  /** Blocks that follow. Default: as many as `rows` need; a ragged cache may have another number. */
  readonly blocks?: number
  /** Whatever the writer needs to put the blocks back. Default null. */
  readonly extra?: Plain
}

const MAGIC = Buffer.from('KVSESSN\n', 'latin1')
export const SESSION_VERSION = 1
const PRELUDE_BYTES = 64
const SUM_BYTES = 32
const MAX_HEAD_BYTES = 2 ** 24
const MAX_BLOCK_BYTES = 2 ** 31 - 1
/** Differences in these are told without their values: they are secrets, or somebody else's name. */
const PRIVATE_FIELDS = new Set(['tenant', 'salt'])

// writing -------------------------------------------------------------------------------------------------------------

/**
 * Writes a session; a file that stood there before is replaced only when the new one is whole and on the disk.
 * @param blocks payloads in order, each written before the next is asked for
 * @returns bytes of the file
 * @throws KvasirError INVALID_ARGUMENT; GGUF_IO; and whatever `blocks` throws. Then no file was written
 */
export async function writeSession(
  path: string,
  head: SessionHead,
  blocks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): Promise<number> {
  const { identity, tokens, rows, pageTokens, extra = null } = head
  const count = head.blocks ?? Math.ceil(rows / pageTokens)
  checkCounts({ tokens: tokens.length, rows, pageTokens, blocks: count })
  identityRoot(identity) // checks it
  const ids = Buffer.alloc(4 * tokens.length)
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i]!
    if (token >>> 0 !== token) throw invalid(`token ${i} is ${token}; an id is a whole number in [0, 2^32)`)
    ids.writeUInt32LE(token, 4 * i)
  }
  const json = Buffer.from(JSON.stringify({ identity, tokens: tokens.length, rows, pageTokens, blocks: count, extra }))
  if (json.length > MAX_HEAD_BYTES)
    throw invalid(
      `the head of a session takes ${showBytes(json.length)}, at most ${showBytes(MAX_HEAD_BYTES)} are allowed`,
    )

  const temporary = `${path}.${process.pid}-${randomBytes(6).toString('hex')}.tmp`
  let handle: FileHandle | null = null
  try {
    const file = (handle = await io(path, 'written', open(temporary, 'wx', 0o600)))
    let fileBytes = 0
    const put = async (bytes: Uint8Array) => {
      await io(path, 'written', file.writeFile(bytes))
      fileBytes += bytes.byteLength
    }
    // room for the prelude: as long as it is zeros, this is no session
    await put(Buffer.concat([Buffer.alloc(PRELUDE_BYTES), json, sum('head', json), ids, sum('tokens', ids)]))
    let k = 0
    for await (const payload of blocks) {
      if (k === count) throw invalid(`${count} blocks were announced, but more came`)
      if (payload.byteLength > MAX_BLOCK_BYTES)
        throw invalid(`block ${k} has ${showBytes(payload.byteLength)}, too many`)
      const [start, end] = frame(k, payload)
      await put(start)
      await put(payload)
      await put(end)
      k++
    }
    if (k < count) throw invalid(`${count} blocks were announced, but only ${k} came`)
    const prelude = encodePrelude(json.length, fileBytes)
    await io(path, 'written', file.write(prelude, 0, PRELUDE_BYTES, 0))
    await io(path, 'written', file.sync())
    await io(path, 'written', file.close())
    handle = null
    await io(path, 'written', rename(temporary, path))
    await syncFolder(dirname(path))
    return fileBytes
  } catch (error) {
    await handle?.close().catch(() => {})
    await unlink(temporary).catch(() => {})
    throw error
  }
}

function encodePrelude(headBytes: number, fileBytes: number): Buffer {
  const prelude = Buffer.alloc(PRELUDE_BYTES)
  MAGIC.copy(prelude)
  prelude.writeUInt32LE(SESSION_VERSION, 8)
  prelude.writeUInt32LE(headBytes, 12)
  prelude.writeBigUInt64LE(BigInt(fileBytes), 16)
  sum('prelude', prelude.subarray(0, 32)).copy(prelude, 32)
  return prelude
}

/** What stands before and behind a block's payload. */
function frame(k: number, payload: Uint8Array): [start: Buffer, end: Buffer] {
  const start = Buffer.alloc(4)
  start.writeUInt32LE(payload.byteLength)
  return [start, sum(`block ${k} ${payload.byteLength}`, payload)]
}

function sum(what: string, bytes: Uint8Array): Buffer {
  return createHash('sha256').update(`kvasir.session.v1 ${what}\n`).update(bytes).digest()
}

/** The file is whole without it, only its name might not outlive a power cut; some systems cannot do it at all. */
async function syncFolder(folder: string): Promise<void> {
  try {
    const handle = await open(folder, 'r')
    await handle.sync().finally(() => handle.close())
  } catch {}
}

// reading -------------------------------------------------------------------------------------------------------------

/**
 * Opens a session and checks all but its blocks; these are checked one by one as they are read. Close it.
 * @throws KvasirError SESSION_INVALID, with what is wrong; GGUF_IO
 */
export async function readSession(path: string, identity: CacheIdentity): Promise<SessionFile> {
  // a pipe would block
  const flags = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0)
  const handle = await io(path, 'read', open(path, flags))
  try {
    const stat = await io(path, 'read', handle.stat())
    if (!stat.isFile()) throw wrong(path, 'it is not a regular file')
    const { head, tokens, dataAt } = await readHead(path, handle, stat.size)
    const differences = identityDifferences(head.identity, identity)
    if (differences.length > 0) throw differs(path, differences)
    return new SessionFile(path, handle, head, tokens, dataAt, stat.size)
  } catch (error) {
    await handle.close().catch(() => {})
    throw error
  }
}

interface StoredHead {
  readonly identity: CacheIdentity
  readonly tokens: number
  readonly rows: number
  readonly pageTokens: number
  readonly blocks: number
  readonly extra: Plain
}

/** An open session, all checked but its blocks. */
export class SessionFile implements AsyncDisposable {
  readonly path: string
  readonly identity: CacheIdentity
  /** Ids, [tokens]. */
  readonly tokens: Uint32Array
  readonly rows: number
  readonly pageTokens: number
  readonly blocks: number
  readonly extra: Plain
  readonly fileBytes: number
  readonly #handle: FileHandle
  readonly #dataAt: number
  #isClosed = false

  constructor(path: string, handle: FileHandle, head: StoredHead, tokens: Uint32Array, dataAt: number, size: number) {
    this.path = path
    this.identity = head.identity
    this.tokens = tokens
    this.rows = head.rows
    this.pageTokens = head.pageTokens
    this.blocks = head.blocks
    this.extra = head.extra
    this.fileBytes = size
    this.#handle = handle
    this.#dataAt = dataAt
  }

  /**
   * The blocks' payloads in order, one in memory at a time, each checked before it is given.
   * @throws KvasirError SESSION_INVALID naming the block, GGUF_IO, DISPOSED
   */
  async *read(): AsyncGenerator<Uint8Array, void, undefined> {
    let at = this.#dataAt
    for (let k = 0; k < this.blocks; k++) {
      if (this.#isClosed) throw new KvasirError('DISPOSED', `session ${this.path} was closed`)
      const of = `block ${k} of ${this.blocks}`
      // what is left must have room for this one and the frames of the others
      const room = this.fileBytes - at - (this.blocks - k) * (4 + SUM_BYTES)
      if (room < 0) throw wrong(this.path, `${of} would lie behind the end of the file`, { block: k })
      const start = await readAt(this.path, this.#handle, at, 4, of)
      const bytes = start.readUInt32LE()
      if (bytes > room) throw wrong(this.path, `the length of ${of} is damaged: ${bytes} bytes`, { block: k })
      const body = await readAt(this.path, this.#handle, at + 4, bytes + SUM_BYTES, of)
      const payload = body.subarray(0, bytes)
      if (!frame(k, payload)[1].equals(body.subarray(bytes)))
        throw wrong(this.path, `${of} is damaged: its checksum does not fit`, { block: k })
      at += 4 + body.length
      if (k === this.blocks - 1 && at !== this.fileBytes)
        throw wrong(this.path, `${this.fileBytes - at} bytes follow its last block`, { block: k })
      yield new Uint8Array(body.buffer, body.byteOffset, bytes)
    }
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    await io(this.path, 'closed', this.#handle.close())
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

async function readHead(
  path: string,
  handle: FileHandle,
  size: number,
): Promise<{ head: StoredHead; tokens: Uint32Array; dataAt: number }> {
  if (size === 0) throw wrong(path, 'it is empty')
  const short = `it is truncated: ${size} bytes`
  const start = await readAt(path, handle, 0, Math.min(size, PRELUDE_BYTES), 'its start')
  if (!start.subarray(0, 8).equals(MAGIC.subarray(0, start.length)))
    throw wrong(path, 'it is not a session file of Kvasir')
  if (size < PRELUDE_BYTES) throw wrong(path, `${short}, not even its first ${PRELUDE_BYTES}`)
  const version = start.readUInt32LE(8)
  const isWhole = sum('prelude', start.subarray(0, 32)).equals(start.subarray(32))
  if (version !== SESSION_VERSION)
    throw wrong(path, `it has format version ${version}, this Kvasir reads version ${SESSION_VERSION}`, { version })
  if (!isWhole) throw wrong(path, 'its first 64 bytes are damaged')
  const headBytes = start.readUInt32LE(12)
  const fileBytes = Number(start.readBigUInt64LE(16))
  if (size < fileBytes) throw wrong(path, `${short} of ${fileBytes}`)
  if (size > fileBytes) throw wrong(path, `it has ${size - fileBytes} bytes too many`)
  if (headBytes > MAX_HEAD_BYTES || PRELUDE_BYTES + headBytes + SUM_BYTES > size)
    throw wrong(path, `its head cannot have ${headBytes} bytes`)

  const json = await readAt(path, handle, PRELUDE_BYTES, headBytes + SUM_BYTES, 'its head')
  if (!sum('head', json.subarray(0, headBytes)).equals(json.subarray(headBytes)))
    throw wrong(path, 'its head is damaged: the checksum does not fit')
  const head = parseHead(path, json.toString('utf8', 0, headBytes))

  const tokensAt = PRELUDE_BYTES + headBytes + SUM_BYTES
  const dataAt = tokensAt + 4 * head.tokens + SUM_BYTES
  if (dataAt > size) throw wrong(path, `its ${head.tokens} tokens do not fit into ${size} bytes`)
  if (head.blocks === 0 && dataAt !== size) throw wrong(path, `${size - dataAt} bytes follow its tokens`)
  const ids = await readAt(path, handle, tokensAt, dataAt - tokensAt, 'its tokens')
  const idBytes = ids.subarray(0, 4 * head.tokens)
  if (!sum('tokens', idBytes).equals(ids.subarray(idBytes.length)))
    throw wrong(path, 'its tokens are damaged: the checksum does not fit')
  const tokens = Uint32Array.from({ length: head.tokens }, (_, i) => ids.readUInt32LE(4 * i))
  return { head, tokens, dataAt }
}

/** The checksum says that it is what was written, not that a Kvasir wrote it. */
function parseHead(path: string, text: string): StoredHead {
  let head: StoredHead
  try {
    head = JSON.parse(text) as StoredHead
    checkCounts(head)
    identityRoot(head.identity)
  } catch (error) {
    throw wrong(path, `its head cannot be used: ${(error as Error).message}`, {}, error)
  }
  return head
}

function checkCounts(counts: Pick<StoredHead, 'tokens' | 'rows' | 'pageTokens' | 'blocks'>): void {
  for (const name of ['tokens', 'rows', 'pageTokens', 'blocks'] as const) {
    const least = name === 'pageTokens' ? 1 : 0
    const value = counts[name]
    if (!Number.isSafeInteger(value) || value < least || value >= 2 ** 31)
      throw invalid(`${name} must be a whole number in [${least}, 2^31), got ${value}`)
  }
  if (counts.rows > counts.tokens) throw invalid(`${counts.rows} rows of only ${counts.tokens} tokens`)
}

async function readAt(path: string, handle: FileHandle, at: number, bytes: number, what: string): Promise<Buffer> {
  const buffer = Buffer.allocUnsafeSlow(bytes)
  let done = 0
  while (done < bytes) {
    const { bytesRead } = await io(path, 'read', handle.read(buffer, done, bytes - done, at + done))
    if (bytesRead === 0) throw wrong(path, `it is truncated: it ended inside ${what} while it was read`)
    done += bytesRead
  }
  return buffer
}

// errors --------------------------------------------------------------------------------------------------------------

/** Turns failures of the system into GGUF_IO. */
async function io<T>(path: string, what: 'read' | 'written' | 'closed', work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    const text = `session ${path} could not be ${what}: ${message}`
    throw new KvasirError('GGUF_IO', text, { file: path, cause: code }, error)
  }
}

function wrong(path: string, what: string, details: Record<string, unknown> = {}, cause?: unknown): KvasirError {
  return new KvasirError('SESSION_INVALID', `session ${path}: ${what}`, { file: path, ...details }, cause)
}

function differs(path: string, differences: readonly IdentityDifference[]): KvasirError {
  const show = ({ field, left, right }: IdentityDifference) =>
    PRIVATE_FIELDS.has(field) ? field : `${field} (the session's is ${brief(left)}, this engine's ${brief(right)})`
  const first = differences.slice(0, 4).map(show).join(', ')
  const more = differences.length > 4 ? `, and ${differences.length - 4} more` : ''
  const fields = differences.map((d) => d.field)
  const what = fields.includes('model') ? 'it belongs to another model' : 'it was saved under other settings'
  const mend = 'Load it with the same model and settings, or send the text again'
  return wrong(path, `${what}: different are ${first}${more}. ${mend}`, { fields })
}

function brief(text: string): string {
  return text.length > 40 ? `${text.slice(0, 20)}…` : text
}

function invalid(message: string): KvasirError {
  return new KvasirError('INVALID_ARGUMENT', message)
}
