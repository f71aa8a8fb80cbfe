// Pictures that stand alone: an SVG whose styles are attributes, and the same as PNG.
//
// The policy of the pages allows no image from memory, so the PNG is not made by loading the SVG. A canvas draws the few
// kinds of elements that the charts have.

import { svg } from "./dom.js";

const STYLES = ["fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "font-size", "font-weight", "text-anchor"];
const SCALE = 2; // pixels of a PNG for each pixel of the page
const bitmaps = new WeakMap(); // canvas of each image element

/** Return a copy of an SVG element and its descendants, with their computed styles as attributes. */
export function standAlone(element) {
  const copy = element.cloneNode(false);
  copy.removeAttribute("class");
  const computed = getComputedStyle(element);
  for (const name of STYLES) {
    const value = computed.getPropertyValue(name);
    if (value && value !== "normal") copy.setAttribute(name, value.replaceAll("px", ""));
  }
  for (const child of element.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) copy.append(child.cloneNode());
    else if (computed.visibility !== "hidden" && child.nodeType === Node.ELEMENT_NODE && getComputedStyle(child).visibility !== "hidden") copy.append(standAlone(child));
  }
  return copy;
}

/** Return the colour of a name of the style sheet, such as "--card". */
export function colorOf(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

/** Return a text of a picture. attributes: of the SVG element; its colour is that of the style sheet's `color`. */
export const textOf = (text, attributes, color = "--text") => svg("text", { fill: colorOf(color), "font-size": 13, ...attributes }, text);

/** Return an image element that shows a canvas. */
export function imageOf(canvas, attributes) {
  const image = svg("image", { ...attributes, preserveAspectRatio: "none" });
  bitmaps.set(image, canvas);
  return image;
}

/** Return a picture of a size with a background, from SVG elements. */
export const pictureOf = (width, height, ...children) => svg("svg", { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}`, "font-family": getComputedStyle(document.body).fontFamily },
  svg("rect", { width, height, fill: colorOf("--card") }), ...children);

/** Return a picture as an SVG file. Its canvases are written in a document that loads nothing, as the policy demands. */
export function svgFile(picture) {
  const copy = document.implementation.createHTMLDocument("").importNode(picture, true);
  const canvases = [...picture.querySelectorAll("image")].map((image) => bitmaps.get(image));
  for (const [at, image] of [...copy.querySelectorAll("image")].entries()) image.setAttribute("href", canvases[at].toDataURL());
  return new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" });
}

/** Return a promise of a picture as a PNG file. */
export function pngFile(picture) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(numberOf(picture, "width") * SCALE);
  canvas.height = Math.round(numberOf(picture, "height") * SCALE);
  const context = canvas.getContext("2d");
  context.scale(SCALE, SCALE);
  drawChildren(context, picture, { family: picture.getAttribute("font-family") });
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}

const numberOf = (element, name, otherwise = 0) => Number.parseFloat(element.getAttribute(name) ?? otherwise);

function drawChildren(context, parent, inherited) {
  for (const child of parent.children) drawElement(context, child, inherited);
}

function drawElement(context, element, { family }) {
  const draw = DRAWN[element.tagName];
  if (!draw) return;
  context.save();
  const [x = 0, y = 0] = (element.getAttribute("transform")?.match(/-?[\d.]+/g) ?? []).map(Number);
  context.translate(x, y);
  const clip = element.getAttribute("clip-path")?.match(/#([\w-]+)/);
  const region = clip && [...element.parentNode.querySelectorAll("clipPath")].find(({ id }) => id === clip[1])?.firstElementChild;
  if (region) {
    context.beginPath();
    context.rect(...["x", "y", "width", "height"].map((name) => numberOf(region, name)));
    context.clip();
  }
  context.globalAlpha *= numberOf(element, "opacity", 1);
  draw(context, element, { family });
  context.restore();
}

/** Fill and stroke a path, as the attributes of its element demand. */
function paint(context, element, path) {
  const fill = element.getAttribute("fill") ?? "black";
  const stroke = element.getAttribute("stroke") ?? "none";
  if (fill !== "none") {
    context.save();
    context.globalAlpha *= numberOf(element, "fill-opacity", 1);
    context.fillStyle = fill;
    context.fill(path);
    context.restore();
  }
  if (stroke !== "none") {
    context.globalAlpha *= numberOf(element, "stroke-opacity", 1);
    context.strokeStyle = stroke;
    context.lineWidth = numberOf(element, "stroke-width", 1);
    context.lineJoin = element.getAttribute("stroke-linejoin") ?? "miter";
    context.setLineDash((element.getAttribute("stroke-dasharray")?.match(/[\d.]+/g) ?? []).map(Number));
    context.stroke(path);
  }
}

function drawText(context, element, { family }) {
  const weight = element.getAttribute("font-weight") ?? "400";
  context.font = `${weight} ${numberOf(element, "font-size", 12)}px ${family}`;
  context.textAlign = { middle: "center", end: "right" }[element.getAttribute("text-anchor")] ?? "left";
  context.fillStyle = element.getAttribute("fill");
  context.fillText(element.textContent, numberOf(element, "x"), numberOf(element, "y"));
}

const DRAWN = {
  g: drawChildren,
  svg: drawChildren,
  path: (context, element) => paint(context, element, new Path2D(element.getAttribute("d"))),
  line: (context, element) => {
    const [x1, y1, x2, y2] = ["x1", "y1", "x2", "y2"].map((name) => numberOf(element, name));
    paint(context, element, new Path2D(`M${x1},${y1}L${x2},${y2}`));
  },
  rect: (context, element) => {
    const path = new Path2D();
    path.rect(...["x", "y", "width", "height"].map((name) => numberOf(element, name)));
    paint(context, element, path);
  },
  circle: (context, element) => {
    const path = new Path2D();
    path.arc(...["cx", "cy", "r"].map((name) => numberOf(element, name)), 0, 2 * Math.PI);
    paint(context, element, path);
  },
  image: (context, element) => {
    context.imageSmoothingEnabled = false;
    context.drawImage(bitmaps.get(element), ...["x", "y", "width", "height"].map((name) => numberOf(element, name)));
  },
  text: drawText,
};
