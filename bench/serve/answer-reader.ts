/** Reads the server-sent events of one streamed answer, and notes when its pieces came. */

interface Usage {
  readonly prompt_tokens?: number
  readonly completion_tokens?: number
  readonly prompt_tokens_details?: { readonly cached_tokens?: number } | null
}

interface Choice {
  readonly text?: string | null
  readonly delta?: {
    readonly role?: string | null
    readonly content?: string | null
    readonly reasoning?: string | null
    readonly reasoning_content?: string | null
  }
  readonly finish_reason?: string | null
}

interface Chunk {
  readonly choices?: readonly Choice[]
  readonly usage?: Usage | null
  readonly error?: { readonly message?: string } | string | null
}

export class AnswerReader {
  text = ''
  usage: Usage | null = null
  /** When the first piece came, on the clock of {@link feed}; null: nothing yet. */
  firstMs: number | null = null
  /** When the last event of the answer came, its finish included. */
  lastMs = 0
  /** Gaps between pieces: of a token each for most servers, but several can come together. */
  readonly gapsMs: number[] = []
  /** What the server, or the form of its events, said went wrong. */
  error: string | null = null
  #rest = ''
  #complete = false
  #pieceMs = 0

  /** @param ms when this text was read; all events in it came then */
  feed(text: string, ms: number): void {
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop()!
    for (const line of lines) if (line.startsWith('data:')) this.#event(line.slice(5).trim(), ms)
  }

  /** Whether the answer came to its end; a connection can end before. */
  get complete(): boolean {
    return this.#complete
  }

  get pieces(): number {
    return this.firstMs === null ? 0 : 1 + this.gapsMs.length
  }

  #event(data: string, ms: number): void {
    if (data === '[DONE]') {
      this.#complete = true
      return
    }
    const chunk = parse(data)
    if (!chunk) {
      this.error ??= `an event is not a JSON object: ${data.slice(0, 100)}`
      return
    }
    if (chunk.error) this.error ??= typeof chunk.error === 'string' ? chunk.error : (chunk.error.message ?? data)
    if (chunk.usage) this.usage = chunk.usage
    const choice = chunk.choices?.[0]
    if (!choice) return
    this.lastMs = ms
    const ends = typeof choice.finish_reason === 'string'
    if (ends) this.#complete = true
    const text = textOf(choice)
    this.text += text
    // A chat's first event can tell the role alone, and come before any token; its last one the reason alone. An answer without
    // text has its only token there. Other empty texts are tokens: half a character, for instance.
    const isToken = text !== '' || (ends ? this.firstMs === null : !choice.delta?.role)
    if (isToken) this.#piece(ms)
  }

  #piece(ms: number): void {
    if (this.firstMs === null) this.firstMs = ms
    else this.gapsMs.push(ms - this.#pieceMs)
    this.#pieceMs = ms
  }
}

function textOf({ text, delta }: Choice): string {
  return text ?? `${delta?.reasoning_content ?? delta?.reasoning ?? ''}${delta?.content ?? ''}`
}

function parse(data: string): Chunk | null {
  try {
    const chunk: unknown = JSON.parse(data)
    return typeof chunk === 'object' ? chunk : null
  } catch {
    return null
  }
}
