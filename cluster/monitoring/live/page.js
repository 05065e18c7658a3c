// @ts-check
/** The loop of the page: request the state of the run every second, and draw the charts in view. */

import { CHARTS, draw, specChart } from "./charts.js";
import { at, showAnswers, showCluster, showGallery, showHead, showLink } from "./parts.js";
import { addSections } from "./sections.js";
import { Store } from "./store.js";

const POLL_MS = 1000;
const TIMEOUT_MS = 5000;

const store = new Store();
/** @type {Map<Element, (store: Store) => import("./charts.js").Drawing>} */
const charts = new Map();
/** @type {Set<Element>} */
const inView = new Set();

// Charts out of view are not drawn: the browser may run on the machine that trains.
const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const chart = /** @type {Element} */ (entry.target.querySelector(".chart"));
      if (entry.isIntersecting) inView.add(chart);
      else inView.delete(chart);
      if (entry.isIntersecting) redraw(chart);
    }
  },
  { rootMargin: "300px" },
);

/** @param {HTMLElement} place @param {(store: Store) => import("./charts.js").Drawing} chart */
function keep(place, chart) {
  charts.set(place, chart);
  watcher.observe(/** @type {Element} */ (place.closest("figure")));
}

/** @param {Element} place */
function redraw(place) {
  const chart = charts.get(place);
  if (chart && store.state) draw(/** @type {HTMLElement} */ (place), chart(store), store.state.now);
}

function show() {
  const state = store.state;
  if (!state) return;
  showHead(state);
  showAnswers(state);
  showCluster(state);
  const tiles = state.sections?.gallery ?? { crops: [], rejects: [] };
  showGallery(at("gallery-rejects"), tiles.rejects);
  showGallery(at("gallery-crops"), tiles.crops);
  // A hidden figure has no size, so it would never come into view.
  for (const place of charts.keys()) {
    const figure = /** @type {HTMLElement} */ (place.closest("figure"));
    if (inView.has(place) || figure.hidden) redraw(place);
  }
  document.body.dataset.time = String(state.now);
}

const ENDINGS = { data: "ended by its data", unknown: "ended early" };

async function poll() {
  const answer = await fetch(`/state?since=${store.since}`, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (!answer.ok) throw new Error(`/state answered ${answer.status}`);
  const state = await answer.json();
  if (!store.take(state)) return poll();
  show();
  const run = state.run;
  if (!run) showLink("starting", "quiet");
  else if (run.how && run.how !== "done") showLink(ENDINGS[run.how] ?? run.how, run.how === "stopped" ? "quiet" : "bad");
  else if (run.error) showLink("failed", "bad");
  else if (run.ended) showLink("ended", "quiet");
  else showLink("training", "good");
}

async function loop() {
  for (;;) {
    if (!document.hidden) {
      try {
        await poll();
      } catch {
        showLink("no answer; retrying", "watch");
      }
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

async function start() {
  for (const spec of await addSections()) CHARTS[spec.id] = specChart(spec);
  for (const [id, chart] of Object.entries(CHARTS)) keep(at(id), chart);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  await loop();
}

start();
