/** The hub over HTTP: what a repository holds, and errors in words that help. */
import { KvasirError } from '../../contract/errors.ts'
import type { RepoFile } from './choose.ts'
import { isSafePath } from './name.ts'

export interface RemoteFile extends RepoFile {
  readonly url: string
  /** How its bytes are checked: LFS files by their SHA-256, small files by git's own SHA-1. */
  readonly checksum: { readonly kind: 'sha256' | 'git-blob'; readonly hex: string }
}

export interface Hub {
  readonly url: string
  readonly token: string | null
}

/** The hub of the environment: HF_ENDPOINT and HF_TOKEN. */
export function hubOf(env = process.env): Hub {
  return {
    url: (env['HF_ENDPOINT'] || 'https://huggingface.co').replace(/\/+$/, ''),
    token: env['HF_TOKEN']?.trim() || null,
  }
}

export function authorization(hub: Hub): Record<string, string> {
  return hub.token === null ? {} : { authorization: `Bearer ${hub.token}` }
}

/** Files of a repository's main branch. @throws KvasirError DOWNLOAD_FAILED, MODEL_NOT_FOUND */
export async function listRepo(hub: Hub, repo: string, signal: AbortSignal): Promise<RemoteFile[]> {
  // Takes a fifth of a second to load, and most commands never need it.
  const { HubApiError, listFiles } = await import('@huggingface/hub')
  const files: RemoteFile[] = []
  try {
    // Authorization goes in by hand: the package refuses tokens that do not begin with hf_, mirrors have others.
    const withToken: typeof fetch = (input, init) =>
      fetch(input, { ...init, headers: { ...(init?.headers as object), ...authorization(hub) }, signal })
    for await (const f of listFiles({ repo, recursive: true, hubUrl: hub.url, fetch: withToken })) {
      if (f.type !== 'file' || !isSafePath(f.path)) continue
      const url = `${hub.url}/${repo}/resolve/main/${f.path.split('/').map(encodeURIComponent).join('/')}`
      if (f.lfs) files.push({ path: f.path, bytes: f.lfs.size, url, checksum: { kind: 'sha256', hex: f.lfs.oid } })
      else if (f.oid) files.push({ path: f.path, bytes: f.size, url, checksum: { kind: 'git-blob', hex: f.oid } })
    }
  } catch (error) {
    if (signal.aborted) throw aborted(signal)
    if (error instanceof HubApiError) throw refused(error.statusCode, repo, hub)
    throw unreachable(error, hub.url)
  }
  return files
}

export function aborted(signal: AbortSignal): KvasirError {
  return new KvasirError('ABORTED', 'the download was stopped. The same command continues it', {}, signal.reason)
}

/** The hub answered, but with an error. */
export function refused(status: number, what: string, hub: Hub): KvasirError {
  const { host } = new URL(hub.url)
  const details = { host, status }
  const page = `${hub.url}/${what.split('/').slice(0, 2).join('/')}`
  if (status === 404)
    return new KvasirError('MODEL_NOT_FOUND', `${host} has no ${what}. Check the spelling at ${page}`, details)
  const failed = (text: string) => new KvasirError('DOWNLOAD_FAILED', text, details)
  // The hub answers 401 for what does not exist, too, unless a token shows who asks.
  if (status === 401 && hub.token === null)
    return failed(
      `${host} does not give ${what} to everyone: it is private or gated, or there is no such repository. ` +
        `Accept its terms at ${page} if it asks for that, and set HF_TOKEN to a token that may read it`,
    )
  if (status === 401 || status === 403)
    return failed(
      `${host} refused ${what} (HTTP ${status}): the token in HF_TOKEN may not read it. ` +
        `Accept its terms at ${page} if it asks for that, or use another token`,
    )
  if (status === 429)
    return failed(`${host} asks to wait: too many requests. Try again in a few minutes, or set HF_TOKEN`)
  return failed(`${host} answered HTTP ${status} for ${what}. Try again later: what is here already is kept`)
}

/** No answer, or one that broke off. */
export function unreachable(error: unknown, url: string): KvasirError {
  const { host } = new URL(url)
  const why = reason(error)
  const proxy = ['HTTPS_PROXY', 'https_proxy', 'HTTP_PROXY', 'http_proxy'].find((name) => process.env[name])
  const aside = proxy ? ` (${proxy} is set, but not used here)` : ''
  return new KvasirError(
    'DOWNLOAD_FAILED',
    `${host} could not be reached (${why})${aside}. Check the network, and HF_ENDPOINT if you use a mirror, and run the same ` +
      'command again. Without a network, copy a GGUF file here by other means and give its path',
    { host, reason: why },
    error,
  )
}

/** What `fetch` hides in its causes: `ECONNREFUSED`, `getaddrinfo ENOTFOUND ...`. */
export function reason(error: unknown): string {
  let e = error as { message?: string; code?: string; cause?: unknown; errors?: unknown[] }
  while (e.cause ?? e.errors?.[0]) e = (e.cause ?? e.errors![0]) as typeof e
  return e.message || e.code || String(error)
}
