// Requests to the service's API. Where the session has ended, the page goes to the login and comes back.

import { decode } from "./msgpack.js";

const base = document.body.dataset.api;

/** An error that the service answered with (RFC 9457). */
export class Problem extends Error {
  constructor(status, content) {
    super(content.detail ?? content.title ?? `The service answered ${status}.`);
    this.status = status;
    this.code = content.error_code;
    this.errors = content.errors ?? []; // {path, message} of each invalid field
  }
}

export function address(path, query = {}, root = base) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== undefined && item !== null && item !== "") parameters.append(name, item);
    }
  }
  const text = parameters.toString();
  return `${root}${path}${text ? `?${text}` : ""}`;
}

/** The service gave no answer. */
class Unreachable extends Error {
  constructor(cause) {
    super("The service does not answer. Is it running, and is this machine connected to it? The page goes on as soon as it answers again.", { cause });
  }
}

async function request(path, { query, method = "GET", body, accept, headers, signal, root } = {}) {
  const sent = fetch(address(path, query, root), {
    method,
    signal,
    headers: {
      ...(accept && { Accept: accept }),
      ...(body !== undefined && { "Content-Type": "application/json" }),
      ...headers,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const response = await sent.catch((error) => { throw error.name === "AbortError" ? error : new Unreachable(error); });
  if (response.ok) return response;
  const content = await response.json().catch(() => ({}));
  if (response.status === 401 && location.pathname !== "/login") {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  throw new Problem(response.status, content);
}

export const get = async (path, query, signal) => (await request(path, { query, signal })).json();

/** Return a part of a page as HTML, in which the service has escaped what users wrote. */
export const getPart = async (path) => (await request(path, { root: "" })).text();

export async function send(method, path, body, headers) {
  const response = await request(path, { method, body, headers });
  return response.status === 204 ? null : response.json();
}

/** Read the items of all pages of a list, until there are `max` or more. */
export async function getAll(path, query = {}, max = 1000) {
  const items = [];
  for (let token = null; ;) {
    const page = await get(path, { ...query, max_results: 200, page_token: token });
    items.push(...page.items);
    token = page.next_page_token;
    if (!token || items.length >= max) return items;
  }
}

/**
 * Read series as buckets: `{first, last, series: [{statistic, layer, min?, mean?, max?, count, nonfinite, infinite}]}`
 * of typed arrays. Where `count <= nonfinite`, no value of the bucket is finite and its numbers mean nothing.
 */
export async function readSeries(runId, query, signal) {
  const response = await request(`/runs/${runId}/steps`, { query, accept: "application/vnd.msgpack", signal });
  const content = decode(await response.arrayBuffer());
  const series = content.series.map((packed) => {
    const FloatArray = packed.layer === null ? Float64Array : Float32Array;
    const result = { statistic: packed.statistic, layer: packed.layer };
    for (const name of ["min", "mean", "max"]) if (packed[name]) result[name] = new FloatArray(packed[name]);
    for (const name of ["count", "nonfinite", "infinite"]) result[name] = new Uint32Array(packed[name]);
    return result;
  });
  return { first: content.first_step, last: content.last_step, series };
}

/** Read every step of series as a CSV file, with a column for each series. */
export async function readCsv(runId, query, signal) {
  return (await request(`/runs/${runId}/steps`, { query, accept: "text/csv", signal })).blob();
}

/** Show an error at the top of the page; null hides it. */
export function showError(error) {
  if (error?.name === "AbortError") return;
  const notice = document.getElementById("error");
  notice.textContent = error ? error.message : "";
  notice.hidden = !error;
  if (error && !(error instanceof Problem || error instanceof Unreachable)) console.error(error);
}
