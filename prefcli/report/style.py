"""The page's style sheet: light and dark by the reader's preference, one column, readable on a phone."""

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2330; --muted: #5b6575; --line: #dfe3ea; --card: #f5f7fa;
  --a: #2f6fd0; --b: #d2691e; --tie: #8a93a3; --on: #ffffff; --warn: #9a3412; }
@media (prefers-color-scheme: dark) { :root { --page: #12161d; --ink: #e6e9ef; --muted: #9aa4b5; --line: #2b3341;
  --card: #1a202a; --a: #5b9bf5; --b: #f0924a; --tie: #6c7686; --on: #10141a; --warn: #fdba74; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 6px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 26px 0 4px; }
p { margin: 6px 0 12px; max-width: 70ch; overflow-wrap: anywhere; }
.note, figcaption, footer { color: var(--muted); font-size: .875rem; }
.caution { color: var(--warn); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 10px;
  margin: 20px 0; padding: 0; }
.cards div { background: var(--card); border-radius: 10px; padding: 10px 14px; }
.cards dt { color: var(--muted); font-size: .8rem; }
.cards dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 14px 0 8px; }
figcaption { margin-top: 4px; }
svg { display: block; overflow: visible; font-size: 12.5px; }
svg svg { overflow: visible; }
text { fill: var(--ink); }
div.label { line-height: 24px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
text.value { text-anchor: end; font-variant-numeric: tabular-nums; }
text.tick { text-anchor: middle; fill: var(--muted); font-size: 11px; }
text.cell { text-anchor: middle; font-size: 11px; pointer-events: none; }
text.on { text-anchor: middle; fill: var(--on); font-size: 11.5px; }
.a { fill: var(--a); } .b { fill: var(--b); } .tie { fill: var(--tie); }
text.on.a, text.on.b, text.on.tie { fill: var(--on); }
.grid { stroke: var(--line); } .reference { stroke: var(--muted); stroke-dasharray: 3 3; }
.interval { stroke: var(--a); stroke-width: 3; stroke-opacity: .45; }
.dot { fill: var(--a); } .mark { fill: var(--page); stroke: var(--b); stroke-width: 2; }
.key { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0; padding: 0; list-style: none; font-size: .875rem; }
.key svg { display: inline-block; vertical-align: -1px; margin-right: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; margin: 8px 0; }
th, td { text-align: right; padding: 5px 0 5px 14px; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; min-width: 8em; }
td.together { white-space: nowrap; }
th { color: var(--muted); font-weight: 500; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--muted); font-size: .9rem; }
footer { margin-top: 48px; border-top: 1px solid var(--line); padding-top: 12px; }
footer li { margin-bottom: 4px; overflow-wrap: anywhere; }
@media (max-width: 520px) { main { padding: 20px 14px 40px; } svg { font-size: 11px; } text.on { font-size: 10px; }
  text.tick { font-size: 9px; } th, td { padding-left: 6px; }
  th:first-child, td:first-child { min-width: 5.5em; } table { font-size: .78rem; } }
"""
