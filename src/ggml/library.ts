/**
 * Loads the native libraries once per process and holds their functions.
 *
 * Threads: `loadNative` must first be called on the main thread, before any worker loads the same libraries (ggml's
 * backend registry is not thread-safe).
 */
import koffi, { type LibraryHandle } from 'koffi'
import { KvasirError } from '../contract/errors.ts'
import { type Declared, declare, type NativeFunction, type Pointer } from './declare.ts'
import { findNativeFiles, type NativeFiles } from './platform.ts'
import { BASE, CPU, REGISTRY } from './symbols.ts'

/** ggml's functions. Set by {@link loadNative}; nothing below `ggml/` may be called before. */
export let ffi: Declared<typeof BASE>
export let registry: Declared<typeof REGISTRY>
/** Functions of the CPU backend, null where a build lacks one. */
export let cpu: { [K in keyof typeof CPU]: NativeFunction<(typeof CPU)[K]> }
let loaded: NativeLibraries | undefined

export interface NativeLibraries {
  readonly files: NativeFiles
  /** ggml's version, e.g. `0.23.0`. */
  readonly version: string
  /**
   * Address of a native function that ignores its arguments and returns at once: a log sink that needs no JS callback
   * (a JS callback set by a thread that has ended would abort the process at the next log line).
   */
  readonly silentLog: Pointer
  /** Address of `bool ggml_get_no_alloc(ctx)`: a ready-made native abort callback whose flag is a ggml context. */
  readonly readFlag: Pointer
  readonly devices: readonly Pointer[]
}

/**
 * @throws KvasirError NATIVE_MISSING when the packages are absent, of another version, or have no usable CPU build.
 */
export async function loadNative(): Promise<NativeLibraries> {
  return (loaded ??= open(await findNativeFiles()))
}

/** The libraries, which must have been loaded. */
export function native(): NativeLibraries {
  if (!loaded) throw new KvasirError('NATIVE_MISSING', 'the native libraries are not loaded: await loadNative() first')
  return loaded
}

function open(files: NativeFiles): NativeLibraries {
  if (loaded) return loaded
  // A failed check inside ggml forks a debugger for a backtrace unless told otherwise: ten times slower to die.
  process.env['GGML_NO_BACKTRACE'] ??= '1'
  const base = load(files.base, files)
  const ggml = load(files.ggml, files)
  koffi.struct('ggml_init_params', { mem_size: 'size_t', mem_buffer: 'void*', no_alloc: 'bool' })
  ffi = declare(base, BASE)
  registry = declare(ggml, REGISTRY)
  const silentLog = base.symbol('ggml_time_us') as unknown as Pointer
  if (!process.env['KVASIR_NATIVE_LOG']) ffi.ggml_log_set(silentLog, null)
  registry.ggml_backend_load_all_from_path(files.folder)

  const devices = Array.from({ length: registry.ggml_backend_dev_count() }, (_, i) => registry.ggml_backend_dev_get(i)!)
  const cpuDevice = devices.find((d) => ffi.ggml_backend_dev_type(d) === 0)
  if (!cpuDevice)
    throw new KvasirError('NATIVE_MISSING', `no CPU build in ${files.packageName} runs on this processor`, { files })
  cpu = cpuFunctions(ffi.ggml_backend_dev_backend_reg(cpuDevice)!)
  return {
    files,
    version: ffi.ggml_version() ?? 'unknown',
    silentLog,
    readFlag: base.symbol('ggml_get_no_alloc') as unknown as Pointer,
    devices,
  }
}

function load(path: string, files: NativeFiles): LibraryHandle {
  try {
    return koffi.load(path)
  } catch (cause) {
    const why = `${files.packageName} has a build that cannot be loaded here (${process.platform}-${process.arch})`
    throw new KvasirError('NATIVE_MISSING', `${why}: ${(cause as Error).message}`, { files }, cause)
  }
}

function cpuFunctions(reg: Pointer): typeof cpu {
  const found: Record<string, unknown> = {}
  for (const [name, prototype] of Object.entries(CPU)) {
    const address = ffi.ggml_backend_reg_get_proc_address(reg, name)
    if (!address) throw new KvasirError('NATIVE_MISSING', `the CPU backend lacks ${name}: wrong package version?`)
    const [result, args] = prototype.split(/(?=\()/) as [string, string]
    found[name] = koffi.decode(address, koffi.proto(`${result} kvasir_${name}${args}`))
  }
  return found as typeof cpu
}
