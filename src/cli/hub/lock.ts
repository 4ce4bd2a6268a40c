/** Keeps two processes from writing the same file: a file that holds the process id of whoever writes. */
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename } from 'node:path'
import { KvasirError } from '../../contract/errors.ts'

export class Lock implements Disposable {
  readonly #path: string

  /** @throws KvasirError DOWNLOAD_FAILED when a living process holds it. */
  constructor(path: string, what: string) {
    this.#path = path
    for (;;) {
      try {
        writeFileSync(path, String(process.pid), { flag: 'wx' })
        return
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
        const holder = holderOf(path)
        if (holder !== null)
          throw new KvasirError(
            'DOWNLOAD_FAILED',
            `${basename(what)} is being downloaded by process ${holder}. Wait for its end; if it is not a kvasir, delete ${path}`,
            { process: holder, lock: path },
          )
        rmSync(path, { force: true })
      }
    }
  }

  [Symbol.dispose](): void {
    rmSync(this.#path, { force: true })
  }
}

/** Null when nobody living holds it. */
function holderOf(path: string): number | null {
  let pid: number
  try {
    pid = Number(readFileSync(path, 'utf8'))
  } catch {
    return null
  }
  // Process ids come again, in containers often the same: a lock with ours is left over from a run that was killed.
  if (!Number.isInteger(pid) || pid === process.pid) return null
  try {
    // 0 is an empty file: its writer is between making and filling it.
    if (pid > 0) process.kill(pid, 0)
    return pid
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM' ? pid : null
  }
}
