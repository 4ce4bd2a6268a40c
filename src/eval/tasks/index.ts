/** All tasks by name. The names of SCBench's are those of its files. */
import { KvasirError, nearest } from '../../contract/errors.ts'
import type { Task } from './example.ts'
import { multiturn, niahMultikey, niahMultiquery, niahSingle } from './house/needle-tasks.ts'
import { rag, twohop } from './house/passage-tasks.ts'
import * as tables from './house/table-tasks.ts'
import { choiceEng } from './scbench/choice-eng.ts'
import { kv } from './scbench/kv.ts'
import { manyShot } from './scbench/many-shot.ts'
import { mf } from './scbench/mf.ts'
import { prefixSuffix } from './scbench/prefix-suffix.ts'
import { qaChn } from './scbench/qa-chn.ts'
import { qaEng } from './scbench/qa-eng.ts'
import { repoqa } from './scbench/repoqa.ts'
import { repoqaAndKv } from './scbench/repoqa-and-kv.ts'
import { summary } from './scbench/summary.ts'
import { summaryWithNeedles } from './scbench/summary-with-needles.ts'
import { vt } from './scbench/vt.ts'

export const TASKS: readonly Task[] = [
  ...[niahSingle, niahMultikey, niahMultiquery, multiturn, rag, twohop],
  ...[tables.kv, tables.vt, tables.mapping, tables.freq],
  ...[kv, prefixSuffix, vt, repoqa, qaEng, qaChn, choiceEng, mf, manyShot, summary, summaryWithNeedles, repoqaAndKv],
]

const FAMILIES = ['house', 'scbench'] as const

/** Tasks by their names, or by those of their families. @throws KvasirError INVALID_ARGUMENT with the nearest known name. */
export function tasksNamed(names: readonly string[]): Task[] {
  const known = [...FAMILIES, ...TASKS.map((t) => t.name)]
  const unknown = names.find((name) => !known.includes(name))
  if (unknown !== undefined) {
    const near = nearest(unknown, known)
    const hint = near === null ? `Known: ${known.join(', ')}` : `Did you mean ${near}?`
    throw new KvasirError('INVALID_ARGUMENT', `there is no task "${unknown}". ${hint}`, { task: unknown })
  }
  return TASKS.filter((t) => names.includes(t.name) || names.includes(t.family))
}
