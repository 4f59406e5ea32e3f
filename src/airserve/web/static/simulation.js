// The simulation's page: for each service the distribution of its latency and of every span; the slices' shares.

import {levels, share, tailAxis} from "./charts.js";
import {chart, chartSvg, repaint} from "./chart.js";
import {html, svg} from "./dom.js";
import {csv, saveButton} from "./export.js";
import {known, ms, spanLabel} from "./words.js";

const run = JSON.parse(document.getElementById("data").textContent);
const milliseconds = (value) => `${ms(value)} ms`;

// Up is solid, down dashed, at a site dotted; colours are those of the kinds.
const DASH = {up: undefined, down: [5, 3], "": [2, 2]};

// Levels of a distribution, up to the last request: where all are within, the line goes straight to the top.
function whole(shares, resolved) {
  const found = levels(shares, Infinity).map((level) => (level === null ? null : Math.min(level, resolved)));
  const at = shares.findIndex((share) => share >= 1);
  if (at >= 0) found[at] = resolved;
  return found;
}

function distributions(service) {
  const {ms: grid, total, spans} = service.cdf;
  if (!service.answered) return null;
  const resolved = Math.min(5, Math.log10(Math.max(10, service.sent))) + 1e-6; // one request in all
  const shown = service.spans.map((span, at) => ({span, at})).filter(({span}) => known(span.p99) && span.p99 > 0.05);
  const marks = known(service.promise_ms) && service.promise_ms <= grid.at(-1) * 1.5
    ? [{axis: "x", at: service.promise_ms, text: `promise ${service.promise_ms} ms`, colour: "broken", dash: [5, 3], end: true}] : [];
  return {
    label: `${service.name}: distribution of latency and of its spans`,
    height: 280,
    x: {title: "ms", range: [0, Math.max(grid.at(-1), ...marks.map((mark) => mark.at * 1.03))], read: milliseconds},
    y: tailAxis(resolved + 0.1),
    columns: [grid, whole(total, resolved), ...shown.map(({at}) => whole(spans[at], resolved))],
    series: [
      {name: "latency", colour: "measured", width: 2.5},
      ...shown.map(({span}) => ({name: spanLabel(span), colour: span.kind, width: 1.5, dash: span.site === "transport" ? [8, 3] : DASH[span.direction]})),
    ],
    marks,
  };
}

function panel(service, size) {
  const spec = distributions(service);
  if (!spec) return null;
  const body = html("div");
  const file = (ending) => () => `${run.name}-${service.name}-spans.${ending}`;
  const rows = () => [["ms", "latency", ...service.spans.map(spanLabel)],
    ...service.cdf.ms.map((at, row) => [at, service.cdf.total[row], ...service.cdf.spans.map((part) => part[row])])];
  const section = html("section", {class: `panel ${size}`},
    html("div", {class: "head"}, html("h2", {}, service.name),
      html("span", {class: "note"}, `${service.sent} requests; share within, each grid line ten times fewer are slower; spans under 0.05 ms left out`),
      html("span", {class: "buttons"},
        saveButton("CSV", `Save ${service.name} as CSV`, "text/csv", file("csv"), () => csv(rows())),
        saveButton("SVG", `Save ${service.name} as SVG`, "image/svg+xml", file("svg"), () => chartSvg(body)))),
    body);
  return {section, draw: () => chart(body, spec)};
}

// Circle, square, triangle: a slice is known by its shape as well as by its colour.
const SHAPES = ["M5 0a5 5 0 1 0 .01 0z", "M0 0h10v10h-10z", "M5 0l5 10h-10z"];

function strips() {
  run.slices.forEach((slice, place) => {
    const spec = share(slice, place);
    if (!spec) return;
    const name = html("div", {class: `slice-${place % 3}`}, svg("svg", {class: "swatch", viewBox: "0 0 10 10",
      "aria-hidden": "true"}, svg("path", {d: SHAPES[place % 3]})), html("b", {}, slice.name));
    const body = html("div");
    document.getElementById("strips").append(html("div", {class: "strip"}, name, body));
    chart(body, spec);
  });
}

const panels = run.services.map((service) => panel(service, run.services.length > 1 ? "wide-7" : "wide")).filter(Boolean);
document.getElementById("panels").append(...panels.map((one) => one.section));
panels.forEach((one) => one.draw());
strips();
const numbers = document.getElementById("figures");
numbers.open = false;
addEventListener("beforeprint", () => (numbers.open = true));
for (const medium of ["(prefers-color-scheme: dark)", "print"]) {
  matchMedia(medium).addEventListener("change", () => repaint(document));
}
