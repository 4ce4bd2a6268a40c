/** Which of a repository's files to take. */
import { KvasirError, nearest, showBytes } from '../../contract/errors.ts'
import type { HubName } from './name.ts'

export interface RepoFile {
  readonly path: string
  readonly bytes: number
}

/** A model of a repository: one file, or all parts of a split one in order. */
export interface RepoModel<F extends RepoFile = RepoFile> {
  /** Path of the file, or of the first part: what an engine loads. */
  readonly path: string
  readonly parts: readonly F[]
  readonly bytes: number
  /** As the file name says, in capitals, e.g. `Q4_K_M`; null when it does not say. */
  readonly quantisation: string | null
}

/** Taken in this order when nothing else is asked for. */
const PREFERRED = ['Q4_K_M', 'Q8_0']

const SPLIT = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/
const QUANTISATION = /(?:^|[-._/])((?:IQ|TQ|Q)\d(?:_[A-Z0-9]+)*|BF16|F16|F32|MXFP4)(?=[-._/]|$)/gi
/** GGUF files that are no language models: parts of vision models, statistics for quantisers. */
const OTHER = /(^|\/)(mmproj|imatrix)|imatrix\.gguf$/i

/** The models among files; split ones only when all parts are there. */
export function modelsOf<F extends RepoFile>(files: readonly F[]): RepoModel<F>[] {
  const byPath = new Map(files.map((f) => [f.path, f]))
  const models: RepoModel<F>[] = []
  for (const file of files) {
    if (!file.path.endsWith('.gguf') || OTHER.test(file.path)) continue
    const split = SPLIT.exec(file.path)
    if (split && split[2] !== '00001') continue
    const parts = split ? partPaths(split[1]!, Number(split[3])).map((p) => byPath.get(p)) : [file]
    if (!parts.every((p) => p !== undefined)) continue
    const bytes = parts.reduce((sum, p) => sum + p.bytes, 0)
    models.push({ path: file.path, parts, bytes, quantisation: quantisationOf(file.path) })
  }
  return models.sort((a, b) => a.bytes - b.bytes)
}

/** Paths of all parts when `path` is one of them, else of itself. */
export function partsOf(path: string): string[] {
  const split = SPLIT.exec(path)
  return split ? partPaths(split[1]!, Number(split[3])) : [path]
}

function partPaths(stem: string, count: number): string[] {
  const five = (n: number) => String(n).padStart(5, '0')
  return Array.from({ length: count }, (_, i) => `${stem}-${five(i + 1)}-of-${five(count)}.gguf`)
}

function quantisationOf(path: string): string | null {
  const stem = path.replace(/\.gguf$/, '').replace(/-\d{5}-of-\d{5}$/, '')
  // The last one: names of models can look like quantisations, those of folders come first.
  return [...stem.matchAll(QUANTISATION)].at(-1)?.[1]?.toUpperCase() ?? null
}

/** @throws KvasirError MODEL_NOT_FOUND, or INVALID_ARGUMENT when a choice is left to the user: with the list. */
export function choose<F extends RepoFile>(models: readonly RepoModel<F>[], name: HubName): RepoModel<F> {
  const { repo, file } = name
  const list = models.map((m) => m.path)
  const details = { repo, files: list }
  if (models.length === 0)
    throw new KvasirError(
      'MODEL_NOT_FOUND',
      `${repo} holds no whole GGUF model. Look for a repository with GGUF in its name`,
      {
        repo,
      },
    )
  if (file !== null) {
    const exact = models.find((m) => m.parts.some((p) => p.path === file))
    const found = exact ?? withQuantisation(models, file.toUpperCase())
    if (found) return found
    const guess = nearest(file, [...list, ...models.flatMap((m) => m.quantisation ?? [])])
    const mend = guess ? `Did you mean ${guess}?` : `There are:\n${listModels(models)}`
    throw new KvasirError('MODEL_NOT_FOUND', `${repo} holds no model "${file}". ${mend}`, details)
  }
  for (const quantisation of PREFERRED) {
    const found = withQuantisation(models, quantisation)
    if (found) return found
  }
  if (models.length === 1) return models[0]!
  throw new KvasirError(
    'INVALID_ARGUMENT',
    `${repo} holds ${models.length} models, none of them ${PREFERRED.join(' or ')}. Choose one with hf:${repo}:FILE:\n` +
      listModels(models),
    details,
  )
}

/** Of several with the same quantisation the shortest name: the others are variants of it. */
function withQuantisation<F extends RepoFile>(models: readonly RepoModel<F>[], quantisation: string) {
  const found = models.filter((m) => m.quantisation === quantisation)
  return found.sort((a, b) => a.path.length - b.path.length)[0]
}

export function listModels(models: readonly RepoModel[], chosen?: RepoModel): string {
  const width = Math.max(...models.map((m) => m.path.length))
  const line = (m: RepoModel) => {
    const parts = m.parts.length > 1 ? ` in ${m.parts.length} parts` : ''
    return `${m === chosen ? '*' : ' '} ${m.path.padEnd(width)}  ${showBytes(m.bytes)}${parts}`
  }
  return models.map(line).join('\n')
}
