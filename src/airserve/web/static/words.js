// Figures and labels as text; the verdicts' words come with the data (web/words.py).

const ICON = {kept: "✓", "not kept": "✗", "too close to call": "≈", "too few requests": "…", "not measured": "–"};
const ARROW = {up: " ↑", down: " ↓"};

export function known(value) {
  return value !== null && value !== undefined;
}

// A latency in ms; `infinite`: null stands for requests that were not answered.
export function ms(value, infinite = false) {
  if (!known(value)) return infinite ? "∞" : "–";
  const short = Number(value.toFixed(3));
  return short && Math.abs(short) < 0.1 ? String(short) : tenths(value);
}

function tenths(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(1);
}

export function signed(value) {
  return known(value) ? (value <= -0.05 ? "−" : "+") + tenths(Math.abs(value)) : "–";
}

export function count(value) {
  return known(value) ? Math.round(value).toLocaleString("en").replace(/,/g, "\u202f") : "–";
}

export function interval(lowHigh) {
  return lowHigh && lowHigh.length === 2 ? `${ms(lowHigh[0], true)} to ${ms(lowHigh[1], true)}` : "–";
}

export function spanLabel(span) {
  return span.kind + (ARROW[span.direction] || "") + (span.site ? ` · ${span.site}` : "");
}

export function percentileLabel(service) {
  return `p${service.percentile}`;
}

export function verdictLabel(service) {
  return `${ICON[service.word]} ${service.word}`;
}

// The latency to show large: what was measured, or, before any measurement, what is predicted.
export function headline(service) {
  const measured = known(service.measured_ms) || service.sent > 0;
  return measured
    ? {text: `${ms(service.measured_ms, true)} ms`, of: percentileLabel(service)}
    : {text: `${ms(service.predicted_ms, Boolean(service.predicted_interval_ms))} ms`,
       of: `${percentileLabel(service)} predicted`};
}
