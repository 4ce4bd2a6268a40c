/** A turn of a conversation. Texts become text nodes, never markup. */
import { useSignal } from '@preact/signals'
import * as format from '../format.ts'
import { advice, type FailureInfo } from '../server.ts'
import { editLast, regenerate } from './answer.ts'
import type { Answer, AnswerFigures, Turn } from './conversations.ts'
import { segments } from './fences.ts'

interface MessageProps {
  readonly id: string
  readonly turn: Turn
  /** It can be answered anew, or edited. */
  readonly isLast: boolean
  readonly isBusy: boolean
}

export function Message({ id, turn, isLast, isBusy }: MessageProps) {
  const editing = useSignal(false)
  const { role, text } = turn
  return (
    <article class={`turn ${role}`} aria-busy={role === 'assistant' && turn.state === 'running'}>
      <h3>{role === 'user' ? 'You' : turn.model || 'Answer'}</h3>
      {editing.value ? (
        <EditForm id={id} text={text} onDone={() => (editing.value = false)} />
      ) : (
        <>
          <Text text={role === 'user' ? text : text.trimStart()} />
          {role === 'assistant' ? <Outcome id={id} answer={turn} /> : null}
          <div class="actions">
            {text ? <CopyButton text={text} label={role === 'user' ? 'Copy message' : 'Copy answer'} /> : null}
            {isLast && !isBusy && role === 'user' ? (
              <button type="button" class="quiet" onClick={() => (editing.value = true)}>
                Edit
              </button>
            ) : null}
            {isLast && !isBusy && role === 'assistant' && turn.state !== 'failed' ? (
              <button type="button" class="quiet" onClick={() => regenerate(id)}>
                Regenerate
              </button>
            ) : null}
          </div>
        </>
      )}
    </article>
  )
}

function Text({ text }: { readonly text: string }) {
  return (
    <div class="text">
      {segments(text).map((segment, i) =>
        segment.kind === 'text' ? (
          <p key={i}>{segment.text}</p>
        ) : (
          <figure key={i} class="code">
            <figcaption>
              <span>{segment.language || 'text'}</span>
              <CopyButton text={segment.text} label="Copy code" />
            </figcaption>
            {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable by keyboard */}
            <pre tabIndex={0}>
              <code>{segment.text}</code>
            </pre>
          </figure>
        ),
      )}
    </div>
  )
}

function Outcome({ id, answer: { state, text, figures, failure } }: { readonly id: string; readonly answer: Answer }) {
  if (failure) return <FailureNote id={id} failure={failure} />
  if (state === 'running') return text === '' ? <p class="figures waiting">Waiting for the first token</p> : null
  const notes = [
    ...(figures ? describe(figures) : []),
    ...(state === 'stopped' ? ['stopped'] : []),
    ...(state === 'cut' ? ['cut off by the limit of tokens'] : []),
    ...(text === '' && state === 'complete' ? ['an empty answer'] : []),
  ]
  return (
    <p class="figures">
      {notes.map((note) => (
        <span key={note}>{note}</span>
      ))}
    </p>
  )
}

function describe({ promptTokens, cachedTokens, generatedTokens, ttftMs, generatedMs }: AnswerFigures): string[] {
  return [
    `${format.count(generatedTokens)} tokens`,
    ...(generatedMs > 0 ? [`${format.significant((1000 * generatedTokens) / generatedMs)} tokens/s`] : []),
    `first token after ${format.ms(ttftMs)}`,
    `${format.count(cachedTokens)} of ${format.count(promptTokens)} prompt tokens cached`,
  ]
}

function FailureNote({ id, failure }: { readonly id: string; readonly failure: FailureInfo }) {
  return (
    <div class="failure" role="alert">
      <p>{failure.message}</p>
      <p>{advice(failure)}</p>
      <button type="button" onClick={() => regenerate(id)}>
        Try again
      </button>
    </div>
  )
}

function CopyButton({ text, label }: { readonly text: string; readonly label: string }) {
  const state = useSignal<'' | 'Copied' | 'Not allowed'>('')
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text)
      state.value = 'Copied'
    } catch {
      state.value = 'Not allowed'
    }
    setTimeout(() => (state.value = ''), 1500)
  }
  return (
    <button type="button" class="quiet" aria-label={state.value || label} onClick={() => void copy()}>
      {state.value || 'Copy'}
    </button>
  )
}

function EditForm({ id, text, onDone }: { readonly id: string; readonly text: string; readonly onDone: () => void }) {
  const draft = useSignal(text)
  const answer = (event: Event) => {
    event.preventDefault()
    if (draft.value.trim() === '') return
    onDone()
    editLast(id, draft.value)
  }
  return (
    <form class="edit" onSubmit={answer}>
      <textarea
        aria-label="Message"
        rows={4}
        value={draft}
        ref={(area) => area?.focus()}
        onInput={(event) => (draft.value = event.currentTarget.value)}
        onKeyDown={(event) => event.key === 'Escape' && onDone()}
      />
      <div class="actions">
        <button type="submit" class="primary">
          Answer again
        </button>
        <button type="button" onClick={onDone}>
          Cancel
        </button>
      </div>
    </form>
  )
}
