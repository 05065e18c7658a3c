// @ts-check
/** Sections that other parts of the program add to the page, from /live/sections.json. */

import { at } from "./parts.js";

/** @typedef {{id: string, title: string, lines: {metric: string, name: string}[], small: boolean,
 *   percent: boolean, note: string}} ChartSpec */
/** @typedef {{id: string, title: string, before: string, charts: ChartSpec[]}} SectionSpec */

/** Add the sections to the page; return their charts.
 * @returns {Promise<ChartSpec[]>} */
export async function addSections() {
  const answer = await fetch("/live/sections.json");
  /** @type {SectionSpec[]} */
  const specs = await answer.json();
  for (const spec of specs) addSection(spec);
  return specs.flatMap((spec) => spec.charts);
}

/** @param {SectionSpec} spec */
function addSection(spec) {
  const section = document.createElement("section");
  section.id = spec.id;
  section.hidden = true;
  const title = document.createElement("h2");
  title.textContent = spec.title;
  const answer = document.createElement("p");
  answer.className = "answer";
  const large = spec.charts.filter((chart) => !chart.small);
  const small = spec.charts.filter((chart) => chart.small);
  section.append(title, answer, grid("pair", large), grid("pair small", small));
  at(spec.before).before(section);
}

/** @param {string} kind @param {ChartSpec[]} charts */
function grid(kind, charts) {
  const made = document.createElement("div");
  made.className = kind;
  for (const chart of charts) {
    const figure = document.createElement("figure");
    figure.hidden = true;
    const caption = document.createElement("figcaption");
    caption.textContent = chart.title;
    const place = document.createElement("div");
    place.className = "chart";
    place.id = chart.id;
    figure.append(caption, place);
    made.append(figure);
  }
  return made;
}
