// Changes a page without moving what the reader looks at.

const NOTICEABLE = 1; // pixels

/** Return the places of elements by what names them: the key of an item that is made anew with each change, else the element. */
function placesOf(selector) {
  const places = new Map();
  for (const element of document.querySelectorAll(selector)) {
    const { left, top, bottom, height } = element.getBoundingClientRect();
    if (height) places.set(element.dataset.key ? `${element.parentElement.id} ${element.dataset.key}` : element, { left, top, bottom });
  }
  return places;
}

const isInWindow = ({ top, bottom }) => bottom > 0 && top < window.innerHeight;

/**
 * Call `apply()`, and `undo()` after it if that has moved an element of the selector that is in the window; nothing of that
 * is painted. Return whether the change stays.
 */
export function applyUnlessMoving(selector, apply, undo) {
  const before = placesOf(selector);
  apply();
  const after = placesOf(selector);
  const isMoved = [...before].some(([name, place]) => {
    const now = after.get(name);
    return isInWindow(place) && now && Math.max(Math.abs(now.left - place.left), Math.abs(now.top - place.top)) > NOTICEABLE;
  });
  if (isMoved) undo();
  return !isMoved;
}

/** Let an element become higher, but not lower again, until the window has another width. */
export function keepHeight(element) {
  if (element.dataset.width !== String(window.innerWidth)) element.style.minHeight = "";
  element.dataset.width = String(window.innerWidth);
  element.style.minHeight = `${element.offsetHeight}px`;
}
