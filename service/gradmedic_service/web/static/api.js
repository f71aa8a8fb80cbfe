// The service's API, as a page uses it. Who is not known any more is led to the login and back.

import { decode } from "./msgpack.js";

const base = document.body.dataset.api;

/** An answer that says what went wrong (RFC 9457). */
export class Problem extends Error {
  constructor(status, content) {
    super(content.detail ?? content.title ?? `The service answered ${status}.`);
    this.status = status;
    this.code = content.error_code;
  }
}

export function address(path, query = {}) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null && one !== "") parameters.append(name, one);
    }
  }
  const text = parameters.toString();
  return `${base}${path}${text ? `?${text}` : ""}`;
}

async function ask(path, { query, method = "GET", body, accept, headers, signal } = {}) {
  const answer = await fetch(address(path, query), {
    method,
    signal,
    headers: {
      ...(accept && { Accept: accept }),
      ...(body !== undefined && { "Content-Type": "application/json" }),
      ...headers,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.ok) return answer;
  const content = await answer.json().catch(() => ({}));
  if (answer.status === 401 && location.pathname !== "/login") {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  throw new Problem(answer.status, content);
}

export const get = async (path, query, signal) => (await ask(path, { query, signal })).json();

export async function send(method, path, body, headers) {
  const answer = await ask(path, { method, body, headers });
  return answer.status === 204 ? null : answer.json();
}

/** Every item of a list, at most `most`. */
export async function all(path, query = {}, most = 1000) {
  const items = [];
  for (let token = null; ;) {
    const page = await get(path, { ...query, max_results: 200, page_token: token });
    items.push(...page.items);
    token = page.next_page_token;
    if (!token || items.length >= most) return items;
  }
}

/**
 * Series over buckets: `{first, last, series: [{statistic, layer, min?, mean?, max?, count, nonfinite, infinite}]}` of
 * typed arrays. A number without meaning, since nothing in its bucket is finite, has `count <= nonfinite`.
 */
export async function readSeries(runId, query, signal) {
  const answer = await ask(`/runs/${runId}/steps`, { query, accept: "application/vnd.msgpack", signal });
  const content = decode(await answer.arrayBuffer());
  const series = content.series.map((one) => {
    const numbers = one.layer === null ? Float64Array : Float32Array;
    const result = { statistic: one.statistic, layer: one.layer };
    for (const name of ["min", "mean", "max"]) if (one[name]) result[name] = new numbers(one[name]);
    for (const name of ["count", "nonfinite", "infinite"]) result[name] = new Uint32Array(one[name]);
    return result;
  });
  return { first: content.first_step, last: content.last_step, series };
}

/** Show what went wrong at the top of the page; nothing clears it. */
export function showTrouble(error) {
  if (error?.name === "AbortError") return;
  const place = document.getElementById("trouble");
  place.textContent = error ? error.message : "";
  place.hidden = !error;
  if (error && !(error instanceof Problem)) console.error(error);
}
