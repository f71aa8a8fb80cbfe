// Places the lists of the diagnosis: beside the pictures of a wide page where they fit, else below the pictures.

import { byId } from "./dom.js";

const SPARE = 120; // pixels by which the diagnosis may be longer than the pictures
const MOVABLE = [["findings-section", "history-section"], ["causes-section"]]; // what goes first, and what goes next

/**
 * Move lists below the pictures: findings and history if all is one column, and as many as are needed for a diagnosis that
 * is no longer than the pictures beside it. They stay there, so that nothing moves while the reader reads.
 */
export function placeLists() {
  const [aside, pictures, below] = [byId("diagnosis"), document.querySelector("#columns .charts"), byId("below")];
  if (!aside.offsetHeight) return;
  const isBeside = aside.offsetLeft > pictures.offsetLeft;
  const fits = () => isBeside && aside.offsetHeight <= pictures.offsetHeight + SPARE;
  for (const ids of isBeside ? MOVABLE : MOVABLE.slice(0, 1)) {
    const sections = ids.map(byId).filter((section) => section.parentElement === aside);
    if (sections.length && !fits() && !sections.some((section) => section.contains(document.activeElement))) below.prepend(...sections);
  }
}
