/** Server-sent events from a response, as they come. `EventSource` could send no key. */

export interface ReceivedEvent {
  /** Empty where the API does not name its events. */
  readonly event: string
  readonly data: string
}

export async function* eventsOf(response: Response): AsyncGenerator<ReceivedEvent> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      const blocks = (rest + read.value).split('\n\n')
      rest = blocks.pop()!
      for (const block of blocks) {
        const event = parseBlock(block)
        if (event) yield event
      }
    }
  } finally {
    await reader.cancel().catch(() => {})
  }
}

/** Null for comments, which only keep the connection. */
function parseBlock(block: string): ReceivedEvent | null {
  const fields = new Map(block.split('\n').map((line) => line.split(/: (.*)/s, 2) as [string, string]))
  const data = fields.get('data')
  return data === undefined ? null : { event: fields.get('event') ?? '', data }
}
