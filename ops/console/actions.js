// What an operator may do. The gateway decides whether the key is an operator's; here it only decides what is offered.

function drainButton(td, replica) {
  const undo = replica.state === "draining";
  if (!td.firstElementChild) td.replaceChildren(el("button", { type: "button" }));
  const button = td.firstElementChild;
  setText(button, undo ? "Undo drain" : "Drain");
  button.dataset.replica = typeof replica.id === "string" ? replica.id : "";
  button.dataset.undo = String(undo);
  button.setAttribute("aria-label", `${undo ? "Undo the drain of" : "Drain"} replica ${shortId(replica.id)}`);
}

// The dialog's question that is open. An answer's event may come when the next question is open already.
let settle = null;
$("confirm").addEventListener("close", () => {
  if ($("confirm").open) return;
  settle?.($("confirm").returnValue === "yes");
  settle = null;
});

function confirmed(title, words, yes, offersToMove = false) {
  settle?.(false);
  setText($("confirm-title"), title);
  setText($("confirm-words"), words);
  setText($("confirm-yes"), yes);
  $("move-line").hidden = !offersToMove;
  $("move").checked = false;
  $("confirm").returnValue = "";
  $("confirm").showModal();
  return new Promise((resolve) => {
    settle = resolve;
  });
}

async function drain(id, undo) {
  const title = undo ? `Let ${shortId(id)} take requests again?` : `Drain ${shortId(id)}?`;
  const words = undo
    ? `${id} is granted requests again.`
    : `${id} is granted no more requests. What runs there ends there, unless it is moved.`;
  if (!(await confirmed(title, words, undo ? "Undo drain" : "Drain", !undo))) return;
  const asked = { replica: id, undo, migrate: !undo && $("move").checked };
  await post("moray/drain", asked, `${shortId(id)} ${undo ? "takes requests again" : "drains"}.`);
}

// Asks the gateway for it, and tells what became of it.
async function post(path, asked, done) {
  try {
    const options = {
      method: "POST",
      headers: { ...headers(), "Content-Type": "application/json" },
      credentials: "omit",
      body: JSON.stringify(asked),
    };
    const answer = await fetch(path, options);
    const said = asObject(await answer.json().catch(() => null));
    if (answer.ok) tell(done, "good");
    else
      tell(
        `Not done: ${asObject(said.error).message || said.detail || `the gateway answered ${answer.status}`}`,
        "bad",
      );
  } catch {
    tell("Not done, or not known to be done: the gateway cannot be reached.", "bad");
  }
}

let toldTimer = null;

function tell(words, tone) {
  $("told").hidden = false;
  $("told").dataset.tone = tone;
  setText($("told"), words);
  clearTimeout(toldTimer);
  toldTimer = setTimeout(() => {
    $("told").hidden = true;
  }, 12000);
}

// The runbook's text, as it lies in the repository.
async function openRunbook(name) {
  setText($("runbook-title"), `ops/runbooks/${name}.md`);
  setText($("runbook-text"), "…");
  $("runbook").showModal();
  try {
    const answer = await fetch(`moray/runbooks/${encodeURIComponent(name)}`, {
      headers: headers(),
      credentials: "omit",
    });
    const text = await answer.text();
    setText(
      $("runbook-text"),
      answer.ok ? text : `It cannot be shown here (${answer.status}). It lies in the repository.`,
    );
  } catch {
    setText($("runbook-text"), "The gateway cannot be reached. The runbook lies in the repository.");
  }
}
