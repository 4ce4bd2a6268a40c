/** The models of a server: what a user calls them, and where they are. */
import { existsSync } from 'node:fs'
import { basename } from 'node:path'
import { KvasirError } from '../contract/errors.ts'
import type { EngineOptions } from '../engine/options.ts'
import type { ModelSpec } from '../server/models.ts'
import { isHubName, parseHubName } from './hub/name.ts'
import { modelFile } from './model.ts'

export interface NamedModel {
  /** In requests. */
  readonly name: string
  /** As for every command: a GGUF file, hf:OWNER/REPO[:FILE], or house. */
  readonly model: string
}

/** Names that clients can send and that cannot be taken for a path such as `./a=b.gguf`. */
export const MODEL_NAME = /^[A-Za-z0-9][\w.:/@-]{0,255}$/

/** `[NAME=]MODEL` @throws KvasirError INVALID_ARGUMENT */
export function parseModel(text: string): NamedModel {
  const at = text.indexOf('=')
  const named = at > 0 && !existsSync(text) && MODEL_NAME.test(text.slice(0, at))
  const model = named ? text.slice(at + 1) : text
  if (model === '')
    throw new KvasirError('INVALID_ARGUMENT', `"${text}" names no model: write NAME=MODEL, or the model alone`, {
      model: text,
    })
  return { name: named ? text.slice(0, at) : nameOf(model), model }
}

/** The file's name without `.gguf` and without the count of its parts; of a whole repository, its own without `-GGUF`. */
export function nameOf(model: string): string {
  if (!isHubName(model)) return stem(model)
  const { repo, file } = parseHubName(model)
  return file?.endsWith('.gguf') ? stem(file) : repo.split('/')[1]!.replace(/-gguf$/i, '')
}

function stem(path: string): string {
  return basename(path).replace(/(-\d{5}-of-\d{5})?\.gguf$/i, '')
}

/**
 * Finds the file, pulls it from the hub if need be: a model that is loaded on demand must not be found missing then.
 * @throws KvasirError MODEL_NOT_FOUND, and what pulling throws
 */
export async function toSpec({ name, model }: NamedModel, engine: EngineOptions): Promise<ModelSpec> {
  const path = await modelFile(model)
  if (!existsSync(path))
    throw new KvasirError('MODEL_NOT_FOUND', `there is no file ${path} for the model "${name}"`, { file: path })
  return { id: name, path, engine }
}
