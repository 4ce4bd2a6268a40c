/**
 * Writes the pages that are made from code: docs/cli.md from the commands' help, docs/errors.md from the error table.
 * `npm run docs`; with `--check` it only says whether they are current.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Command } from 'commander'
import { makeProgram } from '../src/cli/program.ts'
import { ERROR_CODES } from '../src/contract/errors.ts'

const MADE = '<!-- made by scripts/gen-docs.ts: do not edit -->'

function cliPage(): string {
  const program = makeProgram()
  const sections = leaves(program).map(({ path, command }) => `## ${path}\n\n\`\`\`text\n${help(command)}\n\`\`\`\n`)
  return `# The command line

${MADE}

In a checkout: \`npm run kvasir -- COMMAND ...\`. Installed as a package: \`kvasir COMMAND ...\`.

A model is a GGUF file, \`hf:OWNER/REPO[:FILE]\`, or \`house\`, the default. Pulled models lie in \`$KVASIR_CACHE\`, else in
\`$XDG_CACHE_HOME/kvasir\`, else in \`~/.cache/kvasir\`. \`HF_TOKEN\` and \`HF_ENDPOINT\` are honoured. \`KVASIR_NATIVE_LOG=1\` shows what ggml and
libllama log.

With \`--json\` a command prints one object and nothing else on stdout; an error is \`{"error": {"code", "message", "details"}}\`. Exit codes:
0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C.

${sections.join('\n')}`
}

function leaves(command: Command, path = 'kvasir'): { path: string; command: Command }[] {
  return command.commands.flatMap((c) => {
    const name = `${path} ${c.name()}`
    return c.commands.length ? leaves(c, name) : [{ path: name, command: c }]
  })
}

function help(command: Command): string {
  let text = ''
  command.configureHelp({ helpWidth: 110 }).configureOutput({ writeOut: (s) => (text += s) })
  command.outputHelp()
  return text.trimEnd()
}

function errorsPage(): string {
  const rows = Object.entries(ERROR_CODES).map(
    ([code, { status, retry, meaning }]) => `| \`${code}\` | ${status} | ${retry ? 'yes' : 'no'} | ${meaning} |`,
  )
  return `# Errors

${MADE}

Every error that Kvasir throws on purpose is a \`KvasirError\` with a \`code\`, a text that says what is wrong and how to mend it, and
\`details\` for programs. \`status\` is the HTTP status that fits; \`retry\` says whether the same request may succeed later.

| code | status | retry | meaning |
|---|---|---|---|
${rows.join('\n')}
`
}

const pages = { 'docs/cli.md': cliPage(), 'docs/errors.md': errorsPage() }
const stale: string[] = []
for (const [path, text] of Object.entries(pages)) {
  const file = fileURLToPath(new URL(`../${path}`, import.meta.url))
  if (!process.argv.includes('--check')) writeFileSync(file, text)
  else if (readFileSync(file, 'utf8') !== text) stale.push(path)
}
if (stale.length) {
  console.error(`not current, run npm run docs: ${stale.join(', ')}`)
  process.exitCode = 1
}
