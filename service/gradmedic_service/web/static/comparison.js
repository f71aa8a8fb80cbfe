// Links to the page that compares runs.

export const MAX_COMPARED = 6; // runs on one page

/** Return the address of the comparison of runs. */
export const comparisonAddress = (runIds) => `/compare?${new URLSearchParams(runIds.map((id) => ["run", id]))}`;
