// What a panel shows, as a file: CSV of its figures, SVG of its chart.

import {html} from "./dom.js";
import {known} from "./words.js";

// Rows as CSV (RFC 4180).
export function csv(rows) {
  const cell = (value) => {
    const text = known(value) ? String(value) : "";
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

// A button that saves what `content` returns when it is pressed.
export function saveButton(text, label, type, name, content) {
  const press = () => {
    const address = URL.createObjectURL(new Blob([content()], {type}));
    html("a", {href: address, download: name().replace(/[^\w.-]+/g, "-")}).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  return html("button", {type: "button", "aria-label": label, onclick: press}, text);
}
