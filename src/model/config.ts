/**
 * What a model is, read from GGUF metadata and checked: sizes, RoPE, windows, soft caps. One alphabet with the specs:
 * `layers` Lyr, `width` D, `heads` H, `kvHeads` Hkv, `headDim` d, `ffWidth` F, `vocab` V.
 */
import { KvasirError } from '../contract/errors.ts'
import type { GgufFile, GgufMetadata } from '../ggml/gguf/index.ts'
import type { RopeOptions, RopePairs } from '../ggml/ops/attention.ts'

export interface ModelConfig {
  readonly architecture: string
  readonly name: string
  readonly layers: number
  readonly width: number
  readonly heads: number
  readonly kvHeads: number
  /** Size of a query and key head; equal to the value head's in all architectures here. */
  readonly headDim: number
  readonly ffWidth: number
  readonly vocab: number
  /** Longest context the model was trained for, tokens. */
  readonly contextLength: number
  readonly normEpsilon: number
  readonly rope: RopeConfig
  /** Factor on the scores before softmax. */
  readonly attentionScale: number
  /** Scores are limited to +-this by tanh; 0: not. */
  readonly attentionSoftcap: number
  /** The same for logits. */
  readonly logitSoftcap: number
  /** Sliding-window attention of some layers; null: every layer sees everything. */
  readonly window: WindowConfig | null
}

export interface WindowConfig {
  /** Keys that a query sees, its own included. */
  readonly size: number
  /** Of every `period` layers the last one sees everything. */
  readonly period: number
  /** RoPE base of the windowed layers. */
  readonly ropeBase: number
  /** RoPE frequency scale of the windowed layers. */
  readonly ropeFrequencyScale: number
}

export interface RopeConfig extends RopeOptions {
  /** LongRoPE picks its long factors when the context is longer than this, tokens. */
  readonly longFrom: number
}

/** Whether layer `layer` sees only its window. */
export function isWindowed(config: ModelConfig, layer: number): boolean {
  return config.window !== null && layer % config.window.period < config.window.period - 1
}

/** RoPE of one layer: windowed layers can have a base of their own. */
export function ropeOf(config: ModelConfig, layer: number): RopeOptions {
  if (!config.window || !isWindowed(config, layer)) return config.rope
  return { ...config.rope, base: config.window.ropeBase, frequencyScale: config.window.ropeFrequencyScale }
}

/**
 * The keys that all architectures share, under the architecture's prefix.
 * @throws KvasirError MODEL_INVALID for missing or inconsistent keys, MODEL_UNSUPPORTED for parts not known here.
 */
export function baseConfig(file: GgufFile, pairs: RopePairs): ModelConfig {
  const meta = file.metadata
  const architecture = meta.getString('general.architecture')
  const key = (name: string) => `${architecture}.${name}`
  const invalid = (what: string) => new KvasirError('MODEL_INVALID', `${file.path}: ${what}`, { file: file.path })
  const whole = (name: string, fallback?: number) => {
    const n = uniform(meta, key(name), fallback)
    if (!Number.isSafeInteger(n) || n < 1) throw invalid(`${key(name)} is ${n}; it must be a whole number from 1 up`)
    return n
  }
  if (meta.getNumber(key('expert_count'), 0) > 0)
    throw new KvasirError(
      'MODEL_UNSUPPORTED',
      `${file.path}: mixtures of experts (${architecture}) are not supported yet`,
    )

  const layers = whole('block_count')
  const width = whole('embedding_length')
  const heads = whole('attention.head_count')
  const kvHeads = whole('attention.head_count_kv', heads)
  const headDim = whole('attention.key_length', width / heads)
  if (heads % kvHeads) throw invalid(`${heads} query heads are no multiple of ${kvHeads} KV heads`)
  if (whole('attention.value_length', headDim) !== headDim)
    throw new KvasirError('MODEL_UNSUPPORTED', `${file.path}: value heads that differ in size from key heads`)
  const embeddings = file.tensors.get('token_embd.weight')
  if (!embeddings) throw invalid('there is no tensor token_embd.weight')
  const contextLength = whole('context_length')
  return {
    architecture,
    name: meta.has('general.name') ? meta.getString('general.name') : architecture,
    layers,
    width,
    heads,
    kvHeads,
    headDim,
    ffWidth: whole('feed_forward_length'),
    vocab: embeddings.ne[1],
    contextLength,
    normEpsilon: meta.getNumber(key('attention.layer_norm_rms_epsilon')),
    rope: ropeConfig(meta, key, pairs, whole('rope.dimension_count', headDim), contextLength, invalid),
    attentionScale: 1 / Math.sqrt(headDim),
    attentionSoftcap: 0,
    logitSoftcap: 0,
    window: null,
  }
}

/** A number, or an array of one number per layer as long as they are all equal. */
function uniform(meta: GgufMetadata, key: string, fallback?: number): number {
  const raw = meta.has(key) ? meta.raw(key) : undefined
  if (raw?.type !== 'array') return meta.getNumber(key, fallback)
  const values = meta.getNumberArray(key)
  const first = values[0]
  if (first === undefined || values.some((v) => v !== first))
    throw new KvasirError('MODEL_UNSUPPORTED', `${key} differs from layer to layer: [${[...values].slice(0, 8)}, ...]`)
  return first
}

/**
 * RoPE scaling as llama.cpp reads it: `linear` and `yarn` divide frequencies by the factor; YaRN's magnitude correction
 * happens inside the op, so its attention factor is cancelled here, in f32 as llama.cpp does.
 */
function ropeConfig(
  meta: GgufMetadata,
  key: (name: string) => string,
  pairs: RopePairs,
  dims: number,
  contextLength: number,
  invalid: (what: string) => KvasirError,
): RopeConfig {
  const type = meta.has(key('rope.scaling.type')) ? meta.getString(key('rope.scaling.type')) : 'linear'
  if (!['none', 'linear', 'yarn', 'longrope'].includes(type)) throw invalid(`${key('rope.scaling.type')} is "${type}"`)
  const factor = meta.getNumber(key('rope.scaling.factor'), meta.getNumber(key('rope.scale_linear'), 0))
  if (factor < 0) throw invalid(`${key('rope.scaling.factor')} is ${factor}`)
  const frequencyScale = type === 'none' || factor === 0 ? 1 : Math.fround(1 / factor)
  const yarn = type === 'yarn'
  let attentionFactor = 1
  if (yarn && frequencyScale !== 1) {
    const f = Math.fround
    const magnitude = f(f(f(0.1) * f(Math.log(f(1 / frequencyScale)))) + 1)
    attentionFactor = f(magnitude * f(1 / magnitude))
  }
  attentionFactor *= meta.getNumber(key('rope.scaling.attn_factor'), 1)
  const originalContext = meta.getNumber(key('rope.scaling.original_context_length'), contextLength)
  return {
    dims,
    pairs,
    base: meta.getNumber(key('rope.freq_base'), 10000),
    frequencyScale,
    extFactor: yarn ? 1 : 0,
    attentionFactor,
    betaFast: meta.getNumber(key('rope.scaling.yarn_beta_fast'), 32),
    betaSlow: meta.getNumber(key('rope.scaling.yarn_beta_slow'), 1),
    originalContext,
    longFrom: originalContext,
  }
}
