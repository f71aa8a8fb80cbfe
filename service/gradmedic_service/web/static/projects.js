// The page of projects: muted detectors, and limits of reruns.

import { getAll, send, showError } from "./api.js";
import { byId, el } from "./dom.js";
import { integer, time } from "./format.js";

const isAdmin = document.body.dataset.admin === "yes";

function textCells(project) {
  return [
    el("td", { "data-label": "Muted detectors" }, project.muted_detectors.join(", ") || "none"),
    el("td", { "data-label": "Automatic reruns" }, project.rerun_automatically ? "yes" : "no"),
    el("td", { class: "number", "data-label": "Trials at once" }, integer(project.max_concurrent_trials)),
    el("td", { class: "number", "data-label": "Seconds per rerun" }, integer(project.max_rerun_seconds)),
  ];
}

/** Return the cells with fields. Each field names its form, because a form cannot contain cells of a row. */
function fieldCells(project, form) {
  const field = (name, label, attributes) => el("input", { name, form: form.id, "aria-label": `${label} of ${project.name}`, ...attributes });
  return [
    el("td", { "data-label": "Muted detectors" }, field("muted_detectors", "Muted detectors, separated by commas,", { value: project.muted_detectors.join(", "), placeholder: "none", size: 26 })),
    el("td", { "data-label": "Automatic reruns" }, field("rerun_automatically", "Automatic reruns", { type: "checkbox", checked: project.rerun_automatically })),
    el("td", { class: "number", "data-label": "Trials at once" }, field("max_concurrent_trials", "Trials at once", { type: "number", min: 1, max: 1000, required: true, value: project.max_concurrent_trials })),
    el("td", { class: "number", "data-label": "Seconds per rerun" }, field("max_rerun_seconds", "Seconds per rerun", { type: "number", min: 1, step: "any", required: true, value: project.max_rerun_seconds })),
  ];
}

function rowOf(project, index) {
  const form = el("form", { id: `project-${index}` }, el("button", { type: "submit", "aria-label": `Save ${project.name}` }, "Save"), " ", el("span", { role: "status", class: "muted small" }));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { muted_detectors: muted, rerun_automatically: automatic, max_concurrent_trials: trials, max_rerun_seconds: seconds } = form.elements;
    try {
      const saved = await send("PATCH", `/projects/${encodeURIComponent(project.name)}`, {
        muted_detectors: muted.value.split(",").map((name) => name.trim()).filter(Boolean),
        rerun_automatically: automatic.checked, max_concurrent_trials: Number(trials.value), max_rerun_seconds: Number(seconds.value),
      });
      muted.value = saved.muted_detectors.join(", ");
      form.querySelector("span").textContent = "saved";
      showError(null);
    } catch (error) {
      form.querySelector("span").textContent = "";
      showError(error);
    }
  });
  return el("tr", {},
    el("th", { scope: "row" }, el("a", { href: `/?project=${encodeURIComponent(project.name)}` }, project.name)),
    isAdmin ? fieldCells(project, form) : textCells(project),
    el("td", { "data-label": "Created" }, time(project.created_at)),
    isAdmin ? el("td", {}, form) : null);
}

getAll("/projects").then((projects) => {
  byId("projects").tBodies[0].replaceChildren(...projects.map(rowOf));
  byId("projects").hidden = !projects.length;
  byId("none").hidden = projects.length > 0;
  document.body.dataset.ready = "yes";
}).catch(showError);
