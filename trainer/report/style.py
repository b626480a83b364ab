"""How the report looks, in light and in dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --fg: #1f2328; --soft: #59636e; --line: #d1d9e0; --bg: #fff; --card: #f6f8fa;
  --accent: #4b55d1; --good: #1a7f37; --bad: #cf222e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --fg: #e6edf3; --soft: #9198a1; --line: #3d444d; --bg: #0d1117; --card: #151b23;
    --accent: #9aa5ff; --good: #3fb950; --bad: #f85149;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem;
  background: var(--bg); color: var(--fg); font: 16px/1.55 system-ui, sans-serif;
}
h1 { font-size: 1.5rem; margin: .2rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
.soft { color: var(--soft); }
.good { color: var(--good); }
.bad { color: var(--bad); }
.verdict {
  border-left: 4px solid var(--accent); background: var(--card);
  padding: .8rem 1rem; margin: 1rem 0; overflow-wrap: anywhere;
}
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td:has(.bar) { min-width: 8rem; }
.bar { background: var(--accent); height: .6rem; border-radius: 3px; min-width: 1px; margin-top: .5rem; }
.pair { border: 1px solid var(--line); border-radius: 8px; margin: .8rem 0; overflow: hidden; }
.pair > p { margin: 0; padding: .6rem .8rem; background: var(--card); overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: 1fr 1fr; }
.sides > div { padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.sides > div + div { border-left: 1px solid var(--line); }
@media (max-width: 40rem) {
  .sides { grid-template-columns: 1fr; }
  .sides > div + div { border-left: 0; border-top: 1px solid var(--line); }
}
svg { width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 2; }
svg .axis { stroke: var(--line); }
svg .dot { fill: var(--accent); }
svg .span { stroke: var(--accent); stroke-width: 3; }
svg .zero { stroke: var(--soft); stroke-dasharray: 3 3; }
code { font-size: .9em; overflow-wrap: anywhere; }
"""
