/** The turns of a chat, and what the engine made of them. No terminal here. */
import { KvasirError } from '../contract/errors.ts'
import type { Engine } from '../engine/engine.ts'
import type { FinishReason, GenerateRequest, Timings } from '../engine/request.ts'
import type { ChatMessage } from '../model/template/template.ts'

export class Conversation {
  readonly #engine: Engine
  readonly #request: Pick<GenerateRequest, 'sampling' | 'maxTokens' | 'stop'>
  #turns: ChatMessage[] = []
  system: string | null
  /** Of the last answer. */
  timings: Timings | null = null

  constructor(
    engine: Engine,
    request: Pick<GenerateRequest, 'sampling' | 'maxTokens' | 'stop'>,
    system: string | null,
  ) {
    this.#engine = engine
    this.#request = request
    this.system = system
  }

  get contextLength(): number {
    return this.#engine.info.contextLength
  }

  get messages(): ChatMessage[] {
    return [...(this.system === null ? [] : [{ role: 'system', content: this.system }]), ...this.#turns]
  }

  async kvBytes(): Promise<{ readonly allocated: number; readonly used: number }> {
    const { kv } = await this.#engine.status()
    return { allocated: kv.allocatedBytes, used: kv.usedBytes }
  }

  clear(): void {
    this.#turns = []
    this.timings = null
  }

  /**
   * Adds a user's turn and the answer to it, also an answer that was stopped or cut off. When there is none, the user's
   * turn goes, too: what the model never answered must not stand in its history.
   * @throws KvasirError CONTEXT_OVERFLOW, TEMPLATE_FAILED
   */
  async say(
    text: string,
    signal: AbortSignal,
    onText: (piece: string) => void,
  ): Promise<FinishReason['kind'] | 'stopped'> {
    const user: ChatMessage = { role: 'user', content: text }
    let content = ''
    let end: FinishReason['kind'] | 'stopped' = 'stopped'
    try {
      const messages = [...this.messages, user]
      for await (const part of this.#engine.generate({ ...this.#request, messages, signal })) {
        // Models begin with the space or newline behind their header; it belongs to the template, not to the answer.
        const piece = content === '' ? part.text.trimStart() : part.text
        content += piece
        if (piece) onText(piece)
        if (part.kind === 'end') {
          this.timings = part.timings
          end = part.reason.kind
        }
      }
    } catch (error) {
      if (!(error instanceof KvasirError) || error.code !== 'ABORTED') throw error
    }
    if (content !== '' || end !== 'stopped') this.#turns.push(user, { role: 'assistant', content: content.trimEnd() })
    return end
  }
}
