/**
 * Downloads one file so that it can be continued, and so that its name never stands for wrong or half bytes: bytes go to
 * `NAME.part`, are hashed on their way, and take the name only when the checksum is right and the disk has them.
 */
import { createHash, type Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, mkdir, open, rename, rm, stat, statfs } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { KvasirError, showBytes } from '../../contract/errors.ts'
import { Lock } from './lock.ts'
import { aborted, authorization, type Hub, type RemoteFile, reason, refused, unreachable } from './remote.ts'

export interface DownloadOptions {
  readonly hub: Hub
  readonly signal: AbortSignal
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void
  /** Waits between tries that brought nothing, milliseconds; one that brought bytes starts the list afresh. */
  readonly retryMs?: readonly number[]
}

const RETRY_MS = [500, 1000, 2000]
/** A connection that is silent for so long is given up. */
const STALL_MS = 60_000

/**
 * Brings `file` to `path`. Returns the bytes that came over the network.
 * @throws KvasirError DOWNLOAD_FAILED, MODEL_NOT_FOUND, ABORTED; the `.part` file stays, unless its bytes are wrong.
 */
export async function download(file: RemoteFile, path: string, options: DownloadOptions): Promise<number> {
  await mkdir(dirname(path), { recursive: true })
  using _lock = new Lock(`${path}.lock`, path)
  // Two versions of a file must not be mixed, so the version is in the name.
  const partPath = `${path}.${file.checksum.hex.slice(0, 12)}.part`
  const part = await Part.open(partPath, file)
  try {
    const before = part.bytes
    await checkRoom(path, file.bytes - before)
    options.onProgress?.(part.bytes, file.bytes)
    await fetchRest(file, part, options)
    await part.finish(path)
    return file.bytes - before
  } finally {
    await part.close()
  }
}

async function fetchRest(file: RemoteFile, part: Part, options: DownloadOptions): Promise<void> {
  const waits = options.retryMs ?? RETRY_MS
  let failures = 0
  while (part.bytes < file.bytes) {
    const before = part.bytes
    try {
      await fetchOnce(file, part, options)
    } catch (error) {
      if (options.signal.aborted) throw aborted(options.signal)
      if (isFileError(error) || (error instanceof KvasirError && !worthRetry(error))) throw error
      failures = part.bytes > before ? 0 : failures + 1
      const wait = waits[failures]
      if (wait === undefined) throw error instanceof KvasirError ? error : brokenOff(error, file, part, options.hub)
      await sleep(wait, undefined, { signal: options.signal }).catch(() => {})
    }
  }
}

async function fetchOnce(file: RemoteFile, part: Part, { hub, signal, onProgress }: DownloadOptions): Promise<void> {
  const stalled = new AbortController()
  let timer: NodeJS.Timeout | undefined
  const watch = () => {
    clearTimeout(timer)
    timer = setTimeout(() => stalled.abort(new Error(`no byte for ${STALL_MS / 1000} seconds`)), STALL_MS)
  }
  try {
    watch()
    const response = await fetch(file.url, {
      // Compressed bytes could not be continued. fetch drops the token when it is redirected to another host.
      headers: { range: `bytes=${part.bytes}-`, 'accept-encoding': 'identity', ...authorization(hub) },
      signal: AbortSignal.any([signal, stalled.signal]),
    })
    if (!response.ok || !response.body) throw refused(response.status, `${file.url.replace(`${hub.url}/`, '')}`, hub)
    if (response.status !== 206 || startOf(response) !== part.bytes) await part.startAgain()
    for await (const chunk of response.body) {
      watch()
      await part.append(chunk as Uint8Array)
      onProgress?.(part.bytes, file.bytes)
    }
    if (part.bytes < file.bytes) throw new Error('the connection ended early')
  } finally {
    clearTimeout(timer)
  }
}

/** Errors of the disk carry their system call; fetch wraps those of the network. */
export function isFileError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'syscall' in error
}

/** The server's troubles may pass; its refusals will not. */
function worthRetry({ retry, details }: KvasirError): boolean {
  const status = details['status'] as number | undefined
  return retry && (status === undefined || status >= 500 || status === 429)
}

/** First byte of the range that a server sent. */
function startOf(response: Response): number {
  return Number(/^bytes (\d+)-/.exec(response.headers.get('content-range') ?? '')?.[1] ?? 0)
}

function brokenOff(error: unknown, file: RemoteFile, part: Part, hub: Hub): KvasirError {
  if (part.bytes === 0) return unreachable(error, hub.url)
  const { host } = new URL(hub.url)
  return new KvasirError(
    'DOWNLOAD_FAILED',
    `the download of ${file.path} from ${host} broke off at ${showBytes(part.bytes)} of ${showBytes(file.bytes)} ` +
      `(${reason(error)}). The same command continues it there`,
    { host, file: file.path, bytes: part.bytes },
    error,
  )
}

async function checkRoom(path: string, bytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(dirname(path))
  if (bytes <= bavail * bsize) return
  throw new KvasirError(
    'DOWNLOAD_FAILED',
    `${basename(path)} needs ${showBytes(bytes)} more, and ${showBytes(bavail * bsize)} are free in ${dirname(path)}. ` +
      'Make room, or set KVASIR_CACHE to a folder on another disk',
    { neededBytes: bytes, freeBytes: bavail * bsize },
  )
}

/** The file under its temporary name, and the hash of what is in it. */
class Part {
  readonly #path: string
  readonly #file: RemoteFile
  readonly #handle: FileHandle
  #hash: Hash
  #closed = false
  bytes = 0

  private constructor(path: string, file: RemoteFile, handle: FileHandle) {
    this.#path = path
    this.#file = file
    this.#handle = handle
    this.#hash = newHash(file)
  }

  static async open(path: string, file: RemoteFile): Promise<Part> {
    const found = await stat(path).catch(() => null)
    const part = new Part(path, file, await open(path, found ? 'r+' : 'w'))
    if (found && found.size > file.bytes) await part.startAgain()
    else if (found && found.size > 0) {
      for await (const chunk of createReadStream(path)) part.#hash.update(chunk)
      part.bytes = found.size
    }
    return part
  }

  async append(chunk: Uint8Array): Promise<void> {
    if (this.bytes + chunk.length > this.#file.bytes) {
      await this.startAgain()
      throw this.#wrong('the server sent more bytes than it announced')
    }
    for (let at = 0; at < chunk.length; ) {
      const { bytesWritten } = await this.#handle.write(chunk, at, chunk.length - at, this.bytes)
      this.#hash.update(chunk.subarray(at, at + bytesWritten))
      at += bytesWritten
      this.bytes += bytesWritten
    }
  }

  async startAgain(): Promise<void> {
    await this.#handle.truncate(0)
    this.#hash = newHash(this.#file)
    this.bytes = 0
  }

  /** Gives the file its name, if its bytes are right. */
  async finish(path: string): Promise<void> {
    const { kind, hex } = this.#file.checksum
    const got = this.#hash.digest('hex')
    if (got !== hex) {
      await this.close()
      await rm(this.#path, { force: true })
      throw this.#wrong(`its ${kind === 'sha256' ? 'SHA-256' : 'git hash'} is ${got}, it should be ${hex}`)
    }
    await this.#handle.sync()
    await this.close()
    await rename(this.#path, path)
    await syncFolder(dirname(path))
  }

  #wrong(what: string): KvasirError {
    return new WrongBytes(
      `the bytes of ${this.#file.path} arrived wrong: ${what}. They were thrown away; run the same command to fetch them anew`,
      this.#file.path,
    )
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await this.#handle.close()
  }
}

/** Not worth another try within this run: the server would most likely send the same. */
class WrongBytes extends KvasirError {
  constructor(message: string, file: string) {
    super('DOWNLOAD_FAILED', message, { file, checksum: 'mismatch' })
  }

  override get retry(): boolean {
    return false
  }
}

function newHash({ checksum, bytes }: RemoteFile): Hash {
  if (checksum.kind === 'sha256') return createHash('sha256')
  return createHash('sha1').update(`blob ${bytes}\0`)
}

/** Whether a file on disk has a checksum. Reads all of it. */
export async function hasChecksum(path: string, file: RemoteFile): Promise<boolean> {
  const hash = newHash(file)
  for await (const chunk of createReadStream(path)) hash.update(chunk)
  return hash.digest('hex') === file.checksum.hex
}

/** A rename is on disk only when its folder is. Not every system can do this; then there is nothing to do. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r').catch(() => null)
  await handle?.sync().catch(() => {})
  await handle?.close()
}
