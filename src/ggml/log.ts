/**
 * Where ggml's and libllama's log lines go. Silent by default; `KVASIR_NATIVE_LOG=1` sends all to stderr.
 *
 * A JS callback is only safe while native code runs on the calling thread: a line logged by a compute thread during a
 * synchronous call would wait for the event loop, which waits for the call. So there is no permanent JS log, only
 * {@link captureLog} around one call that computes nothing, such as loading a vocabulary.
 */
import koffi from 'koffi'
import type { NativeValue } from './declare.ts'
import { ffi, native } from './library.ts'

export type LogLevel = 'debug' | 'info' | 'warn' | 'error'
export interface LogLine {
  readonly level: LogLevel
  readonly text: string
}

/** GGML_LOG_LEVEL: 1 debug, 2 info, 3 warn, 4 error, 5 continues the line before. */
const LEVELS: readonly LogLevel[] = ['debug', 'debug', 'info', 'warn', 'error']
const CONTINUES = 5

type SetLog = (callback: NativeValue, data: null) => void
const Callback = koffi.proto('void kvasir_log(int, const char*, void*)')

/** Runs `call` and collects what is logged meanwhile, whole lines. `setLog` is ggml_log_set or llama_log_set. */
export function captureLog<T>(call: () => T, setLog: SetLog = ffi.ggml_log_set): { result: T; lines: LogLine[] } {
  const lines: { level: LogLevel; text: string }[] = []
  const callback = koffi.register((level: number, text: string) => {
    const last = lines.at(-1)
    if (level === CONTINUES && last) last.text += text
    else lines.push({ level: LEVELS[level] ?? 'info', text })
  }, koffi.pointer(Callback))
  setLog(callback as unknown as bigint, null)
  try {
    return { result: call(), lines: lines.map((l) => ({ ...l, text: l.text.trimEnd() })) }
  } finally {
    setLog(process.env['KVASIR_NATIVE_LOG'] ? null : native().silentLog, null)
    koffi.unregister(callback)
  }
}

/** The errors among the lines, for the end of a message; '' when there are none. */
export function loggedErrors(lines: readonly LogLine[]): string {
  const errors = lines.filter((l) => l.level === 'error' && l.text).map((l) => l.text)
  return errors.length ? `: ${errors.slice(0, 3).join('; ')}` : ''
}
