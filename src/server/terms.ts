/** Errors that arise below an API name fields as chat completions call them; each other API has its own names. */
import { ApiError, refusalOf } from './errors.ts'

/** What is found in the name of a field, and what stands for it. */
export type Terms = readonly (readonly [found: RegExp, instead: string])[]

/** An error that names a field of this API; others are given back as they are. */
export function inTerms(error: unknown, terms: Terms): unknown {
  const { status, message, code, param } = refusalOf(error)
  if (param === null) return error
  const own = terms.reduce((name, [found, instead]) => name.replace(found, instead), param)
  if (own === param) return error
  // Plain words are left alone in a message: they may be meant as words.
  const text = /^[a-z]+$/.test(param) ? message : message.replaceAll(param, own)
  return new ApiError(status, text, { param: own, ...(code === null ? {} : { code }) })
}

/** Runs `handler`; its errors speak in these terms. */
export async function speaking<T>(terms: Terms, handler: () => Promise<T>): Promise<T> {
  try {
    return await handler()
  } catch (error) {
    throw inTerms(error, terms)
  }
}
