// Where the browser goes after the login. The address comes from a link, so it must not lead to another site.

/**
 * Return the address to go to for the `next` of a login's query: a path of this origin, otherwise the list of runs.
 *
 * The path is judged as the browser resolves it, without dot segments, tabs and backslashes. With two slashes at its
 * beginning it would name another host.
 */
export function nextAddress(query, origin) {
  const text = new URLSearchParams(query).get("next") ?? "/";
  if (!text.startsWith("/") || !URL.canParse(text, origin)) return `${origin}/`;
  const target = new URL(text, origin);
  const isPath = target.origin === origin && !target.pathname.startsWith("//");
  return origin + (isPath ? target.pathname + target.search : "/");
}
