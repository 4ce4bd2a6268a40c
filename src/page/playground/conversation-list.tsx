/** The conversations there are: choose one, begin, rename, delete. */
import { useSignal } from '@preact/signals'
import { running, stop } from './answer.ts'
import {
  type Conversation,
  conversations,
  currentId,
  deleteConversation,
  renameConversation,
  startConversation,
} from './conversations.ts'

export function ConversationList() {
  return (
    <nav class="conversations" aria-label="Conversations">
      <button type="button" class="new" aria-label="New conversation" onClick={startConversation}>
        New
      </button>
      <ul>
        {conversations.value.map((conversation) => (
          <Item key={conversation.id} conversation={conversation} />
        ))}
      </ul>
    </nav>
  )
}

function Item({ conversation: { id, title } }: { readonly conversation: Conversation }) {
  const renaming = useSignal(false)
  const isCurrent = id === currentId.value
  if (renaming.value)
    return (
      <li>
        <RenameForm id={id} title={title} onDone={() => (renaming.value = false)} />
      </li>
    )
  return (
    <li class={isCurrent ? 'current' : ''}>
      <button
        type="button"
        class="title"
        title={title}
        aria-current={isCurrent ? 'true' : undefined}
        onClick={() => (currentId.value = id)}
      >
        {running.value.has(id) ? <span class="dot" role="img" aria-label="answering" /> : null}
        <span>{title}</span>
      </button>
      {isCurrent ? (
        <>
          <button type="button" class="quiet" aria-label={`Rename ${title}`} onClick={() => (renaming.value = true)}>
            Rename
          </button>
          <button type="button" class="quiet" aria-label={`Delete ${title}`} onClick={() => remove(id, title)}>
            Delete
          </button>
        </>
      ) : null}
    </li>
  )
}

function RenameForm({
  id,
  title,
  onDone,
}: {
  readonly id: string
  readonly title: string
  readonly onDone: () => void
}) {
  const keep = (event: Event) => {
    event.preventDefault()
    const input = (event.currentTarget as HTMLFormElement).elements.namedItem('title') as HTMLInputElement
    renameConversation(id, input.value)
    onDone()
  }
  return (
    <form class="rename" onSubmit={keep}>
      <input
        name="title"
        aria-label="Title"
        defaultValue={title}
        maxLength={120}
        ref={(input) => input?.focus()}
        onKeyDown={(event) => event.key === 'Escape' && onDone()}
      />
      <button type="submit">Keep</button>
    </form>
  )
}

function remove(id: string, title: string): void {
  if (!confirm(`Delete “${title}”? It is kept nowhere else.`)) return
  stop(id)
  deleteConversation(id)
}
