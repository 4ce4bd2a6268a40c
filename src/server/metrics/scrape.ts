/** The text of a scrape, and what is read only then. */
import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks'
import type { EngineApi } from '../../engine/api.ts'
import { readEngines } from './engine.ts'
import type { Families } from './families.ts'

/** How often the event loop is looked at, in milliseconds; what is measured beyond that is its lag. */
const LOOP_MS = 10
const QUANTILES = [0.5, 0.9, 0.99, 1] as const

export class Scraper implements Disposable {
  readonly #families: Families
  readonly #compat: boolean
  readonly #loop: IntervalHistogram = monitorEventLoopDelay({ resolution: LOOP_MS })

  constructor(families: Families, version: string, compat: boolean) {
    this.#families = families
    this.#compat = compat
    this.#loop.enable()
    families.buildInfo.set({ version, node: process.version }, 1)
    families.processStart.set((Date.now() - 1000 * process.uptime()) / 1000)
  }

  async text(engines: ReadonlyMap<string, EngineApi>): Promise<string> {
    const { registry, vllm } = this.#families
    await readEngines(this.#families, engines)
    this.#readProcess()
    const ours = await registry.metrics()
    if (!this.#compat) return ours
    const theirs: string[] = []
    for (const [name, aliases] of vllm) {
      const text = await registry.getSingleMetricAsString(name)
      for (const alias of aliases) theirs.push(inVllmTerms(text, name, alias))
    }
    return `${ours}\n${theirs.join('\n\n')}\n`
  }

  #readProcess(): void {
    const { loopLag, processCpu, processMemory, processHeap } = this.#families
    for (const quantile of QUANTILES) {
      const ms = this.#loop.percentile(100 * quantile) / 1e6
      loopLag.set({ quantile: String(quantile) }, Math.max(0, ms - LOOP_MS) / 1000)
    }
    this.#loop.reset()
    const { user, system } = process.cpuUsage()
    processCpu.reset()
    processCpu.inc({ mode: 'user' }, user / 1e6)
    processCpu.inc({ mode: 'system' }, system / 1e6)
    const { rss, heapUsed } = process.memoryUsage()
    processMemory.set(rss)
    processHeap.set(heapUsed)
  }

  [Symbol.dispose](): void {
    this.#loop.disable()
  }
}

/**
 * One metric's text under vLLM's name and labels. Quotes within a label's value are escaped, so that `model="` behind a
 * brace or comma is always the label itself.
 */
function inVllmTerms(text: string, name: string, alias: string): string {
  return text
    .replace(new RegExp(`^(# (?:HELP|TYPE) )?${name}`, 'gm'), `$1vllm:${alias}`)
    .replace(/(?<=[{,])model="/g, 'engine="0",model_name="')
}
