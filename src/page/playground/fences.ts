/** Fenced code in a text; everything else stays as it was written. */

export type Segment =
  | { readonly kind: 'text'; readonly text: string }
  /** An open fence at the end of an answer that is still coming counts as one. */
  | { readonly kind: 'code'; readonly language: string; readonly text: string }

const FENCE = /^ {0,3}```([^\n`]*)\n([\s\S]*?)(?:^ {0,3}```[ \t]*(?:\n|$)|(?![\s\S]))/gm

export function segments(text: string): readonly Segment[] {
  const found: Segment[] = []
  let at = 0
  for (const match of text.matchAll(FENCE)) {
    if (match.index > at) found.push({ kind: 'text', text: text.slice(at, match.index) })
    found.push({ kind: 'code', language: match[1]!.trim(), text: match[2]!.replace(/\n$/, '') })
    at = match.index + match[0].length
  }
  if (at < text.length) found.push({ kind: 'text', text: text.slice(at) })
  return found
}
