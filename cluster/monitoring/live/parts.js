// @ts-check
/** Words, tables and images of the page. Text is always set as text, never parsed as HTML. */

/** @typedef {import("./store.js").State} State */

/** @param {string} id @returns {HTMLElement} */
export function at(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}

/** @param {string} tag @param {string} text @param {string} [kind] */
function element(tag, text, kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

/** Show the answer to every question; hide the sections without an answer.
 * @param {State} state */
export function showAnswers(state) {
  const answers = state.sections?.answers ?? {};
  for (const section of document.querySelectorAll("main > section")) {
    const answer = answers[section.id];
    const place = /** @type {HTMLElement} */ (section.querySelector(".answer"));
    /** @type {HTMLElement} */ (section).hidden = !answer;
    if (!answer) continue;
    place.dataset.tone = answer.tone;
    place.replaceChildren(element("b", answer.short), ` ${answer.text}`);
  }
}

/** @param {State} state */
export function showHead(state) {
  const run = state.run;
  const step = state.values.streamssl_train_step ?? 0;
  at("run").textContent = run ? run.name : "no run yet";
  document.title = run ? `${Math.floor((100 * step) / run.num_steps)} % ${run.name}` : "streamssl";
  at("done").style.width = run ? `${(100 * step) / run.num_steps}%` : "0";
  at("progress").textContent = state.sections?.answers?.progress?.text ?? "";
}

/** @param {string} text @param {"good" | "watch" | "bad" | "quiet"} tone */
export function showLink(text, tone) {
  const chip = at("link");
  if (chip.textContent !== text) chip.textContent = text;
  chip.dataset.tone = tone;
  document.body.classList.toggle("away", tone === "watch");
}

/** @param {any[]} tiles @param {HTMLElement} place */
export function showGallery(place, tiles) {
  place.hidden = !tiles.length;
  const shown = new Map([...place.children].map((one) => [/** @type {HTMLElement} */ (one).dataset.name, one]));
  // Keep tiles that did not change: an image that is loaded again would flicker.
  const wanted = tiles.map((tile) => {
    const old = /** @type {HTMLElement | undefined} */ (shown.get(tile.name));
    return old && old.dataset.image === String(tile.image) && old.dataset.waits === String(tile.waits)
      ? old
      : makeTile(tile);
  });
  if (wanted.length !== place.children.length || wanted.some((one, index) => one !== place.children[index])) {
    place.replaceChildren(...wanted);
  }
}

/** @param {any} tile */
function makeTile(tile) {
  const made = element("div", "", "tile");
  Object.assign(made.dataset, { name: tile.name, image: tile.image, waits: tile.waits });
  const frame = element("div", "", "frame");
  if (tile.image) {
    const image = document.createElement("img");
    image.src = tile.image;
    image.alt = tile.reason ? `rejected: ${tile.reason}` : `crops of ${tile.key}`;
    frame.append(image);
  } else {
    frame.textContent = tile.waits ? "being made" : "not opened";
  }
  made.append(frame, element("b", tile.reason.replaceAll("_", " ") || tile.key));
  for (const text of [tile.detail, tile.reason ? tile.member || tile.key : "", tile.where]) {
    if (text) made.append(element("span", text));
  }
  return made;
}

/** @param {State} state */
export function showCluster(state) {
  const status = state.status;
  const nodes = (status?.nodes ?? []).map((/** @type {any} */ one) => [
    one.address + (one.is_head ? " (head)" : ""), one.num_trainers, one.num_readers, one.cores, labels(one.labels),
    one.leaves_in === null ? "" : `leaves in ${Math.round(one.leaves_in)} s`,
  ]);
  table(at("table-nodes"), ["node", "trainers", "readers", "cores", "labels", ""], nodes);
  const actors = (status?.actors ?? []).toSorted(trainersFirst).slice(0, 24).map((/** @type {any} */ one) => [
    one.name, one.node.slice(0, 8), one.phase + (one.doing ? `, ${one.doing}` : ""),
    one.step >= 0 ? one.step : "", one.rank >= 0 ? one.rank : "", one.pages ?? "",
  ]);
  const pages = actors.some((row) => row[5]) ? "pages" : "";
  table(at("table-actors"), ["actor", "node", "is", "step", "rank", pages], actors);
  showEvents(status);
}

/** @param {any} a @param {any} b */
function trainersFirst(a, b) {
  return a.role === b.role ? a.name.localeCompare(b.name) : a.role === "trainer" ? -1 : 1;
}

/** @param {Object<string, string>} found */
function labels(found) {
  return Object.entries(found)
    .filter(([name]) => !name.startsWith("ray.io/"))
    .map(([name, value]) => `${name}=${value}`)
    .join(" ");
}

/** @param {any} status */
function showEvents(status) {
  const decided = [...(status?.decisions ?? []), ...(status?.recoveries ?? []).map(recovered)];
  const newest = decided.sort((a, b) => a.seconds - b.seconds).slice(0, 8);
  at("events").replaceChildren(
    ...newest.map((one) => {
      const item = document.createElement("li");
      const why = one.why ? ` (${one.why})` : "";
      item.append(element("time", ago(one.seconds)), element("span", one.what + why));
      return item;
    }),
  );
}

/** @param {any} one */
function recovered(one) {
  return { ...one, what: `trained again after ${one.what}` };
}

/** @param {number} seconds */
function ago(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min ago` : `${Math.round(seconds / 3600)} h ago`;
}

/** @param {HTMLElement} place @param {string[]} head @param {any[][]} rows */
function table(place, head, rows) {
  place.hidden = !rows.length;
  const made = document.createElement("table");
  const isNumber = head.map((_, column) => rows.some((row) => typeof row[column] === "number"));
  const cells = (/** @type {any[]} */ row, /** @type {string} */ tag) => {
    const line = document.createElement("tr");
    row.forEach((cell, column) => line.append(element(tag, String(cell), isNumber[column] ? "number" : "")));
    return line;
  };
  made.append(cells(head, "th"), ...rows.map((row) => cells(row, "td")));
  place.replaceChildren(made);
}
