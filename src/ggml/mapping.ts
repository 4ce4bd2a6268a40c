/**
 * A file mapped read-only into memory: weights that stay in plain memory are used where they lie, and several processes
 * share their pages. POSIX only; elsewhere the caller reads the file instead.
 */
import { closeSync, fstatSync, openSync } from 'node:fs'
import { KvasirError } from '../contract/errors.ts'
import type { Pointer } from './declare.ts'
import { Owned } from './owned.ts'
import { posix } from './posix.ts'

const PROT_READ = 1
const MAP_PRIVATE = 2
const MAP_FAILED = 0xffffffffffffffffn

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
