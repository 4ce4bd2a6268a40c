/** `kvasir inspect`: what a model file is, where its weights would lie, what it would need. Reads only the header. */
import { type Command, Option } from 'commander'
import { showBytes } from '../contract/errors.ts'
import { completeOptions } from '../engine/options.ts'
import { freeHostBytes } from '../model/memory.ts'
import { type Description, describe, SHOWN_TYPES } from './describe.ts'
import { EXIT } from './failure.ts'
import { fit } from './fit.ts'
import { modelFile } from './model.ts'
import {
  addOptions,
  type EngineFlags,
  hostCacheOption,
  jsonOption,
  maxSequencesOption,
  memoryOptions,
  toEngineOptions,
} from './options.ts'
import { showFit } from './show-fit.ts'
import { type Column, Table } from './table.ts'

interface Flags extends EngineFlags {
  readonly json?: true
  readonly tensors?: true
  readonly fit?: true
}

export const inspectOptions = (): Option[] => [
  jsonOption('print one JSON object'),
  new Option('--tensors', 'list the tensors, too').conflicts('fit'),
  new Option('--device <name>', 'where the weights would go (default: as for run)'),
  new Option('--fit', 'say instead whether it fits into memory, and what would; exit code 1 when it does not'),
  // They would mean nothing without it.
  ...[...memoryOptions(), maxSequencesOption(), hostCacheOption()].map((option) => option.implies({ fit: true })),
]

export function addInspect(program: Command): void {
  const command = program
    .command('inspect')
    .description('say what a model file is, whether it runs and fits here, and what it would need')
    .argument('[model]', 'a GGUF file, hf:OWNER/REPO[:FILE], or house', 'house')
    .action(run)
  addOptions(command, inspectOptions())
}

async function run(model: string, flags: Flags): Promise<void> {
  const { json, tensors, device } = flags
  if (flags.fit) {
    const result = await fit(await modelFile(model), completeOptions(toEngineOptions(flags)))
    process.stdout.write(json ? `${JSON.stringify(result)}\n` : showFit(result))
    if (!result.fits) process.exitCode = EXIT.failed
    return
  }
  const description = await describe(await modelFile(model), device)
  const { tensor_list, ...rest } = description
  if (json) process.stdout.write(`${JSON.stringify(tensors ? description : rest)}\n`)
  else process.stdout.write(show(description) + (tensors ? showTensors(tensor_list) : ''))
}

function show(d: Description): string {
  const facts: [string, string][] = [
    ['name', d.name ?? '-'],
    ['architecture', `${d.architecture ?? '-'}${d.size_label ? `, ${d.size_label}` : ''}`],
    ['supported', d.supported ? 'yes' : `no: ${d.unsupported_reason}`],
    ['parameters', showCount(d.parameters)],
    ['file', `${showBytes(d.bytes)}, GGUF version ${d.gguf_version}${d.parts > 1 ? `, ${d.parts} parts` : ''}`],
    ['types', d.types.map((t) => `${t.type} ${t.tensors} tensors ${showBytes(t.bytes)}`).join(', ')],
    ['layers', `${d.layers ?? '-'}, width ${d.width ?? '-'}, feed-forward ${d.ff_width ?? '-'}`],
    ['heads', `${d.heads ?? '-'}, KV heads ${d.kv_heads ?? '-'}, head size ${d.head_dim ?? '-'}`],
    ['context', d.context_length === null ? '-' : `${d.context_length} tokens`],
    ['RoPE', showRope(d)],
    ['window', d.window ? `${d.window.size} tokens, all but every ${d.window.period}th layer` : 'none'],
    ['vocabulary', `${d.vocab.size ?? '-'} tokens, ${d.vocab.kind ?? '-'}`],
    ['chat template', d.chat_template ? 'yes' : 'no (ChatML is used)'],
  ]
  const lines = facts.map(([name, value]) => `  ${name.padEnd(14)} ${value}`)
  return [d.file, ...lines, '', showPlacement(d), showMemory(d)].join('\n')
}

function showRope({ rope }: Description): string {
  if (!rope) return '-'
  const scaling = rope.scaling === 'none' ? 'not scaled' : `scaled (${rope.scaling} x${rope.scaling_factor ?? '?'})`
  return `base ${rope.base}, ${rope.dims ?? '-'} dimensions, ${scaling}`
}

function showPlacement(d: Description): string {
  if (!d.placement) return ''
  const table = new Table<(typeof d.placement)[number]>([
    { title: `  weights on ${d.device}`, width: 24, left: true, show: (p) => `  ${p.where}` },
    { title: 'tensors', width: 7, show: (p) => String(p.tensors) },
    { title: 'size', width: 10, show: (p) => showBytes(p.bytes) },
  ])
  return `${table.head}${d.placement.map((p) => table.row(p)).join('')}`
}

function showMemory(d: Description): string {
  if (!d.memory) return ''
  type Row = (typeof d.memory)[number]
  const free = freeHostBytes()
  const columns: Column<Row>[] = SHOWN_TYPES.map((type) => ({
    title: `cache ${type}`,
    width: 12,
    show: (row) => {
      const bytes = row.total_bytes[type]
      return bytes === undefined ? '-' : `${bytes > free ? '! ' : ''}${showBytes(bytes)}`
    },
  }))
  const table = new Table<Row>([
    { title: '  memory at context', width: 24, left: true, show: (row) => `  ${row.context} tokens` },
    ...columns,
  ])
  const note = `  weights and KV cache together; ${showBytes(free)} are free here (!: more than that)\n`
  return `${table.head}${d.memory.map((row) => table.row(row)).join('')}${note}`
}

function showTensors(list: Description['tensor_list']): string {
  const table = new Table<(typeof list)[number]>([
    { title: '  tensor', width: 36, left: true, show: (t) => `  ${t.name}` },
    { title: 'type', width: 7, left: true, show: (t) => t.type },
    { title: 'shape', width: 18, left: true, show: (t) => `[${t.ne.join(', ')}]` },
    { title: 'size', width: 10, show: (t) => showBytes(t.bytes) },
  ])
  return `\n${table.head}${list.map((t) => table.row(t)).join('')}`
}

/** `1.24 B`, `494 M` */
function showCount(n: number): string {
  for (const [unit, size] of [
    ['B', 1e9],
    ['M', 1e6],
    ['K', 1e3],
  ] as const)
    if (n >= size) return `${(n / size).toPrecision(3)} ${unit}`
  return String(n)
}
