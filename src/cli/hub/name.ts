/** `hf:OWNER/REPO[:FILE]`, and where its files lie on this machine. */
import { join } from 'node:path'
import { KvasirError } from '../../contract/errors.ts'
import { cacheFolder } from '../../folders.ts'

export interface HubName {
  /** `OWNER/REPO` */
  readonly repo: string
  /** A path in the repository, or a quantisation such as `Q8_0`; null: one is chosen. */
  readonly file: string | null
}

const PART = /^[\w.-]+$/

export function isHubName(text: string): boolean {
  return text.startsWith('hf:')
}

/** @throws KvasirError INVALID_ARGUMENT */
export function parseHubName(text: string): HubName {
  const [, repo, file] = /^hf:([^:]+)(?::(.*))?$/.exec(text) ?? []
  const parts = repo?.split('/') ?? []
  // The parts become folder names.
  if (parts.length !== 2 || !parts.every((p) => PART.test(p) && !/^\.+$/.test(p)) || file === '')
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `"${text}" does not name a model of the hub. It must be hf:OWNER/REPO or hf:OWNER/REPO:FILE, ` +
        'e.g. hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q8_0.gguf',
      { model: text },
    )
  if (file !== undefined && !isSafePath(file))
    throw new KvasirError('INVALID_ARGUMENT', `"${file}" is not a path inside a repository`, { model: text })
  return { repo: repo!, file: file ?? null }
}

/** Whether a path that a server or a user gave stays inside the folder it is put into. */
export function isSafePath(path: string): boolean {
  return path.split('/').every((p) => p !== '' && p !== '.' && p !== '..' && !/[\\:\0]/.test(p))
}

/** Folder of a repository's files. */
export function repoFolder(repo: string, env = process.env): string {
  return join(cacheFolder(env), 'models', ...repo.split('/'))
}
