/** The page: a playground beside a live view of the engine. */
import './style.css'
import { render } from 'preact'
import { App } from './app.tsx'
import { keepTheme } from './theme.ts'

keepTheme()
render(<App />, document.getElementById('app')!)
