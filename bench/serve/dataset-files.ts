/** Workloads from files of JSON lines: Mooncake's traces, and prompts of one's own. */
import { readFileSync } from 'node:fs'
import { KvasirError } from '../../src/contract/errors.ts'
import { single } from './datasets.ts'
import type { Piece, Session } from './workload.ts'

/** Tokens that one hash of Mooncake's traces stands for. */
export const MOONCAKE_BLOCK = 512

/**
 * Mooncake's open traces (kvcache-ai/Mooncake, FAST25-release): `{"timestamp": ms, "input_length", "output_length", "hash_ids"}`
 * a line. A hash stands for 512 tokens at their place after all blocks before; the last one can be partly filled. Times count
 * from the earliest line, times `timeScale`.
 */
export function mooncakeDataset(path: string, timeScale: number, most = Number.POSITIVE_INFINITY): Session[] {
  const rows = readLines(path, most, (row, where) => ({
    timestamp: number(row, 'timestamp', where),
    inputTokens: whole(row, 'input_length', where),
    // Lines of requests that were cut off have no output; a request asks for one token at least.
    outputTokens: Math.max(1, number(row, 'output_length', where)),
    hashes: hashes(row, where),
  }))
  rows.sort((a, b) => a.timestamp - b.timestamp)
  const start = rows[0]?.timestamp ?? 0
  return rows.map(({ timestamp, inputTokens, outputTokens, hashes }, line) =>
    single(blocks(hashes, inputTokens, line), { outputTokens, arrivalMs: (timestamp - start) * timeScale }),
  )
}

/** `{"prompt": text, "output_tokens": n}` a line; the number can be left out. */
export function customDataset(path: string, outputTokens: number, most = Number.POSITIVE_INFINITY): Session[] {
  return readLines(path, most, (row, where) => {
    const { prompt } = row
    if (typeof prompt !== 'string' || prompt === '') throw invalid(where, `"prompt" must be a text, and not empty`)
    return single(prompt, {
      outputTokens: row['output_tokens'] === undefined ? outputTokens : whole(row, 'output_tokens', where),
    })
  })
}

/** What the hashes do not cover is this line's own. */
function blocks(hashes: readonly (string | number)[], tokens: number, line: number): Piece[] {
  const pieces: Piece[] = []
  let left = tokens
  for (const hash of hashes) {
    if (left <= 0) break
    pieces.push({ key: `block ${hash}`, tokens: Math.min(left, MOONCAKE_BLOCK) })
    left -= MOONCAKE_BLOCK
  }
  if (left > 0) pieces.push({ key: `line ${line}`, tokens: left })
  return pieces
}

type Row = Readonly<Record<string, unknown>>

function readLines<T>(path: string, most: number, parse: (row: Row, where: string) => T): T[] {
  const result: T[] = []
  for (const [i, line] of readText(path).split('\n').entries()) {
    if (result.length >= most) break
    if (line.trim() === '') continue
    const where = `${path}, line ${i + 1}`
    result.push(parse(parseRow(line, where), where))
  }
  if (result.length === 0) throw invalid(path, 'it holds no request')
  return result
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (cause) {
    throw new KvasirError('INVALID_ARGUMENT', `--dataset-path: ${(cause as Error).message}`, { file: path }, cause)
  }
}

function parseRow(line: string, where: string): Row {
  let row: unknown
  try {
    row = JSON.parse(line)
  } catch (cause) {
    throw invalid(where, `it is not JSON: ${(cause as Error).message}`)
  }
  if (typeof row !== 'object' || row === null) throw invalid(where, 'it must be an object')
  return row as Row
}

function number(row: Row, name: string, where: string): number {
  const value = row[name]
  if (typeof value !== 'number' || !Number.isFinite(value)) throw invalid(where, `"${name}" must be a number`)
  return value
}

function whole(row: Row, name: string, where: string): number {
  const value = number(row, name, where)
  if (!Number.isSafeInteger(value) || value < 1) throw invalid(where, `"${name}" must be a whole number from 1 up`)
  return value
}

function hashes(row: Row, where: string): (string | number)[] {
  const { hash_ids: ids = [] } = row
  if (!Array.isArray(ids) || !ids.every((id) => typeof id === 'number' || typeof id === 'string'))
    throw invalid(where, `"hash_ids" must be a list of numbers`)
  return ids
}

function invalid(where: string, what: string): KvasirError {
  return new KvasirError('INVALID_ARGUMENT', `${where}: ${what}`, { field: '--dataset-path' })
}
