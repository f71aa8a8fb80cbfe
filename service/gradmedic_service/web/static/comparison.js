// Links to the page that compares runs, and the letters by which it names them.

export const MAX_COMPARED = 12; // runs on one page

/** Return the address of the comparison of runs; other parameters of the address are kept. */
export function comparisonAddress(runIds, parameters = new URLSearchParams()) {
  const others = [...parameters].filter(([name]) => name !== "run");
  return `/compare?${new URLSearchParams([...runIds.map((id) => ["run", id]), ...others])}`;
}

/** Return the letter of a run by its place on the page, from 0. */
export const letterOf = (index) => String.fromCharCode("A".charCodeAt(0) + index);
