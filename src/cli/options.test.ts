import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { Command } from 'commander'
import { CACHE_TYPES } from '../cache/arena.ts'
import { completeOptions, type EngineOptions } from '../engine/options.ts'
import { SCHEDULERS } from '../scheduler/index.ts'
import { addOptions, type EngineFlags, engineOptions, servingOptions, toEngineOptions } from './options.ts'

/** What the library gets for a command line. */
function parsed(...args: string[]): EngineOptions {
  const command = addOptions(new Command().exitOverride(), engineOptions(), servingOptions())
  command.configureOutput({ writeErr: () => {} }).parse(args, { from: 'user' })
  return toEngineOptions(command.opts<EngineFlags>())
}

describe('flags of an engine', () => {
  it('become its options, and nothing becomes nothing', () => {
    assert.deepEqual(parsed(), {})
    const memory = ['--kv-memory', '2G', '--host-cache', '512MiB', '--disk-cache', 'x', '--disk-cache-bytes', '1.5GB']
    const steps = ['--scheduler', 'fcfs', '--token-budget', '64', '--max-sequences', '3', '--max-waiting', '9']
    const options = parsed(...memory, ...steps, '-c', '100', '-t', '1')
    assert.deepEqual(options, {
      ...{ kvMemory: 2 ** 31, hostCacheBytes: 2 ** 29, diskCache: 'x', diskCacheBytes: 1.5e9 },
      ...{ scheduler: 'fcfs', tokenBudget: 64, maxSequences: 3, maxWaiting: 9, contextLength: 100, threads: 1 },
    })
    assert.equal(completeOptions(options).scheduler, 'fcfs')
    assert.equal(completeOptions(parsed('--host-cache', '0')).hostCacheBytes, 0)
  })

  it('take every cache type and scheduler, and no other', () => {
    for (const type of CACHE_TYPES)
      assert.deepEqual(parsed('--cache-type-k', type, '--cache-type-v', type), { keyType: type, valueType: type })
    for (const name of Object.keys(SCHEDULERS)) assert.deepEqual(parsed('--scheduler', name), { scheduler: name })
    for (const wrong of [
      ['--cache-type-k', 'q2_0'],
      ['--scheduler', 'sarathy'],
      ['--kv-memory', '2X'],
      ['--kv-memory'],
    ])
      assert.throws(() => parsed(...wrong), { name: /InvalidArgumentError|CommanderError/ }, wrong.join(' '))
  })
})
