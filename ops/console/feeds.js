// What the gateway tells. One feed per path: each polls for itself, and backs off for itself.

const EVERY_MS = 2000;
const BACK_OFF_LIMIT_MS = 30000;
const NOT_OFFERED_MS = 60000; // a path that this gateway does not have: it may after an upgrade
const ANSWER_WITHIN_MS = 10000;
const KEY = "moray-api-key";

let skewMs = 0; // the gateway's clock minus ours
const nowS = () => (Date.now() + skewMs) / 1000;

const headers = () => {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
};

class Feed {
  constructor(path, everyMs, onChange) {
    this.path = path; // a function: what is asked for may change
    this.everyMs = everyMs;
    this.onChange = onChange;
    this.value = null; // the last good answer
    this.heardS = null; // when it came
    this.problem = null; // why the last try failed, in words; null: it did not
    this.status = null; // the HTTP status of a failed try, if it had one
    this.failures = 0;
    this.nextMs = null; // when the next try is due
    this.timer = null;
    this.asking = null;
  }

  start() {
    this.stop();
    this.ask();
  }

  stop() {
    clearTimeout(this.timer);
    this.asking?.abort();
    this.asking = this.timer = this.nextMs = null;
  }

  forget() {
    this.value = this.heardS = this.problem = this.status = null;
    this.failures = 0;
  }

  async ask() {
    const asking = (this.asking = new AbortController());
    const limit = setTimeout(() => asking.abort(), ANSWER_WITHIN_MS);
    let value,
      problem = null,
      status = null;
    try {
      const options = { headers: headers(), cache: "no-store", credentials: "omit", signal: asking.signal };
      const answer = await fetch(this.path(), options);
      status = answer.status;
      const date = Date.parse(answer.headers.get("date") ?? "");
      // The header has whole seconds: a second's difference is none.
      if (Number.isFinite(date)) skewMs = Math.abs(date - Date.now()) < 1500 ? 0 : date - Date.now();
      const body = await answer.json().catch(() => null);
      if (!answer.ok)
        problem = asObject(asObject(body).error).message || asObject(body).detail || `it answered ${status}`;
      else if (body === null || typeof body !== "object" || Array.isArray(body))
        problem = "its answer is not understood";
      else value = body;
    } catch {
      problem = asking.signal.aborted ? `no answer in ${ANSWER_WITHIN_MS / 1000} s` : "it cannot be reached";
    }
    clearTimeout(limit);
    if (this.asking !== asking) return; // stopped meanwhile, or asked anew
    this.asking = null;
    this.problem = problem === null ? null : String(problem);
    this.status = status;
    if (value !== undefined) {
      this.value = value;
      this.heardS = nowS();
      this.failures = 0;
    } else {
      this.failures += 1;
    }
    if (status === 401) {
      this.onChange(this);
      return; // until a key is given
    }
    const offered = status !== 404;
    const wait = !offered
      ? NOT_OFFERED_MS
      : Math.min(this.everyMs * 2 ** this.failures, Math.max(BACK_OFF_LIMIT_MS, this.everyMs));
    this.nextMs = Date.now() + wait;
    this.timer = setTimeout(() => this.ask(), wait);
    this.onChange(this);
  }

  get nextS() {
    return this.nextMs === null ? null : Math.max(0, Math.ceil((this.nextMs - Date.now()) / 1000));
  }

  // For a section's heading.
  get note() {
    if (this.problem === null) return this.value === null ? "waiting" : "";
    if (this.status === 404) return "not offered by this gateway";
    return this.heardS === null ? `no data: ${this.problem}` : `stale since ${clock(this.heardS)}`;
  }
}
