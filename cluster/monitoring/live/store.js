// @ts-check
/** Store: the newest state of the run, and the columns of its history. */

/** @typedef {{time: number[], [series: string]: (number|null)[]}} Columns */
/** @typedef {{version: number, now: number, run: any, values: Object<string, number>,
 *   history: Columns, thresholds: Object<string, {low?: number, high?: number}>, status: any,
 *   sections: any}} State */

const MAX_POINTS = 1200;
// Seconds over which a rate is taken: over less, it would jump at each step.
const RATE_SECONDS = 10;

export class Store {
  /** @type {State | null} */
  state = null;
  /** @type {Columns} */
  columns = { time: [] };

  /** The time of the newest point in the store. */
  get since() {
    return this.columns.time.at(-1) ?? 0;
  }

  /** Take a new state. Returns false if it is of another run: then request all of its history.
   * @param {State} state */
  take(state) {
    const before = this.state?.run?.began;
    this.state = state;
    if (before !== undefined && before !== state.run?.began) {
      this.columns = { time: [] };
      return false;
    }
    this.#append(state.history);
    return true;
  }

  /** @param {Columns} more */
  #append(more) {
    const old = this.columns.time.length;
    const added = more.time.length;
    for (const name of new Set([...Object.keys(this.columns), ...Object.keys(more)])) {
      const column = (this.columns[name] ??= Array(old).fill(null));
      const values = more[name] ?? Array(added).fill(null);
      for (const value of values) column.push(/** @type {any} */ (value));
    }
    if (this.columns.time.length > MAX_POINTS) this.#thin();
  }

  #thin() {
    for (const name of Object.keys(this.columns)) {
      this.columns[name] = /** @type {any} */ (this.columns[name].filter((_, at) => at % 2));
    }
  }

  /** Names of the series of a metric that have a history.
   * @param {string} metric @returns {string[]} */
  series(metric) {
    return Object.keys(this.columns)
      .filter((name) => name.split("{")[0] === metric)
      .sort();
  }

  /** @param {string} series @returns {(number|null)[]} */
  column(series) {
    return this.columns[series] ?? [];
  }

  /** The increase of a counter per second, or per increase of another one.
   * @param {string} series @param {string} [per] @returns {(number|null)[]} */
  rate(series, per = "time") {
    const time = this.columns.time;
    const values = this.column(series);
    const base = this.columns[per] ?? [];
    // A counter at 0 may not be counted in this run: it has no rate, instead of a rate of 0.
    if (!values.at(-1)) return [];
    let first = 0;
    return values.map((value, at) => {
      while (first + 1 < at && time[at] - time[first + 1] >= RATE_SECONDS) first += 1;
      const before = values[first];
      const passed = Number(base[at]) - Number(base[first]);
      if (value === null || before === null || base[first] === null || !(passed > 0)) return null;
      return value >= before ? (value - before) / passed : null;
    });
  }
}

/** The label values of a series name.
 * @param {string} series */
export function labelOf(series) {
  const pairs = [...series.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)];
  return pairs.length === 1 ? pairs[0][2] : pairs.map((pair) => pair[2]).join(", ");
}
