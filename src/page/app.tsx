/** The frame: what stands above both parts, and which of them a small screen shows. */
import { signal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { connection, follow } from './live/feed.ts'
import { LiveView } from './live/live-view.tsx'
import { Playground } from './playground/playground.tsx'
import { apiKey, giveKey, keyWanted, model, models, version } from './server.ts'
import { THEMES, type Theme, theme } from './theme.ts'

const PARTS = [
  ['playground', 'Playground'],
  ['live', 'Engine'],
] as const
type Part = (typeof PARTS)[number][0]

/** On a small screen. */
const shown = signal<Part>('playground')

export function App() {
  useEffect(follow, [])
  return (
    <>
      <header class="top">
        <h1>
          Kvasir <span class="note">{version.value}</span>
        </h1>
        <ModelChoice />
        <Connection />
        <ThemeChoice />
      </header>
      {keyWanted.value === 'no' ? null : <KeyForm />}
      <nav class="tabs" aria-label="Parts of the page">
        {PARTS.map(([part, label]) => (
          <button key={part} type="button" aria-pressed={shown.value === part} onClick={() => (shown.value = part)}>
            {label}
          </button>
        ))}
      </nav>
      <main data-shown={shown.value}>
        <section class="part" id="playground" aria-label="Playground">
          <Playground />
        </section>
        <section class="part" id="live" aria-label="Engine">
          <LiveView />
        </section>
      </main>
    </>
  )
}

function ModelChoice() {
  const list = models.value
  if (list.length < 2) return list[0] ? <span class="model">{list[0].id}</span> : null
  return (
    <label class="choice">
      <span>Model</span>
      <select value={model.value || list[0]!.id} onChange={(event) => (model.value = event.currentTarget.value)}>
        {list.map(({ id, state }) => (
          <option key={id} value={id}>
            {state === 'loaded' ? id : `${id} (${state})`}
          </option>
        ))}
      </select>
    </label>
  )
}

function Connection() {
  const text = { live: 'live', connecting: 'connecting', lost: 'connection lost', paused: 'paused', locked: 'locked' }
  return (
    <span class={`connection ${connection.value}`} role="status">
      {text[connection.value]}
    </span>
  )
}

function ThemeChoice() {
  return (
    <label class="choice theme">
      <span>Theme</span>
      <select value={theme.value} onChange={(event) => (theme.value = event.currentTarget.value as Theme)}>
        {THEMES.map((name) => (
          <option key={name} value={name}>
            {name}
          </option>
        ))}
      </select>
    </label>
  )
}

function KeyForm() {
  const keep = (event: Event) => {
    event.preventDefault()
    const input = (event.currentTarget as HTMLFormElement).elements.namedItem('key') as HTMLInputElement
    if (input.value.trim() !== '') giveKey(input.value.trim())
  }
  return (
    <form class="key" onSubmit={keep}>
      <label for="key">
        {keyWanted.value === 'wrong' ? 'This server does not know that API key.' : 'This server asks for an API key.'}
      </label>
      <input id="key" name="key" type="password" autocomplete="off" defaultValue={apiKey.value} />
      <button type="submit" class="primary">
        Use it
      </button>
      <p class="note">It is kept until this tab is closed.</p>
    </form>
  )
}
