// A promise card: verdict, percentile, prediction against measurement, the trend. A radio button chooses the service.

import {fill, html, svg} from "./dom.js";
import {count, headline, interval, known, ms, verdictLabel} from "./words.js";

const WIDTH = 240;
const LEFT = 66; // of the track, beside "predicted" and "measured"
const RIGHT = 40; // beside the track, for the figure

// Draw `service` into `element`, a label; later calls keep the radio button, so that it keeps the focus. `run` names the
// further run that measured it.
export function card(element, service, value, run = "") {
  if (!element.querySelector("input")) {
    element.className = "card";
    element.append(html("input", {type: "radio", name: "service", value, "aria-label": value}), html("div"));
  }
  element.dataset.state = service.state;
  const shown = headline(service);
  fill(element.lastChild, [
    html("div", {class: "top"}, html("b", {}, service.name, run ? html("span", {class: "tag"}, run) : null),
      html("span", {class: "pill", "data-state": service.state}, verdictLabel(service))),
    html("div", {class: "large"}, shown.text, html("small", {}, shown.of +
      (known(service.promise_ms) ? ` of ${service.promise_ms} promised` : ""))),
    html("div", {class: "under"}, service.placed),
    intervals(service),
    trend(service),
    html("div", {class: "under"}, requests(service)),
    html("div", {class: "under"}, devices(service)),
  ]);
}

function requests(service) {
  if (!service.sent) return "no request sent yet";
  const unanswered = service.failed ? `, ${count(service.failed)} not answered` : "";
  return `p50 ${ms(service.measured_p50_ms, true)} ms; ${count(service.sent)} requests${unanswered}`;
}

function devices(service) {
  const now = `${count(service.devices)} devices` + (known(service.rate_hz) ? ` at ${service.rate_hz} Hz` : "");
  if (!known(service.max_devices) || !known(service.devices)) return `${now}; ${service.slice}`;
  const room = service.max_devices - service.devices;
  return `${now}, ${room >= 0 ? `${count(room)} more fit` : `${count(-room)} too many`}; ${service.slice}`;
}

function intervals(service) {
  const rows = [
    {name: "predicted", value: service.predicted_ms, ends: service.predicted_interval_ms},
    {name: "measured", value: service.measured_ms, ends: service.measured_interval_ms},
  ].filter((row) => known(row.value) || row.ends);
  const figures = rows.flatMap((row) => [row.value, ...(row.ends || [])]).filter(known);
  if (!figures.length) return null;
  const promise = service.promise_ms;
  const low = Math.min(...figures, promise ?? Infinity);
  const high = Math.max(...figures, promise ?? 0);
  const from = Math.max(0, low - (high - low || 1) * 0.25);
  const to = high + (high - low || 1) * 0.08;
  const x = (value) => LEFT + ((value - from) / (to - from)) * (WIDTH - LEFT - RIGHT);
  const text = (at, y, anchor, content) => svg("text", {x: at, y, "text-anchor": anchor}, content);
  const height = 20 * rows.length + 16;
  const picture = svg("svg", {class: "intervals", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label":
    rows.map((row) => `${row.name} ${ms(row.value, true)} ms (${interval(row.ends)})`).join(", ") +
    (known(promise) ? `, promise ${promise} ms` : "")});
  rows.forEach((row, at) => {
    const y = 10 + 20 * at;
    const ends = row.ends && row.ends.length === 2 ? row.ends : [row.value, row.value];
    const [a, b] = [x(ends[0] ?? to), x(ends[1] ?? to)];
    picture.append(
      text(0, y + 4, "start", row.name),
      svg("rect", {class: "track", x: LEFT, y: y - 1, width: WIDTH - LEFT - RIGHT, height: 2}),
      svg("rect", {class: `range ${row.name}`, x: a, y: y - 6, width: Math.max(2, b - a), height: 12, rx: 2}),
      mark(row.name, x(row.value ?? to), y),
      text(WIDTH, y + 4, "end", ms(row.value, true)),
    );
  });
  if (known(promise)) {
    const end = Math.max(Math.min(x(promise) + 26, WIDTH), LEFT + 70);
    picture.append(
      svg("line", {class: "promise", x1: x(promise), x2: x(promise), y1: 0, y2: height - 13}),
      text(end, height - 2, "end", `promise ${promise}`),
    );
    if (end > LEFT + 110) picture.append(text(LEFT, height - 2, "start", ms(from)));
  }
  return picture;
}

// Predicted is a diamond, measured a dot: the difference does not rest on colour.
function mark(name, x, y) {
  return name === "measured"
    ? svg("circle", {class: "dot", cx: x, cy: y, r: 4})
    : svg("path", {class: "diamond", d: `M${x} ${y - 5}l5 5l-5 5l-5 -5z`});
}

function trend(service) {
  const values = service.over_time.percentile_ms.filter(known);
  if (values.length < 2) return null;
  const every = Math.max(1, Math.floor(values.length / 100));
  const shown = values.filter((_, at) => at % every === 0);
  const levels = known(service.promise_ms) ? [...shown, service.promise_ms] : shown;
  const [low, high] = [Math.min(...levels), Math.max(...levels)];
  const y = (value) => (27 - ((value - low) / (high - low || 1)) * 24).toFixed(1);
  const points = shown.map((value, at) => `${((at * 120) / (shown.length - 1)).toFixed(1)},${y(value)}`);
  const picture = svg("svg", {class: "trend", viewBox: "0 0 120 30", preserveAspectRatio: "none", "aria-hidden": "true"});
  if (known(service.promise_ms)) {
    picture.append(svg("line", {class: "promise", x1: 0, x2: 120, y1: y(service.promise_ms), y2: y(service.promise_ms)}));
  }
  picture.append(svg("polyline", {points: points.join(" ")}));
  return picture;
}
