/** Several generators read as one. */

/**
 * Runs `sources` side by side, at most `limit` at once, and gives what comes as it comes. When one fails, or the reader
 * leaves, all of them are stopped.
 */
export async function* merge<T>(
  sources: readonly ((signal: AbortSignal) => AsyncGenerator<T>)[],
  limit: number,
  signal: AbortSignal,
): AsyncGenerator<T> {
  const stop = new AbortController()
  const either = AbortSignal.any([signal, stop.signal])
  const running = new Map<AsyncGenerator<T>, Promise<readonly [AsyncGenerator<T>, IteratorResult<T, unknown>]>>()
  const advance = (source: AsyncGenerator<T>): void => {
    // The one that was just read goes to the end: of several that are ready, the first is taken.
    running.delete(source)
    running.set(
      source,
      source.next().then((result) => [source, result] as const),
    )
  }
  let next = 0
  try {
    for (;;) {
      for (; running.size < limit && next < sources.length; next++) advance(sources[next]!(either))
      if (running.size === 0) return
      const [source, result] = await Promise.race(running.values())
      if (result.done) running.delete(source)
      else {
        yield result.value
        advance(source)
      }
    }
  } finally {
    stop.abort()
    await Promise.allSettled([...running.keys()].map((source) => source.return(undefined)))
  }
}
