/** Op constructors: each adds one node to a context and returns its tensor. Import as `* as ops`. */
export * from './attention.ts'
export * from './elementwise.ts'
export * from './matrix.ts'
export * from './reduce.ts'
export * from './rows.ts'
export * from './shape.ts'
