// Mouse and keyboard of the heatmap. Every action of the mouse has a key.

import { listenToBrush } from "./brush.js";

const FAR = 10; // cells that a move with Shift or Page passes

/** Point at cells, select them, and zoom by dragging. */
export function listenToPointer(heatmap) {
  const { canvas } = heatmap;
  listenToBrush(canvas, {
    mayDrag: () => heatmap.columns.length > 0,
    point: (event) => heatmap.pointAt(cellAt(heatmap, event), event),
    leave: () => { if (document.activeElement !== canvas) heatmap.pointAt(null); },
    mark: (range) => {
      heatmap.brush = range;
      heatmap.drawOverlay();
    },
    choose: (low, high) => heatmap.handlers.zoom(Math.floor(heatmap.scale.invert(low)), Math.floor(heatmap.scale.invert(high))),
    click: (event) => {
      const cell = cellAt(heatmap, event);
      if (!cell) return;
      heatmap.pointAt(cell, event);
      heatmap.selectCell();
    },
    reset: () => heatmap.handlers.zoom(null, null),
  });
}

/** Move a cursor over cells, select them, zoom and fold. */
export function listenToKeys(heatmap) {
  const { canvas } = heatmap;
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !heatmap.columns.length) return;
    if (applyKey(heatmap, event)) event.preventDefault();
  });
  canvas.addEventListener("focus", () => {
    if (!heatmap.cursor && heatmap.columns.length && canvas.matches(":focus-visible")) heatmap.pointAt(firstCell(heatmap));
  });
  canvas.addEventListener("blur", () => heatmap.pointAt(null));
}

/** Carry out the action of a key; return whether the key has one. */
function applyKey(heatmap, { key, shiftKey }) {
  const { rows, columns } = heatmap;
  const cell = heatmap.cursor ?? firstCell(heatmap);
  const distance = shiftKey ? FAR : 1;
  const moves = {
    ArrowLeft: [0, -distance], ArrowRight: [0, distance], ArrowUp: [-distance, 0], ArrowDown: [distance, 0],
    PageUp: [-FAR, 0], PageDown: [FAR, 0], Home: [0, -Infinity], End: [0, Infinity],
  };
  const clamp = (value, max) => Math.max(0, Math.min(max, value));
  if (key in moves) {
    const [down, right] = moves[key];
    heatmap.pointAt({ row: clamp(cell.row + down, rows.length - 1), column: clamp(cell.column + right, columns.length - 1) });
  } else if (key === "Enter" || key === " ") heatmap.selectCell();
  else if (key === "+" || key === "=") heatmap.zoomBy(0.5, columns[cell.column].first);
  else if (key === "-" || key === "_") heatmap.zoomBy(2, columns[cell.column].first);
  else if (key === "0") heatmap.handlers.zoom(null, null);
  else if (key === "s" || key === "S") heatmap.handlers.zoom(columns[cell.column].first, heatmap.view.to);
  else if (key === "e" || key === "E") heatmap.handlers.zoom(heatmap.view.from, columns[cell.column].end - 1);
  else if (key === "f" || key === "F") foldAtCursor(heatmap, cell);
  else if (key === "Escape") heatmap.pointAt(null);
  else return false;
  return true;
}

function foldAtCursor(heatmap, cell) {
  const row = heatmap.rows[cell.row];
  if (!row.isFolded && row.isAlone) return;
  heatmap.toggleFold(row.group);
  heatmap.pointAt({ row: Math.max(0, heatmap.rows.findIndex(({ group }) => group === row.group)), column: cell.column });
}

/** Return the first cell for the keyboard: the selected one, else the first of all. */
function firstCell({ rows, columns, selected, view }) {
  const row = Math.max(0, rows.findIndex(({ layers }) => layers.some(({ name }) => name === selected.layer)));
  const step = selected.step ?? view.from;
  return { row, column: Math.max(0, columns.findIndex(({ first, end }) => step >= first && step < end)) };
}

/** Return the cell under the mouse, or null. `isHeld`: the step was not sampled, and shows the sample before it. */
function cellAt({ canvas, rows, columns, rowHeight, scale }, event) {
  const box = canvas.getBoundingClientRect();
  const row = Math.floor((event.clientY - box.top) / rowHeight);
  const step = scale.invert(event.clientX - box.left);
  const column = columns.findIndex(({ first, end }) => step >= first && step < end);
  return row >= 0 && row < rows.length && column >= 0 ? { row, column, isHeld: step >= columns[column].last + 1 } : null;
}
