/** The parameters of answers, each with what is wrong with it. */
import { NUMBERS, type ParameterName, parameters, problemOf, resetParameters, setParameter } from './parameters.ts'

interface FieldProps {
  readonly name: ParameterName
  readonly label: string
  readonly placeholder: string
}

export function ParameterForm() {
  const changed = Object.values(parameters.value).filter((v) => v.trim() !== '').length
  return (
    <details class="parameters">
      <summary>
        Parameters <span class="note">{changed ? `${changed} set` : 'defaults'}</span>
      </summary>
      <div class="fields">
        <LongField name="system" label="System prompt" placeholder="none" />
        <div class="numbers">
          {NUMBERS.map(({ name, label, fallback }) => (
            <ShortField key={name} name={name} label={label} placeholder={fallback} />
          ))}
        </div>
        <LongField name="stop" label="Stop texts, one a line" placeholder="none" />
        <LongField name="schema" label="JSON schema of the answer" placeholder='{"type": "object", …}' mono />
        <button type="button" onClick={resetParameters} disabled={changed === 0}>
          Back to defaults
        </button>
      </div>
    </details>
  )
}

function ShortField({ name, label, placeholder }: FieldProps) {
  const problem = problemOf(name, parameters.value)
  return (
    <div class="field">
      <label for={`p-${name}`}>{label}</label>
      <input
        id={`p-${name}`}
        inputMode="decimal"
        autocomplete="off"
        placeholder={placeholder}
        value={parameters.value[name]}
        aria-invalid={problem !== null}
        aria-describedby={problem ? `p-${name}-problem` : undefined}
        onInput={(event) => setParameter(name, event.currentTarget.value)}
      />
      <Problem name={name} problem={problem} />
    </div>
  )
}

function LongField({ name, label, placeholder, mono = false }: FieldProps & { readonly mono?: boolean }) {
  const problem = problemOf(name, parameters.value)
  return (
    <div class="field">
      <label for={`p-${name}`}>{label}</label>
      <textarea
        id={`p-${name}`}
        class={mono ? 'mono' : ''}
        rows={2}
        spellcheck={!mono}
        placeholder={placeholder}
        value={parameters.value[name]}
        aria-invalid={problem !== null}
        aria-describedby={problem ? `p-${name}-problem` : undefined}
        onInput={(event) => setParameter(name, event.currentTarget.value)}
      />
      <Problem name={name} problem={problem} />
    </div>
  )
}

function Problem({ name, problem }: { readonly name: ParameterName; readonly problem: string | null }) {
  return problem ? (
    <p class="problem" id={`p-${name}-problem`}>
      It must be {problem}
    </p>
  ) : null
}
