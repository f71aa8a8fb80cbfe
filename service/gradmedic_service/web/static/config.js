// The configuration of a run: the most telling settings at once, all of them on demand, with a search.

import { byId, el, setText } from "./dom.js";
import { integer, number } from "./format.js";

const SHOWN = 8; // settings that are shown at first
const SEARCH_FROM = 10; // number of settings from which there is a search
const FOLDED_FROM = 90; // characters from which a value is folded
const FOLDED_LENGTH = 60; // characters of a folded value that are shown

// What a reader looks for first, in this order. Keys are compared in lower case, without separators.
const TELLING = [
  /^(base|max|peak|init|initial)?(lr|learningrate)$/,
  /^(optim|optimizer|opt)(name|type|class)?$/,
  /^((per)?(device|gpu|global|total|micro|mini|train|local)*(batchsize|bs)|batch)$/,
  /^(gradient|grad)?accum(ulation)?(steps)?$/,
  /^(weightdecay|wd)$/, /^momentum$/, /^betas?[12]?$/, /^eps(ilon)?$/,
  /^(lr)?scheduler(name|type)?$/, /^warmup(steps|ratio|epochs)?$/,
  /^(max|clip)?(grad(ient)?)(clip(ping)?|norm|clipnorm|clipval)$|^clip(grad(norm)?)?$|^maxnorm$/,
  /^(dtype|precision|amp|fp16|bf16|mixedprecision)$/,
  /^(model|arch|architecture|backbone)(name|type)?$/, /^activation$/, /^init(ialization)?$/,
  /^(hidden|embed|model)?(size|dim|width)$|^(hidden|dmodel|nembd|width)$/, /^(num|n)?(layers?|depth|blocks)$/, /^dropout$/,
  /^(max|num|n|total)?(epochs?|steps|iters|iterations)$/, /^seed$/, /^(dataset|data|task|env)(name)?$/,
];

/** Return `[key, value]` of each setting; those within an object have a key with dots. */
export function settingsOf(config, prefix = "") {
  return Object.entries(config).flatMap(([name, value]) => {
    const isGroup = value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length > 0;
    return isGroup ? settingsOf(value, `${prefix}${name}.`) : [[prefix + name, value]];
  });
}

/** Return the place of a key among the telling ones: of its last part, else of its last two parts together. */
function rankOf(key) {
  const parts = key.toLowerCase().replaceAll(/[_\-\s]/g, "").split(/[./]/);
  const found = [parts.at(-1), parts.slice(-2).join("")].map((part) => TELLING.findIndex((pattern) => pattern.test(part))).filter((at) => at >= 0);
  return found.length ? Math.min(...found) : TELLING.length;
}

/** Return the settings, the most telling first; equally telling ones stay in their order. */
export const rankSettings = (settings) => settings.map((setting) => ({ setting, rank: rankOf(setting[0]) })).sort((a, b) => a.rank - b.rank).map(({ setting }) => setting);

/** Return `[key, value]` of what the SDK read from the job, where the configuration does not have it. */
function seenSettings(run, settings) {
  const { optimizers = [], batch_size: batchSize, precision } = run.training ?? {};
  const known = new Set(settings.map(([key]) => rankOf(key)));
  const seen = [["lr", optimizers[0]?.learning_rate], ["optimizer", optimizers[0]?.name], ["batch_size", batchSize], ["precision", precision]];
  return seen.filter(([key, value]) => value !== undefined && value !== null && !known.has(rankOf(key)));
}

function textOf(value) {
  if (typeof value === "number") return Math.abs(value) >= 1e7 || (value !== 0 && Math.abs(value) < 1e-4) ? number(value) : String(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

function valueElement(value) {
  const text = textOf(value);
  if (text.length < FOLDED_FROM) return text;
  const details = el("details", { class: "long-value" }, el("summary", {}, `${text.slice(0, FOLDED_LENGTH)}…`));
  details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(el("p", {}, text)); });
  return details;
}

const shortText = (text) => (text.length > FOLDED_LENGTH ? `${text.slice(0, FOLDED_LENGTH)}…` : text);

function toldPair([key, value], isSeen) {
  const text = textOf(value);
  return el("div", { title: isSeen ? `${key}: the SDK read it from the job` : `${key}: ${text.slice(0, 500)}` }, el("dt", {}, key, isSeen ? el("span", { class: "muted" }, " (seen)") : null), el("dd", {}, shortText(text) || "“”"));
}

const entry = ([key, value]) => [el("dt", {}, key), el("dd", {}, valueElement(value))];

function fillEntries(settings, text) {
  const wanted = text.trim().toLowerCase();
  const found = settings.filter(([key, value]) => !wanted || key.toLowerCase().includes(wanted) || textOf(value).toLowerCase().includes(wanted));
  byId("config-entries").replaceChildren(...found.flatMap(entry));
  setText(byId("config-none"), wanted ? `${integer(found.length)} of ${integer(settings.length)} settings` : "");
}

/** Show the configuration of a run, if it has changed. */
export function showConfig(run) {
  const section = byId("config");
  const settings = settingsOf(run.config);
  const seen = seenSettings(run, settings);
  const key = JSON.stringify([run.config, seen]);
  if (section.dataset.key === key) return;
  section.dataset.key = key;
  const told = rankSettings([...settings.map((setting) => [...setting]), ...seen]).slice(0, SHOWN);
  section.replaceChildren(...(told.length ? told.map((setting) => toldPair(setting, seen.includes(setting))) : [el("div", { class: "muted" }, el("dt", {}, "The job sent no settings. Pass them as "), el("dd", {}, el("code", {}, "gradmedic.init(config={...})")))]));
  const all = byId("all-config");
  const isLong = told.some(([, value]) => textOf(value).length > FOLDED_LENGTH);
  all.hidden = !isLong && settings.length + seen.length <= SHOWN;
  setText(all.querySelector("summary"), `All ${integer(settings.length)} settings`);
  const label = byId("config-search");
  label.hidden = settings.length < SEARCH_FROM;
  const search = label.querySelector("input");
  search.oninput = () => fillEntries(settings, search.value);
  fillEntries(settings, search.value);
}
