/** Style sheet of the report's page, beside the palette's. */
export const PAGE_CSS = `
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1220px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:26px;line-height:1.2;margin:8px 0;text-wrap:balance}
h2{font-size:19px;margin:40px 0 4px}
p{max-width:76ch;margin:4px 0 12px}
.lead,.hint{color:var(--muted)}
.hint{font-size:13px}
nav{display:flex;flex-wrap:wrap;gap:6px;position:sticky;top:0;padding:8px 0;background:var(--paper);z-index:1}
.chip{display:inline-flex;align-items:center;gap:6px;padding:2px 10px 2px 8px;border:1px solid var(--line);border-radius:99px;background:var(--raised);font-size:13px;cursor:default}
.chip:is(:hover,:focus){border-color:var(--c);outline:none}
.chip path{stroke:var(--c);stroke-width:2.5;fill:none}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:12px}
figure{margin:0;background:var(--raised);border:1px solid var(--line);border-radius:8px}
figure svg{display:block;width:100%;height:auto}
.series{transition:opacity .12s}
details{margin:10px 0}
summary{cursor:pointer;color:var(--accent)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
thead th{color:var(--muted);font-weight:500;vertical-align:bottom;white-space:normal;min-width:64px}
th:first-child{text-align:left;font-weight:500;position:sticky;left:0;background:var(--paper)}
td[style]{background:linear-gradient(90deg,color-mix(in srgb,var(--accent) 22%,transparent) var(--share),transparent var(--share))}
pre{overflow-x:auto;padding:12px;background:var(--raised);border:1px solid var(--line);border-radius:8px;font-size:13px;white-space:pre-wrap;overflow-wrap:anywhere}
@media (prefers-reduced-motion:reduce){.series{transition:none}}
@media (max-width:480px){nav{flex-wrap:nowrap;overflow-x:auto}.chip{flex:none}}
`
