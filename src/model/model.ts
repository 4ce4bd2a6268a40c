/** A loaded model: its file, what it is, its weights, its tokenizer. Read-only after load; engines can share it. */
import { KvasirError } from '../contract/errors.ts'
import type { Device } from '../ggml/device.ts'
import { type GgufFile, readGguf } from '../ggml/gguf/index.ts'
import { canMap } from '../ggml/mapping.ts'
import type { Tensor } from '../ggml/tensor.ts'
import type { Architecture } from './architecture.ts'
import { architectureNamed } from './architectures/index.ts'
import type { ModelConfig } from './config.ts'
import { checkFits, type MemoryNeed } from './memory.ts'
import { Tokenizer } from './tokenizer/tokenizer.ts'
import { type LoadProgress, placedBytes, Weights } from './weights/load.ts'
import { placeWeights } from './weights/place.ts'

export interface ModelOptions {
  readonly device: Device
  /** Longest context that will be used, tokens: LongRoPE picks its factors by it. */
  readonly contextLength: number
  /** Bytes beside the weights that must fit too, e.g. the KV cache. */
  readonly alsoNeeds?: readonly MemoryNeed[]
  readonly onProgress?: LoadProgress
}

export class Model implements Disposable {
  readonly file: GgufFile
  readonly config: ModelConfig
  readonly architecture: Architecture
  readonly device: Device
  readonly weights: Weights
  readonly tokenizer: Tokenizer
  /** f32 [dims / 2]: divides RoPE's frequencies; null for most models. */
  readonly ropeFactors: Tensor | null

  private constructor(
    file: GgufFile,
    config: ModelConfig,
    architecture: Architecture,
    weights: Weights,
    tokenizer: Tokenizer,
    options: ModelOptions,
  ) {
    this.file = file
    this.config = config
    this.architecture = architecture
    this.weights = weights
    this.tokenizer = tokenizer
    this.device = options.device
    const long = options.contextLength > config.rope.longFrom
    this.ropeFactors = weights.global['ropeFactors'] ?? weights.global[long ? 'ropeLong' : 'ropeShort'] ?? null
  }

  /**
   * @throws KvasirError MODEL_NOT_FOUND, GGUF_INVALID, MODEL_INVALID, MODEL_UNSUPPORTED, OUT_OF_MEMORY: all before
   *   anything large is allocated.
   */
  static async load(path: string, options: (config: ModelConfig) => ModelOptions): Promise<Model> {
    const { file, architecture, config } = Model.describe(path)
    const chosen = options(config)
    const placed = placeWeights(file, architecture, config, chosen.device, canMap)
    checkFits(path, chosen.device, [{ what: 'weights', bytes: placedBytes(placed) }, ...(chosen.alsoNeeds ?? [])])
    const tokenizer = await Tokenizer.load(path)
    try {
      if (tokenizer.vocabSize !== config.vocab)
        throw new KvasirError(
          'MODEL_INVALID',
          `${path}: the vocabulary has ${tokenizer.vocabSize} tokens, the embeddings have ${config.vocab} rows`,
          { file: path },
        )
      const weights = Weights.load(file, placed, config.layers, chosen.onProgress)
      return new Model(file, config, architecture, weights, tokenizer, chosen)
    } catch (error) {
      tokenizer.dispose()
      throw error
    }
  }

  /** What a file holds, without loading it. */
  static describe(path: string): { file: GgufFile; architecture: Architecture; config: ModelConfig } {
    const file = readGguf(path)
    const architecture = architectureNamed(file.metadata.getString('general.architecture'), path)
    return { file, architecture, config: architecture.configure(file) }
  }

  /** The matrix from residual rows to logits; the embeddings when tied. */
  get output(): Tensor {
    return this.weights.global['output']!
  }

  [Symbol.dispose](): void {
    this.weights[Symbol.dispose]()
    this.tokenizer.dispose()
  }
}
