/** From what a user calls a model to an engine. */
import { existsSync } from 'node:fs'
import { KvasirError } from '../contract/errors.ts'
import { Engine } from '../engine/engine.ts'
import { modelPath } from '../engine/options.ts'
import { isHubName, parseHubName } from './hub/name.ts'
import { pull, pulledModel } from './hub/pull.ts'
import { interruptible } from './interrupt.ts'
import { type EngineFlags, toEngineOptions } from './options.ts'
import { downloadBar, loadingBar } from './progress.ts'

/** A path for the library. Models of the hub are pulled when they are not here. @throws KvasirError as {@link pull} */
export async function modelFile(model: string): Promise<string> {
  if (isHubName(model)) {
    const name = parseHubName(model)
    const here = pulledModel(name)
    if (here !== null) return here
    const say = (text: string) => void process.stderr.write(`${text}\n`)
    return (await interruptible((signal) => pull(name, { signal, say, progress: downloadBar }))).path
  }
  const path = modelPath(model)
  if (!existsSync(path) && /^[\w.-]+\/[\w.-]+(:.*)?$/.test(model))
    throw new KvasirError('MODEL_NOT_FOUND', `there is no file ${model}. For a model of the hub write hf:${model}`, {
      file: model,
    })
  return path
}

export async function loadEngine(model: string, flags: EngineFlags): Promise<Engine> {
  const path = await modelFile(model)
  const bar = loadingBar()
  try {
    return await Engine.load(path, { ...toEngineOptions(flags), onProgress: (done, total) => bar.update(done, total) })
  } finally {
    bar.end()
  }
}
