// The login: exchanges an API key for a session. The page sends the key once, in a header, and does not store it.

import { get, send, showError } from "./api.js";
import { byId } from "./dom.js";
import { nextAddress } from "./next_path.js";

const goOn = () => location.replace(nextAddress(location.search, location.origin));

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = event.target.elements.key;
  try {
    await send("POST", "/session", undefined, { Authorization: `Bearer ${field.value.trim()}` });
    goOn();
  } catch (error) {
    showError(error);
    field.select();
  }
});

// A link from another site comes without the cookie (SameSite=Strict); the reader may be logged in all the same.
get("/session").then(goOn, () => { byId("login").elements.key.focus(); document.body.dataset.ready = "yes"; });
