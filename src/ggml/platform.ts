/**
 * Finds the ggml and libllama builds that the `@node-llama-cpp/*` packages carry. The package is found through Node's
 * module resolution and asked for its folder; nothing here knows a path.
 *
 * npm also installs packages of other architectures (linux-arm64 lists x64 as a fallback), so what counts is
 * `process.platform` and `process.arch`, never what happens to be installed.
 */
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { KvasirError } from '../contract/errors.ts'

/** The release whose struct layouts and enum values this binding was written for. */
export const CARRIER_VERSION = '3.21.1'

export interface NativeFiles {
  readonly packageName: string
  /** Folder of the build, with the CPU variants that ggml chooses from. */
  readonly folder: string
  readonly base: string
  readonly ggml: string
  readonly llama: string
}

/** Packages to try, best first: a GPU build is used when the user has installed one. */
function candidates(): string[] {
  const os = { linux: 'linux', darwin: 'mac', win32: 'win' }[process.platform as string] ?? process.platform
  const plain = `@node-llama-cpp/${os}-${process.arch}`
  if (process.env['KVASIR_NATIVE_PACKAGE']) return [process.env['KVASIR_NATIVE_PACKAGE']]
  if (os === 'mac') return process.arch === 'arm64' ? [`${plain}-metal`] : [plain]
  return [`${plain}-cuda`, `${plain}-vulkan`, plain]
}

const LIBRARY = {
  base: /^(lib)?ggml-base\.(so|dylib|dll)$/,
  ggml: /^(lib)?ggml(\.[a-z]+)?\.v[\d.]+\.(so|dylib|dll)$/,
  llama: /^(lib)?llama(\.[a-z]+)?\.v[\d.]+\.(so|dylib|dll)$/,
}

function fileIn(folder: string, which: keyof typeof LIBRARY): string | null {
  const name = readdirSync(folder).find((f) => LIBRARY[which].test(f))
  return name ? join(folder, name) : null
}

/** @throws KvasirError NATIVE_MISSING when no package fits this machine, or when its version is not the pinned one. */
export async function findNativeFiles(): Promise<NativeFiles> {
  const tried = candidates()
  for (const packageName of tried) {
    const found = await bins(packageName)
    if (!found) continue
    if (found.packageVersion !== CARRIER_VERSION)
      throw new KvasirError(
        'NATIVE_MISSING',
        `${packageName} is version ${found.packageVersion}; this Kvasir is built for ${CARRIER_VERSION}, and struct ` +
          `layouts differ between releases. Install it with: npm install ${packageName}@${CARRIER_VERSION}`,
        { packageName, version: found.packageVersion },
      )
    const folders = readdirSync(found.binsDir)
      .map((d) => join(found.binsDir, d))
      .filter((d) => statSync(d).isDirectory())
    const folder = folders.find((d) => fileIn(d, 'base'))
    if (!folder) continue
    const base = fileIn(folder, 'base')
    const ggml = fileIn(folder, 'ggml')
    const llama = fileIn(folder, 'llama')
    if (base && ggml && llama) return { packageName, folder, base, ggml, llama }
  }
  throw new KvasirError(
    'NATIVE_MISSING',
    `no native build for ${process.platform}-${process.arch} is installed (looked for ${tried.join(', ')}). They are ` +
      'optional dependencies: run npm install without --omit=optional. musl-based systems have no build.',
    { tried },
  )
}

async function bins(packageName: string): Promise<{ binsDir: string; packageVersion: string } | null> {
  try {
    const carrier = (await import(packageName)) as { getBinsDir?(): { binsDir: string; packageVersion: string } }
    return carrier.getBinsDir?.() ?? null
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_MODULE_NOT_FOUND') return null
    throw error
  }
}
