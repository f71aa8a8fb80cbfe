// A button that opens a menu of actions.

import { el } from "./dom.js";

const MARGIN = 8; // pixels between a menu and the edge of the window

/**
 * Return `{root, setName(name)}`: a button with its menu, and a function that names both for a screen reader. `actionsOf()`
 * returns the `{label, run()}` of the menu when it opens.
 */
export function menuButton(actionsOf) {
  const button = el("button", { type: "button", class: "menu-button", "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": "Menu" }, "⋯");
  const root = el("span", { class: "menu" }, button);
  let list = null;
  const close = () => {
    const closed = list;
    list = null; // before the removal, which takes the focus away and closes once more
    closed?.remove();
    button.setAttribute("aria-expanded", "false");
  };
  const move = (distance) => {
    const items = [...list.children];
    const at = items.indexOf(document.activeElement);
    items[(at + distance + items.length) % items.length].focus();
  };
  const keys = {
    ArrowDown: () => move(1), ArrowUp: () => move(-1),
    Home: () => list.firstElementChild.focus(), End: () => list.lastElementChild.focus(),
    Escape: () => { button.focus(); close(); },
  };
  const open = () => {
    button.setAttribute("aria-expanded", "true");
    list = el("div", { role: "menu", class: "menu-list", "aria-label": button.getAttribute("aria-label") }, actionsOf().map(({ label, run }) => el("button", {
      type: "button", role: "menuitem", tabindex: "-1",
      onclick: () => { button.focus(); close(); run(); },
    }, label)));
    list.addEventListener("keydown", (event) => {
      if (!(event.key in keys)) return;
      event.preventDefault();
      event.stopPropagation();
      keys[event.key]();
    });
    root.append(list);
    const missing = MARGIN - list.getBoundingClientRect().left;
    if (missing > 0) list.style.right = `${-missing}px`; // the button is near the left edge
    list.firstElementChild.focus();
  };
  button.addEventListener("click", () => (list ? close() : open()));
  root.addEventListener("focusout", (event) => { if (!root.contains(event.relatedTarget)) close(); });
  return { root, setName: (name) => button.setAttribute("aria-label", name) };
}
