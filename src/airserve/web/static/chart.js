// Line charts from a specification, drawn by uPlot on a canvas and, for papers, as SVG.
//
// A specification: {label, height, x: {title, range, format}, y: {title, range, splits, format},
//   columns: [x values, series...], series: [{name, colour, width, dash, fill}], band: {low, high, colour},
//   marks: [{axis, at, text, colour, dash, end}]}. Colours are names of the style sheet. A series without a name is not in
// the key. `band` gives the places of two series in `columns`.

import {colour, html, svg} from "./dom.js";

const FONT_PX = 12; // uPlot scales fonts by whole pixels only
const MARK_PX = 11;
const KEY_PX = 20; // below the chart, in a saved SVG
const drawn = new WeakMap();

export function chart(element, spec) {
  let state = drawn.get(element);
  if (state && state.spec.columns.length === spec.columns.length) {
    state.spec = spec;
    state.plot.setData(spec.columns);
  } else {
    element.replaceChildren();
    element.classList.add("chart");
    state = {spec};
    drawn.set(element, state);
    const canvas = html("div", {class: "canvas", role: "img"});
    const key = html("div", {class: "key"});
    element.append(canvas, key);
    state.canvas = canvas;
    state.key = key;
    state.plot = new uPlot(options(state, canvas.clientWidth || 560), spec.columns, canvas);
    new ResizeObserver(() => {
      const width = canvas.clientWidth;
      if (width && width !== state.plot.width) state.plot.setSize({width, height: state.plot.height});
    }).observe(canvas);
  }
  state.canvas.setAttribute("aria-label", `${spec.label}; figures under All numbers`);
  writeKey(state, null);
}

// Paint all charts below `root` again: after a change between light and dark, or for the printer.
export function repaint(root) {
  for (const element of root.querySelectorAll("*")) {
    const state = drawn.get(element);
    if (state) {
      state.plot.redraw(false, true);
      writeKey(state, null);
    }
  }
}

function family() {
  return getComputedStyle(document.body).fontFamily;
}

function options(state, width) {
  const axis = (name, more) => ({
    stroke: () => colour("dim"),
    font: `${FONT_PX}px ${family()}`,
    labelFont: `${FONT_PX}px ${family()}`,
    grid: {stroke: () => colour("track"), width: 1},
    ticks: {show: false},
    gap: 4,
    label: state.spec[name].title,
    labelSize: 16,
    labelGap: 0,
    values: (_, values) => values.map((value) => (state.spec[name].format || String)(value)),
    ...more,
  });
  const splits = state.spec.y.splits;
  return {
    width,
    height: state.spec.height,
    padding: [8, 12, 0, 0],
    legend: {show: false},
    cursor: {y: false, drag: {x: false, y: false}},
    scales: {
      x: {time: false, range: () => state.spec.x.range},
      y: {range: () => state.spec.y.range},
    },
    axes: [
      axis("x", {size: 24, space: 60}),
      axis("y", {size: 46, ...(splits ? {splits: () => state.spec.y.splits} : {space: 34})}),
    ],
    series: [{}, ...state.spec.series.map((one) => ({
      stroke: one.colour ? () => colour(one.colour) : "transparent",
      width: one.width || 1.5,
      dash: one.dash,
      fill: one.fill ? () => colour(one.fill) : undefined,
      points: {show: false},
    }))],
    bands: state.spec.band
      ? [{series: [state.spec.band.high, state.spec.band.low], fill: () => colour(state.spec.band.colour)}]
      : [],
    hooks: {
      draw: [(plot) => state.spec.marks.forEach((mark) => paintMark(plot, mark))],
      setCursor: [(plot) => writeKey(state, plot.cursor.idx)],
    },
  };
}

// The key names the lines; under the pointer it gives their values.
function writeKey(state, at) {
  const {spec} = state;
  const parts = spec.series.flatMap((one, place) => {
    if (!one.name) return [];
    const value = at === null || at === undefined ? null : spec.columns[place + 1][at];
    const line = svg("svg", {viewBox: "0 0 22 8", "aria-hidden": "true"}, svg("line", {x1: 0, x2: 22, y1: 4, y2: 4,
      stroke: colour(one.colour), "stroke-width": one.width || 1.5, "stroke-dasharray": one.dash ? one.dash.join(" ") : null}));
    const text = value === null || value === undefined ? one.name : `${one.name} ${(spec.y.read || spec.y.format)(value)}`;
    return [html("span", {}, line, text)];
  });
  const where = at === null || at === undefined ? [] : [html("span", {}, `at ${spec.x.read(spec.columns[0][at])}:`)];
  state.key.replaceChildren(...where, ...parts);
}

function paintMark(plot, mark) {
  const {ctx, bbox} = plot;
  const ratio = devicePixelRatio;
  const place = plot.valToPos(mark.at, mark.axis, true);
  const level = mark.axis === "y";
  const [from, size] = level ? [bbox.top, bbox.height] : [bbox.left, bbox.width];
  if (place < from - 2 || place > from + size + 2) return;
  ctx.save();
  ctx.strokeStyle = colour(mark.colour);
  ctx.lineWidth = 1.5 * ratio;
  ctx.setLineDash((mark.dash || []).map((length) => length * ratio));
  ctx.beginPath();
  ctx.moveTo(level ? bbox.left : place, level ? place : bbox.top);
  ctx.lineTo(level ? bbox.left + bbox.width : place, level ? place : bbox.top + bbox.height);
  ctx.stroke();
  if (mark.text) {
    ctx.font = `${MARK_PX * ratio}px ${family()}`;
    const width = ctx.measureText(mark.text).width;
    const x = level
      ? mark.end ? bbox.left + bbox.width - width - 6 * ratio : bbox.left + 6 * ratio
      : mark.end ? place - width - 5 * ratio : place + 5 * ratio;
    const y = level ? place : bbox.top + (mark.row || 0) * 15 * ratio + 8 * ratio;
    ctx.textAlign = "left";
    ctx.textBaseline = "middle";
    ctx.fillStyle = colour("panel");
    ctx.fillRect(x - 2 * ratio, y - 7 * ratio, width + 4 * ratio, 14 * ratio);
    ctx.fillStyle = colour(mark.colour);
    ctx.fillText(mark.text, x, y);
  }
  ctx.restore();
}

// The chart that stands in `element` as an SVG document.
export function chartSvg(element) {
  const {spec, plot} = drawn.get(element);
  const ratio = devicePixelRatio;
  const box = {left: plot.bbox.left / ratio, top: plot.bbox.top / ratio, width: plot.bbox.width / ratio,
    height: plot.bbox.height / ratio};
  const [right, bottom] = [box.left + box.width, box.top + box.height];
  const pos = (value, axis) => plot.valToPos(value, axis) + (axis === "x" ? box.left : box.top);
  const height = plot.height + KEY_PX;
  const picture = svg("svg", {viewBox: `0 0 ${plot.width} ${height}`, width: plot.width, height,
    "font-family": "sans-serif", "font-size": FONT_PX});
  const text = (x, y, anchor, content, fill = "dim") => svg("text", {x, y, "text-anchor": anchor, fill: colour(fill)}, content);
  picture.append(svg("rect", {width: plot.width, height, fill: colour("panel")}),
    svg("clipPath", {id: "plot"}, svg("rect", {x: box.left, y: box.top, width: box.width, height: box.height})));
  const ticks = (axis) => (plot.axes[axis === "x" ? 0 : 1]._splits || []).filter((value) =>
    value >= plot.scales[axis].min && value <= plot.scales[axis].max);
  for (const value of ticks("y")) {
    picture.append(svg("line", {x1: box.left, x2: right, y1: pos(value, "y"), y2: pos(value, "y"), stroke: colour("track")}),
      text(box.left - 5, pos(value, "y") + 4, "end", (spec.y.format || String)(value)));
  }
  for (const value of ticks("x")) {
    picture.append(svg("line", {y1: box.top, y2: bottom, x1: pos(value, "x"), x2: pos(value, "x"), stroke: colour("track")}),
      text(pos(value, "x"), bottom + 15, "middle", (spec.x.format || String)(value)));
  }
  if (spec.y.title) {
    const middle = box.top + box.height / 2;
    const title = text(12, middle, "middle", spec.y.title);
    title.setAttribute("transform", `rotate(-90 12 ${middle})`);
    picture.append(title);
  }
  if (spec.x.title) picture.append(text(box.left + box.width / 2, plot.height - 2, "middle", spec.x.title));
  const lines = svg("g", {"clip-path": "url(#plot)"});
  if (spec.band) lines.append(band(spec, pos));
  spec.series.forEach((one, place) => {
    if (one.colour) lines.append(svg("path", {d: path(spec.columns[0], spec.columns[place + 1], pos), fill: "none",
      stroke: colour(one.colour), "stroke-width": one.width || 1.5,
      "stroke-dasharray": one.dash ? one.dash.join(" ") : null}));
  });
  for (const mark of spec.marks) {
    const at = pos(mark.at, mark.axis);
    const ends = mark.axis === "y" ? {x1: box.left, x2: right, y1: at, y2: at} : {x1: at, x2: at, y1: box.top, y2: bottom};
    lines.append(svg("line", {...ends, stroke: colour(mark.colour), "stroke-width": 1.5,
      "stroke-dasharray": (mark.dash || []).join(" ")}));
    if (!mark.text) continue;
    const [x, y] = mark.axis === "y" ? [mark.end ? right - 6 : box.left + 6, at - 4]
      : [mark.end ? at - 5 : at + 5, box.top + 12 + 15 * (mark.row || 0)];
    lines.append(text(x, y, mark.end ? "end" : "start", mark.text, mark.colour));
  }
  picture.append(lines, ...svgKey(spec, box.left, plot.height + KEY_PX / 2));
  return new XMLSerializer().serializeToString(picture);
}

function svgKey(spec, left, y) {
  return spec.series.filter((one) => one.name).flatMap((one, place) => {
    const x = left + place * 140;
    return [svg("line", {x1: x, x2: x + 22, y1: y, y2: y, stroke: colour(one.colour), "stroke-width": one.width || 1.5,
      "stroke-dasharray": one.dash ? one.dash.join(" ") : null}),
    svg("text", {x: x + 28, y: y + 4, fill: colour("dim")}, one.name)];
  });
}

function path(xs, ys, pos) {
  let pen = "M";
  return xs.map((x, at) => {
    if (ys[at] === null || ys[at] === undefined) {
      pen = "M";
      return "";
    }
    const step = `${pen}${pos(x, "x").toFixed(1)} ${pos(ys[at], "y").toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

function band(spec, pos) {
  const [xs, low, high] = [spec.columns[0], spec.columns[spec.band.low], spec.columns[spec.band.high]];
  const places = xs.map((_, at) => at).filter((at) => low[at] !== null && high[at] !== null);
  const corner = (values) => (at) => `${pos(xs[at], "x").toFixed(1)},${pos(values[at], "y").toFixed(1)}`;
  return svg("polygon", {points: [...places.map(corner(low)), ...places.reverse().map(corner(high))].join(" "),
    fill: colour(spec.band.colour)});
}
