// The projects, and what is not to be heard about their runs.

import { all, send, showTrouble } from "./api.js";
import { byId, el } from "./dom.js";
import { time } from "./format.js";

const isAdmin = document.body.dataset.admin === "yes";

function rowOf(project) {
  const muted = el("td", {});
  const show = (text) => {
    if (!isAdmin) { muted.replaceChildren(text || "none"); return; }
    const field = el("input", { value: text, placeholder: "none", "aria-label": `Muted detectors of ${project.name}, separated by commas`, size: 30 });
    const form = el("form", { class: "inline" }, field, " ", el("button", { type: "submit" }, "Save"));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        const names = field.value.split(",").map((name) => name.trim()).filter(Boolean);
        const saved = await send("PATCH", `/projects/${encodeURIComponent(project.name)}`, { muted_detectors: names });
        showTrouble(null);
        show(saved.muted_detectors.join(", "));
      } catch (error) { showTrouble(error); }
    });
    muted.replaceChildren(form);
  };
  show(project.muted_detectors.join(", "));
  return el("tr", {}, el("th", { scope: "row" }, el("a", { href: `/?project=${encodeURIComponent(project.name)}` }, project.name)), muted, el("td", {}, time(project.created_at)));
}

all("/projects").then((projects) => {
  byId("projects").tBodies[0].replaceChildren(...projects.map(rowOf));
  byId("projects").hidden = !projects.length;
  byId("none").hidden = projects.length > 0;
}).catch(showTrouble);
