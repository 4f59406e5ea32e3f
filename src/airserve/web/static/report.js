// The report's page: cards choose a service, panels show it, the choice stands in the URL's hash.

import {card} from "./card.js";
import {capacity, distribution, overTime, share} from "./charts.js";
import {chart, chartSvg, repaint} from "./chart.js";
import {html, svg} from "./dom.js";
import {csv, saveButton} from "./export.js";
import {plan, planRows} from "./plan.js";
import {waterfall, waterfallRows} from "./waterfall.js";
import {count, known, ms, percentileLabel} from "./words.js";

const report = JSON.parse(document.getElementById("data").textContent);
const choices = [
  ...report.services.map((service) => ({key: service.name, run: "", service})),
  ...report.runs.flatMap((run) => run.services.map((service) => ({key: `${run.name}/${service.name}`, run: run.name, service}))),
];

const zip = (head, ...columns) => [head, ...columns[0].map((_, at) => columns.map((column) => column[at] ?? null))];

const PANELS = [
  {name: "waterfall", title: "Where the milliseconds go", size: "wide-7", draw: waterfall, rows: waterfallRows,
    note: source},
  {name: "distribution", title: "Distribution", size: "wide-5", spec: distribution,
    note: () => "share of requests answered within; each grid line ten times fewer are slower; predicted: one run of the " +
      "twin with a seed of its own",
    rows: ({cdf}) => zip(["ms", "measured", "predicted"], cdf.ms, cdf.measured, cdf.predicted)},
  {name: "over-time", title: "Latency over time", size: "wide-7", spec: overTime, note: timeSource,
    rows: ({over_time: seen}) => zip(["t_s", "percentile_ms", "p50_ms"], seen.t_s, seen.percentile_ms, seen.p50_ms)},
  {name: "capacity", title: "How many devices fit", size: "wide-5", spec: capacity, note: limit,
    rows: ({capacity: seen}) => zip(["devices", "ms", "low", "high"], seen.devices, seen.ms, seen.low, seen.high)},
  {name: "plan", title: "Why this plan", size: "wide", draw: plan, rows: planRows,
    note: (service) => "predicted: several runs of the twin together; with headroom: the search's runs, with other seeds" +
      (service.score && service.score.metric ? `; score: ${service.score.metric}` : "")},
];

function source(service) {
  if (!service.sent) return "predicted; not measured yet";
  return `measured${report.life ? `, ${report.life}` : ""}: ${count(service.sent)} requests` +
    (known(report.duration_s) ? ` in ${report.duration_s} s` : "");
}

function timeSource(service) {
  const window = service.over_time.window_s[0];
  return source(service) + (window ? `; each point: ${window} s` : "");
}

function limit(service) {
  const rate = percentileLabel(service);
  if (!known(service.max_devices)) return `${rate} predicted by the twin`;
  return `${rate} predicted by the twin; the limit at ${count(service.max_devices)}: ${service.binds || "not stated"}`;
}

function drawPanel(panel, {key, service}) {
  panel.title.replaceChildren(panel.text, html("small", {}, ` ${key}`));
  panel.note.textContent = panel.describe(service);
  const spec = panel.spec ? panel.spec(service) : null;
  panel.section.hidden = panel.spec ? !spec : panel.rows(service).length < 2;
  if (panel.section.hidden) return;
  if (spec) chart(panel.body, spec);
  else panel.draw(panel.body, service);
}

function makePanel({name, title, size, note, draw, spec, rows}, chosen) {
  const panel = {text: title, describe: note, draw, spec, rows, title: html("h2"), note: html("span", {class: "note"}), body: html("div")};
  const file = (ending) => () => `${report.name || "report"}-${chosen().key}-${name}.${ending}`;
  const buttons = html("span", {class: "buttons"}, saveButton("CSV", `Save ${title} as CSV`, "text/csv", file("csv"),
    () => csv(rows(chosen().service))));
  if (spec) buttons.append(saveButton("SVG", `Save ${title} as SVG`, "image/svg+xml", file("svg"), () => chartSvg(panel.body)));
  panel.section = html("section", {class: `panel ${size}`, id: name}, html("div", {class: "head"}, panel.title, panel.note, buttons),
    panel.body);
  return panel;
}

function makeCards(choose) {
  const labels = choices.map((choice) => {
    const label = html("label");
    card(label, choice.service, choice.key, choice.run);
    label.querySelector("input").addEventListener("change", () => choose(choice));
    return label;
  });
  document.getElementById("cards").replaceChildren(html("fieldset", {class: "cards"},
    html("legend", {class: "hidden"}, "Services"), ...labels));
}

// Circle, square, triangle: a slice is known by its shape as well as by its colour.
const SHAPES = ["M5 0a5 5 0 1 0 .01 0z", "M0 0h10v10h-10z", "M5 0l5 10h-10z"];

function drawStrips() {
  const strips = document.getElementById("strips");
  report.slices.forEach((slice, place) => {
    const spec = share(slice, place);
    if (!spec) return;
    const name = html("div", {class: `slice-${place % 3}`}, svg("svg", {class: "swatch", viewBox: "0 0 10 10",
      "aria-hidden": "true"}, svg("path", {d: SHAPES[place % 3]})), html("b", {}, slice.name));
    const body = html("div");
    strips.append(html("div", {class: "strip"}, name, body));
    chart(body, spec);
  });
}

function start() {
  let chosen = choices[0];
  const panels = PANELS.map((panel) => makePanel(panel, () => chosen));
  const choose = (choice, write = true) => {
    chosen = choice;
    const at = choices.indexOf(choice);
    document.querySelectorAll("input[name=service]")[at].checked = true;
    panels.forEach((panel) => drawPanel(panel, choice));
    if (write) history.replaceState(null, "", `#service=${encodeURIComponent(choice.key)}`);
  };
  const fromHash = () => {
    const key = new URLSearchParams(location.hash.slice(1)).get("service");
    return choices.find((choice) => choice.key === key) || choices[0];
  };
  makeCards(choose);
  document.getElementById("panels").append(...panels.map((panel) => panel.section));
  choose(fromHash(), false);
  drawStrips();
  addEventListener("hashchange", () => choose(fromHash(), false));

  const numbers = document.getElementById("figures");
  numbers.open = false;
  addEventListener("beforeprint", () => (numbers.open = true));
  for (const medium of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(medium).addEventListener("change", () => repaint(document));
  }
}

if (choices.length) start();
