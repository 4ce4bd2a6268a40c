/** All that `import 'kvasir'` gives. */
export { CACHE_TYPES, type CacheType } from './cache/arena.ts'
export type { Calibration } from './contract/calibration.ts'
export { ERROR_CODES, type ErrorCode, KvasirError } from './contract/errors.ts'
export type { EngineEvent, Logged } from './contract/events.ts'
export type { Observation, ObservationNeeds, ObservedLayer, Statistic } from './contract/observation.ts'
export type {
  CompressionPlan,
  Merge,
  ModelDims,
  OptionSpec,
  OptionSpecs,
  OptionsOf,
  PolicyDefinition,
  PolicyState,
  PromptAhead,
  StagePlan,
  StageState,
} from './contract/policy.ts'
export type {
  ArenaMap,
  CacheMap,
  CacheSnapshot,
  EngineApi,
  EngineInfo,
  EngineStatus,
  RequestStatus,
} from './engine/api.ts'
export { type Embedding, type EmbedRequest, POOLINGS, type Pooling } from './engine/embed.ts'
export { Engine } from './engine/engine.ts'
export { LocalEngine } from './engine/local.ts'
export type { EngineOptions } from './engine/options.ts'
export type {
  CacheTypesRequest,
  FinishReason,
  GeneratePart,
  GenerateRequest,
  PromptRequest,
  SharingRequest,
  Timings,
  TokenLogprob,
  TokenText,
} from './engine/request.ts'
export { LOWERINGS, type LoweringName } from './executor/lower/lowering.ts'
export type { SamplingParams } from './model/sampling/params.ts'
export type { ChatMessage } from './model/template/template.ts'
export type { ToolFormat } from './model/tools/format.ts'
export type { LoadProgress, WeightReport } from './model/weights/load.ts'
export {
  type Budget,
  choosePolicy,
  definePolicy,
  POLICIES,
  type PolicyName,
  type PolicySpec,
  parseBudget,
  registerPolicy,
} from './policies/index.ts'
