// The deliveries of an alert as text, for the page of alerts and the page of a run.

import { el } from "./dom.js";
import { time } from "./format.js";

const attemptsText = (count) => `${count} attempt${count === 1 ? "" : "s"}`;

/** Return what happened to a delivery, with its time where it has one. */
export function deliveryText(delivery) {
  if (delivery.state === "delivered") return ["delivered to ", el("strong", {}, delivery.destination), " ", time(delivery.delivered_at)];
  const name = el("strong", {}, delivery.destination);
  const reason = delivery.last_error ? `: ${delivery.last_error.replace(/\.$/, "")}` : "";
  if (delivery.state === "dead") return ["not delivered to ", name, ` after ${attemptsText(delivery.attempts)}${reason}`];
  if (delivery.state === "muted") return [name, " was muted"];
  return ["waits for ", name, delivery.attempts ? ` after ${attemptsText(delivery.attempts)}${reason}` : ""];
}
