/** Where benches keep the models they write: a folder of the user's cache, emptied by hand. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { cacheFolder as kvasirFolder } from '../src/folders.ts'
import { type RandomModel, writeRandomModel } from './random-model.ts'

export function cacheFolder(): string {
  return join(kvasirFolder(), 'bench')
}

/** Changes whenever the writer does, so that no stale file is used. */
const WRITER = 1

/** The file of a random model, written on first use. */
export async function randomModelFile(m: RandomModel, onWrite?: (path: string) => void): Promise<string> {
  const path = join(cacheFolder(), `${m.name}-${m.type}-w${WRITER}.gguf`)
  if (existsSync(path)) return path
  onWrite?.(path)
  await writeRandomModel(path, m)
  return path
}
