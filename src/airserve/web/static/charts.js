// The charts of a report, as specifications for chart.js: each takes data and returns a specification, or null without data.

import {known, ms, percentileLabel} from "./words.js";

const PROMISE_DASH = [5, 3];
const PREDICTED_DASH = [2, 3];
const figures = (...lists) => lists.flat().filter(known);
const same = (list, value) => list.map(() => (known(value) ? value : null));
const seconds = (value) => `${value} s`;
const milliseconds = (value) => `${ms(value)} ms`;
const empty = (list, length) => (list.length ? list : Array(length).fill(null));

// Percentile and median in each stretch of time, against the prediction and the promise.
export function overTime(service) {
  const {t_s: times, percentile_ms: high, p50_ms: middle} = service.over_time;
  if (!times.length) return null;
  const [low95, high95] = service.predicted_interval_ms || [null, null];
  const top = Math.max(...figures(high, middle, service.promise_ms, high95, service.predicted_ms), 1);
  return {
    label: `${service.name}: latency over time`,
    height: 210,
    x: {title: "time, s", range: [times[0], Math.max(times.at(-1), times[0] + 1)], read: seconds},
    y: {title: "ms", range: [0, top * 1.12], read: milliseconds},
    columns: [times, same(times, low95), same(times, high95), same(times, service.predicted_ms), empty(middle, times.length),
      empty(high, times.length)],
    series: [
      {},
      {},
      {name: `${percentileLabel(service)} predicted`, colour: "predicted", dash: PREDICTED_DASH},
      {name: "p50 measured", colour: "dim", width: 1},
      {name: `${percentileLabel(service)} measured`, colour: "measured", width: 2},
    ],
    band: {low: 1, high: 2, colour: "predicted-band"},
    marks: promiseMark(service, "y"),
  };
}

const LEVELS = new Map([[Math.log10(2), "50 %"], [1, "90 %"], [2, "99 %"], [3, "99.9 %"], [4, "99.99 %"], [5, "99.999 %"]]);

// Shares as levels of a log tail, 1 for 90 %, 2 for 99 %; null beyond `most`, where too few requests are behind them.
export function levels(shares, most) {
  return shares.map((share) => {
    const level = known(share) && share < 1 ? -Math.log10(1 - share) : null;
    return level !== null && level <= most ? level : null;
  });
}

export function tailAxis(top) {
  return {title: "", range: [0, top], splits: [...LEVELS.keys()].filter((at) => at <= top),
    format: (value) => LEVELS.get(value) || "", read: (value) => `${(100 * (1 - 10 ** -value)).toFixed(value < 2 ? 1 : 3)} %`};
}

// The distribution on a log tail: equal steps are ten times fewer requests.
export function distribution(service) {
  const {ms: values, measured, predicted} = service.cdf;
  if (!values.length) return null;
  const resolved = Math.log10(Math.max(10, service.answered ?? Infinity)); // one request in all that were answered
  const [seen, said] = [levels(empty(measured, values.length), resolved), levels(empty(predicted, values.length), 5)];
  const level = -Math.log10(1 - service.percentile / 100);
  const top = Math.min(5, Math.max(...figures(seen, said), level, 1) + 0.1);
  const reaching = values.filter((_, at) => known(seen[at]) || known(said[at]));
  const right = Math.max(...reaching.slice(-1), (service.promise_ms ?? 0) * 1.1, 1);
  return {
    label: `${service.name}: distribution of latency`,
    height: 250,
    x: {title: "latency, ms", range: [Math.max(0, Math.min(values[0], service.promise_ms ?? Infinity)), right], read: milliseconds},
    y: tailAxis(top),
    columns: [values, said, seen],
    series: [
      {name: "predicted", colour: "predicted", dash: PREDICTED_DASH},
      {name: "measured", colour: "measured", width: 2},
    ],
    marks: [...promiseMark(service, "x"), {axis: "y", at: level, text: "", colour: "broken", dash: PROMISE_DASH}],
  };
}

// The predicted percentile as devices are added, up to where the promise breaks.
export function capacity(service) {
  const {devices, ms: middle, low, high} = service.capacity;
  if (!devices.length) return null;
  const promise = service.promise_ms;
  const top = known(promise) ? promise * 2 : Math.max(...figures(middle, high), 1) * 1.1;
  const right = Math.max(devices.at(-1), service.devices ?? 0, service.max_devices ?? 0);
  const left = Math.min(devices[0], service.devices ?? Infinity);
  const side = (at) => at > left + (right - left) * 0.6;
  const marks = promiseMark(service, "y");
  if (known(service.devices)) {
    marks.push({axis: "x", at: service.devices, text: `now ${service.devices}`, colour: "ink", end: side(service.devices)});
  }
  if (known(service.max_devices)) {
    marks.push({axis: "x", at: service.max_devices, text: `fits ${service.max_devices}`, colour: "predicted",
      dash: PREDICTED_DASH, end: side(service.max_devices), row: 1});
  }
  return {
    label: `${service.name}: ${percentileLabel(service)} against the number of devices`,
    height: 210,
    x: {title: "devices", range: [left, right > left ? right : left + 1], read: (value) => `${value} devices`},
    y: {title: "ms", range: [0, top], read: milliseconds},
    columns: [devices, empty(low, devices.length), empty(high, devices.length), empty(middle, devices.length)],
    series: [{}, {}, {name: `${percentileLabel(service)} predicted`, colour: "predicted", width: 2}],
    band: {low: 1, high: 2, colour: "predicted-band"},
    marks,
  };
}

// A slice's share of the PRBs second by second, in both directions, against what it was promised.
export function share(slice, place) {
  const per = (way) => slice[way].per_s.map((value) => (known(value) ? value * 100 : null));
  const [up, down] = [per("up"), per("down")];
  const length = Math.max(up.length, down.length);
  if (!length) return null;
  const fill = (list) => [...list, ...Array(length - list.length).fill(null)];
  const percent = (value) => `${Math.round(value)} %`;
  const limit = (name, dash, end) => (slice[name] && (name !== "max" || slice[name] < 100)
    ? [{axis: "y", at: slice[name], text: `${name} ${slice[name]} %`, colour: "ink", dash, end}] : []);
  return {
    label: `slice ${slice.name}: share of the PRBs over time`,
    height: 130,
    x: {title: "", range: [0, Math.max(1, length - 1)], format: seconds, read: seconds},
    y: {title: "", range: [0, 100], splits: [0, 50, 100], format: percent, read: (value) => `${value.toFixed(1)} %`},
    columns: [Array.from({length}, (_, at) => at), fill(up), fill(down)],
    series: [
      {name: "↑ used", colour: `slice-${place % 3}`, width: 2, fill: `slice-${place % 3}-fill`},
      {name: "↓ used", colour: `slice-${place % 3}`, width: 1.5, dash: [4, 3]},
    ],
    marks: [...limit("dedicated", [], false), ...limit("min", [2, 3], true), ...limit("max", [6, 3], true)],
  };
}

function promiseMark(service, axis) {
  return known(service.promise_ms)
    ? [{axis, at: service.promise_ms, text: `promise ${service.promise_ms} ms`, colour: "broken", dash: PROMISE_DASH,
        end: axis === "x"}]
    : [];
}
