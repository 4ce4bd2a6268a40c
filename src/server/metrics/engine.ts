/** Metrics that come from an engine: counters from its events, as they happen; gauges from its status, when asked for. */
import { PAGE_CELLS } from '../../cache/arena.ts'
import type { EngineEvent, EvictCause } from '../../contract/events.ts'
import type { RequestId } from '../../contract/units.ts'
import type { EngineApi, EngineStatus } from '../../engine/api.ts'
import type { Families } from './families.ts'

/** An engine that is being restarted does not hold up a scrape for longer, in milliseconds. */
const STATUS_MS = 1000

const CAUSES = ['admission', 'growth', 'load', 'session'] as const satisfies readonly EvictCause[]
const TIERS = ['host', 'disk'] as const
const SOURCES = ['device', ...TIERS] as const

/** Counts what happens in an engine until the function that it gives is called. */
export function followEngine(f: Families, model: string, engine: EngineApi): () => void {
  beginAtZero(f, model)
  /** Requests that were not admitted yet; after a preemption they are again, and do not count twice. */
  const arrived = new Map<RequestId, number>()
  return engine.onEvent((event) => {
    count(f, model, event, arrived)
    // More cannot wait: the oldest one's engine crashed, and nobody tells its end.
    if (arrived.size > engine.info.maxWaiting) arrived.delete(arrived.keys().next().value!)
  })
}

function count(f: Families, model: string, event: EngineEvent, arrived: Map<RequestId, number>): void {
  switch (event.kind) {
    case 'request-arrive':
      arrived.set(event.request, event.promptTokens)
      break
    case 'request-admit': {
      const prompt = arrived.get(event.request)
      if (prompt === undefined) break
      arrived.delete(event.request)
      f.promptTokens.inc({ model }, prompt)
      f.prefixQueries.inc({ model }, prompt)
      f.prefixHits.inc({ model }, event.cachedTokens)
      for (const source of SOURCES) f.cachedTokens.inc({ model, source }, event.loadedTokens[source])
      break
    }
    case 'request-preempt':
      f.preemptions.inc({ model })
      break
    case 'request-end':
      arrived.delete(event.request)
      break
    case 'request-refuse':
      f.refused.inc({ model, code: event.code })
      break
    case 'pages-evict':
      f.evictedPages.inc({ model, cause: event.cause }, event.pages)
      f.evictedBytes.inc({ model }, event.bytes)
      break
    case 'pages-offload':
      f.offloadedBytes.inc({ model, to: event.to }, event.bytes)
      break
    case 'pages-load':
      f.loadDecisions.inc({ model, decision: 'load' })
      f.loadedBytes.inc({ model, from: event.from }, event.bytes)
      f.loadSeconds.inc({ model, from: event.from }, event.ms / 1000)
      break
    case 'load-decline':
      f.loadDecisions.inc({ model, decision: 'recompute' })
      break
    case 'step-end':
      f.iterationTokens.observe({ model }, event.prefillRows + event.decodeRows)
      f.stepRows.inc({ model, kind: 'prefill' }, event.prefillRows)
      f.stepRows.inc({ model, kind: 'decode' }, event.decodeRows)
      f.stepSeconds.observe({ model }, event.ms / 1000)
      f.stepCompute.inc({ model }, event.computeMs / 1000)
      break
  }
}

/** A counter that is there before its first event has a rate from the first event on. */
function beginAtZero(f: Families, model: string): void {
  for (const c of [f.promptTokens, f.generatedTokens, f.prefixQueries, f.prefixHits, f.preemptions]) c.inc({ model }, 0)
  for (const c of [f.evictedBytes, f.stepCompute]) c.inc({ model }, 0)
  for (const source of SOURCES) f.cachedTokens.inc({ model, source }, 0)
  for (const cause of CAUSES) f.evictedPages.inc({ model, cause }, 0)
  for (const code of ['QUEUE_FULL', 'KV_BUDGET']) f.refused.inc({ model, code }, 0)
  for (const reason of ['stop', 'length', 'abort', 'error']) f.success.inc({ model, finished_reason: reason }, 0)
  for (const decision of ['load', 'recompute']) f.loadDecisions.inc({ model, decision }, 0)
  for (const kind of ['prefill', 'decode']) f.stepRows.inc({ model, kind }, 0)
  for (const tier of TIERS) {
    f.offloadedBytes.inc({ model, to: tier }, 0)
    f.loadedBytes.inc({ model, from: tier }, 0)
    f.loadSeconds.inc({ model, from: tier }, 0)
  }
}

/** Sets the gauges anew. Engines that are not loaded, or do not answer now, have none. */
export async function readEngines(f: Families, engines: ReadonlyMap<string, EngineApi>): Promise<void> {
  const found = await Promise.all(
    [...engines].map(async ([model, engine]) => ({ model, engine, status: await statusOf(engine) })),
  )
  for (const g of [f.running, f.waiting, f.kvUsage, f.kvBytes, f.scratchBytes, f.cacheConfig, f.restarts]) g.reset()
  for (const { model, engine, status } of found) {
    describe(f, model, engine)
    if (status) show(f, model, engine, status)
  }
}

async function statusOf(engine: EngineApi): Promise<EngineStatus | null> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(resolve, STATUS_MS, null)
  })
  try {
    return await Promise.race([engine.status(), late])
  } catch {
    return null
  } finally {
    clearTimeout(timer)
  }
}

function cacheType({ info: { keyType, valueType } }: EngineApi): string {
  return keyType === valueType ? keyType : `${keyType}/${valueType}`
}

function describe(f: Families, model: string, engine: EngineApi): void {
  const { kvMemory, kvBytesPerToken } = engine.info
  f.cacheConfig.set(
    {
      model,
      block_size: String(PAGE_CELLS),
      cache_dtype: cacheType(engine),
      num_gpu_blocks: String(Math.floor(kvMemory / kvBytesPerToken / PAGE_CELLS)),
      enable_prefix_caching: 'True',
    },
    1,
  )
}

function show(f: Families, model: string, engine: EngineApi, { running, waiting, kv, ...s }: EngineStatus): void {
  f.running.set({ model }, running)
  f.waiting.set({ model }, waiting)
  f.kvUsage.set({ model }, (kv.usedBytes - kv.prefixBytes) / kv.allocatedBytes)
  f.scratchBytes.set({ model }, s.scratchBytes)
  f.restarts.inc({ model }, s.totals.restarts)
  const type = cacheType(engine)
  const bytes = (tier: string, state: string, n: number) => f.kvBytes.set({ model, tier, type, state }, n)
  bytes('device', 'allocated', kv.allocatedBytes)
  bytes('device', 'used', kv.usedBytes)
  bytes('device', 'prefix', kv.prefixBytes)
  bytes('host', 'used', kv.hostBytes)
  bytes('disk', 'used', kv.diskBytes)
}
