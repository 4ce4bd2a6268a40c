/** Brings a model of the hub to this machine, or finds that it is here. */
import { readdirSync, statSync } from 'node:fs'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { join, sep } from 'node:path'
import { KvasirError, showBytes } from '../../contract/errors.ts'
import type { Progress } from '../progress.ts'
import { choose, listModels, modelsOf, type RepoModel } from './choose.ts'
import { download, hasChecksum, isFileError } from './download.ts'
import { type HubName, repoFolder } from './name.ts'
import { type Hub, hubOf, listRepo, type RemoteFile } from './remote.ts'

export interface PullOptions {
  readonly signal: AbortSignal
  /** Told what is going on, for people. */
  readonly say: (text: string) => void
  readonly progress: (name: string) => Progress
}

/** Names are those of the CLI's JSON. */
export interface Pulled {
  readonly repo: string
  /** Path in the repository; of a split model the first part. */
  readonly file: string
  /** Where it lies now: what an engine loads. */
  readonly path: string
  readonly bytes: number
  readonly parts: readonly { readonly file: string; readonly bytes: number; readonly checksum: string }[]
  /** What came over the network: 0 when everything was here. */
  readonly downloaded_bytes: number
}

/** The file of a model that was pulled earlier, without asking the hub; null when none fits. */
export function pulledModel(name: HubName): string | null {
  try {
    return join(repoFolder(name.repo), choose(localModels(name.repo), name).path)
  } catch (error) {
    if (error instanceof KvasirError) return null
    throw error
  }
}

function localModels(repo: string): RepoModel[] {
  const folder = repoFolder(repo)
  let paths: string[]
  try {
    paths = (readdirSync(folder, { recursive: true }) as string[]).filter((p) => p.endsWith('.gguf'))
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code!)) return []
    throw error
  }
  return modelsOf(paths.map((p) => ({ path: p.split(sep).join('/'), bytes: statSync(join(folder, p)).size })))
}

/** @throws KvasirError DOWNLOAD_FAILED, MODEL_NOT_FOUND, INVALID_ARGUMENT, ABORTED */
export async function pull(name: HubName, options: PullOptions): Promise<Pulled> {
  const hub = hubOf()
  const files = await listRepo(hub, name.repo, options.signal).catch((error: KvasirError) => {
    const here = pulledModel(name)
    const mend = here === null ? '' : `. The model itself is here already: ${here}`
    throw mend
      ? new KvasirError(error.code, error.message.replace(/^\w+: /, '') + mend, error.details, error.cause)
      : error
  })
  const models = modelsOf(files)
  const model = choose(models, name)
  if (models.length > 1 && name.file === null) options.say(`${name.repo} holds\n${listModels(models, model)}`)
  const folder = repoFolder(name.repo)
  let downloaded = 0
  for (const part of model.parts) downloaded += await bring(part, join(folder, part.path), hub, options)
  const path = join(folder, model.path)
  if (downloaded === 0) options.say(`already complete: ${path} (${showBytes(model.bytes)})`)
  return {
    repo: name.repo,
    file: model.path,
    path,
    bytes: model.bytes,
    parts: model.parts.map((p) => ({ file: p.path, bytes: p.bytes, checksum: checksumText(p) })),
    downloaded_bytes: downloaded,
  }
}

/** Returns the bytes that came over the network. */
async function bring(file: RemoteFile, path: string, hub: Hub, options: PullOptions): Promise<number> {
  if (await isComplete(file, path)) return 0
  options.say(`pulling ${file.path} (${showBytes(file.bytes)}) from ${new URL(hub.url).host}`)
  const bar = options.progress(file.path)
  try {
    const bytes = await download(file, path, {
      hub,
      signal: options.signal,
      onProgress: (done, total) => bar.update(done, total),
    })
    await writeFile(checksumPath(path), `${checksumText(file)}\n`)
    return bytes
  } catch (error) {
    if (!isFileError(error)) throw error
    throw new KvasirError(
      'DOWNLOAD_FAILED',
      `${path} could not be written: ${error.message}. KVASIR_CACHE names another folder for models`,
      { file: path },
      error,
    )
  } finally {
    bar.end()
  }
}

/** What is noted beside the file is trusted: to read gigabytes at each call would take long. */
async function isComplete(file: RemoteFile, path: string): Promise<boolean> {
  const found = await stat(path).catch(() => null)
  if (found?.size !== file.bytes) return false
  const noted = await readFile(checksumPath(path), 'utf8').catch(() => null)
  if (noted !== null) return noted.trim() === checksumText(file)
  if (!(await hasChecksum(path, file))) return false
  await writeFile(checksumPath(path), `${checksumText(file)}\n`)
  return true
}

const checksumPath = (path: string) => `${path}.checksum`
const checksumText = ({ checksum }: RemoteFile) => `${checksum.kind} ${checksum.hex}`
