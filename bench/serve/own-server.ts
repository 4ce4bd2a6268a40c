/** A server of ours in a process of its own, for as long as it is measured. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { extname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { ERROR_CODES, type ErrorCode, KvasirError } from '../../src/contract/errors.ts'

/** Characters of stderr that are kept, the last ones. */
const STDERR_KEPT = 4096
/** For the server to end by itself. */
const LEAVE_MS = 20_000

export class OwnServer implements AsyncDisposable {
  readonly url: string
  readonly #process: ChildProcess

  private constructor(url: string, child: ChildProcess) {
    this.url = url
    this.#process = child
  }

  /**
   * `kvasir serve MODEL --port 0 --json`, until it says where it listens.
   * @throws KvasirError what the server says when it cannot start, ENGINE_CRASHED when it says nothing, ABORTED
   */
  static async start(model: string, flags: readonly string[] = [], signal?: AbortSignal): Promise<OwnServer> {
    const extension = extname(import.meta.url)
    const main = fileURLToPath(new URL(`../../src/cli/main${extension}`, import.meta.url))
    const loader = extension === '.ts' ? ['--import', typescriptLoader()] : []
    const child = spawn(process.execPath, [...loader, main, 'serve', model, '--port', '0', '--json', ...flags], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    // Where this process ends without its disposals, after a second Ctrl-C for instance, the server does too.
    const kill = () => child.kill('SIGKILL')
    process.once('exit', kill)
    child.once('exit', () => process.off('exit', kill))
    try {
      return new OwnServer(await readUrl(child, signal), child)
    } catch (error) {
      await end(child)
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await end(this.#process)
  }
}

/** Of the first line that the server prints; what it prints later is read and dropped, or its pipes would fill. */
async function readUrl(child: ChildProcess, signal?: AbortSignal): Promise<string> {
  let stdout = ''
  let stderr = ''
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    stderr = (stderr + text).slice(-STDERR_KEPT)
  })
  return await new Promise<string>((resolve, reject) => {
    const stop = () => reject(new KvasirError('ABORTED', 'stopped while the server was starting'))
    if (signal?.aborted) stop()
    signal?.addEventListener('abort', stop, { once: true })
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      if (stdout.includes('\n')) return
      stdout += text
      if (!stdout.includes('\n')) return
      const first = parse(stdout.split('\n', 1)[0]!)
      if (first.url) resolve(first.url)
      else reject(refusal(first, stdout + stderr))
    })
    child.on('error', (cause) => reject(new KvasirError('ENGINE_CRASHED', `no server: ${cause.message}`, {}, cause)))
    child.on('close', () => reject(refusal(parse(stdout), stderr)))
  })
}

interface FirstLine {
  readonly url?: string
  readonly error?: { readonly code?: string; readonly message?: string }
}

function parse(text: string): FirstLine {
  try {
    return JSON.parse(text) as FirstLine
  } catch {
    return {}
  }
}

/** As the server says it: with `--json`, commands print an error's code and text. */
function refusal({ error }: FirstLine, output: string): KvasirError {
  const code = error?.code && error.code in ERROR_CODES ? (error.code as ErrorCode) : 'ENGINE_CRASHED'
  const message = error?.message?.replace(`${code}: `, '') ?? `the server ended before it listened: ${output.trim()}`
  return new KvasirError(code, message)
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode || child.pid === undefined) return
  const gone = once(child, 'exit')
  child.kill('SIGTERM')
  const stop = new AbortController()
  const inTime = await Promise.race([
    gone.then(() => true),
    sleep(LEAVE_MS, false, { signal: stop.signal }).catch(() => false),
  ])
  stop.abort()
  if (!inTime) child.kill('SIGKILL')
  await gone
}

function typescriptLoader(): string {
  return pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href
}
