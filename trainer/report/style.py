"""How the report looks, in light and in dark, on a wide screen and on a phone."""

STYLE = """
:root {
  color-scheme: light dark;
  --fg: #1f2328; --soft: #59636e; --line: #d8dee4; --bg: #fff; --card: #f6f8fa;
  --accent: #4b55d1; --good: #1a7f37; --bad: #cf222e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --fg: #e6edf3; --soft: #9198a1; --line: #30363d; --bg: #0d1117; --card: #161b22;
    --accent: #9aa5ff; --good: #3fb950; --bad: #f85149;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 56rem; padding: 2rem 1.25rem 4rem;
  background: var(--bg); color: var(--fg); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.25; letter-spacing: -.01em; margin: .3rem 0 .8rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; }
small { display: block; color: var(--soft); font-size: .85rem; line-height: 1.4; }
code { font-size: .9em; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
section > .soft { margin-bottom: .9rem; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.verdict {
  border-left: 4px solid var(--accent); border-radius: 0 8px 8px 0; background: var(--card);
  padding: .8rem 1rem; margin: 0 0 .6rem;
}
.promoted .verdict { border-color: var(--good); }
.promoted .verdict::first-letter { text-transform: uppercase; }
.refused .verdict, .failed .verdict { border-color: var(--bad); }

.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.2rem 0;
}
.tiles > div { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; line-height: 1.35; }
.tiles b { display: block; font-size: 1.7rem; font-variant-numeric: tabular-nums; }

.spans { margin: .8rem 0 1.4rem; }
.span { display: grid; grid-template-columns: 15rem 1fr 12.5rem; column-gap: 1.2rem; align-items: center; }
.span + .span { border-top: 1px solid var(--line); }
.span p { margin: .5rem 0; line-height: 1.35; }
.figures { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.good > .figures b { color: var(--good); }
.bad > .figures b { color: var(--bad); }
.span.good, .span.bad { color: inherit; }
.track { position: relative; align-self: stretch; min-height: 2rem; --mark: var(--accent); }
.good > .track { --mark: var(--good); }
.bad > .track { --mark: var(--bad); }
.track i { position: absolute; top: 50%; }
.track::before { content: ""; position: absolute; inset: 0 auto 0 50%; border-left: 1px dashed var(--soft); }
.reach {
  height: 6px; min-width: 2px; margin-top: -3px; border-radius: 3px; background: var(--mark); opacity: .45;
}
.dot {
  width: 14px; height: 14px; margin: -7px; border-radius: 50%;
  background: var(--mark); border: 2px solid var(--bg);
}
.ends .track { display: flex; justify-content: space-between; color: var(--soft); font-size: .85rem; }
.ends .track::before { border: 0; }
.ends .track span:nth-child(2) { position: absolute; left: 50%; transform: translateX(-50%); }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; overflow-wrap: normal; }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n, td .good, td .bad, .foot .good, .foot .bad { white-space: nowrap; }
td:has(.bar) { min-width: 8rem; vertical-align: middle; }
.bar { height: .5rem; border-radius: 4px; background: var(--line); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
.bar.broken i { background: var(--bad); }

article { border: 1px solid var(--line); border-radius: 8px; margin: .8rem 0; overflow: hidden; }
.asked { margin: 0; padding: .6rem .9rem; background: var(--card); }
.sides { display: grid; grid-auto-columns: 1fr; grid-auto-flow: column; border-top: 1px solid var(--line); }
.sides > div { padding: .6rem .9rem .7rem; white-space: pre-wrap; }
.sides > div + div { border-left: 1px solid var(--line); }
.foot {
  margin: 0; padding: .4rem .9rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .9rem;
  font-variant-numeric: tabular-nums;
}
.foot code { float: right; }
summary { cursor: pointer; color: var(--accent); padding: .3rem 0; }

.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.2rem 1.6rem; }
figure { margin: 0; }
.plot { display: grid; grid-template-columns: auto 1fr; gap: .2rem .5rem; margin-top: .5rem; }
.plot p {
  display: flex; justify-content: space-between; margin: 0;
  color: var(--soft); font-size: .8rem; line-height: 1;
}
.plot p:first-child { flex-direction: column; text-align: right; }
.plot svg {
  width: 100%; height: 7rem; overflow: visible; border: solid var(--line); border-width: 0 0 1px 1px;
}
polyline {
  fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round;
  vector-effect: non-scaling-stroke;
}

@media (max-width: 44rem) {
  body { padding: 1.2rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .tiles b { font-size: 1.35rem; }
  .span { grid-template-columns: 1fr auto; padding: .3rem 0 .5rem; }
  .track { grid-row: 2; grid-column: 1 / -1; }
  .ends { padding-top: 0; border: 0 !important; }
  .ends p { display: none; }
  .figures span { display: block; }
  .sides { grid-auto-flow: row; }
  .sides > div + div { border-left: 0; border-top: 1px solid var(--line); }
  td:has(.bar) { min-width: 3rem; }
  th, td { padding: .4rem .35rem; }
  table { font-size: .9rem; }
}
"""
