/**
 * The engine as the package gives it out: a client of an engine process of its own, so that a fault in native code costs
 * that process and a clear error, never the caller's. `LocalEngine` is the same in the caller's process.
 */
export { EngineClient as Engine } from './process/client.ts'
