/** What a loaded engine is: for people, and for the names of its cached blocks. */
import { PAGE_CELLS } from '../cache/arena.ts'
import { type CacheIdentity, fileDigest } from '../cache/identity.ts'
import { rotationName } from '../cache/rotation.ts'
import type { KvStore } from '../cache/store.ts'
import type { Model } from '../model/model.ts'
import { ChatTemplate } from '../model/template/template.ts'
import type { ToolFormat } from '../model/tools/format.ts'
import { callsToken } from '../model/tools/mistral.ts'
import type { EngineInfo } from './api.ts'
import type { CompleteOptions } from './options.ts'

export function describe(model: Model, store: KvStore, o: CompleteOptions, contextLength: number): EngineInfo {
  const { file, config, device, tokenizer, weights } = model
  const arena = store.home
  const { architecture, name, layers, width, heads, kvHeads, headDim } = config
  return {
    file: file.path,
    ...{ name, architecture, layers, width, heads, kvHeads, headDim },
    vocabSize: tokenizer.vocabSize,
    device: device.name,
    contextLength,
    kvMemory: store.bytes,
    kvBytesPerToken: arena.pageBytes / PAGE_CELLS,
    ...{ keyType: o.keyType, valueType: o.valueType, scheduler: o.scheduler },
    ...{ tokenBudget: o.tokenBudget, maxSequences: o.maxSequences, maxWaiting: o.maxWaiting },
    toolFormat: toolFormat(model),
    toolCallToken: callsToken(tokenizer),
    weights: weights.report,
  }
}

/** A broken template fails the requests that need it, not the engine. */
function toolFormat({ tokenizer }: Model): ToolFormat {
  try {
    return ChatTemplate.of(tokenizer).toolFormat
  } catch {
    return 'generic'
  }
}

export async function fullIdentity(model: Model, store: KvStore, o: CompleteOptions): Promise<CacheIdentity> {
  return identityOf(model, store, o, await modelDigest(model))
}

/** SHA-256 of each of its files: read whole once, then remembered. */
export async function modelDigest({ file }: Model): Promise<string> {
  const digests = await Promise.all(file.parts.map((part) => fileDigest(part.path)))
  return digests.join('+')
}

/** What cached rows depend on. Vocabulary and merges are in the model's file: one digest serves both. */
export function identityOf({ config }: Model, store: KvStore, o: CompleteOptions, digest: string): CacheIdentity {
  const { keyType, valueType, valuesTransposed } = store.home.shape
  const rows = `${valuesTransposed ? 'transposed' : 'rows'} ${rotationName(store.home.shape)}`
  const layout = `page${PAGE_CELLS} ${rows} ${o.lowering}`
  return {
    model: digest,
    tokenizer: digest,
    adapters: [],
    rope: { ...config.rope },
    kv: { keys: keyType, values: valueType, layout },
    policy: { name: 'full', params: {} },
    tenant: '',
    salt: '',
  }
}
