/** The tokens of a request's prompt. */
import { KvasirError } from '../contract/errors.ts'
import type { ChatTemplate } from '../model/template/template.ts'
import type { Tokenizer } from '../model/tokenizer/tokenizer.ts'
import { checkPrompt, type PromptRequest } from './request.ts'

/**
 * @param template called for messages only: a model may have a broken one
 * @throws KvasirError INVALID_ARGUMENT, TEMPLATE_FAILED
 */
export function encodePrompt(request: PromptRequest, tokenizer: Tokenizer, template: () => ChatTemplate): Int32Array {
  checkPrompt(request)
  const tokens = encode(request, tokenizer, template)
  if (tokens.length === 0)
    throw new KvasirError('INVALID_ARGUMENT', 'the prompt is empty: there is nothing to continue')
  return tokens
}

function encode(request: PromptRequest, tokenizer: Tokenizer, template: () => ChatTemplate): Int32Array {
  const { messages, tools, templateOptions, prompt = '', addSpecial = true, tokens } = request
  if (tokens) {
    const bad = [...tokens].find((t) => !Number.isInteger(t) || t < 0 || t >= tokenizer.vocabSize)
    if (bad !== undefined)
      throw new KvasirError('INVALID_ARGUMENT', `token ${bad} is outside the vocabulary`, { field: 'tokens' })
    return Int32Array.from(tokens)
  }
  if (!messages) return tokenizer.encode(prompt, { addSpecial, parseSpecial: true })
  const text = template().render(messages, {
    ...(tools ? { tools } : {}),
    ...(templateOptions ? { extra: templateOptions } : {}),
  })
  return tokenizer.encode(text, { addSpecial: !template().writesBos(text), parseSpecial: true })
}
