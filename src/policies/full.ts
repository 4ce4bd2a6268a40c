/**
 * Full: everything is kept. What every other policy is compared with.
 *
 * Exact    always
 */
import { definePolicy } from './define.ts'

export const full = definePolicy({
  name: 'full',
  family: 'eviction',
  summary: 'keeps everything: the cache that others are compared with',
  paper: null,
  options: {},
  observes: () => ({}),
  afterPrefill: () => ({ kind: 'keep-all' }),
})
