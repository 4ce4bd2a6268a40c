import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { parseBytes, typedBytes } from './bytes.ts'

describe('sizes', () => {
  it('are read', () => {
    const sizes: Record<string, number> = {
      0: 0,
      4096: 4096,
      '12b': 12,
      '1k': 1024,
      '1KB': 1000,
      '512MiB': 2 ** 29,
      '512 mib': 2 ** 29,
      '2GiB': 2 ** 31,
      '2G': 2 ** 31,
      '1.5GB': 1.5e9,
      '.5T': 2 ** 39,
      '1.0005KB': 1000,
    }
    for (const [text, bytes] of Object.entries(sizes)) assert.equal(parseBytes(text), bytes, text)
  })

  it('are refused when they are not sizes', () => {
    for (const text of ['', ' ', '-1', 'GiB', '2X', '2GiBs', '1e9', '0x10', '1,5GB', '2G 1M', '99999999T', 'NaN'])
      assert.throws(() => parseBytes(text), { name: 'InvalidArgumentError', code: 'commander.invalidArgument' }, text)
  })

  it('can be typed back', () => {
    assert.equal(typedBytes(2 ** 20), '1MiB')
    assert.equal(typedBytes(2 ** 20 + 1), '2MiB')
    assert.ok(parseBytes(typedBytes(123_456_789)) >= 123_456_789)
  })
})
