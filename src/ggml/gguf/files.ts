/** File access that fails only with KvasirError. */
import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs'
import { KvasirError } from '../../contract/errors.ts'
import type { ByteSource } from './cursor.ts'

/** The typed error for a failed file operation; an error that is typed already stays as it is. */
export function fileError(error: unknown, path: string, what: string): KvasirError {
  if (error instanceof KvasirError) return error
  const { code, message } = error as NodeJS.ErrnoException
  const details = { file: path, cause: code }
  if (what !== 'write' && (code === 'ENOENT' || code === 'ENOTDIR' || code === 'ENAMETOOLONG'))
    return new KvasirError('MODEL_NOT_FOUND', `${path}: no such file`, details, error)
  const mend = code === 'EACCES' || code === 'EPERM' ? '; check its permissions' : ''
  return new KvasirError('GGUF_IO', `${path}: cannot ${what}: ${message}${mend}`, details, error)
}

/** Opens a regular file, hands it to `use` as a source of bytes, closes it. */
export function withFile<T>(path: string, use: (source: ByteSource) => T): T {
  if (typeof path !== 'string' || path === '')
    throw new KvasirError('INVALID_ARGUMENT', `a path must be a text that is not empty, got ${typeof path}`)
  let fd: number | undefined
  try {
    // before opening: a pipe would block, a device never end
    if (!statSync(path).isFile())
      throw new KvasirError('GGUF_IO', `${path}: is not a regular file; give the path of a .gguf file`, { file: path })
    fd = openSync(path, 'r')
    return use(source(path, fd))
  } catch (error) {
    throw fileError(error, path, 'read')
  } finally {
    if (fd !== undefined) closeSync(fd)
  }
}

function source(path: string, fd: number): ByteSource {
  return {
    name: path,
    size: fstatSync(fd).size,
    whenShort: 'could not be read: the file became shorter meanwhile; is it still being downloaded?',
    read(target, at) {
      let done = 0
      while (done < target.length) {
        let n: number
        try {
          n = readSync(fd, target, done, target.length - done, at + done)
        } catch (error) {
          throw fileError(error, path, 'read')
        }
        if (n === 0) break
        done += n
      }
      return done
    },
  }
}
