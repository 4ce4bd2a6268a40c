/** Where weight bytes come from: the mapped file, or reads where files cannot be mapped (Windows). */
import { closeSync, openSync, readSync } from 'node:fs'
import koffi from 'koffi'
import { KvasirError } from '../../contract/errors.ts'
import type { Pointer } from '../../ggml/declare.ts'
import type { GgufFile, GgufTensor } from '../../ggml/gguf/index.ts'
import { canMap, Mapping } from '../../ggml/mapping.ts'

export class WeightSource implements Disposable {
  readonly #file: GgufFile
  /** One mapping per part of the file; empty where files cannot be mapped. */
  readonly mappings: readonly Mapping[]

  constructor(file: GgufFile, map = canMap) {
    this.#file = file
    this.mappings = map ? file.parts.map((part) => new Mapping(part.path, part.size)) : []
  }

  /** Address of a tensor in the mapped file. */
  address(tensor: GgufTensor): Pointer {
    return this.mappings[tensor.part]!.ptr + BigInt(tensor.offset)
  }

  /** A tensor's bytes, as C takes them: an address in the mapping, or bytes just read. */
  data(tensor: GgufTensor): Pointer | Uint8Array {
    return this.mappings.length ? this.address(tensor) : this.#read(tensor)
  }

  /** A tensor's bytes: of the mapping, valid as long as this lives, or just read. */
  bytes(tensor: GgufTensor): Uint8Array {
    return this.mappings.length ? new Uint8Array(koffi.view(this.address(tensor), tensor.bytes)) : this.#read(tensor)
  }

  #read(tensor: GgufTensor): Uint8Array {
    const path = this.#file.parts[tensor.part]!.path
    const bytes = Buffer.allocUnsafe(tensor.bytes)
    const fd = openSync(path, 'r')
    try {
      for (let at = 0; at < bytes.length; ) {
        const n = readSync(fd, bytes, at, bytes.length - at, tensor.offset + at)
        if (n === 0) throw new KvasirError('GGUF_IO', `${path} ended inside tensor "${tensor.name}"`, { file: path })
        at += n
      }
    } finally {
      closeSync(fd)
    }
    return bytes
  }

  [Symbol.dispose](): void {
    for (const m of this.mappings) m.dispose()
  }
}
