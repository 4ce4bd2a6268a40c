/**
 * Turns a table of C prototypes into typed functions. A prototype reads like C without parameter names:
 * `'void* (void*, int64_t)'`. Each function is bound on its first call, so an unused one costs nothing.
 */
import type { KoffiFunc, LibraryHandle } from 'koffi'

/** A C address. 0 is never a Pointer: koffi gives null for NULL. */
export type Pointer = bigint

type Result<P extends string> = P extends `void* ${string}`
  ? Pointer | null
  : P extends `void ${string}`
    ? void
    : P extends `bool ${string}`
      ? boolean
      : P extends `const char* ${string}`
        ? string | null
        : P extends `struct:${string}`
          ? Record<string, NativeValue>
          : number

export type NativeValue = number | bigint | boolean | string | null | undefined | ArrayBufferView | object

export type NativeFunction<P extends string> = ((...args: NativeValue[]) => Result<P>) & {
  /** Runs on a libuv pool thread; `done` is called on the event loop. */
  async(...argsAndDone: [...NativeValue[], (error: Error | null, result: Result<P>) => void]): void
}

export type Declared<T extends Record<string, string>> = { readonly [K in keyof T]: NativeFunction<T[K] & string> }

/** `struct:NAME (args)` marks a struct returned by value; NAME must be defined with koffi.struct. */
export function declare<T extends Record<string, string>>(library: LibraryHandle, prototypes: T): Declared<T> {
  const bound = {} as Record<string, KoffiFunc<(...args: unknown[]) => unknown>>
  for (const [name, prototype] of Object.entries(prototypes)) {
    const open = prototype.indexOf('(')
    const result = prototype.slice(0, open).trim().replace('struct:', '')
    Object.defineProperty(bound, name, {
      configurable: true,
      enumerable: true,
      get() {
        const value = library.func(`${result} ${name}${prototype.slice(open)}`)
        Object.defineProperty(bound, name, { value, enumerable: true })
        return value
      },
    })
  }
  return bound as unknown as Declared<T>
}
