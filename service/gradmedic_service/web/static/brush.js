// Pointing, clicking and dragging over a picture, with mouse, pen or finger. A drag marks a range.

const MIN_DRAG = 6; // pixels; a shorter drag is a click

/**
 * Listen to an element. handlers: `point(event)` and `leave()` while nothing is dragged; `mark([start, end])` in pixels of
 * the element during a drag, `mark(null)` after it; `choose(low, high)` at the end of a drag; `click(event)`. Escape ends
 * a drag without a choice. `mayDrag()` returns whether a drag marks a range. `reset()` follows a double click.
 *
 * A finger that moves sideways drags; the style `touch-action: pan-y` of the element leaves other moves to the browser.
 */
export function listenToBrush(element, handlers) {
  let drag = null; // [start, end] in pixels
  let hasDragged = false; // since the button was pressed
  const xOf = (event) => event.clientX - element.getBoundingClientRect().left;
  const isLong = () => Math.abs(drag[1] - drag[0]) >= MIN_DRAG;
  const end = () => {
    drag = null;
    window.removeEventListener("keydown", cancel, true);
    handlers.mark(null);
  };
  function cancel(event) {
    if (event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    end();
  }
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    element.setPointerCapture(event.pointerId);
    drag = [xOf(event), xOf(event)];
    hasDragged = false;
    window.addEventListener("keydown", cancel, true);
  });
  element.addEventListener("pointermove", (event) => {
    if (!drag) {
      if (!event.buttons) handlers.point(event);
      return;
    }
    drag[1] = xOf(event);
    hasDragged ||= handlers.mayDrag() && isLong();
    if (handlers.mayDrag() && isLong()) handlers.mark(drag);
    else handlers.mark(null);
  });
  element.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const [low, high] = [...drag].sort((a, b) => a - b);
    const isRange = handlers.mayDrag() && isLong();
    end();
    if (isRange) handlers.choose(low, high);
    else handlers.click(event);
  });
  // `click` has drawn the element anew. If its part under the pointer is gone by that, the browser sends no `dblclick`.
  element.addEventListener("mouseup", (event) => { if (event.button === 0 && event.detail === 2 && !hasDragged) handlers.reset(); });
  element.addEventListener("pointercancel", () => { if (drag) end(); });
  element.addEventListener("pointerleave", (event) => {
    if (!drag && event.pointerType !== "touch") handlers.leave(); // a finger leaves after each tap
  });
}
