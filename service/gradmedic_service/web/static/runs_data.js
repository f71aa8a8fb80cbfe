// The runs of the list as the page holds them: parts that are read page by page, where the reader looks.
//
// A part is the whole list, or one of its groups. A page is read from the token of the page before it, or, after a jump,
// by passing over runs from the last page that was read. Reading a run again replaces its data and changes no place.

import { get } from "./api.js";

const PAGE = 100;
const MARKED_PAGE = 1000; // runs of one request where all runs of the list are marked

class Part {
  constructor(query, total, group) {
    this.query = query;
    this.total = total;
    this.group = group; // null, or {value, total, levels, query} of a group
    this.isOpen = !group;
    this.pages = new Map(); // {ids, next, place} by number
    this.reading = new Map();
  }

  idAt(index) { return this.pages.get(Math.floor(index / PAGE))?.ids[index % PAGE]; }

  /** Return where a page begins, for the API: after the last page before it that was read. */
  placeOf(number) {
    for (let before = number - 1; before >= 0; before -= 1) {
      const page = this.pages.get(before);
      if (page?.next) return { page_token: page.next, skip: (number - before - 1) * PAGE };
    }
    return { page_token: null, skip: number * PAGE };
  }
}

/** The runs that fit the filters, in the order of the list. */
export class RunData {
  constructor(onChange) {
    this.onChange = onChange;
    this.runs = new Map(); // run by id
    this.parts = [];
    this.counts = null;
    this.added = 0; // runs that the list has more than when it was loaded
    this.version = 0; // of the query: answers to an earlier one are dropped
  }

  /** Read the list from its beginning. The old runs stay until the new ones are there. */
  async load(query, groupBy, openGroups) {
    const version = this.version += 1;
    const place = { page_token: null, skip: 0 };
    const [counts, page] = await Promise.all([
      get("/runs/counts", { ...countsQuery(query), group_by: groupBy }),
      groupBy ? null : get("/runs", { ...query, ...place, max_results: PAGE }),
    ]);
    if (version !== this.version) return false;
    this.query = query;
    this.groupBy = groupBy;
    this.counts = this.loadedCounts = counts;
    if (page) {
      const part = new Part({}, counts.total, null);
      this.parts = [part];
      this.runs.clear();
      this.store(part, 0, page, place);
    } else {
      this.parts = counts.groups.map((group) => new Part(group.query, group.total, group));
      for (const part of this.parts) part.isOpen = openGroups.has(JSON.stringify(part.group.value));
    }
    return true;
  }

  store(part, number, page, place) {
    part.pages.set(number, { ids: page.items.map(({ id }) => id), next: page.next_page_token, place });
    for (const run of page.items) this.runs.set(run.id, run);
    const known = number * PAGE + page.items.length;
    if (!page.next_page_token && (page.items.length || number === 0)) part.total = known;
    else part.total = Math.max(part.total, known);
  }

  async readPage(part, number) {
    const version = this.version;
    const place = part.placeOf(number);
    const page = await get("/runs", { ...this.query, ...part.query, ...place, max_results: PAGE });
    if (version !== this.version || !this.parts.includes(part)) return;
    this.store(part, number, page, place);
    this.onChange();
  }

  get rowCount() {
    return this.parts.reduce((sum, part) => sum + (part.group ? 1 : 0) + (part.isOpen ? part.total : 0), 0);
  }

  /** Return the part of a row, and the place of its run there; -1 for the heading of a group. */
  rowAt(row) {
    let rest = row;
    for (const part of this.parts) {
      if (part.group) {
        if (rest === 0) return { part, index: -1 };
        rest -= 1;
      }
      if (part.isOpen) {
        if (rest < part.total) return { part, index: rest, run: this.runs.get(part.idAt(rest)) };
        rest -= part.total;
      }
    }
    return null;
  }

  /** Return the pages of the rows from `first` to `last`, as `[part, number]`. */
  pagesOf(first, last) {
    const pages = new Map();
    for (let row = first; row <= last; row += 1) {
      const found = this.rowAt(row);
      if (!found || found.index < 0) continue;
      const number = Math.floor(found.index / PAGE);
      pages.set(`${this.parts.indexOf(found.part)} ${number}`, [found.part, number]);
    }
    return [...pages.values()];
  }

  /** Read the pages of some rows that were not read yet. */
  async need(first, last) {
    await Promise.all(this.pagesOf(first, last).filter(([part, number]) => !part.pages.has(number)).map(([part, number]) => {
      if (!part.reading.has(number)) part.reading.set(number, this.readPage(part, number).finally(() => part.reading.delete(number)));
      return part.reading.get(number);
    }));
  }

  /**
   * Read the counts and the pages of some rows again. Return whether the list has other runs, or another order, than it
   * had: the runs keep their places until the list is loaded again.
   */
  async refresh(first, last) {
    const version = this.version;
    const seen = this.pagesOf(first, last).map(([part, number]) => [part, part.pages.get(number)]).filter(([, page]) => page);
    const [counts, ...pages] = await Promise.all([
      get("/runs/counts", { ...countsQuery(this.query), group_by: this.groupBy }),
      ...seen.map(([part, page]) => get("/runs", { ...this.query, ...part.query, ...page.place, max_results: PAGE })),
    ]);
    if (version !== this.version) return false;
    let hasMoved = counts.total !== this.loadedCounts.total || groupsText(counts) !== groupsText(this.loadedCounts);
    seen.forEach(([, page], index) => {
      const items = pages[index].items;
      if (items.map(({ id }) => id).join() !== page.ids.join()) hasMoved = true;
      for (const run of items) if (this.runs.has(run.id)) this.runs.set(run.id, run);
    });
    this.added = counts.total - this.loadedCounts.total;
    this.counts = counts;
    return hasMoved;
  }

  /** Return id and name of every run of the list; null if another list was loaded meanwhile. */
  async readAll(onProgress) {
    const version = this.version;
    const names = [];
    for (let token = null; ;) {
      const page = await get("/runs", { ...this.query, config_keys: [], max_results: MARKED_PAGE, page_token: token });
      if (version !== this.version) return null;
      names.push(...page.items.map(({ id, name }) => [id, name]));
      onProgress(names.length);
      token = page.next_page_token;
      if (!token) return names;
    }
  }
}

function countsQuery({ sort: _sort, config_keys: _keys, ...filters }) { return filters; }

const groupsText = (counts) => JSON.stringify(counts.groups.map(({ value, total }) => [value, total]));
