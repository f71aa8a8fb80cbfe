// Short names of layers, which keep the parts that tell a layer from the others.

const ELLIPSIS = "…";
const HEAD_SHARE = 0.4; // share of the characters before the ellipsis of a text that loses its middle
const SHORTENED_FROM = 3; // characters of a part that is worth an ellipsis
const escape = (text) => text.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&");

/**
 * Return the kept parts of a name, with an ellipsis for each gap, as a reader sees it. `kept` has the number of characters
 * of each part: 0 for a part that is left out.
 */
function join(parts, kept) {
  let text = "";
  parts.forEach((part, at) => {
    if (!kept[at]) text += text.endsWith(ELLIPSIS) ? "" : ELLIPSIS;
    else text += (text && !text.endsWith(ELLIPSIS) ? "." : "") + part.slice(0, kept[at]) + (kept[at] < part.length ? ELLIPSIS : "");
  });
  return text;
}

/** Return a pattern of the names that a reader may read from the kept characters. */
function patternOf(parts, kept) {
  let pattern = "";
  let isGap = false;
  parts.forEach((part, at) => {
    if (!kept[at]) { isGap = true; return; }
    const rest = kept[at] < part.length ? "[^.]*" : "";
    pattern += (isGap ? "(?:.+\\.)" : "") + escape(part.slice(0, kept[at])) + rest + (at < parts.length - 1 ? "\\." : "");
    isGap = false;
  });
  return new RegExp(`^${pattern}$`);
}

/**
 * Return a function from a name to a text of at most `size`, as `measure(text)` measures it: in characters by default.
 * Parts between dots are left out, from the left, and then shortened, from the right, as long as no other of `names` could
 * be meant. What is too long even so loses its middle.
 */
export function nameShortener(names, size, measure = (text) => text.length) {
  const fits = (text) => measure(text) <= size;
  return (name) => {
    if (fits(name)) return name;
    const parts = name.split(".");
    const others = names.filter((other) => other !== name);
    const kept = parts.map((part) => part.length);
    const isUnique = () => { const pattern = patternOf(parts, kept); return !others.some((other) => pattern.test(other)); };
    const isDone = () => fits(join(parts, kept));
    for (let at = 0; at < parts.length - 1 && !isDone(); at += 1) {
      kept[at] = 0;
      if (!isUnique()) kept[at] = parts[at].length;
    }
    for (let at = parts.length - 1; at >= 0 && !isDone(); at -= 1) {
      if (kept[at] < SHORTENED_FROM) continue;
      do kept[at] -= 1; while (kept[at] > 1 && !isDone());
      while (kept[at] < parts[at].length && !isUnique()) kept[at] += 1;
    }
    return cutMiddle(join(parts, kept), fits);
  };
}

/** Return a text that fits, without as much of its middle as needed. */
function cutMiddle(text, fits) {
  if (fits(text)) return text;
  let head = text.slice(0, Math.ceil(text.length * HEAD_SHARE));
  let tail = text.slice(head.length);
  while (head.length + tail.length > 1 && !fits(head + ELLIPSIS + tail)) {
    if (head.length > HEAD_SHARE * (head.length + tail.length)) head = head.slice(0, -1);
    else tail = tail.slice(1);
  }
  return head + ELLIPSIS + tail;
}
