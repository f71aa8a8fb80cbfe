// Scales from numbers to pixels, linear and logarithmic, with round ticks.

const MAX_TICKS = 1000;
const LOG_FACTORS = [1, 2, 5]; // ticks of a decade, where a logarithmic scale has few decades

/** Return the smallest of 1, 2, 5 and 10 times a power of ten that is not below a number. */
export function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const ratio = rough / power;
  return power * (ratio <= 1 ? 1 : ratio <= 2 ? 2 : ratio <= 5 ? 5 : 10);
}

/** Return the multiples of a step from `low` to `high`, moved by `offset`; none where they are finer than numbers are. */
export function multiples(low, high, step, offset = 0) {
  const first = Math.ceil((low - offset) / step - 1e-9);
  const count = Math.floor((high - offset) / step + 1e-9) - first + 1;
  if (!(count > 0 && count <= MAX_TICKS) || !Number.isSafeInteger(first)) return [];
  return Array.from({ length: count }, (_, at) => Number(((first + at) * step + offset).toPrecision(12)));
}

export function linear(low, high, from, to) {
  const span = high - low || 1;
  const scale = (value) => from + ((value - low) / span) * (to - from);
  scale.domain = [low, high];
  scale.invert = (place) => low + ((place - from) / (to - from)) * span;
  scale.ticks = (count, whole = false) => multiples(low, high, Math.max(niceStep(span / count), whole ? 1 : 0));
  return scale;
}

/** A logarithmic scale. Its ticks are 1, 2 and 5 in each decade; powers of ten where these are too many; else linear. */
export function log(low, high, from, to) {
  const inner = linear(Math.log10(low), Math.log10(high), from, to);
  const scale = (value) => inner(Math.log10(value));
  scale.domain = [low, high];
  scale.invert = (place) => 10 ** inner.invert(place);
  scale.ticks = (count) => {
    const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const decades = Array.from({ length: last - first + 1 }, (_, at) => first + at);
    const isInside = (value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9);
    if (decades.length <= count + 2) {
      const fine = decades.flatMap((exponent) => LOG_FACTORS.map((factor) => Number(`${factor}e${exponent}`))).filter(isInside);
      if (fine.length < 2) return linear(low, high, from, to).ticks(count).filter((value) => value > 0);
      if (fine.length <= count + 2) return fine;
    }
    const powers = decades.map((exponent) => Number(`1e${exponent}`)).filter(isInside);
    const every = Math.max(1, Math.ceil((powers.length - 1) / count));
    return powers.filter((_, at) => at % every === 0);
  };
  return scale;
}
