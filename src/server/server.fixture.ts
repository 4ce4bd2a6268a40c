/** A real server on the house model, its engine in this process, for tests. */
import type { EngineApi } from '../engine/api.ts'
import { LocalEngine } from '../engine/local.ts'
import type { EngineOptions } from '../engine/options.ts'
import type { ServerOptions } from './options.ts'
import { type Server, startServer } from './server.ts'

/** One thread: tests share the machine with what they test. */
export const SMALL: EngineOptions = { contextLength: 2048, threads: 1, maxSequences: 8 }

export async function startHouse(
  options: Partial<ServerOptions> = {},
  engine: EngineOptions = SMALL,
): Promise<Server & { engineOf(): EngineApi }> {
  const server = await startServer(
    { port: 0, drainMs: 2000, models: [{ id: 'house', path: 'house', engine }], ...options },
    { load: (path, o) => LocalEngine.load(path, o) },
  )
  return Object.assign(server, { engineOf: () => server.pool.loaded()[0]!.engine })
}

/** POST of JSON (or of text as it is); status, headers and parsed body. */
export async function post(
  url: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<{ status: number; headers: Headers; body: Record<string, unknown> }> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  })
  const text = await response.text()
  return { status: response.status, headers: response.headers, body: JSON.parse(text) as Record<string, unknown> }
}

/** The data of a stream of server-sent events, as they come. */
export async function* eventsOf(response: Response): AsyncGenerator<{ event: string | null; data: string }> {
  let rest = ''
  const decoder = new TextDecoder()
  for await (const bytes of response.body!) {
    rest += decoder.decode(bytes as Uint8Array, { stream: true })
    const blocks = rest.split('\n\n')
    rest = blocks.pop()!
    for (const block of blocks) {
      const lines = block.split('\n')
      const data = lines.find((l) => l.startsWith('data: '))?.slice(6)
      const event = lines.find((l) => l.startsWith('event: '))?.slice(7) ?? null
      if (data !== undefined) yield { event, data }
    }
  }
}
