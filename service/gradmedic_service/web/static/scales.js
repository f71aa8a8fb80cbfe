// Scales from numbers to pixels, linear and logarithmic, with round ticks.

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const ratio = rough / power;
  return power * (ratio <= 1 ? 1 : ratio <= 2 ? 2 : ratio <= 5 ? 5 : 10);
}

export function linear(low, high, from, to) {
  const span = high - low || 1;
  const scale = (value) => from + ((value - low) / span) * (to - from);
  scale.invert = (place) => low + ((place - from) / (to - from)) * span;
  scale.ticks = (count, whole = false) => {
    const step = Math.max(niceStep(span / count), whole ? 1 : 0);
    const ticks = [];
    for (let index = Math.ceil(low / step); index * step <= high + step * 1e-9; index += 1) {
      ticks.push(Number((index * step).toPrecision(12)));
    }
    return ticks;
  };
  return scale;
}

export function log(low, high, from, to) {
  const inner = linear(Math.log10(low), Math.log10(high), from, to);
  const scale = (value) => inner(Math.log10(value));
  scale.invert = (place) => 10 ** inner.invert(place);
  scale.ticks = (count) => {
    const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
    if (last - first < 1) return linear(low, high, from, to).ticks(count).filter((value) => value > 0);
    const step = Math.max(1, Math.ceil((last - first) / count));
    const ticks = [];
    for (let exponent = first; exponent <= last; exponent += step) ticks.push(10 ** exponent);
    return ticks;
  };
  return scale;
}
