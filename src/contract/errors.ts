/**
 * Every error that Kvasir throws on purpose: one class, one table.
 *
 * A message has four parts: what was asked, what was got, what is allowed, how to mend it. `code` is stable and made
 * for programs; the text is made for people. `status` and `retry` are for servers built on top.
 */
export const ERROR_CODES = {
  // files
  MODEL_NOT_FOUND: { status: 404, retry: false, meaning: 'no such model file' },
  GGUF_INVALID: { status: 400, retry: false, meaning: 'the file is not a GGUF file that can be trusted' },
  GGUF_IO: { status: 500, retry: true, meaning: 'the file could not be read or written' },
  MODEL_UNSUPPORTED: { status: 400, retry: false, meaning: 'the architecture, or a part of it, is not known here' },
  MODEL_INVALID: {
    status: 400,
    retry: false,
    meaning: 'a readable GGUF file that does not hold a whole, consistent model',
  },
  DOWNLOAD_FAILED: { status: 502, retry: true, meaning: 'a model could not be fetched' },
  // machine
  NATIVE_MISSING: { status: 500, retry: false, meaning: 'the native libraries are missing or of the wrong version' },
  OUT_OF_MEMORY: { status: 503, retry: false, meaning: 'more memory would be needed than is free' },
  NATIVE_FAILED: { status: 500, retry: true, meaning: 'a native call reported a failure' },
  // requests
  INVALID_ARGUMENT: { status: 400, retry: false, meaning: 'an argument is out of range or of the wrong type' },
  CONTEXT_OVERFLOW: { status: 400, retry: false, meaning: 'prompt and answer do not fit the context' },
  TEMPLATE_FAILED: { status: 400, retry: false, meaning: 'the chat template refused these messages' },
  GRAMMAR_INVALID: { status: 400, retry: false, meaning: 'a grammar or a JSON schema that cannot be used' },
  QUEUE_FULL: { status: 429, retry: true, meaning: 'too many requests are waiting' },
  KV_BUDGET: { status: 429, retry: true, meaning: 'the KV memory that the request needs cannot be freed' },
  DEADLINE: { status: 504, retry: true, meaning: "the request's deadline passed" },
  SESSION_INVALID: {
    status: 400,
    retry: false,
    meaning: 'a session file that is damaged or of another model or version',
  },
  ENGINE_CRASHED: { status: 503, retry: true, meaning: 'the engine process ended; it is being restarted' },
  ABORTED: { status: 499, retry: false, meaning: 'the caller stopped the request' },
  // programming errors, caught before native code would end the process
  SHAPE: { status: 500, retry: false, meaning: 'tensors of shapes or types that do not go together' },
  DISPOSED: { status: 500, retry: false, meaning: 'use after dispose' },
  CAPACITY: { status: 500, retry: false, meaning: 'a native context or graph is full' },
  NOT_SUPPORTED: { status: 501, retry: false, meaning: 'a valid request that this version cannot serve' },
} as const satisfies Record<string, { status: number; retry: boolean; meaning: string }>

export type ErrorCode = keyof typeof ERROR_CODES

export class KvasirError extends Error {
  override readonly name: string = 'KvasirError'
  readonly code: ErrorCode
  /** Facts for programs, e.g. `{ file, field }` or `{ neededBytes, freeBytes }`. */
  readonly details: Readonly<Record<string, unknown>>

  constructor(code: ErrorCode, message: string, details: Readonly<Record<string, unknown>> = {}, cause?: unknown) {
    super(`${code}: ${message}`, cause === undefined ? undefined : { cause })
    this.code = code
    this.details = details
  }

  /** HTTP status that fits this error. */
  get status(): number {
    return ERROR_CODES[this.code].status
  }

  /** Whether the same request may succeed later. */
  get retry(): boolean {
    return ERROR_CODES[this.code].retry
  }
}

/** Thrown before native code would abort the process over shapes or types. */
export class ShapeError extends KvasirError {
  override readonly name = 'ShapeError'
  constructor(message: string) {
    super('SHAPE', message)
  }
}

/** The nearest of `known` to `given`, for "did you mean" texts; null when nothing is near. */
export function nearest(given: string, known: Iterable<string>): string | null {
  let best: string | null = null
  let bestDistance = Math.max(2, Math.floor(given.length / 3)) + 1
  for (const candidate of known) {
    const distance = editDistance(given.toLowerCase(), candidate.toLowerCase())
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance]
  }
  return best
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++)
      next[j] = Math.min(next[j - 1]! + 1, row[j]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1))
    row = next
  }
  return row[b.length]!
}

/** `12.3 MiB`; for messages, never for arithmetic. */
export function showBytes(n: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let i = 0
  let x = n
  while (Math.abs(x) >= 1024 && i < units.length - 1) [x, i] = [x / 1024, i + 1]
  return `${i === 0 ? x : x.toFixed(x >= 100 ? 0 : 1)} ${units[i]}`
}
