/** What the C library does for memory, on Linux and macOS. */
import koffi from 'koffi'
import type { Pointer } from './declare.ts'

interface Libc {
  mmap(address: null, bytes: number, prot: number, flags: number, fd: number, offset: number): Pointer | null
  munmap(address: Pointer, bytes: number): number
  madvise(address: Pointer, bytes: number, advice: number): number
  memset(address: Pointer, byte: number, bytes: number): unknown
  getpagesize(): number
}
let libc: Libc | undefined

export function posix(): Libc {
  if (libc) return libc
  const library = koffi.load(process.platform === 'darwin' ? 'libSystem.dylib' : 'libc.so.6')
  libc = {
    mmap: library.func('void* mmap(void*, size_t, int, int, int, int64_t)') as unknown as Libc['mmap'],
    munmap: library.func('int munmap(void*, size_t)') as unknown as Libc['munmap'],
    madvise: library.func('int madvise(void*, size_t, int)') as unknown as Libc['madvise'],
    memset: library.func('void* memset(void*, int, size_t)') as unknown as Libc['memset'],
    getpagesize: library.func('int getpagesize()') as unknown as Libc['getpagesize'],
  }
  return libc
}

/** Whether {@link giveBack} does anything: only Linux promises that memory which was given back reads as 0. */
export const canGiveBack = process.platform === 'linux'

const MADV_DONTNEED = 4
let systemPage = 0n

/** The part of a range that is whole pages of the system; `from` lies behind `to` or on it when there is none. */
function wholePages(address: Pointer, bytes: number): { readonly from: Pointer; readonly to: Pointer } {
  systemPage ||= BigInt(posix().getpagesize())
  const roundedUp = address + systemPage - 1n
  const end = address + BigInt(bytes)
  return { from: roundedUp - (roundedUp % systemPage), to: end - (end % systemPage) }
}

/**
 * Gives the whole pages in a range of this process's plain memory back to the system: they read as 0, and take no memory until they are
 * written to. What else lies in the range stays as it was.
 * @returns bytes given back
 */
export function giveBack(address: Pointer, bytes: number): number {
  if (!canGiveBack) return 0
  const { from, to } = wholePages(address, bytes)
  if (to <= from) return 0
  const size = Number(to - from)
  return posix().madvise(from, size, MADV_DONTNEED) === 0 ? size : 0
}

/** Sets plain memory to 0, most of it by giving it back. False: that cannot be done, and nothing was. */
export function zeroUntouched(address: Pointer, bytes: number): boolean {
  if (giveBack(address, bytes) === 0) return false
  const { from, to } = wholePages(address, bytes)
  posix().memset(address, 0, Number(from - address))
  posix().memset(to, 0, Number(address + BigInt(bytes) - to))
  return true
}
