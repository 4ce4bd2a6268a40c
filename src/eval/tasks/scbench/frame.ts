/** What the stand-ins for SCBench's tasks have in common. */
import { defineTask, type Task } from '../example.ts'

export function defineScbenchTask(task: Omit<Parameters<typeof defineTask>[0], 'family'>): Task {
  return defineTask({ ...task, family: 'scbench' })
}

/** Questions of an example, as in the paper. */
export const TURNS = 5

/** Neither digits nor letters that look like others: strings of these are in no text by chance. */
export const SYMBOLS = 'abcdefghjkmnpqrstuvwxyz23456789'
