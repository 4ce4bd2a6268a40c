/** Policies in files of their own: a module whose default export is one, or a list of them. */
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { KvasirError } from '../contract/errors.ts'
import type { PolicyDefinition } from '../contract/policy.ts'
import { registerPolicy } from './index.ts'

/** @throws KvasirError INVALID_ARGUMENT that names the file, for one that cannot be loaded or exports something else */
export async function loadPolicyModule(path: string): Promise<void> {
  const wrong = (what: string, cause?: unknown) =>
    new KvasirError('INVALID_ARGUMENT', `policy module ${path}: ${what}`, { file: path }, cause)
  let module: { readonly default?: unknown }
  try {
    module = await import(pathToFileURL(resolve(path)).href)
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    const isTypeScript = code === 'ERR_UNKNOWN_FILE_EXTENSION' && /\.[cm]?ts$/.test(path)
    throw wrong(
      isTypeScript
        ? `Node ${process.versions.node} does not read TypeScript by itself. Give the compiled .js, or install tsx and set NODE_OPTIONS="--import tsx"`
        : `could not be loaded: ${message}`,
      cause,
    )
  }
  const policies = [module.default].flat()
  if (!policies.every(isDefinition))
    throw wrong('its default export must be what `definePolicy` gives, or a list of such')
  for (const policy of policies) registerPolicy(policy)
}

function isDefinition(value: unknown): value is PolicyDefinition {
  const { name, observes, afterPrefill } = (value ?? {}) as Partial<PolicyDefinition>
  return typeof name === 'string' && typeof observes === 'function' && typeof afterPrefill === 'function'
}
