/**
 * Every metric that a server has, each defined once: name, meaning, labels, bounds. Where vLLM has it too
 * (vllm/v1/metrics/loggers.py), name behind the prefix, unit, meaning and bounds are vLLM's, and `vllm` lists the names
 * under which `metricsCompat` gives it again.
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client'

/** Of a prompt or an answer, in tokens: 1, 2, 5, 10, 20, ... as vLLM's `build_1_2_5_buckets`. */
const TOKENS = [0, 1, 2, 3, 4, 5].flatMap((e) => [1, 2, 5].map((m) => m * 10 ** e)).filter((n) => n <= 200_000)
const STEP_ROWS = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384]

// Seconds. The bounds are vLLM's with finer ones below them: small models on a CPU are quicker than its first bound.
const FIRST_TOKEN = [
  ...[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640],
  2560,
]
const PER_TOKEN = [
  ...[0.0005, 0.001, 0.0025, 0.005],
  ...[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80],
]
const REQUEST = [
  ...[0.001, 0.003, 0.01, 0.03, 0.1],
  ...[0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680],
]
const STEP = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
const HTTP = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]

type Labels<L extends string> = readonly L[]

export type Families = ReturnType<typeof makeFamilies>

/** The metrics of one server, in a registry of its own. */
export function makeFamilies() {
  const registry = new Registry()
  /** Names in vLLM's words, by ours. */
  const vllm = new Map<string, readonly string[]>()
  const base = <L extends string>(suffix: string, help: string, labelNames: Labels<L>, alias: readonly string[]) => {
    const name = `kvasir_${suffix}`
    if (alias.length) vllm.set(name, alias)
    return { name, help, labelNames, registers: [registry] }
  }
  const counter = <L extends string>(suffix: string, help: string, labels: Labels<L>, ...alias: string[]) =>
    new Counter(base(suffix, help, labels, alias))
  const gauge = <L extends string>(suffix: string, help: string, labels: Labels<L>, ...alias: string[]) =>
    new Gauge(base(suffix, help, labels, alias))
  const histogram = <L extends string>(
    suffix: string,
    help: string,
    labels: Labels<L>,
    buckets: readonly number[],
    ...alias: string[]
  ) => new Histogram({ ...base(suffix, help, labels, alias), buckets: [...buckets] })
  /** Of a model, under vLLM's name too: the same one. */
  const model = ['model'] as const
  const seconds = (suffix: string, help: string, ...more: string[]) =>
    histogram(suffix, help, model, REQUEST, suffix, ...more)

  return {
    registry,
    vllm,

    // state ----------------------------------------------------------------------------------------------------------
    running: gauge('num_requests_running', 'Sequences that hold pages', model, 'num_requests_running'),
    waiting: gauge('num_requests_waiting', 'Requests that wait for pages', model, 'num_requests_waiting'),
    kvUsage: gauge(
      'kv_cache_usage_perc',
      'Share of KV memory that running requests hold; 1 is all. Stored prefixes that nobody uses count as free',
      model,
      ...['kv_cache_usage_perc', 'gpu_cache_usage_perc'],
    ),
    kvBytes: gauge(
      'kv_bytes',
      'Bytes of keys and values by tier, cache type and state: allocated, used (by requests and stored prefixes), prefix (by stored prefixes alone)',
      ['model', 'tier', 'type', 'state'] as const,
    ),
    scratchBytes: gauge('scratch_bytes', 'Bytes held for intermediate results', model),
    cacheConfig: gauge(
      'cache_config_info',
      'How the cache is set up; always 1',
      ['model', 'block_size', 'cache_dtype', 'num_gpu_blocks', 'enable_prefix_caching'] as const,
      'cache_config_info',
    ),
    restarts: counter('engine_restarts_total', 'Restarts of the engine process after a fault', model),

    // tokens ---------------------------------------------------------------------------------------------------------
    promptTokens: counter(
      'prompt_tokens_total',
      'Prompt tokens of requests that were admitted, cached ones included',
      model,
      'prompt_tokens_total',
    ),
    generatedTokens: counter('generation_tokens_total', 'Tokens generated', model, 'generation_tokens_total'),
    prefixQueries: counter(
      'prefix_cache_queries_total',
      'Prompt tokens that were looked up in the cache',
      model,
      ...['prefix_cache_queries_total', 'gpu_prefix_cache_queries_total'],
    ),
    prefixHits: counter(
      'prefix_cache_hits_total',
      'Prompt tokens that were found there',
      model,
      ...['prefix_cache_hits_total', 'gpu_prefix_cache_hits_total'],
    ),
    cachedTokens: counter('cached_tokens_total', 'Prompt tokens that were found, by where', [
      ...['model', 'source'],
    ] as const),

    // requests -------------------------------------------------------------------------------------------------------
    success: counter(
      'request_success_total',
      'Answers that ended, by reason; each of n samples is one',
      ['model', 'finished_reason'] as const,
      'request_success_total',
    ),
    refused: counter('requests_refused_total', 'Requests that the engine refused, by error code', [
      ...['model', 'code'],
    ] as const),
    preemptions: counter(
      'num_preemptions_total',
      'Times a running request had to give up its pages',
      model,
      'num_preemptions_total',
    ),
    firstToken: histogram(
      'time_to_first_token_seconds',
      "From a request's arrival at the server to its first token",
      model,
      FIRST_TOKEN,
      'time_to_first_token_seconds',
    ),
    interToken: histogram(
      'inter_token_latency_seconds',
      'Between tokens of one answer that follow each other',
      model,
      PER_TOKEN,
      // The second is its old name, which boards still have.
      ...['inter_token_latency_seconds', 'time_per_output_token_seconds'],
    ),
    perOutputToken: histogram(
      'request_time_per_output_token_seconds',
      'Mean time per token behind the first, one value per answer',
      model,
      PER_TOKEN,
      'request_time_per_output_token_seconds',
    ),
    endToEnd: seconds('e2e_request_latency_seconds', "From a request's arrival to the end of its answer"),
    queueTime: seconds('request_queue_time_seconds', 'Waiting for first pages'),
    prefillTime: seconds('request_prefill_time_seconds', 'From first pages to the end of the prompt'),
    decodeTime: seconds('request_decode_time_seconds', 'From the end of the prompt to the end of the answer'),
    inferenceTime: seconds('request_inference_time_seconds', 'From first pages to the end of the answer'),
    requestPrompt: histogram('request_prompt_tokens', 'Prompt tokens', model, TOKENS, 'request_prompt_tokens'),
    requestGenerated: histogram(
      'request_generation_tokens',
      'Tokens of an answer',
      model,
      TOKENS,
      'request_generation_tokens',
    ),
    requestMostGenerated: histogram(
      'request_max_num_generation_tokens',
      "Tokens of a request's longest answer",
      model,
      TOKENS,
      'request_max_num_generation_tokens',
    ),
    paramN: histogram('request_params_n', 'Answers asked for', model, [1, 2, 5, 10, 20], 'request_params_n'),
    paramMaxTokens: histogram(
      'request_params_max_tokens',
      'Tokens allowed, where the request says',
      model,
      TOKENS,
      'request_params_max_tokens',
    ),

    // memory ---------------------------------------------------------------------------------------------------------
    evictedPages: counter('evicted_pages_total', 'Pages of stored prefixes that made room, by what for', [
      ...['model', 'cause'],
    ] as const),
    evictedBytes: counter('evicted_bytes_total', 'Bytes of them', model),
    offloadedBytes: counter('offloaded_bytes_total', 'Bytes of evicted pages that a tier took', [
      ...['model', 'to'],
    ] as const),
    loadedBytes: counter('loaded_bytes_total', 'Bytes that were loaded from a tier', ['model', 'from'] as const),
    loadSeconds: counter('load_seconds_total', 'Time that loading took', ['model', 'from'] as const),
    loadDecisions: counter(
      'load_decisions_total',
      'Stored blocks that a tier had: loaded, or computed again because that was expected to be quicker',
      ['model', 'decision'] as const,
    ),

    // steps ----------------------------------------------------------------------------------------------------------
    iterationTokens: histogram('iteration_tokens_total', 'Rows of a step', model, STEP_ROWS, 'iteration_tokens_total'),
    stepRows: counter('step_rows_total', 'Rows computed, by kind', ['model', 'kind'] as const),
    stepSeconds: histogram('step_seconds', 'A step, from its plan to its results', model, STEP),
    stepCompute: counter('step_compute_seconds_total', 'Time of steps inside graph computation', model),

    // server ---------------------------------------------------------------------------------------------------------
    httpRequests: counter('http_requests_total', 'Requests, by route, method and status; 499: the client went away', [
      ...['route', 'method', 'status'],
    ] as const),
    httpDuration: histogram(
      'http_request_duration_seconds',
      'From the head of a request to the last byte of its answer',
      ['route', 'method'] as const,
      HTTP,
    ),
    loopLag: gauge(
      'event_loop_lag_seconds',
      "How late the server's event loop was since the last scrape, by quantile; 1 is the worst",
      ['quantile'] as const,
    ),
    buildInfo: gauge('build_info', 'Versions; always 1', ['version', 'node'] as const),
    processCpu: counter('process_cpu_seconds_total', 'CPU time of the server process', ['mode'] as const),
    processMemory: gauge('process_resident_memory_bytes', 'Memory of the server process', []),
    processHeap: gauge('process_heap_bytes', 'JavaScript heap in use', []),
    processStart: gauge('process_start_time_seconds', 'When the server process began, in Unix time', []),
  }
}
