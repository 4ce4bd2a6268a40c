/**
 * Chooses the next token from a model's logits, with libllama's samplers and grammar. The order of the steps is
 * llama.cpp's: logit bias, penalties, DRY, top-n-sigma, top-k, typical, top-p, min-p, XTC, temperature, draw.
 *
 * Grammar: asking about every token costs a hundred times an argmax, asking about one nearly nothing. So a token is
 * drawn first and the grammar is asked about it; only if it refuses are all tokens asked about, and another is drawn
 * from those it allows. Under a grammar the text stays valid UTF-8, and control tokens never stand for their text.
 */
import { isUtf8 } from 'node:buffer'
import { KvasirError } from '../../contract/errors.ts'
import type { Pointer } from '../../ggml/declare.ts'
import { Owned } from '../../ggml/owned.ts'
import { llama } from '../libllama/library.ts'
import { unfinishedBytes } from '../tokenizer/stream.ts'
import type { Tokenizer } from '../tokenizer/tokenizer.ts'
import { argmax, Candidates } from './candidates.ts'
import { namedTokens } from './gbnf.ts'
import { logSumExp, type TokenLogprob, topLogprobs } from './logprobs.ts'
import { checkSampling, type Sampling, type SamplingParams } from './params.ts'

export interface Sample {
  readonly token: number
  /** Of the token, before temperature, penalties and grammar; only if `logprobs` was asked for. */
  readonly logprob?: number
  /** The most likely tokens, most likely first; only if `logprobs` was asked for. */
  readonly top?: readonly TokenLogprob[]
}

/** One native sampler. */
class Step extends Owned {
  /** Takes part in `accept`. */
  readonly remembers: boolean
  readonly name: string

  constructor(name: string, ptr: Pointer | null, remembers = false) {
    super('sampler', ptr, `libllama could not make the sampler ${name}`)
    this.name = name
    this.remembers = remembers
  }

  clone(): Step {
    return new Step(this.name, llama.llama_sampler_clone(this.ptr), this.remembers)
  }

  protected override free(ptr: Pointer): void {
    llama.llama_sampler_free(ptr)
  }
}

/** What a clone takes over. */
interface Inheritance {
  readonly steps: Steps
  readonly textual: Uint8Array
  readonly tail: Uint8Array
}

interface Steps {
  /** Change logits by rule or by history. */
  readonly shape: readonly Step[]
  /** Everything between the shaping and the draw. Empty when greedy. */
  readonly narrow: readonly Step[]
  /** Null when greedy. */
  readonly draw: Step | null
  readonly grammar: Step | null
}

/** Probabilities below e^-80 are zeros in float32 sums; typical sampling cannot take their logarithm. */
const NEGLIGIBLE = 80
const UNKNOWN = 0
const FINE = 1
const REFUSED = 2
const NO_BYTES = new Uint8Array(0)

/** Lives no longer than its tokenizer. One thread. */
export class Sampler implements Disposable {
  readonly params: Sampling
  readonly #tokenizer: Tokenizer
  readonly #steps: Steps
  readonly #candidates: Candidates
  /** Under a grammar: bytes of a code point that is not complete yet. */
  #tail: Uint8Array = NO_BYTES
  /** A token that the grammar has allowed and that was not accepted yet. */
  #approved = -1
  /** Under a grammar, by token: whether its bytes may begin at the start of a code point. */
  readonly #textual: Uint8Array
  /** Control tokens that the grammar may mean; all others would only stand for their text. */
  readonly #markup: ReadonlySet<number> | 'any'
  #disposed = false

  /**
   * @throws KvasirError INVALID_ARGUMENT or GRAMMAR_INVALID, see {@link checkSampling}. With DRY every sequence breaker
   * costs a walk through the vocabulary.
   */
  constructor(tokenizer: Tokenizer, params: SamplingParams | Sampling = {}, inherited?: Inheritance) {
    this.params = checkSampling(params, tokenizer.vocabSize)
    const { grammar } = this.params
    this.#tokenizer = tokenizer
    this.#steps = inherited?.steps ?? makeSteps(tokenizer, this.params)
    this.#textual = inherited?.textual ?? new Uint8Array(grammar === undefined ? 0 : tokenizer.vocabSize)
    this.#tail = inherited?.tail ?? NO_BYTES
    this.#markup = grammar === undefined ? 'any' : namedTokens(grammar)
    this.#candidates = Candidates.borrow(tokenizer.vocabSize)
  }

  /** The seed in use: the one given, or the one chosen. */
  get seed(): number {
    return this.params.seed
  }

  /**
   * Chooses a token; its history does not change before {@link accept}.
   *
   * @param logits one for each token of the vocabulary; not changed.
   * @param forced chosen whatever the logits say; how likely it was is told as of any other.
   * @throws KvasirError NATIVE_FAILED for logits with NaN or without a finite highest one; GRAMMAR_INVALID when the
   * grammar allows no token of this vocabulary here.
   */
  sample(logits: Float32Array, forced?: number): Sample {
    this.#check()
    if (logits.length !== this.#tokenizer.vocabSize)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        `sample: ${logits.length} logits for a vocabulary of ${this.#tokenizer.vocabSize} tokens`,
      )
    const token = forced ?? this.#choose(logits)
    const { logprobs } = this.params
    if (logprobs === undefined) return { token }
    const norm = logSumExp(logits)
    return { token, logprob: logits[token]! - norm, top: topLogprobs(logits, logprobs, norm) }
  }

  /**
   * The token joins the text: penalties and grammar move on.
   *
   * @throws KvasirError INVALID_ARGUMENT for a token outside the vocabulary, or one that the grammar does not allow.
   */
  accept(token: number): void {
    this.#check()
    this.#checkToken(token)
    const { shape, grammar } = this.#steps
    if (grammar) {
      if (token !== this.#approved && !this.#allows(token))
        throw new KvasirError('INVALID_ARGUMENT', `accept: the grammar does not allow token ${token} here`, { token })
      llama.llama_sampler_accept(grammar.ptr, token)
      this.#tail = this.#tailAfter(token)
      this.#approved = -1
    }
    for (const step of shape) if (step.remembers) llama.llama_sampler_accept(step.ptr, token)
  }

  /** Tokens that came before the answer: they count for penalties, not for the grammar. */
  acceptPrompt(tokens: ArrayLike<number>): void {
    this.#check()
    const { dry, repeatLastN } = this.params
    const remembering = this.#steps.shape.filter((step) => step.remembers)
    if (remembering.length === 0) return
    // what lies further back would fall out of every window again
    const from = Math.max(0, tokens.length - Math.max(repeatLastN, dry.penaltyLastN))
    for (let i = from; i < tokens.length; i++) this.#checkToken(tokens[i]!)
    for (const step of remembering)
      for (let i = from; i < tokens.length; i++) llama.llama_sampler_accept(step.ptr, tokens[i]!)
  }

  /** Whether the grammar allows this token next. Always true without a grammar. */
  allows(token: number): boolean {
    this.#check()
    this.#checkToken(token)
    return this.#steps.grammar === null || this.#allows(token)
  }

  /**
   * An independent sampler with the same history.
   *
   * @param options with another seed, what the clone draws differs; without, it draws the same.
   */
  clone(options: { readonly seed?: number } = {}): Sampler {
    this.#check()
    const { shape, narrow, draw, grammar } = this.#steps
    const reseed = options.seed !== undefined && options.seed !== this.params.seed
    const params = reseed
      ? checkSampling({ ...given(this.params), seed: options.seed }, this.#tokenizer.vocabSize)
      : this.params
    const chance = reseed ? makeChance(params) : null
    const steps = {
      shape: shape.map((step) => step.clone()),
      narrow: chance?.narrow ?? narrow.map((step) => step.clone()),
      draw: chance ? chance.draw : (draw?.clone() ?? null),
      grammar: grammar?.clone() ?? null,
    }
    return new Sampler(this.#tokenizer, params, { steps, textual: this.#textual, tail: this.#tail })
  }

  dispose(): void {
    this[Symbol.dispose]()
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return
    this.#disposed = true
    disposeSteps(this.#steps)
    this.#candidates.giveBack()
  }

  #choose(logits: Float32Array): number {
    const { shape, narrow, draw, grammar } = this.#steps
    const list = this.#candidates
    if (!draw && shape.length === 0) {
      const best = argmax(logits)
      if (!grammar || this.#allows(best)) return best
    } else {
      list.fill(logits)
      const drawn = this.#draw(shape, narrow, draw)
      if (!grammar || this.#allows(drawn)) return drawn
    }
    list.fill(logits)
    this.#retainAllowed(grammar)
    return (this.#approved = this.#draw(shape, narrow, draw))
  }

  #draw(shape: readonly Step[], narrow: readonly Step[], draw: Step | null): number {
    const list = this.#candidates
    for (const step of shape) llama.llama_sampler_apply(step.ptr, list.ptr)
    let at: number
    if (draw) {
      for (const step of narrow) {
        if (step.name === 'typical') {
          const least = list.logit(list.highest()) - NEGLIGIBLE
          list.retain((_, logit) => logit >= least)
        }
        llama.llama_sampler_apply(step.ptr, list.ptr)
      }
      llama.llama_sampler_apply(draw.ptr, list.ptr)
      at = list.selected
    } else {
      at = list.highest()
    }
    if (at < 0 || at >= list.size || list.logit(at) === -Infinity)
      throw new KvasirError(
        'INVALID_ARGUMENT',
        'no token is left to choose from: logitBias or penalties forbid all that the model and the grammar allow',
      )
    return list.token(at)
  }

  /** Asks the grammar about one token. */
  #allows(token: number): boolean {
    const { grammar } = this.#steps
    if (!grammar || !this.#continuesText(token)) return false
    this.#candidates.fillOne(token)
    llama.llama_sampler_apply(grammar.ptr, this.#candidates.ptr)
    const allowed = this.#candidates.logit(0) !== -Infinity
    if (allowed) this.#approved = token
    return allowed
  }

  #retainAllowed(grammar: Step | null): void {
    const list = this.#candidates
    if (!grammar) return
    llama.llama_sampler_apply(grammar.ptr, list.ptr)
    list.retain((token, logit) => logit !== -Infinity && this.#continuesText(token))
    if (list.size > 0) return
    throw new KvasirError(
      'GRAMMAR_INVALID',
      'the grammar allows no token of this vocabulary here, nor the end of the answer. ' +
        'It may need characters that the vocabulary lacks, or the model gives every allowed token no chance at all.',
    )
  }

  /** Conditions that libllama's grammar does not check: valid UTF-8, no NUL inside, no markup in place of text. */
  #continuesText(token: number): boolean {
    if (this.#tail.length > 0) {
      if (this.#tokenizer.isEndOfGeneration(token)) return false
      return isTextual(Buffer.concat([this.#tail, this.#tokenizer.piece(token)]))
    }
    if (this.#textual[token] === UNKNOWN) this.#textual[token] = this.#isTextual(token) ? FINE : REFUSED
    return this.#textual[token] === FINE
  }

  #isTextual(token: number): boolean {
    if (this.#tokenizer.isEndOfGeneration(token)) return true
    const piece = this.#tokenizer.piece(token)
    return piece.length === 0 ? this.#markup === 'any' || this.#markup.has(token) : isTextual(piece)
  }

  #tailAfter(token: number): Uint8Array {
    const piece = this.#tokenizer.piece(token)
    if (piece.length === 0) return this.#tail
    const bytes = Buffer.concat([this.#tail, piece])
    return bytes.subarray(bytes.length - unfinishedBytes(bytes))
  }

  #checkToken(token: number): void {
    this.#tokenizer.isControl(token) // throws outside the vocabulary
  }

  #check(): void {
    if (this.#disposed) throw new KvasirError('DISPOSED', 'this sampler was disposed of')
    void this.#tokenizer.ptr // the grammar reads the vocabulary: throws after the tokenizer's dispose
  }
}

function isTextual(bytes: Uint8Array): boolean {
  return !bytes.includes(0) && isUtf8(bytes.subarray(0, bytes.length - unfinishedBytes(bytes)))
}

/** Settled parameters as parameters. */
function given(sampling: Sampling): SamplingParams {
  return Object.fromEntries(Object.entries(sampling).filter(([, value]) => value !== undefined))
}

function makeSteps(tokenizer: Tokenizer, params: Sampling): Steps {
  const made: Step[] = []
  try {
    const shape = makeShape(tokenizer, params, made)
    const grammar = params.grammar === undefined ? null : makeGrammar(tokenizer, params.grammar)
    if (grammar) made.push(grammar)
    return { shape, grammar, ...makeChance(params) }
  } catch (error) {
    for (const step of made) step.dispose()
    throw error
  }
}

function makeShape(tokenizer: Tokenizer, params: Sampling, made: Step[]): Step[] {
  const { logitBias, repeatLastN, repeatPenalty, frequencyPenalty, presencePenalty, dry } = params
  const n = tokenizer.vocabSize
  if (logitBias.size > 0) {
    const entries = new DataView(new ArrayBuffer(logitBias.size * 8)) // llama_logit_bias: { i32 token, f32 bias }
    for (const [i, [token, bias]] of [...logitBias].entries()) {
      entries.setInt32(8 * i, token, true)
      entries.setFloat32(8 * i + 4, bias, true)
    }
    made.push(new Step('logit-bias', llama.llama_sampler_init_logit_bias(n, logitBias.size, entries)))
  }
  if (repeatLastN > 0 && (repeatPenalty !== 1 || frequencyPenalty !== 0 || presencePenalty !== 0)) {
    const penalties = llama.llama_sampler_init_penalties
    const ptr = penalties(n, repeatLastN, repeatPenalty, frequencyPenalty, presencePenalty)
    made.push(new Step('penalties', ptr, true))
  }
  if (dry.multiplier > 0) {
    const { multiplier, base, allowedLength, penaltyLastN, sequenceBreakers: texts } = dry
    const init = llama.llama_sampler_init_dry
    const ptr = init(tokenizer.vocabPtr, multiplier, base, allowedLength, penaltyLastN, texts, texts.length)
    made.push(new Step('dry', ptr, true))
  }
  return [...made]
}

/** The steps in which chance or truncation plays a part; none when greedy. */
function makeChance(params: Sampling): Pick<Steps, 'narrow' | 'draw'> {
  const { temperature, topK, topP, minP, typicalP, topNSigma, xtc, mirostat, seed } = params
  if (temperature === 0) return { narrow: [], draw: null }
  const narrow: Step[] = []
  const add = (name: string, ptr: Pointer | null) => narrow.push(new Step(name, ptr))
  if (!mirostat) {
    if (topNSigma > 0) add('top-n-sigma', llama.llama_sampler_init_top_n_sigma(topNSigma))
    if (topK > 0) add('top-k', llama.llama_sampler_init_top_k(topK))
    if (typicalP < 1) add('typical', llama.llama_sampler_init_typical(typicalP, 1))
    if (topP < 1) add('top-p', llama.llama_sampler_init_top_p(topP, 1))
    if (minP > 0) add('min-p', llama.llama_sampler_init_min_p(minP, 1))
    if (xtc && xtc.probability > 0) add('xtc', llama.llama_sampler_init_xtc(xtc.probability, xtc.threshold, 1, seed))
  }
  if (temperature !== 1) add('temperature', llama.llama_sampler_init_temp(temperature))
  const draw = mirostat
    ? new Step('mirostat', llama.llama_sampler_init_mirostat_v2(seed, mirostat.tau, mirostat.eta))
    : new Step('draw', llama.llama_sampler_init_dist(seed))
  return { narrow, draw }
}

function makeGrammar(tokenizer: Tokenizer, text: string): Step {
  const ptr = llama.llama_sampler_init_grammar(tokenizer.vocabPtr, text, 'root')
  if (ptr === null)
    throw new KvasirError('GRAMMAR_INVALID', 'libllama refused the grammar; KVASIR_NATIVE_LOG=1 may show why', { text })
  return new Step('grammar', ptr, true)
}

function disposeSteps({ shape, narrow, draw, grammar }: Steps): void {
  for (const step of [...shape, ...narrow, draw, grammar]) step?.dispose()
}
