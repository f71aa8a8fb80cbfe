// An API key for a session: the key goes out in a header once, and nothing of it is kept.

import { get, send, showTrouble } from "./api.js";
import { byId } from "./dom.js";

/** Where the reader came from; nowhere but here. */
function next() {
  const wanted = new URL(new URLSearchParams(location.search).get("next") ?? "/", location.origin);
  return wanted.origin === location.origin ? wanted.pathname + wanted.search : "/";
}

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = event.target.elements.key;
  try {
    await send("POST", "/session", undefined, { Authorization: `Bearer ${field.value.trim()}` });
    location.replace(next());
  } catch (error) {
    showTrouble(error);
    field.select();
  }
});

// A link from elsewhere comes without the cookie (SameSite=Strict); the session may be there all the same.
get("/session").then(() => location.replace(next()), () => { byId("login").elements.key.focus(); document.body.dataset.ready = "yes"; });
