/** An engine whose memory is in pieces: every other page belongs to a sequence of its own, so that tables are gathered. */
import type { BlockRef } from '../../src/cache/column.ts'
import type { KvStore } from '../../src/cache/store.ts'
import { LocalEngine } from '../../src/engine/local.ts'
import type { EngineOptions } from '../../src/engine/options.ts'

/** Takes every other page; how many sequences hold them. */
export function fragment(store: KvStore): number {
  const all: BlockRef[] = []
  for (let page = store.takePage(0, null); page; page = store.takePage(0, page.page)) all.push(page)
  let held = 0
  for (const page of all)
    if (page.page % 2 === 1) store.releasePage(page)
    else {
      store.adopt(store.create(0), [page], 0)
      held++
    }
  return held
}

export async function load(model: string, options: EngineOptions): Promise<LocalEngine> {
  const engine = await LocalEngine.load(model, options)
  fragment(engine.store)
  return engine
}
