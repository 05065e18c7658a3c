// @ts-check
/** The charts of the page: the series of each, and their common style. */

import { labelOf } from "./store.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {{lines: any[], layout?: any}} Drawing */
/** @typedef {import("./sections.js").ChartSpec} ChartSpec */

const P = "streamssl_";
const COLOURS = ["blue", "orange", "green", "purple", "red", "grey"];
/** The operational charts by the id of their place. A drawing without lines hides the place.
 * @type {Object<string, (store: Store) => Drawing>} */
export const CHARTS = {
  "chart-wait": (store) => {
    const steps = `${P}step_seconds_count`;
    return {
      lines: [
        area(store, "work", store.rate(`${P}step_seconds_sum`, steps), "blue"),
        area(store, "waiting", store.rate(`${P}data_wait_seconds_total`, steps), "orange"),
      ],
      layout: { yaxis: { ticksuffix: " s" } },
    };
  },
  "chart-lead": (store) => ({
    lines: ofMetric(store, "lead_seconds", () => "lead"),
    layout: { yaxis: { ticksuffix: " s" }, shapes: marks(store, "lead_seconds") },
  }),
  "chart-rates": (store) => ({
    lines: ["read", "cropped", "trained"].map((stage, at) =>
      line(store, stage, store.rate(`${P}samples_total{stage="${stage}"}`), COLOURS[at]),
    ),
  }),
  "chart-readers": (store) => shares(store, ["reader_busy_seconds_total", "reader_blocked_seconds_total"]),
  "chart-phases": (store) => {
    const drawing = shares(store, ["step_phase_seconds_total"]);
    // The log of an ended run holds only the waits: a single part has no share.
    return drawing.lines.length > 1 ? drawing : { lines: [] };
  },
  "chart-rejects": (store) => {
    const counts = Object.entries(store.state?.values ?? {})
      .filter(([name, value]) => name.startsWith(`${P}rejects_total{`) && value > 0)
      .sort((a, b) => a[1] - b[1]);
    const bars = {
      type: "bar",
      orientation: "h",
      x: counts.map(([, value]) => value),
      y: counts.map(([name]) => labelOf(name).replaceAll("_", " ")),
      text: counts.map(([, value]) => value.toLocaleString("en")),
      textposition: "auto",
      cliponaxis: false,
      marker: { color: "orange" },
      hoverinfo: "skip",
    };
    const layout = { yaxis: { automargin: true, showgrid: false, rangemode: "normal" }, bargap: 0.35 };
    return { lines: counts.length ? [bars] : [], layout };
  },
  "chart-actors": (store) => {
    const running = ofMetric(store, "actors", (label) => `${label}s`);
    const wanted = ofMetric(store, "actors_wanted", (label) => `${label}s wanted`);
    wanted.forEach((one) => Object.assign(one.line, { dash: "dot", width: 1.5 }));
    [...running, ...wanted].forEach((one) => (one.line.shape = "hv"));
    return { lines: [...running, ...wanted, ...decisions(store)] };
  },
};

const STEPS = { xaxis: { type: "linear", tickformat: ",d", hoverformat: ",d" } };

/** A chart over the steps, from its specification in /live/sections.json.
 * @param {ChartSpec} spec @returns {(store: Store) => Drawing} */
export function specChart(spec) {
  return (store) => {
    const lines = [];
    for (const one of spec.lines) {
      lines.push(...bySteps(store, one.metric, (label) => one.name || label || one.metric, lines.length));
    }
    const shapes = spec.lines.flatMap((one, at) => marks(store, one.metric, at));
    const annotations = spec.note ? spec.lines.flatMap((one) => notes(store, one.metric, spec.note)) : [];
    const yaxis = spec.percent ? { tickformat: ".0%", range: [0, 1.02] } : {};
    return { lines, layout: { ...STEPS, yaxis, shapes, annotations } };
  };
}

/** Draw into a place, or hide the place if there is nothing to draw.
 * @param {HTMLElement} place @param {Drawing} drawing @param {number} revision of the data: columns
 * grow in place, and the library does not redraw an array that it already has */
export function draw(place, drawing, revision) {
  const colours = getComputedStyle(document.documentElement);
  const colour = (/** @type {string} */ name) => colours.getPropertyValue(`--${name}`).trim();
  const lines = drawing.lines.filter((one) => one.x.length && one.y.some((/** @type {any} */ y) => y !== null));
  const figure = /** @type {HTMLElement} */ (place.closest("figure"));
  figure.hidden = !lines.length;
  if (!lines.length) return;
  for (const one of lines) {
    if (one.line) one.line.color = colour(one.line.color);
    if (one.marker) one.marker.color = colour(one.marker.color);
    if (one.fillcolor) one.fillcolor = faded(one.line.color);
  }
  const more = drawing.layout ?? {};
  for (const shape of more.shapes ?? []) shape.line.color = colour(shape.line.color);
  const overTime = {
    type: "date",
    hoverformat: "%H:%M:%S",
    tickformatstops: [
      { dtickrange: [null, 59999], value: "%H:%M:%S" },
      { dtickrange: [60000, 86399999], value: "%H:%M" },
      { dtickrange: [86400000, null], value: "%b %-d" },
    ],
  };
  const axis = {
    gridcolor: colour("rule"), linecolor: colour("rule"), zeroline: false, fixedrange: true,
    tickfont: { size: 11 }, automargin: true, tickangle: 0, nticks: place.clientWidth < 320 ? 3 : 5,
  };
  const layout = {
    margin: { l: 8, r: 12, t: 8, b: 8 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: colours.fontFamily, size: 12, color: colour("faint") },
    colorway: COLOURS.map(colour),
    dragmode: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("rule"), font: { color: colour("ink") } },
    showlegend: false,
    datarevision: revision,
    ...more,
    xaxis: { ...axis, showgrid: false, ...(more.xaxis ?? (lines[0].type === "bar" ? { tickformat: ",d" } : overTime)) },
    yaxis: { ...axis, rangemode: "tozero", ...(more.yaxis ?? {}) },
  };
  showLegend(figure, lines);
  // @ts-ignore: defined by plotly.min.js
  Plotly.react(place, lines, layout, { displayModeBar: false, responsive: true, scrollZoom: false });
}

/** A legend beside the title; it takes less room than a legend within the chart.
 * @param {HTMLElement} figure @param {any[]} lines */
function showLegend(figure, lines) {
  const caption = /** @type {HTMLElement} */ (figure.querySelector("figcaption"));
  const words = lines.length > 1 ? lines.map((one) => one.name).join() : "";
  if (caption.dataset.legend === words && !words) return;
  caption.dataset.legend = words;
  caption.querySelector(".legend")?.remove();
  if (!words) return;
  const legend = document.createElement("span");
  legend.className = "legend";
  for (const one of lines) {
    const item = document.createElement("span");
    item.textContent = one.name;
    item.style.setProperty("--dot", one.line?.color ?? one.marker.color);
    item.classList.toggle("dotted", one.line?.dash === "dot");
    legend.append(item);
  }
  caption.append(legend);
}

/** @param {string} hex a colour as #rrggbb */
function faded(hex) {
  const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${parts.join(",")},0.28)`;
}

/** @param {Store} store */
function clock(store) {
  // The library knows no time zones: shift to the local time of the browser.
  return store.columns.time.map((seconds) => seconds * 1000 - new Date(seconds * 1000).getTimezoneOffset() * 60000);
}

/** @param {Store} store @param {string} name @param {(number|null)[]} y @param {string} colour */
function line(store, name, y, colour) {
  return {
    type: "scatter", mode: "lines", name, x: clock(store).slice(0, y.length), y,
    line: { color: colour, width: 2 }, hovertemplate: "%{y:.4~g}",
  };
}

/** @param {Store} store @param {string} name @param {(number|null)[]} y @param {string} colour */
function area(store, name, y, colour) {
  return {
    ...line(store, name, y, colour), stackgroup: "all", fillcolor: colour,
    line: { color: colour, width: 1 },
  };
}

/** Lines of all series of a gauge, over time.
 * @param {Store} store @param {string} metric @param {(label: string) => string} name */
function ofMetric(store, metric, name) {
  return store
    .series(P + metric)
    .map((series, at) => line(store, name(labelOf(series)), store.column(series), COLOURS[at % COLOURS.length]));
}

/** Lines of all series of a gauge, over the steps of the training.
 * @param {Store} store @param {string} metric @param {(label: string) => string} name @param {number} [first] */
function bySteps(store, metric, name, first = 0) {
  const steps = store.column(`${P}train_step`);
  return store.series(P + metric).map((series, at) => {
    const one = line(store, name(labelOf(series)), store.column(series), COLOURS[(first + at) % COLOURS.length]);
    return { ...one, x: steps };
  });
}

/** Shares of time, stacked to the whole.
 * @param {Store} store @param {string[]} metrics @returns {Drawing} */
function shares(store, metrics) {
  const found = metrics.flatMap((metric) => store.series(P + metric));
  const lines = found.map((series, at) => ({
    ...area(store, labelOf(series).replaceAll("_", " "), store.rate(series), COLOURS[at % COLOURS.length]),
    groupnorm: "percent",
    hovertemplate: "%{y:.0f} %",
  }));
  const seen = lines.filter((one) => one.y.some((y) => y));
  return { lines: seen, layout: { yaxis: { ticksuffix: " %", range: [0, 100] } } };
}

/** Dotted lines at the thresholds of a metric.
 * @param {Store} store @param {string} metric @param {number} [at] */
function marks(store, metric, at = 0) {
  const found = Object.entries(store.state?.thresholds ?? {}).filter(([name]) => name.split("{")[0] === P + metric);
  return found.flatMap(([, limits]) => Object.values(limits)).map((y) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: y, y1: y, layer: "below",
    line: { color: at ? "grey" : "red", width: 1, dash: "dot" },
  }));
}

/** The note of a chart, written at the thresholds of a metric.
 * @param {Store} store @param {string} metric @param {string} note */
function notes(store, metric, note) {
  const limits = store.state?.thresholds?.[P + metric] ?? {};
  return Object.values(limits).map((y) => ({
    xref: "paper", x: 1, xanchor: "right", y, yanchor: "bottom", showarrow: false,
    text: note, font: { size: 10 },
  }));
}

/** Decisions of the autoscaler, as points on the number of readers wanted.
 * @param {Store} store */
function decisions(store) {
  const status = store.state?.status;
  const wanted = store.column(`${P}actors_wanted{role="reader"}`);
  const found = (status?.decisions ?? []).map((/** @type {any} */ one) => ({ ...one, at: status.at - one.seconds }));
  const times = store.columns.time;
  const inside = found.filter((/** @type {any} */ one) => one.at >= (times[0] ?? Infinity));
  if (!inside.length || !wanted.length) return [];
  const offset = new Date().getTimezoneOffset() * 60000;
  return [{
    type: "scatter", mode: "markers", name: "decisions", marker: { color: "red", size: 8, symbol: "diamond" },
    x: inside.map((/** @type {any} */ one) => one.at * 1000 - offset),
    y: inside.map((/** @type {any} */ one) => {
      const after = times.findIndex((time) => time >= one.at);
      return wanted[after < 0 ? wanted.length - 1 : after];
    }),
    text: inside.map((/** @type {any} */ one) => one.what),
    hovertemplate: "%{text}<extra></extra>",
  }];
}
