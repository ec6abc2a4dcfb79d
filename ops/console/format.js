// Values into words. Whatever is missing, or is not what it should be, is said to be missing.

const NO_DATA = "no data";

const isNumber = (x) => typeof x === "number" && Number.isFinite(x);
const asList = (x) => (Array.isArray(x) ? x : []);
const asObject = (x) => (x !== null && typeof x === "object" && !Array.isArray(x) ? x : {});
const asText = (x) => (typeof x === "string" && x !== "" ? x : NO_DATA);
const sum = (xs) => xs.reduce((a, b) => a + (isNumber(b) ? b : 0), 0);

const count = (x) => (isNumber(x) ? x.toLocaleString("en", { maximumFractionDigits: 0 }) : NO_DATA);
const percent = (x) => (isNumber(x) ? `${Math.round(100 * x)}%` : NO_DATA);
const NBSP = "\u00a0"; // a figure and its unit stay together
const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

function short(x) {
  if (!isNumber(x)) return NO_DATA;
  for (const [unit, size] of [
    ["G", 1e9],
    ["M", 1e6],
    ["k", 1e4],
  ]) {
    const divisor = unit === "k" ? 1e3 : size;
    if (Math.abs(x) >= size) return `${(x / divisor).toFixed(Math.abs(x) < 100 * divisor ? 1 : 0)}${NBSP}${unit}`;
  }
  return x.toLocaleString("en", { maximumFractionDigits: Math.abs(x) < 10 ? 1 : 0 });
}

// Seconds of a latency.
function latency(s) {
  if (!isNumber(s)) return NO_DATA;
  if (s < 0.01) return `${(1000 * s).toFixed(1)}${NBSP}ms`;
  return s < 1 ? `${Math.round(1000 * s)}${NBSP}ms` : `${s.toFixed(s < 10 ? 2 : 0)}${NBSP}s`;
}

// Seconds of an age.
function age(s) {
  if (!isNumber(s)) return NO_DATA;
  if (s < 1) return "< 1\u00a0s";
  if (s < 90) return `${Math.round(s)}${NBSP}s`;
  if (s < 5400) return `${Math.round(s / 60)}${NBSP}min`;
  return s < 129600 ? `${Math.round(s / 3600)}${NBSP}h` : `${Math.round(s / 86400)}${NBSP}days`;
}

// Unix seconds as the reader's clock shows them; with the date if it is another day.
function clock(unix) {
  if (!isNumber(unix)) return NO_DATA;
  const at = new Date(1000 * unix);
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
}

// [0, 1, 2, 3, 6] -> "0–3 6"
function ranges(ids) {
  const spans = [];
  for (const id of [...new Set(asList(ids).filter(isNumber))].sort((a, b) => a - b)) {
    const last = spans[spans.length - 1];
    if (last && last[1] + 1 === id) last[1] = id;
    else spans.push([id, id]);
  }
  return spans.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(" ") || "none";
}

// What Serve calls `app#deployment#x7` is x7 to a reader; its tooltip and its details tell the whole.
const shortId = (id) => (typeof id === "string" ? id.split(/[#:]/).pop() || id : NO_DATA);
