// Creates and changes elements. Text is always set as text, so that names of users cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

/** Set an element's text, unless it is the same already, so that nothing flickers and the focus stays. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Return a function that calls `action` once, that many milliseconds after its last call. */
export function debounce(milliseconds, action) {
  let timer = 0;
  return (...parameters) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...parameters), milliseconds);
  };
}

/** Copy a text to the clipboard; return whether that was possible. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text); // only on HTTPS and on this machine
    return true;
  } catch {
    const field = el("textarea", { class: "hidden", readonly: true, "aria-hidden": "true" });
    field.value = text;
    document.body.append(field);
    const focused = document.activeElement;
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    focused?.focus();
    return isCopied;
  }
}

/** Return a button that copies a text. */
export function copyButton(text, label = "Copy") {
  const button = el("button", { type: "button", class: "copy" }, label);
  button.addEventListener("click", async () => {
    button.textContent = (await copyText(text)) ? "Copied" : "Cannot copy; select the text";
    setTimeout(() => { button.textContent = label; }, 2000);
  });
  return button;
}
