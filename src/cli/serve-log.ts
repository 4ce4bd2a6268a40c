/** The server's log: lines of JSON for programs, lines of text for people. */
import { type Logger, pino } from 'pino'

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export const LOG_FORMATS = ['json', 'text'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]
export type LogFormat = (typeof LOG_FORMATS)[number]

/** An entry as pino writes it. */
type Entry = Readonly<Record<string, unknown>>

/** @param write takes whole lines */
export function makeLogger(level: LogLevel, format: LogFormat, write: (line: string) => void): Logger {
  return pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    { write: format === 'json' ? write : (line) => write(`${textLine(JSON.parse(line))}\n`) },
  )
}

/** `12:34:56.789 warn  what happened  key=value other="two words"`; the stack of an error follows on lines of its own. */
export function textLine({ time, level, msg, err, ...fields }: Entry): string {
  const clock = new Date(String(time)).toISOString().slice(11, 23)
  const pairs = Object.entries(fields).map(([key, value]) => `${key}=${shown(value)}`)
  const { stack, message } = (err ?? {}) as { readonly stack?: string; readonly message?: string }
  const trace = err === undefined ? '' : `\n${oneLineEach(stack ?? message ?? shown(err))}`
  return `${clock} ${String(level).padEnd(5)} ${[safe(String(msg ?? '')), ...pairs].join('  ')}${trace}`
}

function shown(value: unknown): string {
  if (Array.isArray(value)) return value.map(shown).join(',')
  if (typeof value === 'string') return /^[\w./:@%+,~-]+$/.test(value) ? value : JSON.stringify(value)
  return JSON.stringify(value)
}

/** What a client sent must not be able to forge a line or to steer a terminal. */
function safe(text: string): string {
  return /\p{Cc}/u.test(text) ? JSON.stringify(text) : text
}

function oneLineEach(stack: string): string {
  return stack
    .split('\n')
    .map((line) => `  ${safe(line)}`)
    .join('\n')
}
