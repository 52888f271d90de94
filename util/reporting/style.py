"""How a report looks, and the script that shows a chart's numbers where one points."""

# Colours: Okabe and Ito's, which colour-blind readers can tell apart, lighter on dark ground.
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f6f7f9; --ink: #1d2126;
  --soft: #5b6470; --line: #d5dae0; --grid: #e3e7eb; --accent: #0a6cb0; --warn: #8f3f00;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8548c; --c4: #3597d6; --c5: #b97f00;
  --c6: #707070; --c7: #1d2126; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --card: #1e2227; --ink: #e6e9ec;
  --soft: #a2abb5; --line: #3a4149; --grid: #2d333a; --accent: #6cb8ee; --warn: #f3a264;
  --c0: #56a8e0; --c1: #f08a45; --c2: #35c79c; --c3: #e39cc4; --c4: #8ccdf5; --c5: #efb73e;
  --c6: #a8a8a8; --c7: #f2f2f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 2.5vw, 2.5rem) 3rem; max-width: 1720px;
  background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: .3rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; max-width: 62rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; }
code, pre { font: .86em/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); padding: .6rem .8rem; border-radius: 6px; white-space: pre-wrap;
  margin: .4rem 0; }
.soft, .unit { color: var(--soft); } .unit { font-weight: 400; }
.state { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; background: var(--card);
  border: 1px solid var(--line); }
.state.bad, .bad { color: var(--warn); }
.wide { overflow-x: auto; margin: .4rem 0; }
table { border-collapse: collapse; font-size: .93em; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0;
  border-bottom: 1px solid var(--grid); }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 8.5rem; } td.number { white-space: nowrap; }
td, th, .number { font-variant-numeric: tabular-nums; } td.value { overflow-wrap: break-word; }
td small { display: block; color: var(--soft); font-size: .88em; max-width: 34rem; }
th small { display: block; color: var(--soft); font-weight: 400; max-width: 34rem; }
code span { white-space: nowrap; }
.differs { color: var(--warn); }
.charts { display: grid; gap: 1rem; grid-template-columns:
  repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; padding: .6rem; background: var(--card); border-radius: 8px; max-width: 100%;
  position: relative; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .93em; overflow-wrap: anywhere; }
.pictures figcaption { font-weight: 400; color: var(--soft); }
img { display: block; max-width: 100%; height: auto; background: #fff; margin-top: .4rem; }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
.chart svg { overflow: hidden; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg text.soft { fill: var(--soft); }
text.end { text-anchor: end; } text.mid { text-anchor: middle; }
svg .box { fill: var(--ground); stroke: var(--line); } svg .grid { stroke: var(--grid); }
svg .at { stroke: var(--soft); visibility: hidden; }
polyline { fill: none; stroke-width: 1.7; stroke-linejoin: round; } polygon { opacity: .2; }
line.c0, line.c1, line.c2, line.c3, line.c4, line.c5, line.c6, line.c7 { stroke-width: 2; }
COLOURS
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0 0;
  padding: 0; font-size: .86em; }
.legend li { display: flex; align-items: center; gap: .4rem; overflow-wrap: anywhere; }
svg.sample { width: 26px; height: 8px; flex: none; } svg.bar { width: 300px; }
.chart th, figure th { min-width: 0; }
.intervals tr.scale td { border: 0; color: var(--soft); }
@media (max-width: 700px) {
  .intervals, .intervals tbody, .intervals tr, .intervals th, .intervals td { display: block; }
  .intervals tr { padding: .5rem 0; border-bottom: 1px solid var(--grid); }
  .intervals th, .intervals td { border: 0; padding: 0; } svg.bar { width: 100%; } }
.tip { position: absolute; z-index: 1; pointer-events: none; padding: .3rem .5rem; font-size: .82em;
  background: var(--ground); border: 1px solid var(--line); border-radius: 6px; max-width: 95%;
  font-variant-numeric: tabular-nums; display: none; box-shadow: 0 2px 8px #0003; }
.tip div { display: flex; gap: .4rem; align-items: center; }
.tip i { width: .7rem; height: .2rem; flex: none; }
details summary { cursor: pointer; color: var(--accent); margin: .4rem 0; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .86em; }
@media print { :root { color-scheme: light; --ground: #fff; --card: #fff; --ink: #000;
  --soft: #444; --line: #bbb; --grid: #ddd; --accent: #000; --warn: #7a3300; --c0: #0072b2;
  --c1: #d55e00; --c2: #009e73; --c3: #b8548c; --c4: #3597d6; --c5: #b97f00; --c6: #707070;
  --c7: #000; }
  body { font-size: 10pt; max-width: none; padding: 0; } nav, .tip { display: none; }
  .charts { grid-template-columns: repeat(2, 1fr); } .wide { overflow: visible; }
  h2, h3 { break-after: avoid; } a { text-decoration: none; } }
"""
STYLE = STYLE.replace(
    "COLOURS",
    "\n".join(
        f"polyline.c{n}, line.c{n} {{ stroke: var(--c{n}); }} "
        f"polygon.c{n}, circle.c{n} {{ fill: var(--c{n}); }} .tip i.c{n} "
        f"{{ background: var(--c{n}); }}"
        for n in range(8)
    ),
)

SCRIPT = """
"use strict";
const short = v => Math.abs(v) >= 1e6 || (v !== 0 && Math.abs(v) < 1e-3)
  ? v.toExponential(3) : String(+v.toPrecision(5));
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const mid = (low + high) >> 1;
    if (xs[mid] < x) low = mid; else high = mid;
  }
  return x - xs[low] < xs[high] - x ? low : high;
}
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg"), line = svg.querySelector(".at");
  const chart = JSON.parse(figure.querySelector("script").textContent);
  const looks = [...figure.querySelectorAll("polyline, circle")].map(l => l.classList[0]);
  const samples = [...figure.querySelectorAll(".sample line")].map(l => l.classList[0]);
  const tip = document.createElement("div");
  tip.className = "tip";
  figure.append(tip);
  const hide = () => { tip.style.display = "none"; line.style.visibility = "hidden"; };
  svg.addEventListener("pointerleave", hide);
  const show = event => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * chart.width;
    const share = (at - chart.left) / (chart.right - chart.left);
    if (share < -.05 || share > 1.05) return hide();
    const x = chart.low + share * (chart.high - chart.low);
    const curves = chart.curves.filter(c => c[1].length);
    if (!curves.length) return;
    let best = null;
    for (const c of curves) {
      const found = c[1][nearest(c[1], x)];
      if (best === null || Math.abs(found - x) < Math.abs(best - x)) best = found;
    }
    tip.textContent = chart.x + " " + best.toLocaleString("en");
    chart.curves.forEach((c, number) => {
      if (!c[1].length) return;
      const place = nearest(c[1], best), row = document.createElement("div");
      if (Math.abs(c[1][place] - best) > .06 * (chart.high - chart.low)) return;  // it ends before
      const mark = document.createElement("i"), text = document.createElement("span");
      mark.className = samples[number] || looks[0];
      const spread = c[3] && c[3][place] < c[4][place]
        ? ` (${short(c[3][place])} to ${short(c[4][place])})` : "";
      text.textContent = (chart.curves.length > 1 ? c[0] + ": " : "") + short(c[2][place]) + spread;
      row.append(mark, text);
      tip.append(row);
    });
    const part = (best - chart.low) / (chart.high - chart.low);
    const px = chart.left + part * (chart.right - chart.left);
    line.setAttribute("x1", px); line.setAttribute("x2", px);
    line.style.visibility = "visible";
    tip.style.display = "block";
    const left = px / chart.width * box.width + box.left - figure.getBoundingClientRect().left;
    const room = figure.clientWidth - tip.offsetWidth - 4;
    tip.style.left = Math.max(4, Math.min(left + 12, room)) + "px";
    tip.style.top = box.top - figure.getBoundingClientRect().top + 18 + "px";
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
}
"""
