/**
 * A file mapped read-only into memory: weights that stay in plain memory are used where they lie, and several processes
 * share their pages. POSIX only; elsewhere the caller reads the file instead.
 */
import { closeSync, fstatSync, openSync } from 'node:fs'
import koffi from 'koffi'
import { KvasirError } from '../contract/errors.ts'
import type { Pointer } from './declare.ts'
import { Owned } from './owned.ts'

const PROT_READ = 1
const MAP_PRIVATE = 2
const MAP_FAILED = 0xffffffffffffffffn

interface Libc {
  mmap(address: null, bytes: number, prot: number, flags: number, fd: number, offset: number): Pointer | null
  munmap(address: Pointer, bytes: number): number
  madvise(address: Pointer, bytes: number, advice: number): number
  memset(address: Pointer, byte: number, bytes: number): unknown
}
let libc: Libc | undefined

function posix(): Libc {
  if (libc) return libc
  const library = koffi.load(process.platform === 'darwin' ? 'libSystem.dylib' : 'libc.so.6')
  libc = {
    mmap: library.func('void* mmap(void*, size_t, int, int, int, int64_t)') as unknown as Libc['mmap'],
    munmap: library.func('int munmap(void*, size_t)') as unknown as Libc['munmap'],
    madvise: library.func('int madvise(void*, size_t, int)') as unknown as Libc['madvise'],
    memset: library.func('void* memset(void*, int, size_t)') as unknown as Libc['memset'],
  }
  return libc
}

const MADV_DONTNEED = 4
/** Pages of the system are this large, or divide it. */
const SYSTEM_PAGE = 65536n

/**
 * Sets memory to 0 without touching it: it takes none until it is written to. Only Linux promises that. False: nothing was done.
 * @param address of plain memory of this process
 */
export function zeroUntouched(address: Pointer, bytes: number): boolean {
  if (process.platform !== 'linux') return false
  const end = address + BigInt(bytes)
  const from = ((address + SYSTEM_PAGE - 1n) / SYSTEM_PAGE) * SYSTEM_PAGE
  const to = (end / SYSTEM_PAGE) * SYSTEM_PAGE
  if (to <= from) return false
  const { madvise, memset } = posix()
  if (madvise(from, Number(to - from), MADV_DONTNEED) !== 0) return false
  memset(address, 0, Number(from - address))
  memset(to, 0, Number(end - to))
  return true
}

function open(path: string): number {
  try {
    return openSync(path, 'r')
  } catch (cause) {
    throw new KvasirError('GGUF_IO', `${path} could not be opened: ${(cause as Error).message}`, { file: path }, cause)
  }
}

export const canMap = process.platform !== 'win32'

export class Mapping extends Owned {
  readonly bytes: number

  /** @throws KvasirError GGUF_IO when the file cannot be mapped. */
  constructor(path: string, bytes: number) {
    const fd = open(path)
    try {
      // Touching a page behind the end of the file would end the process.
      const size = fstatSync(fd).size
      if (!(Number.isSafeInteger(bytes) && bytes > 0 && bytes <= size))
        throw new KvasirError('GGUF_IO', `${path} has ${size} bytes; ${bytes} cannot be mapped`, { file: path })
      const address = posix().mmap(null, bytes, PROT_READ, MAP_PRIVATE, fd, 0)
      if (address === MAP_FAILED)
        throw new KvasirError('GGUF_IO', `${path} could not be mapped into memory`, { file: path })
      super('mapping', address)
    } finally {
      closeSync(fd)
    }
    this.bytes = bytes
  }

  protected override free(ptr: Pointer): void {
    posix().munmap(ptr, this.bytes)
  }
}
