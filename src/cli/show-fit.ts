/** `kvasir inspect --fit` for people. */
import { showBytes } from '../contract/errors.ts'
import { typedBytes } from './bytes.ts'
import type { Capacity, Fit, Mend } from './fit.ts'
import { Table } from './table.ts'

export function showFit(f: Fit): string {
  const types = f.cache_type_k === f.cache_type_v ? f.cache_type_k : `${f.cache_type_k} and ${f.cache_type_v}`
  const lines: [string, number, string][] = [
    ['weights', f.weights_bytes, ''],
    ['KV memory', f.kv_bytes, `${f.kv_tokens} tokens in ${f.pages} pages, ${showBytes(f.kv_bytes_per_token)} a token`],
    ['intermediate', f.scratch_bytes, `steps of ${f.token_budget} rows`],
    ['together', f.needed_bytes, `of ${showBytes(f.free_bytes)} that are free`],
  ]
  const table = new Table<(typeof lines)[number]>([
    { title: `  on ${f.device}`, width: 14, left: true, show: ([what]) => `  ${what}` },
    { title: 'size', width: 10, show: ([, bytes]) => showBytes(bytes) },
    { title: '', width: 0, left: true, show: ([, , note]) => note },
  ])
  return [
    `${f.file}: context of ${f.context} tokens${contextNote(f)}, cache ${types}\n`,
    `${table.head}${lines.map((line) => table.row(line)).join('')}\n`,
    showCapacity(f),
    verdict(f),
  ].join('')
}

function contextNote({ context, model_context }: Fit): string {
  return context > model_context ? ` (the model was trained for ${model_context})` : ''
}

function showCapacity(f: Fit): string {
  const table = new Table<Capacity>([
    { title: '  sequences at once', width: 19, show: (c) => String(c.sequences) },
    { title: 'longest context each', width: 20, show: (c) => String(c.context) },
    { title: 'with all that is free', width: 21, show: (c) => (c.most_context ? String(c.most_context) : '-') },
    {
      title: '',
      width: 0,
      left: true,
      show: (c) => (c.most_context ? `--kv-memory ${typedBytes(c.most_kv_memory_bytes)}` : ''),
    },
  ])
  const { sequences_of_context: whole, context } = f
  const note = `  KV memory holds ${whole} ${whole === 1 ? 'sequence' : 'sequences'} of ${context} tokens at once\n\n`
  return `${table.head}${f.capacity.map((c) => table.row(c)).join('')}${note}`
}

function verdict(f: Fit): string {
  if (!f.problem) return `fits: needs ${showBytes(f.needed_bytes)}, ${showBytes(f.free_bytes)} are free\n`
  const mends = f.mends.map((mend) => `  ${showMend(mend)}\n`).join('')
  const mend = mends
    ? `What would, each by itself:\n${mends}`
    : 'No setting mends that: take a smaller model, or free memory\n'
  return `does not fit: ${why(f)}. ${mend}`
}

function why({ problem, context }: Fit): string {
  switch (problem?.kind) {
    case 'memory':
      return `needs ${showBytes(problem.needed_bytes)}, ${showBytes(problem.free_bytes)} are free`
    case 'kv-memory':
      return (
        `${context ? `a context of ${context} tokens` : 'the smallest cache'} needs ${showBytes(problem.needed_bytes)} of ` +
        `KV memory, --kv-memory is ${showBytes(problem.kv_memory_bytes)}`
      )
    case 'index':
      return `a cache of ${problem.tokens} tokens is more than the ${problem.most_tokens} that 32-bit indices reach`
    default:
      return ''
  }
}

function showMend(mend: Mend): string {
  if (mend.kind === 'flags') return mend.flags
  return `a ${mend.type} file of this model (about ${showBytes(mend.weights_bytes)} of weights)`
}
