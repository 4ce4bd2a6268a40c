// A reporter of failed tests alone: what `npm test` prints again when everything has run.
import { relative } from 'node:path'
import { inspect } from 'node:util'

export default async function* failures(events) {
  for await (const { type, data } of events) {
    if (type !== 'test:fail' || data.details?.error?.failureType === 'subtestsFailed') continue
    const error = data.details?.error?.cause ?? data.details?.error
    const where = data.file ? ` (${relative(process.cwd(), data.file)})` : ''
    yield `✖ ${data.name}${where}\n${inspect(error).replace(/^/gm, '    ')}\n\n`
  }
}
