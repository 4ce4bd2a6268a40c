/** Writes index.html, page.js and page.css; default folder: dist/page. */
export function buildPage(folder?: string): Promise<void>
