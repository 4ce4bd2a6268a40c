/**
 * Reads and checks GGUF headers. Tensor data are never read; but once a file has parsed, every tensor's range may be
 * mapped: it is aligned, inside its file and its own.
 *
 * Stricter than ggml: keys and names must be UTF-8 without NUL, bools 0 or 1, alignments at least 8, tensors not empty.
 * Laxer: nested arrays, gaps between tensors, any order of their data, no padding behind the last.
 */
import { KvasirError } from '../../contract/errors.ts'
import { type ByteSource, Cursor } from './cursor.ts'
import { withFile } from './files.ts'
import {
  DEFAULT_ALIGNMENT,
  type GgufFile,
  type GgufTensor,
  type GgufValue,
  LIMITS,
  MAGIC,
  padTo,
  quote,
  VERSIONS,
} from './format.ts'
import { readKeys } from './keys.ts'
import { GgufMetadata } from './metadata.ts'
import { type Complain, checkAlignment } from './rules.ts'
import { mergeParts, splitCount } from './split.ts'
import { checkRanges, readTensorInfos } from './tensors.ts'

/** Fewest bytes of a key with its value: length, one character, type, a u8. */
const LEAST_KEY_BYTES = 8 + 1 + 4 + 1
/** Fewest bytes of a tensor info: length, one character, dimension count, one dimension, type, offset. */
const LEAST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8

/** What people save by mistake in place of a model. */
const LOOKALIKES: readonly [start: string, what: string][] = [
  ['version https://git-lfs', 'this is a Git LFS pointer, not the model; fetch it with: git lfs pull'],
  ['<', 'this looks like a web page; download the file itself, not the page about it'],
  ['PK', 'this looks like a zip file (PyTorch weights?); convert it with convert_hf_to_gguf.py of llama.cpp'],
  ['lmgg', 'this is a GGML file from before GGUF; convert the original model with convert_hf_to_gguf.py of llama.cpp'],
  ['tjgg', 'this is a GGML file from before GGUF; convert the original model with convert_hf_to_gguf.py of llama.cpp'],
]

/**
 * Reads a model's header, and those of all its parts when it is split.
 *
 * @param path of the file, or of the first part
 * @throws KvasirError GGUF_INVALID (with `file`, `field` and `offset`), MODEL_NOT_FOUND, GGUF_IO
 */
export function readGguf(path: string): GgufFile {
  const first = withFile(path, (source) => parse(source, 0))
  const count = splitCount(first)
  if (count <= 1) return first
  return mergeParts(first, count, (part, no) => withFile(part, (source) => parse(source, no)))
}

/**
 * Parses a header that is in memory. A part of a split file parses as the one file it is.
 *
 * @param bytes the file, or as much of its start as holds the header
 * @param fileSize bytes of the whole file
 * @param name stands for the file in errors and in `path`
 */
export function parseGguf(bytes: Uint8Array, fileSize: number = bytes.length, name = 'buffer'): GgufFile {
  if (!Number.isSafeInteger(fileSize) || fileSize < bytes.length)
    throw new KvasirError(
      'INVALID_ARGUMENT',
      `fileSize is ${fileSize}, must be at least the ${bytes.length} bytes given`,
    )
  const source: ByteSource = {
    name,
    size: fileSize,
    whenShort: `lies past the ${bytes.length} bytes given; give more of the file's start`,
    read(target, at) {
      const part = bytes.subarray(at, at + target.length)
      target.set(part)
      return part.length
    },
  }
  return parse(source, 0)
}

function parse(source: ByteSource, part: number): GgufFile {
  const cursor = new Cursor(source)
  const complain: Complain = (field, text) => cursor.invalid(text, field)
  const version = readStart(cursor, source)

  cursor.label = 'tensor count'
  const tensorCount = cursor.u64()
  cursor.checkFit(tensorCount, 'of the header', LEAST_TENSOR_BYTES)
  cursor.label = 'key count'
  const keyCount = cursor.u64()
  cursor.checkFit(keyCount, 'of the header', LEAST_KEY_BYTES)
  checkLimit(cursor, 'tensor count', Number(tensorCount), LIMITS.tensors)
  checkLimit(cursor, 'key count', Number(keyCount), LIMITS.keys)

  const values = readKeys(cursor, Number(keyCount), complain)
  const alignment = alignmentOf(values, complain)
  const infos = readTensorInfos(cursor, Number(tensorCount), alignment, complain)

  const headerEnd = cursor.offset
  // without tensors nothing needs to be aligned, and the file may end here
  const dataOffset = infos.length === 0 ? headerEnd : padTo(headerEnd, alignment)
  const tensors = new Map<string, GgufTensor>()
  for (const { relative, ...info } of infos) tensors.set(info.name, { ...info, part, offset: dataOffset + relative })
  checkRanges([...tensors.values()], dataOffset, source.size, complain)

  return {
    path: source.name,
    version,
    alignment,
    metadata: new GgufMetadata(source.name, values),
    tensors,
    parts: [{ path: source.name, size: source.size, dataOffset }],
    totalBytes: source.size,
  }
}

/** Magic and version. */
function readStart(cursor: Cursor, source: ByteSource): number {
  const start = new Uint8Array(Math.min(64, source.size))
  const text = Buffer.from(start.subarray(0, source.read(start, 0))).toString('latin1')
  cursor.label = 'magic'
  if (!text.startsWith(MAGIC)) {
    const hint = LOOKALIKES.find(([s]) => text.startsWith(s))?.[1]
    const got = text === '' ? 'the file is empty' : `the file starts with ${quote(text.slice(0, 4))}`
    throw cursor.invalid(`must be "${MAGIC}", but ${got}; ${hint ?? 'this is not a GGUF file'}`)
  }
  cursor.u32()

  cursor.label = 'version'
  const version = cursor.u32()
  if ((VERSIONS as readonly number[]).includes(version)) return version
  if (version % 2 ** 24 === 0 && version !== 0)
    throw cursor.invalid('is big-endian: only little-endian files can be read; convert it with gguf-convert-endian')
  const mend = version === 1 ? '; convert the original model with convert_hf_to_gguf.py of llama.cpp' : ''
  throw cursor.invalid(`is ${version}, must be ${VERSIONS.join(' or ')}${mend}`)
}

function checkLimit(cursor: Cursor, field: string, n: number, most: number): void {
  if (n > most) throw cursor.invalid(`is ${n}, more than the ${most} that any model needs`, field)
}

function alignmentOf(values: ReadonlyMap<string, GgufValue>, complain: Complain): number {
  const found = values.get('general.alignment')
  if (!found) return DEFAULT_ALIGNMENT
  const field = 'key "general.alignment"'
  if (found.type !== 'u32') throw complain(field, `is of type ${found.type}, must be u32`)
  checkAlignment(found.value, field, complain)
  return found.value
}
