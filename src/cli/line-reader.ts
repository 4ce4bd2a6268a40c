/**
 * Messages from a terminal, or lines from a pipe. One readline interface for the whole chat, so that pasted lines queue up
 * and what is typed during an answer waits at the next prompt; its output is muted meanwhile.
 */
import { createInterface, type Interface } from 'node:readline'
import { Writable } from 'node:stream'
import { appendHistory, readHistory } from './chat-history.ts'

const PROMPT = '> '
const MORE = '. '

export class LineReader implements Disposable {
  readonly isTerminal = Boolean(process.stdin.isTTY && process.stdout.isTTY)
  readonly #output = new MutableOutput(process.stdout)
  readonly #interface: Interface
  readonly #lines: string[] = []
  /** Lines of a message so far that end with a backslash. */
  #parts: string[] = []
  #waiting: (() => void) | null = null
  #closed = false
  #onInterrupt: (() => void) | null = null
  /** Ctrl-C was pressed at an empty prompt; once more leaves. */
  #warned = false

  constructor() {
    this.#interface = createInterface({
      input: process.stdin,
      output: this.#output,
      terminal: this.isTerminal,
      prompt: PROMPT,
      history: this.isTerminal ? readHistory() : [],
      historySize: 1000,
      removeHistoryDuplicates: true,
    })
    this.#interface.on('line', (line) => {
      this.#lines.push(line)
      this.#wake()
    })
    this.#interface.on('close', () => {
      this.#closed = true
      this.#wake()
    })
    // A terminal in raw mode gives Ctrl-C as a key, which readline turns into its own event.
    this.#interface.on('SIGINT', this.#interrupted)
    process.on('SIGINT', this.#interrupted)
  }

  /** The next message; null at the end of the input, or when the user wants to leave. */
  async next(): Promise<string | null> {
    this.#prompt()
    for (;;) {
      const line = this.#lines.shift()
      if (line === undefined) {
        if (this.#closed) return this.#rest()
        await new Promise<void>((resolve) => {
          this.#waiting = resolve
        })
        continue
      }
      this.#warned = false
      if (this.isTerminal && line.trim()) appendHistory(line)
      if (line.endsWith('\\')) {
        this.#parts.push(line.slice(0, -1))
        this.#prompt()
        continue
      }
      const message = [...this.#parts, line].join('\n')
      this.#parts = []
      return message
    }
  }

  /** While there is a function, Ctrl-C calls it instead of leaving, and nothing typed is shown. */
  whileBusy(onInterrupt: (() => void) | null): void {
    this.#onInterrupt = onInterrupt
    this.#output.muted = onInterrupt !== null
  }

  /** A message that ends with a backslash and then with the input. */
  #rest(): string | null {
    if (this.isTerminal) process.stdout.write('\n')
    if (this.isTerminal || this.#parts.length === 0) return null
    const message = this.#parts.join('\n')
    this.#parts = []
    return message
  }

  #prompt(): void {
    if (!this.isTerminal || this.#closed || this.#lines.length > 0) return
    this.#interface.setPrompt(this.#parts.length ? MORE : PROMPT)
    // Keeps what was typed ahead.
    this.#interface.prompt(true)
  }

  readonly #interrupted = (): void => {
    if (this.#onInterrupt) this.#onInterrupt()
    else if (this.isTerminal && (this.#interface.line !== '' || this.#parts.length > 0)) {
      process.stdout.write('\n')
      this.#parts = []
      this.#interface.write(null, { ctrl: true, name: 'e' })
      this.#interface.write(null, { ctrl: true, name: 'u' })
      this.#warned = false
      this.#prompt()
    } else if (this.#warned) {
      this.#interface.close()
    } else {
      this.#warned = true
      process.stderr.write(`${this.isTerminal ? '\n' : ''}(Ctrl-C again or Ctrl-D leaves)\n`)
      this.#prompt()
    }
  }

  #wake(): void {
    this.#waiting?.()
    this.#waiting = null
  }

  [Symbol.dispose](): void {
    process.off('SIGINT', this.#interrupted)
    this.#interface.close()
  }
}

/** Passes on what readline writes, or swallows it. */
class MutableOutput extends Writable {
  readonly #target: NodeJS.WriteStream
  muted = false

  constructor(target: NodeJS.WriteStream) {
    super({ decodeStrings: false })
    this.#target = target
    // Readline wraps lines by these.
    target.on('resize', () => this.emit('resize'))
  }

  get columns(): number {
    return this.#target.columns ?? 80
  }

  override _write(chunk: string | Uint8Array, _encoding: BufferEncoding, done: () => void): void {
    if (!this.muted) this.#target.write(chunk)
    done()
  }
}
