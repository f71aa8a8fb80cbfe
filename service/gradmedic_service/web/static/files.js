// Saves files, and writes tables as CSV.

const MAX_NAME = 120; // characters

/** Return a name that every file system takes, from texts. */
export function fileName(...texts) {
  const words = texts.map((text) => text.replaceAll(/[^\p{Letter}\p{Number}._-]+/gu, "-").replaceAll(/^[-.]+|[-.]+$/g, "")).filter(Boolean);
  return words.join("-").slice(0, MAX_NAME) || "chart";
}

/** Save a file under a name. */
export function saveFile(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Return a cell of a CSV file; null and undefined are empty, NaN and infinite numbers are written as the API does. */
function cell(value) {
  if (value === null || value === undefined) return "";
  const text = value === Infinity ? "Infinity" : value === -Infinity ? "-Infinity" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Return rows of cells as the lines of a CSV file. */
export const csvLines = (rows) => rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");

export const csvFile = (...texts) => new Blob(texts, { type: "text/csv" });
