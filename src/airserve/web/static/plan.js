// Why this plan: the chosen one first, then the runners-up and why each lost.

import {html} from "./dom.js";
import {interval, known, ms} from "./words.js";

const HEAD = ["plan", "predicted, ms", "95 % interval", "cost", "score", "why", "gain of the chosen"];
const FIGURES = new Set([1, 2, 3, 4]);

export function plan(element, service) {
  const rows = planRows(service).slice(1).map((cells, at) => html("tr", {class: at ? "lost" : "won"},
    ...cells.map((cell, column) => html(column ? "td" : "th", {class: FIGURES.has(column) ? "n" : column > 4 ? "prose" : "",
      scope: column ? null : "row", "data-title": column ? HEAD[column] : null}, cell || null))));
  const head = HEAD.map((title, column) => html("th", {scope: "col", class: FIGURES.has(column) ? "n" : ""}, title));
  element.replaceChildren(
    html("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": "plans"},
      html("table", {class: "plans"}, html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...rows))),
    ...service.refused.map((line) => html("p", {class: "note"}, `Refused before any simulation: ${line}`)),
    service.runners_up.length ? "" : html("p", {class: "note"}, "No other plan was judged."),
  );
}

export function planRows(service) {
  const predicted = (one) => (one.judged_by === "bound" ? "≥ " : "") + ms(one.predicted_ms, Boolean(one.predicted_interval_ms));
  const number = (value, digits) => (known(value) ? (digits ? value.toFixed(digits) : String(value)) : "–");
  const score = service.score ? number(service.score.planned_value ?? service.score.value, 3) : "–";
  return [
    HEAD,
    [`chosen: ${service.placed}`, predicted(service), interval(service.predicted_interval_ms), number(service.cost), score,
      service.why, ""],
    ...service.runners_up.map((one) => [one.label, predicted(one), interval(one.predicted_interval_ms), number(one.cost),
      number(one.score, 3), one.why, one.gain]),
  ];
}
