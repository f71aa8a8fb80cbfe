// Colours of the cells of the heatmap.
//
// Finite values have the colours of viridis (perceptually even, also without red-green vision) between two quantiles of
// the values in view, so that an outlier does not take the colours of all others. Values that are not finite have colours
// that viridis does not contain, and stripes, so that colour is not the only sign.

const ANCHORS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37],
];
const QUANTILES = [0.01, 0.99];
const MIN_DECADES = 1;

export const SPECIAL = {
  nan: { color: [214, 0, 110], stripe: [255, 255, 255], label: "NaN" },
  infinite: { color: [255, 112, 10], stripe: [20, 20, 20], label: "infinite" },
  zero: { color: [12, 12, 16], label: "exactly 0" },
};

const LINEAR = new Set(document.body.dataset.linearStatistics.split(" "));

/** Return whether the colour scale of a statistic is linear; all others are drawn by their power of ten. */
export const isLinear = (statistic) => LINEAR.has(statistic);

/** Return `[red, green, blue]` of viridis, from 0 to 1. */
export function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (ANCHORS.length - 1);
  const low = Math.min(Math.floor(place), ANCHORS.length - 2);
  return ANCHORS[low].map((value, channel) => Math.round(value + (ANCHORS[low + 1][channel] - value) * (place - low)));
}

/** Return `[low, high]` of a colour scale: powers of ten, or the values themselves where it is linear. */
export function domainOf(tables, statistic) {
  if (isLinear(statistic)) return [0, 1];
  const exponents = [];
  for (const { values, count, nonfinite } of tables) {
    for (let at = 0; at < values.length; at += 1) {
      const size = Math.abs(values[at]);
      if (size > 0 && count[at] > nonfinite[at]) exponents.push(Math.log10(size));
    }
  }
  if (!exponents.length) return [-1, 0];
  const sorted = Float64Array.from(exponents).sort();
  let [low, high] = QUANTILES.map((share) => sorted[Math.round(share * (sorted.length - 1))]);
  const missing = MIN_DECADES - (high - low);
  if (missing > 0) [low, high] = [low - missing / 2, high + missing / 2];
  return [low, high];
}

/** Return the kind of a cell: absent, nan, infinite, zero or finite. */
export function kindOf(value, count, nonfinite, infinite) {
  if (count === 0) return "absent";
  if (nonfinite > infinite) return "nan";
  if (infinite > 0) return "infinite";
  return value === 0 ? "zero" : "finite";
}

const pack = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // little-endian RGBA

/** Return a packed colour with an opacity from 0 to 1. */
export const withOpacity = (color, opacity) => ((Math.round(255 * opacity) << 24) | (color & 0xffffff)) >>> 0;

/** Return a function from a finite value to its packed colour. */
export function painter(statistic, [low, high]) {
  const levels = Uint32Array.from({ length: 256 }, (_, level) => pack(viridis(level / 255)));
  const span = high - low || 1;
  const linear = isLinear(statistic);
  return (value) => {
    const at = linear ? value : Math.log10(Math.abs(value));
    return levels[Math.min(255, Math.max(0, Math.round(((at - low) / span) * 255)))];
  };
}

/** Packed colour of a layer that no optimizer touched, on light and on dark ground. */
export const ABSENT = withOpacity(pack([128, 138, 150]), 0.3);

/** Packed colour and stripe of each special kind. */
export const PACKED = Object.fromEntries(
  Object.entries(SPECIAL).map(([kind, { color, stripe }]) => [kind, [pack(color), stripe ? pack(stripe) : pack(color)]]),
);
