// Differences between the settings, the environments and the models of several runs. Pure functions.
//
// A row is `{key, values, texts, groups, isNumeric, isMeasured}`: the value of each run (undefined if it has none), its text,
// and the number of its group: runs with the same value are in one group, and the first run is in group 0. A measured value
// depends on the data of the first batches.

import { number, words } from "./format.js";

const NUMERAL = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const MEASURED_TOLERANCE = 0.05; // two first batches of the same data differ by about so much
const INITIAL_WEIGHT_FACTOR = 2; // the RMS of 64 elements or more varies by a tenth; initializations differ by much more
const MIN_INITIAL_ELEMENTS = 64;
const MIN_RUNS_TO_DIVIDE = 2; // of either side; one run against one is divided by every difference

/** Settings that act on gradients, the strongest first; their differences come before all others. */
const FIRST = [
  /^remedies of the rerun$/, /(^|[._-])lr($|[._-])|learning_?rate/i, /optim/i, /clip|max_(grad_)?norm/i, /activation|nonlinearity/i, /init/i, /norm|residual|gain/i,
  /precision|dtype|amp|fp16|bf16/i, /momentum|beta|decay|eps/i, /warm|schedul/i, /batch|accumul/i, /depth|layers|hidden|width|dim|heads/i,
];
/** Settings that name or place a run; their differences come last. */
const LAST = /^name$|(^|[._-])(seed|(run|exp|experiment|project|group|file)_?name|path|dir|directory|folder|file|device|port|url|host|id)$/i;

const isPlain = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const hasObject = (list) => list.some((item) => isPlain(item) || (Array.isArray(item) && hasObject(item)));

/** Return the settings of a configuration by flat names: `{"model": {"depth": 2}}` has the setting `model.depth`. */
export function flatten(config) {
  const settings = new Map();
  const add = (key, value) => {
    const isNested = isPlain(value) || (Array.isArray(value) && hasObject(value));
    if (isNested && Object.keys(value).length) {
      for (const [name, inner] of Object.entries(value)) add(key === "" ? name : `${key}.${name}`, inner);
    } else if (key !== "") {
      let free = key;
      for (let count = 2; settings.has(free); count += 1) free = `${key} (${count})`; // `a.b` and `a: {b}` in one config
      settings.set(free, value);
    }
  };
  add("", config);
  return settings;
}

/** Return the text of a setting, exact: two different numbers never have the same text. */
export function valueText(value) {
  if (Array.isArray(value)) return `[${value.map((item) => (typeof item === "string" ? item : valueText(item))).join(", ")}]`;
  if (value !== null && typeof value === "object") return JSON.stringify(value);
  return String(value).replace("e+", "e");
}

/** Return the values as they compare: where a run has a number, text such as "1e-3" is a number too. */
function comparable(values) {
  if (!values.some((value) => typeof value === "number")) return values;
  return values.map((value) => (typeof value === "string" && NUMERAL.test(value.trim()) ? Number(value) : value));
}

const isClose = (numbers) => Math.max(...numbers) - Math.min(...numbers) <= MEASURED_TOLERANCE * Math.max(...numbers.map(Math.abs));

/** Return the row of a setting from its value in each run. */
export function rowOf(key, given, isMeasured = false) {
  const values = comparable(given);
  const present = values.filter((value) => value !== undefined);
  const isNumeric = present.length > 0 && present.every((value) => typeof value === "number");
  const identities = values.map((value) => (value === undefined ? "" : `${typeof value} ${valueText(value)}`));
  const distinct = [...new Set(identities)];
  const isEqual = isMeasured && isNumeric && present.length === values.length && isClose(present);
  return {
    key, values, isNumeric, isMeasured,
    texts: values.map((value) => (value === undefined ? null : isMeasured ? number(value) : valueText(value))),
    groups: identities.map((identity) => (isEqual ? 0 : distinct.indexOf(identity))),
  };
}

const isDifferent = ({ groups }) => groups.some((group) => group !== 0);

/**
 * Return `{different, equal}`: the rows of settings, in the order of the first run that has each.
 * `maps` has a Map of values by key for each run; the keys in `measured` are equal if their numbers are close.
 */
export function compareMaps(maps, measured = new Set()) {
  const keys = [...new Set(maps.flatMap((map) => [...map.keys()]))];
  const rows = keys.map((key) => rowOf(key, maps.map((map) => map.get(key)), measured.has(key)));
  return { different: rows.filter(isDifferent), equal: rows.filter((row) => !isDifferent(row)) };
}

/** Return whether a setting names or places a run, so that its number is no size. */
export const isName = (key) => LAST.test(key);

/** Return the place of a setting among differences: what acts on gradients first, names and seeds last. */
function rankOf(key) {
  if (isName(key)) return FIRST.length + 1;
  const at = FIRST.findIndex((pattern) => pattern.test(key));
  return at < 0 ? FIRST.length : at;
}

/** Compare the configurations of runs. Differences are in the order of their weight. */
export function compareSettings(configs) {
  const { different, equal } = compareMaps(configs.map(flatten));
  return { different: different.sort((a, b) => rankOf(a.key) - rankOf(b.key)), equal };
}

const MEASURED = new Set(["RMS of the first input", "largest value of the first input", "RMS of the first targets", "loss of a constant output"]);

/** Return facts about environment, training and model by name. A fact that is not known is left out. */
export function factsOf(run) {
  const { training, layers } = run;
  const facts = new Map();
  const add = (name, value) => { if (value !== null && value !== undefined) facts.set(name, value); };
  add("framework", run.framework);
  for (const [index, optimizer] of (training?.optimizers ?? []).entries()) {
    const prefix = index ? `optimizer ${index + 1}` : "optimizer";
    add(prefix, optimizer.name);
    for (const name of ["learning_rate", "momentum", "weight_decay", "beta2", "epsilon"]) add(`${prefix}: ${words(name)}`, optimizer[name]);
  }
  add("precision", training?.precision);
  add("dtype of the parameters", training?.parameter_dtype);
  add("batch size", training?.batch_size);
  add("clips gradients", training?.clips_gradients);
  add("gradients stay between steps", training?.carries_gradients);
  add("loss", training?.loss?.kind && words(training.loss.kind));
  add("operations of the loss", training?.loss?.operations?.length ? training.loss.operations.join(", ") : null);
  add("classes", training?.loss?.classes);
  add("loss of a constant output", training?.loss?.constant_level);
  const objective = training?.objective;
  add("objective", objective && [objective.direction, objective.kind === "metric" ? objective.metric : objective.kind].filter(Boolean).join(" "));
  add("RMS of the first input", training?.input_rms);
  add("largest value of the first input", training?.input_abs_max);
  add("RMS of the first targets", training?.target_rms);
  if (layers.length) {
    add("layers", layers.length);
    add("frozen layers", layers.filter(({ frozen }) => frozen).length);
    const sizes = layers.map(({ numel }) => numel ?? null);
    if (!sizes.includes(null)) add("parameters", sizes.reduce((sum, size) => sum + size, 0));
  }
  return facts;
}

/** Compare environment, training and model of runs. */
export const compareFacts = (runs) => compareMaps(runs.map(factsOf), MEASURED);

function layerText({ kind, shape, activation, normalized, frozen }, weights) {
  const size = shape ? (shape.length ? shape.join("×") : "scalar") : null;
  const parts = [
    [kind, size].filter(Boolean).join(" "), activation && activation !== "linear" && `then ${activation}`, normalized && "normalized",
    frozen && "frozen", weights && `initial RMS ${weights}`,
  ];
  return parts.filter(Boolean).join(", ") || "no description";
}

/**
 * Compare the layers of runs by name: kind, shape, activation, normalization, frozen or not, and initial weights where
 * they differ by more than a factor of two.
 */
export function compareLayers(runs) {
  const maps = runs.map((run) => new Map(run.layers.map((layer) => [layer.name, layer])));
  const names = [...new Set(maps.flatMap((map) => [...map.keys()]))];
  const rows = names.map((name) => {
    const layers = maps.map((map) => map.get(name));
    const sizes = layers.filter((layer) => (layer?.numel ?? 0) >= MIN_INITIAL_ELEMENTS).map((layer) => layer.initial_rms).filter((rms) => typeof rms === "number");
    const [low, high] = [Math.min(...sizes), Math.max(...sizes)];
    const differ = sizes.length > 1 && high > INITIAL_WEIGHT_FACTOR * low;
    return rowOf(name, layers.map((layer) => layer && layerText(layer, differ && typeof layer.initial_rms === "number" ? String(Number(layer.initial_rms.toPrecision(2))) : null)));
  });
  return { different: rows.filter(isDifferent), equal: rows.filter((row) => !isDifferent(row)) };
}

/**
 * Return whether a setting divides failing from healthy runs: every number of one side is above every number of the other,
 * or few values of which none is on both sides. Names and seeds divide nothing. `isFailing` has true, false, or null for a
 * run without a verdict.
 */
export function divides(row, isFailing) {
  const side = (wanted) => isFailing.flatMap((value, at) => (value === wanted ? [at] : []));
  const [failing, healthy] = [side(true), side(false)];
  if (isName(row.key) || Math.min(failing.length, healthy.length) < MIN_RUNS_TO_DIVIDE) return false;
  const numbers = (runs) => runs.map((at) => row.values[at]);
  if (row.isNumeric && [...failing, ...healthy].every((at) => row.values[at] !== undefined)) {
    const [bad, good] = [numbers(failing), numbers(healthy)];
    return Math.min(...bad) > Math.max(...good) || Math.max(...bad) < Math.min(...good);
  }
  const groups = (runs) => new Set(runs.map((at) => row.groups[at]));
  const [bad, good] = [groups(failing), groups(healthy)];
  const isShared = [...bad].some((group) => good.has(group));
  return !isShared && bad.size < failing.length && good.size < healthy.length; // a name that each run has alone divides nothing
}
