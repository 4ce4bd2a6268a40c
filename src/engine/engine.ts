/** The engine as the package gives it out. */
export { LocalEngine as Engine } from './local.ts'
