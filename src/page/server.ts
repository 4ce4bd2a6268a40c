/** The server behind the page: requests with the key, and failures as a person can act on them. */
import { signal } from '@preact/signals'
import type { LiveModel } from '../server/live-messages.ts'

const KEY = 'kvasir.key'

/** The API key; kept for as long as the tab is open, and for this tab alone. */
export const apiKey = signal(sessionStorage.getItem(KEY) ?? '')
/** Whether the server asks for a key: for one at all, or for another one. */
export const keyWanted = signal<'no' | 'missing' | 'wrong'>('no')
/** The models there are; the first one answers by default. */
export const models = signal<readonly LiveModel[]>([])
/** The model that is talked to and watched; empty: the server's first. */
export const model = signal('')
export const version = signal('')

export function giveKey(key: string): void {
  sessionStorage.setItem(KEY, key)
  keyWanted.value = 'no'
  apiKey.value = key
}

export interface FailureInfo {
  /** 0: there was no answer. */
  readonly status: number
  readonly message: string
  readonly code: string | null
  /** Seconds after which another try makes sense. */
  readonly retryAfter: number | null
}

export class Failure extends Error {
  readonly info: FailureInfo
  constructor(info: FailureInfo) {
    super(info.message)
    this.info = info
  }
}

/** @throws Failure; DOMException AbortError when the signal ends it */
export async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers)
  if (apiKey.value) headers.set('authorization', `Bearer ${apiKey.value}`)
  let response: Response
  try {
    response = await fetch(path, { ...init, headers })
  } catch (error) {
    throw failureOf(error)
  }
  if (response.ok) return response
  if (response.status === 401) keyWanted.value = apiKey.value ? 'wrong' : 'missing'
  throw new Failure(await refusal(response))
}

async function refusal(response: Response): Promise<FailureInfo> {
  const text = await response.text().catch(() => '')
  const retryAfter = Number(response.headers.get('retry-after')) || null
  const { message, code } = errorIn(text) ?? { message: `the server answered ${response.status}`, code: null }
  return { status: response.status, message, code, retryAfter }
}

/** The error of an OpenAI-shaped body. */
export function errorIn(json: string): { readonly message: string; readonly code: string | null } | null {
  try {
    const { error } = JSON.parse(json) as { error?: { message: string; code: string | null } }
    return error ? { message: error.message, code: error.code ?? null } : null
  } catch {
    return null
  }
}

/** An error of the network, in the middle of an answer or before it. Aborts and failures are given back as they are. */
export function failureOf(error: unknown): unknown {
  if (error instanceof Failure || isAbort(error)) return error
  return new Failure({ status: 0, message: 'the connection to the server was lost', code: null, retryAfter: null })
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === 'AbortError'
}

/** What a person can do about it. */
export function advice({ status, code, retryAfter }: FailureInfo): string {
  if (status === 0) return 'Is the server still running? Try again when it is.'
  if (status === 401) return 'Enter an API key of this server, then try again.'
  if (code === 'context_length_exceeded') return 'Start a new conversation, or lower max tokens.'
  if (status === 429) return `The server is busy. Try again in ${retryAfter ?? 1} s.`
  if (status === 503) return 'The server is loading or shutting down. Try again in a moment.'
  if (status === 504) return 'The answer did not begin in time. Try again when fewer requests wait.'
  if (status >= 500) return 'The server’s log has the cause.'
  return 'Change the parameters or the message, then try again.'
}
