/** Where a message is written: Enter sends, Shift+Enter breaks the line, Esc stops the answer. */
import { signal } from '@preact/signals'
import { running, send, stop } from './answer.ts'
import { current } from './conversations.ts'
import { firstProblem, parameters } from './parameters.ts'

/** What was typed, by conversation. */
const drafts = signal<ReadonlyMap<string, string>>(new Map())

export function Composer() {
  const { id } = current.value
  const draft = drafts.value.get(id) ?? ''
  const isRunning = running.value.has(id)
  const problem = firstProblem(parameters.value)
  const setDraft = (text: string) => (drafts.value = new Map(drafts.value).set(id, text))
  const submit = (event: Event) => {
    event.preventDefault()
    if (isRunning || problem || draft.trim() === '') return
    setDraft('')
    send(id, draft)
  }
  const onKeyDown = (event: KeyboardEvent) => {
    // Enter also ends the composition of a character.
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) submit(event)
    if (event.key === 'Escape') stop(id)
  }
  return (
    <form class="composer" onSubmit={submit}>
      <textarea
        id="message"
        aria-label="Message"
        placeholder="Write a message"
        rows={2}
        value={draft}
        onInput={(event) => setDraft(event.currentTarget.value)}
        onKeyDown={onKeyDown}
      />
      <div class="row">
        <p class="hint" id="composer-hint">
          {problem ? `Mend the parameter “${problem}” first.` : 'Enter sends, Shift+Enter breaks the line, Esc stops.'}
        </p>
        {isRunning ? (
          <button type="button" class="primary" onClick={() => stop(id)}>
            Stop
          </button>
        ) : (
          <button type="submit" class="primary" disabled={draft.trim() === '' || problem !== null}>
            Send
          </button>
        )}
      </div>
    </form>
  )
}
