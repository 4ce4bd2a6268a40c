/** An answer as the events of OpenAI's responses; the last of them holds the whole response. */
import type { BlockEvent } from '../blocks.ts'
import type { OpenAiError } from '../errors.ts'
import type { EndEvent } from '../gather.ts'
import { logprobOf } from '../logprobs.ts'
import { callItem, ended, itemId, messageItem, type OutputItem, outputText, type ResponseObject } from './response.ts'

export interface ResponseEvent {
  readonly type: string
  readonly sequence_number: number
  readonly [field: string]: unknown
}

/** A closed block waits for what follows it: only then it is known whether the answer was cut off in it. */
type Close = Extract<BlockEvent, { readonly kind: 'close' }>

export class ResponseWriter {
  #response: ResponseObject
  #output: OutputItem[] = []
  #sequence = 0
  /** Of the block that is open. */
  #id = ''

  constructor(response: ResponseObject) {
    this.#response = response
  }

  get response(): ResponseObject {
    return this.#response
  }

  async *write(blocks: AsyncIterable<BlockEvent>): AsyncGenerator<ResponseEvent> {
    let begun = false
    let closed: Close | null = null
    for await (const event of blocks) {
      // Not before there is something to tell: until then an error has its own status.
      if (!begun) yield* this.#begin()
      begun = true
      if (closed) yield* this.#close(closed, event.kind === 'end' && event.finish === 'length')
      closed = event.kind === 'close' ? event : null
      yield* this.#event(event)
    }
  }

  /** The last event of an answer that broke off. */
  failed({ error: { code, message } }: OpenAiError): ResponseEvent {
    const error = { code: code ?? 'server_error', message }
    this.#response = { ...this.#response, status: 'failed', error, output: this.#output }
    return this.#make('response.failed', { response: this.#response })
  }

  *#begin(): Generator<ResponseEvent> {
    yield this.#make('response.created', { response: this.#response })
    yield this.#make('response.in_progress', { response: this.#response })
  }

  *#event(event: BlockEvent): Generator<ResponseEvent> {
    switch (event.kind) {
      case 'open':
        yield* this.#open(event)
        break
      case 'text':
        yield this.#make('response.output_text.delta', {
          ...this.#part(event.index),
          ...{ delta: event.text, logprobs: event.tokens.map(logprobOf) },
        })
        break
      case 'json':
        yield this.#make('response.function_call_arguments.delta', { ...this.#item(event.index), delta: event.json })
        break
      case 'close':
        break
      case 'end':
        yield this.#end(event)
        break
    }
  }

  *#open({ index, block }: Extract<BlockEvent, { readonly kind: 'open' }>): Generator<ResponseEvent> {
    this.#id = itemId(block)
    const isText = block.kind === 'text'
    const item = isText ? messageItem(this.#id, 'in_progress', null) : callItem(this.#id, 'in_progress', block)
    yield this.#make('response.output_item.added', { output_index: index, item })
    if (isText) yield this.#make('response.content_part.added', { ...this.#part(index), part: outputText(block) })
  }

  *#close({ index, block }: Close, cutOff: boolean): Generator<ResponseEvent> {
    const status = cutOff ? 'incomplete' : 'completed'
    let item: OutputItem
    if (block.kind === 'text') {
      const part = outputText(block)
      const { text, logprobs } = part
      yield this.#make('response.output_text.done', { ...this.#part(index), text, logprobs })
      yield this.#make('response.content_part.done', { ...this.#part(index), part })
      item = messageItem(this.#id, status, part)
    } else {
      const { name, json } = block
      yield this.#make('response.function_call_arguments.done', { ...this.#item(index), name, arguments: json })
      item = callItem(this.#id, status, block)
    }
    this.#output.push(item)
    yield this.#make('response.output_item.done', { output_index: index, item })
  }

  #end(end: EndEvent): ResponseEvent {
    this.#response = ended(this.#response, this.#output, end)
    return this.#make(`response.${this.#response.status}`, { response: this.#response })
  }

  #item(index: number): object {
    return { item_id: this.#id, output_index: index }
  }

  /** Messages here have one part. */
  #part(index: number): object {
    return { ...this.#item(index), content_index: 0 }
  }

  #make(type: string, fields: object): ResponseEvent {
    return { type, sequence_number: this.#sequence++, ...fields }
  }
}
