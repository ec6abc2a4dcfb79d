// The page's sections. Each is a function of what the gateway told, or of null where it told nothing.

const REPLICAS_AT_FIRST = 40;
let allReplicas = false;

function note(section, words) {
  setText($(section).querySelector(".note"), words);
}

// -- replicas

const STATE_TONES = { ready: "good", draining: "warn", swapping: "warn" };

const replicaColumns = (told) => [
  {
    label: "Replica",
    cls: "name",
    cell: (td, r) => {
      setText(td, shortId(r.id));
      td.title = asText(r.id);
    },
  },
  { label: "State", cell: (td, r) => pill(td, asText(r.state), STATE_TONES[r.state] ?? "quiet") },
  {
    label: "Batch fill", // a full batch is no trouble, a full KV cache is
    cls: "wide plain-bar",
    cell: (td, r) => {
      const seats = asObject(r.capacity).max_num_seqs;
      const known = isNumber(r.running) && isNumber(seats) && seats > 0;
      bar(
        td,
        "Batch fill",
        known ? r.running / seats : null,
        known ? `${count(r.running)} of ${count(seats)}` : NO_DATA,
      );
    },
  },
  {
    label: "KV in use",
    cls: "wide",
    cell: (td, r) => bar(td, "KV in use", r.kv_used_fraction, percent(r.kv_used_fraction)),
  },
  { label: "Waiting", cls: "number", cell: (td, r) => setText(td, count(r.waiting)) },
  { label: "Version", cls: "version", cell: (td, r) => setText(td, versionName(r.version)) },
  { label: "Ready for", cell: (td, r) => setText(td, isNumber(r.epoch) ? age(nowS() - r.epoch / 1e9) : NO_DATA) },
  { label: "Shards", cls: "shards", cell: (td, r) => shards(td, r, asList(r.shards).map(asObject)) },
  ...(told ? [{ label: "Action", cls: "act", cell: drainButton }] : []),
];

const versionName = (version) => (typeof version !== "string" ? NO_DATA : version || "unnamed");

function pill(box, words, tone) {
  if (!box.firstElementChild) box.replaceChildren(el("span", { cls: "pill" }));
  box.firstElementChild.dataset.tone = tone;
  setText(box.firstElementChild, words);
}

function shards(td, replica, of) {
  if (!of.length) return setText(td, NO_DATA);
  if (!td.querySelector("details"))
    td.replaceChildren(el("details", {}, el("summary"), el("p", { cls: "small" }), el("ul", { cls: "small" })));
  const epoch = isNumber(replica.epoch) ? clock(replica.epoch / 1e9) : NO_DATA;
  setText(td.querySelector("p"), `${asText(replica.id)}, epoch ${epoch}, ${asText(replica.address)}`);
  setText(td.querySelector("summary"), plural(of.length, "shard"));
  keyed(
    td.querySelector("ul"),
    of,
    (shard) => shard.rank,
    () => el("li"),
    (li, shard) => {
      const lists = [...new Set(asList(shard.experts_by_layer).map(ranges))];
      const same = lists.length === 1 ? `experts ${lists[0]}` : "experts that differ by layer";
      const held = lists.length ? same : "experts not told";
      const size = isNumber(shard.expert_bytes) ? `, ${(shard.expert_bytes / 2 ** 20).toFixed(1)} MiB` : "";
      const process = isNumber(shard.pid) ? shard.pid : NO_DATA;
      setText(li, `${count(shard.rank)} on ${asText(shard.device)}, process ${process}: ${held}${size}`);
    },
  );
}

function showReplicas(status, operator) {
  const replicas = replicasOf(status);
  const box = $("replicas").querySelector(".body");
  if (box.dataset.operator !== String(operator)) {
    box.replaceChildren();
    box.dataset.operator = String(operator);
  }
  const rank = (r) => (r.state === "ready" ? 1 : 0); // what is not ready is looked for first
  const sorted = [...(replicas ?? [])].sort((a, b) => rank(a) - rank(b) || String(a.id).localeCompare(String(b.id)));
  const shown = allReplicas ? sorted : sorted.slice(0, REPLICAS_AT_FIRST);
  table(box, "Replicas", replicaColumns(operator), shown, (r) => r.id, replicas ? "No replica is ready." : NO_DATA);
  const more = $("all-replicas");
  more.hidden = sorted.length <= REPLICAS_AT_FIRST;
  setText(more, allReplicas ? `Show ${REPLICAS_AT_FIRST} only` : `Show all ${count(sorted.length)}`);
}

// -- the queue

const QUEUE_COLUMNS = [
  {
    label: "Tenant",
    cls: "name",
    cell: (td, row) => setText(td, row.others ? `${plural(row.others, "other row")}` : tenantName(row.tenant)),
  },
  { label: "Priority", cls: "number", cell: (td, row) => setText(td, row.others ? "" : count(row.priority)) },
  {
    label: "Waiting",
    cls: "wide plain-bar",
    cell: (td, row) => bar(td, "Share of the queue", row.share, count(row.requests)),
  },
  { label: "Prompt tokens", cls: "number", cell: (td, row) => setText(td, short(row.prompt_tokens)) },
  { label: "Oldest", cls: "number", cell: (td, row) => setText(td, age(row.oldest_s)) },
];

const tenantName = (name) => (typeof name !== "string" ? NO_DATA : name || "(no keys)");

function showQueue(status) {
  const queue = status ? status.queue : null;
  const known = Array.isArray(queue?.rows);
  const all = known ? queue.rows.map(asObject) : [];
  if (known && asObject(queue.others).rows > 0) all.push({ ...queue.others, others: queue.others.rows });
  const total = sum(all.map((row) => row.requests));
  const rows = all.map((row) => ({ ...row, share: total && isNumber(row.requests) ? row.requests / total : null }));
  table(
    $("queue").querySelector(".body"),
    "Waiting requests",
    QUEUE_COLUMNS,
    rows,
    (row) => JSON.stringify([row.others, row.tenant, row.priority]),
    known ? "Nobody waits." : NO_DATA,
  );
}

// -- alarms and healing

const SEVERITIES = { page: ["bad", "page"], ticket: ["warn", "ticket"] };
const alarmKey = (alarm) => JSON.stringify([alarm.name, alarm.labels]);
const labelWords = (labels) =>
  Object.entries(asObject(labels))
    .map(([name, value]) => `${name} ${name === "replica" ? shortId(value) : value}`)
    .join(", ");

function alarmItem() {
  const words = el(
    "div",
    {},
    el("strong"),
    " ",
    el("span", { cls: "quiet since" }),
    el("p"),
    el("p", { cls: "quiet small labels" }),
  );
  return el(
    "li",
    { cls: "alarm" },
    el("span", { cls: "pill" }),
    words,
    el("button", { type: "button", cls: "plain runbook" }),
  );
}

function fillAlarm(li, alarm, since, tone, badge) {
  li.firstChild.dataset.tone = tone;
  setText(li.firstChild, badge);
  setText(li.querySelector("strong"), asText(alarm.name));
  setText(li.querySelector(".since"), since);
  setText(li.querySelector("p"), asText(alarm.summary));
  setText(li.querySelector(".labels"), labelWords(alarm.labels));
  const runbook = li.querySelector(".runbook");
  runbook.hidden = typeof alarm.runbook !== "string" || !alarm.runbook;
  runbook.dataset.runbook = runbook.hidden ? "" : alarm.runbook;
  setText(runbook, `Runbook ${runbook.dataset.runbook}`);
}

function showAlarms(told) {
  const known = Array.isArray(told?.alarms);
  const raised = known ? told.alarms.map(asObject) : [];
  const none = known
    ? told.watching === false
      ? "Nobody is watching: the controller does not answer."
      : "No alarm is raised."
    : NO_DATA;
  const items = raised.length
    ? [...raised].sort((a, b) => (a.severity === "page" ? 0 : 1) - (b.severity === "page" ? 0 : 1))
    : [{ none }];
  $("alarms").dataset.tone = raised.length
    ? raised.some((a) => a.severity === "page")
      ? "bad"
      : "warn"
    : known && told.watching === false
      ? "warn"
      : "";
  keyed(
    $("raised"),
    items,
    (a) => (a.none ? "none" : alarmKey(a)),
    (a) => (a.none ? el("li", { cls: "quiet" }) : alarmItem()),
    (li, alarm) => {
      if (alarm.none) return setText(li, alarm.none);
      const [tone, badge] = SEVERITIES[alarm.severity] ?? ["warn", asText(alarm.severity)];
      fillAlarm(li, alarm, `since ${clock(alarm.raised_s)} (${age(nowS() - alarm.raised_s)})`, tone, badge);
    },
  );
  const recent = asList(told?.recent)
    .map(asObject)
    .sort((a, b) => b.at_s - a.at_s);
  $("recent-box").hidden = recent.length === 0;
  setText($("recent-box").firstElementChild, `Recent (${recent.length})`);
  const key = (event) => JSON.stringify([event.at_s, event.raised, alarmKey(asObject(event.alarm))]);
  keyed($("recent"), recent, key, alarmItem, (li, event) => {
    const over = event.raised === false;
    fillAlarm(
      li,
      asObject(event.alarm),
      `${over ? "resolved" : "raised"} ${clock(event.at_s)}`,
      over ? "good" : "warn",
      over ? "resolved" : "raised",
    );
  });
}

function showHealing(told) {
  const known = Array.isArray(told?.healing);
  const acts = known ? told.healing.map(asObject).sort((a, b) => b.at_s - a.at_s) : [];
  const items = acts.length ? acts : [{ none: known ? "Nothing had to be healed." : NO_DATA }];
  const key = (act) => act.none ?? JSON.stringify([act.at_s, act.replica, act.action, act.outcome]);
  keyed(
    $("healed"),
    items,
    key,
    () => el("li"),
    (li, act) => {
      if (act.none) {
        li.className = "quiet";
        return setText(li, act.none);
      }
      if (!li.firstElementChild)
        li.append(
          el("time", { cls: "quiet" }),
          el("div", {}, el("strong"), " ", el("span"), el("p", { cls: "quiet" })),
        );
      setText(li.querySelector("time"), clock(act.at_s));
      setText(li.querySelector("strong"), `${asText(act.action)} ${shortId(act.replica)}`);
      setText(li.querySelector("span"), asText(act.outcome));
      setText(li.querySelector("p"), typeof act.why === "string" ? act.why : "");
    },
  );
}
