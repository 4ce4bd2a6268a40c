/** One engine process, from its start to its end. */
import { type ChildProcess, fork } from 'node:child_process'
import { createRequire } from 'node:module'
import { extname } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import type { ClientMessage, WorkerMessage } from './messages.ts'

/** Characters of stderr that are kept, the last ones. */
const STDERR_KEPT = 4096
/** Native compute runs on libuv's threads, four of them by default; file reads must not wait for it. */
const LIBUV_THREADS = 8
/** Between the end of the process and the end of its streams, should something else hold them open. */
const STREAMS_MS = 500
/** Between the end of the channel and the end of the process. */
const LEAVE_MS = 2000

export interface Launch {
  /** File URL of another engine's module; see worker.ts. */
  readonly engineModule: string | null
  /** Relative paths of the user mean this folder, also after a restart. */
  readonly cwd: string
}

export interface Death {
  readonly signal: NodeJS.Signals | null
  readonly exitCode: number | null
  /** The last of it. */
  readonly stderr: string
}

export interface ChildListener {
  message(message: WorkerMessage): void
  /** After the last message; once. */
  death(death: Death): void
}

export class Child {
  readonly #process: ChildProcess
  #stderr = ''
  readonly gone: Promise<void>

  /** Does not keep this process alive; see {@link keep}. */
  constructor({ engineModule, cwd }: Launch, listener: ChildListener) {
    const extension = extname(import.meta.url)
    this.#process = fork(
      fileURLToPath(new URL(`./worker${extension}`, import.meta.url)),
      engineModule ? [engineModule] : [],
      {
        cwd,
        env: { UV_THREADPOOL_SIZE: String(LIBUV_THREADS), ...process.env },
        // Not this process's own flags: an inspector's port can be had once.
        execArgv: extension === '.ts' ? ['--import', typescriptLoader()] : [],
        serialization: 'advanced',
        stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      },
    )
    const child = this.#process
    const { stderr } = child
    stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_KEPT)
      if (process.env['KVASIR_DEBUG'] || process.env['KVASIR_NATIVE_LOG']) process.stderr.write(text)
    })
    child.on('message', (message) => listener.message(message as WorkerMessage))
    this.gone = new Promise((resolve) => {
      let dead = false
      const die = (exitCode: number | null, signal: NodeJS.Signals | null) => {
        if (dead) return
        dead = true
        listener.death({ exitCode, signal, stderr: this.#stderr.trim() })
        resolve()
      }
      // `close` comes after the last message and the last of stderr, `exit` may come before them.
      child.on('close', die)
      child.on('exit', (code, signal) => setTimeout(() => die(code, signal), STREAMS_MS).unref())
      child.on('error', (error) => {
        this.#stderr += `\n${error.message}`
        if (child.pid === undefined) die(null, null)
      })
      child.on('disconnect', () => setTimeout(() => this.kill(), LEAVE_MS).unref())
    })
    this.keep(false)
  }

  /** Undefined when it could not be started. */
  get pid(): number | undefined {
    return this.#process.pid
  }

  /** To a child that is gone it does nothing. @throws DataCloneError when it holds what cannot travel, e.g. a function */
  send(message: ClientMessage): void {
    if (this.#process.connected) this.#process.send(message, () => {})
  }

  kill(): void {
    this.#process.kill('SIGKILL')
  }

  /** Whether this process stays alive for the child's sake. */
  keep(alive: boolean): void {
    const { channel } = this.#process
    // A socket, as far as Node is concerned; the types know only what streams have.
    const stderr = this.#process.stderr as { ref?(): void; unref?(): void } | null
    for (const handle of [this.#process, channel, stderr]) alive ? handle?.ref?.() : handle?.unref?.()
  }
}

/** From this package, wherever the user's folder is. */
function typescriptLoader(): string {
  return pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href
}
