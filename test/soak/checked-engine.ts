/** The engine of the soak's process: it checks its store whenever it is asked for its status while idle. */
import { checkStore } from '../../src/cache/check.ts'
import { LocalEngine } from '../../src/engine/local.ts'
import type { EngineOptions } from '../../src/engine/options.ts'

export async function load(model: string, options: EngineOptions): Promise<LocalEngine> {
  const engine = await LocalEngine.load(model, options)
  const status = engine.status.bind(engine)
  engine.status = async () => {
    const now = await status()
    if (now.running === 0 && now.waiting === 0) {
      checkStore(engine.store, engine.prefixes.check())
      if (engine.store.sequences.size > 0)
        throw new Error(`${engine.store.sequences.size} sequences are left though idle`)
    }
    return now
  }
  return engine
}
