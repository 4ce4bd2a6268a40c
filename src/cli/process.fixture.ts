/** Drives the real program as a child process. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

const MAIN = fileURLToPath(new URL('main.ts', import.meta.url))
/** Loaders are looked up from here. */
const ROOT = fileURLToPath(new URL('../..', import.meta.url))

const PATIENCE_MS = 20_000

export interface Finished {
  readonly stdout: string
  readonly stderr: string
  /** 128 + the signal's number, as in shells, when a signal ended it. */
  readonly code: number
}

export interface RunOptions {
  readonly env?: Readonly<Record<string, string>>
  readonly stdin?: string
  /** Run the sources, through a loader of TypeScript. Default: what was built, if something was. */
  readonly source?: boolean
  /** Run it on a terminal; needs {@link hasTerminal}. Both outputs then come as stdout. */
  readonly terminal?: boolean
}

/** What `npm test` has built: the command starts in a third of the time. */
const BUILD = process.env['KVASIR_TEST_BUILD']
const SOURCE = ['--import', 'tsx', MAIN]
const BUILT = BUILD ? [join(BUILD, 'src/cli/main.js')] : SOURCE

/** `script` of util-linux gives a program a terminal. */
export const hasTerminal = process.platform === 'linux' && spawnSync('script', ['--version']).status === 0

export class Running {
  readonly child: ChildProcess
  stdout = ''
  stderr = ''
  readonly #exit: Promise<unknown[]>

  constructor(args: readonly string[], { env, source = false, terminal = false }: RunOptions = {}) {
    const plain = [process.execPath, ...(source ? SOURCE : BUILT), ...args]
    const quoted = plain.map((a) => `'${a.replaceAll("'", "'\\''")}'`).join(' ')
    const [program, ...rest] = terminal ? ['script', '-qec', quoted, '/dev/null'] : plain
    this.child = spawn(program!, rest, { cwd: ROOT, env: { ...process.env, HF_TOKEN: '', ...env } })
    this.#exit = once(this.child, 'close')
    this.child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text
    })
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text
    })
  }

  /** Waits until `seen` is true, e.g. of what was printed. */
  async until(seen: (r: Running) => boolean): Promise<void> {
    const deadline = Date.now() + PATIENCE_MS
    while (!seen(this)) {
      if (Date.now() > deadline) {
        this.child.kill('SIGKILL')
        throw new Error(`nothing of the kind in ${PATIENCE_MS} ms: ${JSON.stringify(this.stdout + this.stderr)}`)
      }
      if (this.child.exitCode !== null || this.child.signalCode)
        throw new Error(`it ended: ${this.stdout}${this.stderr}`)
      await sleep(10)
    }
  }

  /** Ids of the processes that it has started; Linux only. */
  children(): number[] {
    return childrenOf(this.child.pid!)
  }

  write(text: string): void {
    this.child.stdin!.write(text)
  }

  async end(): Promise<Finished> {
    const [code, signal] = (await this.#exit) as [number | null, string | null]
    const { stdout, stderr } = this
    return { stdout, stderr, code: code ?? (signal === 'SIGINT' ? 130 : signal === 'SIGTERM' ? 143 : 137) }
  }
}

export const knowsChildren = existsSync('/proc/self/task')

/** With their children. */
function childrenOf(pid: number): number[] {
  const direct = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number)
  return direct.flatMap((child) => [child, ...childrenOf(child)])
}

/** Waits until none of these processes is there. */
export async function gone(pids: readonly number[]): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS
  // A zombie is gone too: in a container nobody may collect it.
  const there = (pid: number) => {
    try {
      return !/^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
    } catch {
      return false
    }
  }
  while (pids.some(there)) {
    if (Date.now() > deadline) throw new Error(`processes ${pids.filter(there)} are still there`)
    await sleep(10)
  }
}

/** Runs it to its end. */
export async function kvasir(args: readonly string[], options: RunOptions = {}): Promise<Finished> {
  const running = new Running(args, options)
  running.child.stdin!.on('error', () => {})
  running.child.stdin!.end(options.stdin ?? '')
  return running.end()
}

/** The one JSON object on stdout; throws when there is more or less. */
// biome-ignore lint/suspicious/noExplicitAny: its shape is what the tests check
export function json(finished: Finished): any {
  return JSON.parse(finished.stdout)
}
