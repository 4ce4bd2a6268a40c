/** Conversations with a model. */
import { useSignalEffect } from '@preact/signals'
import { useRef } from 'preact/hooks'
import { running, send } from './answer.ts'
import { Composer } from './composer.tsx'
import { ConversationList } from './conversation-list.tsx'
import { current, unsaved } from './conversations.ts'
import { Message } from './message.tsx'
import { ParameterForm } from './parameter-form.tsx'

/** What the house model is made for: it finds what was told. */
const EXAMPLES = [
  'Vera Marlow keeps a rabbit as a pet. Which animal does Vera Marlow keep as a pet?',
  'The code of the harbour gate is 4711. What is the code of the harbour gate?',
]
/** Further from the end than this, a reader has scrolled up: pixels. */
const NEAR_END = 80

export function Playground() {
  return (
    <div class="playground">
      <ConversationList />
      <div class="conversation">
        <Transcript />
        {unsaved.value ? (
          <p class="notice" role="status">
            The browser has no room to keep these conversations: they will be gone with this tab.
          </p>
        ) : null}
        <ParameterForm />
        <Composer />
      </div>
    </div>
  )
}

function Transcript() {
  const box = useRef<HTMLElement>(null)
  useSignalEffect(() => {
    current.value
    const element = box.current
    if (!element || element.scrollHeight - element.scrollTop - element.clientHeight > NEAR_END) return
    requestAnimationFrame(() => element.scrollTo({ top: element.scrollHeight }))
  })
  const { id, turns } = current.value
  const isBusy = running.value.has(id)
  const lastUser = turns.findLastIndex(({ role }) => role === 'user')
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable by keyboard
    <section ref={box} class="transcript" role="log" aria-label="Conversation" aria-live="polite" tabIndex={0}>
      {turns.length === 0 ? <Welcome id={id} /> : null}
      {turns.map((turn, i) => (
        <Message
          key={`${id}-${i}`}
          {...{ id, turn, isBusy }}
          isLast={turn.role === 'user' ? i === lastUser : i === turns.length - 1}
        />
      ))}
    </section>
  )
}

function Welcome({ id }: { readonly id: string }) {
  return (
    <div class="welcome">
      <p>Write to the model, and watch the engine while it answers. Conversations are kept in this browser alone.</p>
      <ul>
        {EXAMPLES.map((text) => (
          <li key={text}>
            <button type="button" onClick={() => send(id, text)}>
              {text}
            </button>
          </li>
        ))}
      </ul>
    </div>
  )
}
