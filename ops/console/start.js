// Wiring: feeds to sections, the key, the clock, what happens while the tab is hidden.

const feeds = {};
// Which experts each shard holds is much to send: only while somebody looks at it.
const wanted = () => ($("replicas").querySelector("details[open]") ? "" : "?brief=true");
for (const name of ["status", "history", "alarms", "experts", "rollouts", "access"]) {
  const path = () => `moray/${name}${name === "status" ? wanted() : ""}`;
  feeds[name] = new Feed(path, name === "access" ? 60000 : EVERY_MS, heard);
}
const heat = new HeatMap($("heat"), $("scale"), $("ticks"), $("cell"));
let drawing = 0;

function heard(feed) {
  if (feed.status === 401) return lock(feed.problem);
  // The feeds answer within moments of each other: one drawing for all that have.
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    show();
  });
}

function show() {
  const { status, history, alarms, experts, rollouts, access } = feeds;
  const operator = asObject(access.value).operator === true;
  showHeader(status.value, alarms.value);
  showTiles(status.value, history.value);
  showAlarms(alarms.value);
  showLatency(
    $("ttft"),
    "Time to first token",
    history.note || "TTFT, from the request's arrival",
    history.value,
    "ttft",
  );
  showLatency($("tpot"), "Time per output token", history.note || "TPOT, after the first token", history.value, "tpot");
  showReplicas(status.value, operator);
  showQueue(status.value);
  const counted = showExperts(experts.value, heat, chosenView(experts.value));
  showHealing(alarms.value);
  showVersions(status.value, rollouts.value, operator);
  note("alarms", alarms.note);
  note("replicas", status.note);
  note("queue", status.note);
  note("experts", experts.note || counted);
  note("healing", alarms.note);
  // A gateway without rollouts still tells who serves which version.
  note("rollouts", rollouts.status === 404 ? status.note : status.note || rollouts.note);
  const tenant = asObject(access.value).tenant;
  setText(
    $("who"),
    access.value
      ? `${typeof tenant === "string" && tenant ? `${tenant}, ` : ""}${operator ? "operator" : "read-only"}`
      : "",
  );
  showClock();
}

// What only the time changes.
function showClock() {
  const { status } = feeds;
  const failing = status.problem !== null;
  $("stale").hidden = !failing;
  if (failing) {
    const since = status.heardS === null ? "No data yet" : `Stale since ${clock(status.heardS)}`;
    const next = status.asking ? "trying now" : status.nextS === null ? "" : `next try in ${status.nextS} s`;
    const what = status.status ? `the gateway answers ${status.status}` : "the gateway does not answer";
    setText($("stale-words"), `${since}: ${what} (${status.problem}).`);
    setText($("stale-next"), next);
  }
  document.body.classList.toggle("stale", failing);
  setText($("updated"), status.heardS === null ? "" : failing ? "" : clock(status.heardS));
}

// -- the key

function lock(words) {
  for (const feed of Object.values(feeds)) feed.stop();
  const had = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  document.body.classList.add("locked");
  $("lock").hidden = false;
  $("forget").hidden = true;
  if (had) setText($("lock-words"), words ?? "The API key is not known here.");
  $("lock-words").dataset.tone = had ? "bad" : "";
  setText($("health"), "Locked");
  $("health").dataset.tone = "quiet";
  $("key").focus();
}

function startAll() {
  document.body.classList.remove("locked");
  $("lock").hidden = true;
  $("forget").hidden = sessionStorage.getItem(KEY) === null;
  for (const feed of Object.values(feeds)) feed.start();
}

$("lock").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  $("key").value = "";
  // A header cannot carry what is not printable ASCII; no key of Moray has any.
  if (!/^[\x21-\x7e]+$/.test(key)) {
    setText($("lock-words"), "That is no API key: it has characters that none has.");
    $("lock-words").dataset.tone = "bad";
    return;
  }
  sessionStorage.setItem(KEY, key);
  startAll();
});

$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  for (const feed of Object.values(feeds)) feed.forget();
  setText($("lock-words"), "The key is forgotten.");
  lock();
  show();
});

// -- what the reader does

$("retry").addEventListener("click", startAll);
$("all-replicas").addEventListener("click", () => {
  allReplicas = !allReplicas;
  show();
});
$("replicas").addEventListener("toggle", (event) => event.target.open && feeds.status.start(), true);
for (const choice of document.querySelectorAll("input[name=view]"))
  choice.addEventListener("change", () => {
    viewChosen = true;
    show();
  });
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button[data-replica], button[data-runbook], button[data-command]");
  if (button?.dataset.replica)
    drain(button.dataset.replica, button.dataset.undo === "true").then(() => feeds.status.start());
  else if (button?.dataset.runbook) openRunbook(button.dataset.runbook);
  else if (button?.dataset.command)
    commandRollout(button.dataset.command, asObject(feeds.rollouts.value).current).then(() => feeds.rollouts.start());
});
document.addEventListener("visibilitychange", () => {
  if (document.body.classList.contains("locked")) return;
  if (document.hidden) for (const feed of Object.values(feeds)) feed.stop();
  else startAll();
});
setInterval(() => {
  if (!document.hidden) showClock();
}, 1000);

show();
if (!document.hidden) startAll();
