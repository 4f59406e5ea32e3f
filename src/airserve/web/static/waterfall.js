// Where the milliseconds go: a table with bars. Thick: slow requests; thin: the median; the guilty span stands out.

import {html, svg} from "./dom.js";
import {known, ms, signed, spanLabel} from "./words.js";

export function waterfall(element, service) {
  const spans = service.waterfall;
  const worst = worstInOrder(service);
  const top = Math.max(total(spans, "slow_ms"), total(spans, "median_ms"), service.promise_ms ?? 0) * 1.04 || 1;
  const promise = known(service.promise_ms) ? (service.promise_ms / top) * 100 : null;
  const axis = html("span", {class: "axis"}, html("span", {}, "0"));
  if (promise !== null) {
    const name = html("span", {}, `promise ${service.promise_ms} ms`);
    name.style.right = `${100 - promise}%`;
    axis.append(name);
  }
  const figure = (text, kind = "") => html("td", {class: `n ${kind}`}, text);
  const title = (text, kind = "") => html("th", {class: `n ${kind}`, scope: "col"}, text);
  let slowAt = 0;
  let medianAt = 0;
  const rows = spans.map((span, at) => {
    const guilty = at === service.guilty;
    const row = html("tr", {class: guilty ? "guilty" : ""},
      html("th", {scope: "row"}, swatch(span.kind), spanLabel(span), guilty ? html("span", {class: "hidden"},
        ", most over the prediction") : null),
      figure(ms(span.median_ms), "spare"),
      figure(ms(span.slow_ms)),
      figure(ms(span.predicted_slow_ms), "spare"),
      figure(signed(over(span)), "over"),
      worst ? figure(ms(worst[at].ms), "spare") : null,
      html("td", {class: "lane", "aria-hidden": "true"}, lane(span, slowAt / top, medianAt / top, top, promise, guilty)),
    );
    slowAt += span.slow_ms ?? 0;
    medianAt += span.median_ms ?? 0;
    return row;
  });
  const sums = ["median_ms", "slow_ms", "predicted_slow_ms"].map((key) => (spans.every((span) => known(span[key])) ?
    total(spans, key) : null));
  const sum = html("tr", {class: "sum"}, html("th", {scope: "row"}, "sum"), figure(ms(sums[0]), "spare"), figure(ms(sums[1])),
    figure(ms(sums[2]), "spare"), figure(known(sums[1]) && known(sums[2]) ? signed(sums[1] - sums[2]) : "–", "over"),
    worst ? figure(ms(total(worst, "ms")), "spare") : null, html("td"));
  const head = html("tr", {}, html("th", {scope: "col"}, "span"), title("median", "spare"), title("slow"),
    title("predicted", "spare"), title("over"), worst ? title("worst", "spare") : null, html("th", {class: "lane"}, axis));
  element.replaceChildren(html("table", {class: "waterfall"}, html("thead", {}, head), html("tbody", {}, ...rows, sum)),
    html("p", {class: "note"}, note(service, worst)));
}

export function waterfallRows(service) {
  const rows = service.waterfall.map((span) => [spanLabel(span), span.median_ms, span.slow_ms, span.predicted_slow_ms]);
  return [["span", "median_ms", "slow_ms", "predicted_slow_ms"], ...rows];
}

function note(service, worst) {
  const ranks = service.slow_ranks ? `${service.slow_ranks[0]} to ${service.slow_ranks[1]} %` : "about the percentile";
  const apart = service.worst.length && !worst
    ? ` The worst request took ${ms(total(service.worst, "ms"))} ms: ` +
      service.worst.map((span) => `${spanLabel(span)} ${ms(span.ms)}`).join(", ") + "."
    : "";
  if (service.foretold) {
    return `ms, predicted by one run of the twin with a seed of its own. Slow (thick bar): requests ranked ${ranks}; ` +
      "median (thin): 45 to 55 %.";
  }
  return `ms. Slow (thick bar): mean of the whole requests ranked ${ranks}; median (thin): 45 to 55 %. ` +
    "Predicted: one run of the twin with a seed of its own. " +
    `Over: slow less predicted.${apart}`;
}

// The worst request beside the others, where it has the same spans in the same order.
function worstInOrder(service) {
  const same = service.worst.length === service.waterfall.length && service.worst.length > 0 &&
    service.worst.every((span, at) => span.kind === service.waterfall[at].kind);
  return same ? service.worst : null;
}

function lane(span, slowAt, medianAt, top, promise, guilty) {
  const share = (value) => Math.max(0.5, ((value ?? 0) / top) * 100);
  const picture = svg("svg", {viewBox: "0 0 100 26", preserveAspectRatio: "none"});
  if (known(span.slow_ms)) {
    picture.append(svg("rect", {class: `bar ${span.kind}`, x: slowAt * 100, y: 4, width: share(span.slow_ms), height: 11}));
    if (guilty && over(span) > 0) {
      const at = (slowAt + Math.max(0, span.predicted_slow_ms) / top) * 100;
      picture.append(svg("rect", {class: "excess", x: at, y: 4, width: share(over(span)), height: 11}));
    }
  }
  if (known(span.median_ms)) {
    picture.append(svg("rect", {class: `bar thin ${span.kind}`, x: medianAt * 100, y: 18, width: share(span.median_ms),
      height: 4}));
  }
  if (promise !== null) picture.append(svg("line", {class: "promise", x1: promise, x2: promise, y1: 0, y2: 26}));
  return picture;
}

export function swatch(kind) {
  return svg("svg", {class: "swatch", viewBox: "0 0 10 10", "aria-hidden": "true"},
    svg("rect", {class: `bar ${kind}`, width: 10, height: 10, rx: 2}));
}

function over(span) {
  return known(span.slow_ms) && known(span.predicted_slow_ms) ? span.slow_ms - span.predicted_slow_ms : null;
}

function total(spans, key) {
  return spans.reduce((sum, span) => sum + (span[key] ?? 0), 0);
}
