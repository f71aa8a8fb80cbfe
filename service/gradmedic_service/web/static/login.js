// The login: exchanges an API key for a session. The page sends the key once, in a header, and does not store it.

import { get, send, showError } from "./api.js";
import { byId } from "./dom.js";

/** Return the path to go to after the login; an address elsewhere becomes the list of runs. */
function nextPath() {
  const target = new URL(new URLSearchParams(location.search).get("next") ?? "/", location.origin);
  return target.origin === location.origin ? target.pathname + target.search : "/";
}

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = event.target.elements.key;
  try {
    await send("POST", "/session", undefined, { Authorization: `Bearer ${field.value.trim()}` });
    location.replace(nextPath());
  } catch (error) {
    showError(error);
    field.select();
  }
});

// A link from another site comes without the cookie (SameSite=Strict); the reader may be logged in all the same.
get("/session").then(() => location.replace(nextPath()), () => { byId("login").elements.key.focus(); document.body.dataset.ready = "yes"; });
