/** What a person reads when a server is ready. */
import { showBytes } from '../contract/errors.ts'
import type { EngineInfo } from '../engine/api.ts'

export interface ReadyFacts {
  readonly version: string
  /** By which this machine reaches it. */
  readonly url: string
  readonly page: boolean
  readonly needsKey: boolean
  /** No info: not loaded yet. */
  readonly models: readonly { readonly id: string; readonly info: EngineInfo | null }[]
}

export function banner({ version, url, page, needsKey, models }: ReadyFacts): string {
  const width = Math.max(...models.map(({ id }) => id.length))
  const [first, ...others] = models.map(({ id, info }) => `${id.padEnd(width)}  ${describe(info)}`)
  const body = JSON.stringify({ model: models[0]!.id, messages: [{ role: 'user', content: 'Hello' }] })
  const lines = [
    `Kvasir ${version} is ready.`,
    '',
    ...(page ? [`  page    ${url}/`] : []),
    `  OpenAI  ${url}/v1    base URL for clients`,
    `  models  ${first}`,
    ...others.map((line) => `          ${line}`),
    '',
    `  curl ${url}/v1/chat/completions \\`,
    ...(needsKey ? ['    -H "Authorization: Bearer $KVASIR_API_KEY" \\'] : []),
    `    -H 'Content-Type: application/json' -d ${quoted(body)}`,
    '',
  ]
  return `${lines.join('\n')}\n`
}

function describe(info: EngineInfo | null): string {
  if (!info) return 'loaded when it is asked for'
  return `context ${info.contextLength} tokens, KV memory ${showBytes(info.kvMemory)}, on ${info.device}`
}

/** For a shell. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`
}

/** A server that listens on all addresses is reached by this machine's own. */
export function reachableUrl(url: string): string {
  return url.replace('//0.0.0.0:', '//127.0.0.1:').replace('//[::]:', '//[::1]:')
}
