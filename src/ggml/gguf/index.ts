/** GGUF files: read, checked, written. Needs no native code. */
export type {
  GgufArray,
  GgufFile,
  GgufNumberType,
  GgufPart,
  GgufScalar,
  GgufTensor,
  GgufValue,
  GgufValueType,
  Shape,
} from './format.ts'
export { GgufMetadata, type NumberArray } from './metadata.ts'
export { parseGguf, readGguf } from './reader.ts'
export * from './values.ts'
export { type GgufTensorSource, type GgufWriteOptions, writeGguf } from './writer.ts'
