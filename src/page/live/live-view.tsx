/** The engine while it works. */
import * as format from '../format.ts'
import { model, models } from '../server.ts'
import { CacheView } from './cache-view.tsx'
import { connection, history, paused, rates, status } from './feed.ts'
import { Latencies, Steps } from './plots.tsx'
import { Requests } from './requests.tsx'
import { Tiers } from './tiers.tsx'

export function LiveView() {
  return (
    <div class="engine">
      <div class="row">
        <ModelFacts />
        <button type="button" aria-pressed={paused.value} onClick={() => (paused.value = !paused.value)}>
          {paused.value ? 'Resume' : 'Pause'}
        </button>
      </div>
      <Notice />
      <Totals />
      <CacheView />
      <Tiers />
      <Steps />
      <Latencies />
      <Requests />
    </div>
  )
}

function ModelFacts() {
  const info = models.value.find(({ id }) => id === (model.value || models.value[0]?.id))?.info
  if (!info) return <p class="facts" />
  return (
    <p class="facts">
      {`${info.name} · ${info.architecture}, ${info.layers} layers · context ${format.count(info.contextLength)} · ${info.scheduler} · ${info.device}`}
    </p>
  )
}

function Notice() {
  const state = models.value.find(({ id }) => id === (model.value || models.value[0]?.id))?.state
  const text = {
    lost: 'The connection to the server was lost; it is tried again.',
    locked: 'The engine can be watched with an API key.',
    paused: 'Paused: what happens meanwhile is not shown.',
    connecting: null,
    live: state === 'loaded' || state === undefined ? null : 'This model is not loaded: the first message loads it.',
  }[connection.value]
  const dropped = history.value.dropped
  const missed = dropped > 0 ? `${format.count(dropped)} events came faster than this page took them.` : null
  return text || missed ? (
    <p class="notice" role="status">
      {text ?? missed}
    </p>
  ) : null
}

function Totals() {
  const seen = status.value?.status
  const { promptPerSecond, generatedPerSecond } = rates.value
  const totals = seen?.totals
  const figures: readonly (readonly [string, string, string])[] = [
    ['Generating', format.significant(generatedPerSecond), 'tokens/s'],
    ['Reading', format.significant(promptPerSecond), 'tokens/s'],
    ['Cache hits', totals ? format.percent(totals.cachedTokens, totals.promptTokens) : '–', 'of prompts'],
    ['In the cache', seen ? format.bytes(seen.kv.usedBytes) : '–', 'keys and values'],
    ['Requests', totals ? format.count(totals.requests) : '–', 'so far'],
    ['Preempted', totals ? format.count(totals.preemptions) : '–', 'times'],
  ]
  return (
    <dl class="totals">
      {figures.map(([name, value, unit]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>
            <b>{value}</b> <span class="note">{unit}</span>
          </dd>
        </div>
      ))}
    </dl>
  )
}
