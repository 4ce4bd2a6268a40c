/** Board, page and scrape name the same metrics. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { it } from 'node:test'
import { chat, scrape, start } from './server.fixture.ts'

it('has every metric of the board and of the page, and the page has every metric', async () => {
  await using server = await start({ metricsCompat: 'vllm' })
  await chat(server, { max_tokens: 3 })
  const metrics = await scrape(server)
  const read = (path: string) => readFileSync(new URL(`../../../docs/${path}`, import.meta.url), 'utf8')
  const named = (text: string) =>
    [...new Set(text.match(/\bkvasir_[a-z0-9_]+/g))].map((n) => {
      const whole = n.replace(/_(bucket|sum|count)$/, '')
      return metrics.families.get(whole)?.type === 'histogram' ? whole : n
    })
  const page = named(read('metrics.md'))
  const ours = [...metrics.families.keys()].filter((n) => n.startsWith('kvasir_'))
  assert.deepEqual(
    page.filter((n) => !metrics.families.has(n)),
    [],
  )
  assert.deepEqual(
    ours.filter((n) => !page.includes(n)),
    [],
  )
  assert.deepEqual(
    ours.filter((n) => metrics.families.get(n)!.samples.length === 0),
    [],
  )
  const theirs = [...metrics.families.keys()].filter((n) => n.startsWith('vllm:'))
  const listed = [...new Set(read('metrics.md').match(/\bvllm:[a-z0-9_]+/g))]
  assert.deepEqual(listed.sort(), theirs.sort())
  const board = JSON.parse(read('grafana/kvasir.json')) as {
    readonly panels: readonly { readonly title: string; readonly targets?: readonly { readonly expr: string }[] }[]
  }
  const queries = board.panels.flatMap((p) => (p.targets ?? []).map((t) => t.expr))
  assert.ok(queries.length > 20)
  for (const query of queries) {
    assert.ok(named(query).length > 0, query)
    assert.deepEqual(
      named(query).filter((n) => !metrics.families.has(n)),
      [],
      query,
    )
    const labels = named(query).flatMap((n) => {
      const { type, samples } = metrics.families.get(n)!
      return [...Object.keys(samples[0]!.labels), ...(type === 'histogram' ? ['le'] : [])]
    })
    const selected = [...query.matchAll(/\{([^}]*)\}/g)].flatMap(([, m]) => m!.match(/\w+(?=[=!]~?["=])/g) ?? [])
    const grouped = [...query.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, names]) => names!.split(', '))
    for (const label of [...selected, ...grouped]) assert.ok(labels.includes(label), `${query} has no label ${label}`)
  }
})
