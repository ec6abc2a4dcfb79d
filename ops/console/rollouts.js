// Versions of the model: who serves which, and the rollout that runs or was the last.

const ROLLOUT_TONES = {
  pending: "quiet",
  verifying: "quiet",
  canary: "warn",
  promoting: "warn",
  done: "good",
  "rolling-back": "bad",
  "rolled-back": "bad",
  failed: "bad",
};
const GATE_TONES = { yes: "good", no: "bad", unknown: "quiet" };
const GATE_WORDS = { yes: "good", no: "bad", unknown: "not known yet" };
const COMMANDS = {
  pause: { button: "Pause", done: "The rollout pauses." },
  resume: { button: "Resume", done: "The rollout goes on." },
  promote: {
    button: "Promote",
    done: "The version is promoted.",
    question: (r) => `Promote ${asText(r.to)} now?`,
    words: "All replicas get it without waiting for the gates. Files and golden prompts still have to pass.",
  },
  abort: {
    button: "Abort",
    done: "The rollout goes back.",
    question: (r) => `Go back to ${asText(r.from)}?`,
    words: "Every replica that has the new version gets the old one again, one at a time.",
  },
};
const HISTORY_SHOWN = 20;

const way = (rollout) => `${versionName(rollout.from)} → ${versionName(rollout.to)}`;

const VERSION_COLUMNS = [
  {
    label: "Version",
    cls: "name",
    cell: (td, v) => setText(td, `${versionName(v.version)}${v.stable ? " (stable)" : ""}`),
  },
  { label: "Ready", cls: "number", cell: (td, v) => setText(td, count(ready(v.replicas).length)) },
  { label: "Draining", cls: "number", cell: (td, v) => setText(td, count(draining(v.replicas).length)) },
  {
    label: "Share of running",
    cls: "wide plain-bar",
    cell: (td, v) =>
      bar(
        td,
        "Share of running requests",
        v.share,
        isNumber(v.share) ? `${count(v.running)}, ${percent(v.share)}` : count(v.running),
      ),
  },
  {
    label: "Of new requests",
    cls: "number",
    cell: (td, v) => setText(td, isNumber(v.traffic) ? percent(v.traffic) : "–"),
  },
];

function showVersions(status, rollouts, operator) {
  const replicas = replicasOf(status);
  const told = asObject(asObject(rollouts).versions);
  const named = new Set([...(replicas ?? []).map((r) => r.version), ...Object.keys(told)]);
  const all = sum((replicas ?? []).map((r) => r.running));
  const versions = [...named].map((version) => {
    const of = (replicas ?? []).filter((r) => r.version === version);
    const running = sum(of.map((r) => r.running));
    const stable = typeof version === "string" && version !== "" && asObject(rollouts).stable === version;
    const traffic = asObject(told[version]).share;
    return { version, replicas: of, running, stable, traffic, share: all ? running / all : null };
  });
  table(
    $("rollouts").querySelector(".versions"),
    "Versions of the model",
    VERSION_COLUMNS,
    replicas ? versions : [],
    (v) => String(v.version),
    replicas ? "No replica is ready." : NO_DATA,
  );
  const said = asObject(rollouts).note; // what is wanted and waits, or why nothing can be rolled
  setText($("rollout-note"), typeof said === "string" ? said : "");
  showRollout(asObject(rollouts).current, operator);
  showRolloutHistory(asList(asObject(rollouts).history).map(asObject));
}

// -- the one that runs

function showRollout(current, operator) {
  const box = $("rollout");
  const known = current !== null && current !== undefined && typeof current === "object";
  box.hidden = !known;
  if (!known) return;
  const r = asObject(current);
  setText(box.querySelector("h3"), way(r));
  const phase = $("rollout-phase");
  phase.dataset.tone = r.paused === true ? "warn" : (ROLLOUT_TONES[r.phase] ?? "quiet");
  setText(phase, r.paused === true ? `${asText(r.phase)}, paused` : asText(r.phase));
  setText($("rollout-why"), typeof r.why === "string" ? r.why : "");
  setText($("rollout-facts"), rolloutFacts(r).join(" · "));
  keyed(
    $("gates"),
    asList(r.gates).map(asObject),
    (gate) => gate.name,
    () => el("li", {}, el("span", { cls: "pill" }), el("strong"), el("p", { cls: "quiet" })),
    fillGate,
  );
  keyed(
    $("rollout-replicas"),
    asList(r.replicas).map(asObject),
    (one) => one.id,
    () => el("li", { cls: "chip" }),
    (li, one) => setText(li, `${shortId(one.id)} ${versionName(one.version)}${phaseWords(one.phase)}`),
  );
  showCommands(r, operator);
}

function rolloutFacts(r) {
  const steps = asList(r.steps);
  const facts = [];
  if (isNumber(r.step) && steps.length)
    facts.push(`step ${Math.min(r.step + 1, steps.length)} of ${steps.length} (${steps.map(percent).join(", ")})`);
  if (isNumber(r.share)) facts.push(`${percent(r.share)} of new requests`);
  if (typeof r.strategy === "string" && r.strategy) facts.push(r.strategy);
  if (isNumber(r.since_s)) facts.push(`since ${clock(r.since_s)} (${age(nowS() - r.since_s)})`);
  if (typeof r.started_by === "string" && r.started_by) facts.push(`by ${r.started_by}`);
  return facts;
}

const phaseWords = (phase) => (typeof phase === "string" && phase ? `: ${phase}` : "");

function fillGate(li, gate) {
  const [badge, name, detail] = li.children;
  badge.dataset.tone = GATE_TONES[gate.answer] ?? "quiet";
  setText(badge, GATE_WORDS[gate.answer] ?? asText(gate.answer));
  setText(name, asText(gate.name));
  const counted =
    isNumber(gate.n_canary) && isNumber(gate.n_stable)
      ? ` (${count(gate.n_canary)} requests of the new, ${count(gate.n_stable)} of the old)`
      : "";
  setText(detail, `${typeof gate.detail === "string" ? gate.detail : ""}${counted}`);
}

// -- what an operator may say to it

function showCommands(r, operator) {
  const ended = ["done", "rolled-back", "failed"].includes(r.phase);
  const back = r.phase === "rolling-back";
  const offered = !operator || ended || back ? [] : [r.paused === true ? "resume" : "pause", "promote", "abort"];
  keyed(
    $("rollout-commands"),
    offered,
    (command) => command,
    () => el("button", { type: "button" }),
    (button, command) => {
      button.dataset.command = command;
      setText(button, COMMANDS[command].button);
      button.setAttribute("aria-label", `${COMMANDS[command].button} the rollout to ${versionName(r.to)}`);
    },
  );
}

async function commandRollout(command, current) {
  const { question, words, button, done } = COMMANDS[command];
  if (question && !(await confirmed(question(asObject(current)), words, button))) return;
  await post("moray/rollouts/current", { command }, done);
}

// -- those before

function showRolloutHistory(history) {
  const ended = [...history].sort((a, b) => endOf(b) - endOf(a)).slice(0, HISTORY_SHOWN);
  $("rollout-history-box").hidden = ended.length === 0;
  setText($("rollout-history-box").firstElementChild, `Before (${count(history.length)})`);
  keyed(
    $("rollout-history"),
    ended,
    (r) => JSON.stringify([r.id, r.from, r.to]),
    () =>
      el(
        "li",
        {},
        el("span", { cls: "pill" }),
        el("strong"),
        el("span", { cls: "quiet" }),
        el("p", { cls: "quiet" }),
      ),
    (li, r) => {
      const [badge, name, when, why] = li.children;
      badge.dataset.tone = ROLLOUT_TONES[r.phase] ?? "quiet";
      setText(badge, asText(r.phase));
      setText(name, way(r));
      setText(when, `${clock(endOf(r))}${typeof r.started_by === "string" && r.started_by ? `, ${r.started_by}` : ""}`);
      setText(why, typeof r.why === "string" ? r.why : "");
    },
  );
}

const endOf = (r) => (isNumber(r.ended_s) ? r.ended_s : isNumber(r.since_s) ? r.since_s : Number.NaN);
