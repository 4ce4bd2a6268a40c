// The page: src/page to dist/page, one document, one script, one style sheet. `npm run build` runs it; `npm start` and the
// tests call `buildPage`.
import { copyFileSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Writes index.html, page.js and page.css to a folder. */
export async function buildPage(folder = join(root, 'dist', 'page')) {
  const source = join(root, 'src', 'page')
  mkdirSync(folder, { recursive: true })
  await build({
    entryPoints: { page: join(source, 'main.tsx') },
    outdir: folder,
    bundle: true,
    minify: true,
    format: 'esm',
    target: ['chrome123', 'firefox120', 'safari17.5'], // the first with light-dark() in style sheets
    jsx: 'automatic',
    jsxImportSource: 'preact',
    legalComments: 'eof',
    logLevel: 'warning',
  })
  copyFileSync(join(source, 'index.html'), join(folder, 'index.html'))
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await buildPage()
