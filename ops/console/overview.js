// The cluster in one look: the header's words, the tiles, the two latency charts.

const FRESH_S = 30; // how old the newest figure may be and still count as now

const rowsOf = (history) => asList(history?.rows).filter((row) => isNumber(asObject(row).at_s));

// The newest row of the history in which `key` is known, if it is fresh.
function newest(history, key) {
  return (
    rowsOf(history)
      .filter((row) => isNumber(row[key]) && nowS() - row.at_s <= FRESH_S)
      .pop() ?? null
  );
}

// Of a counted figure, per second, over the last whole buckets: the newest one is still being filled.
function rate(history, key) {
  const size = history?.bucket_s;
  const whole = rowsOf(history).slice(0, -1);
  const rows = whole.filter((row) => isNumber(row[key]) && nowS() - row.at_s <= FRESH_S).slice(-3);
  return rows.length && isNumber(size) && size > 0 ? sum(rows.map((row) => row[key])) / rows.length / size : null;
}

const ready = (replicas) => replicas.filter((r) => r.state === "ready");
const draining = (replicas) => replicas.filter((r) => r.state === "draining");
const replicasOf = (status) => (Array.isArray(status?.replicas) ? status.replicas.map(asObject) : null);

function health(status, alarms) {
  const replicas = replicasOf(status);
  if (!replicas) return ["quiet", "No data"];
  if (!ready(replicas).length) return ["bad", "No replica is ready"];
  const raised = asList(alarms?.alarms).map(asObject);
  if (raised.some((alarm) => alarm.severity === "page")) return ["bad", "Serving, with alarms"];
  return raised.length ? ["warn", "Serving, with alarms"] : ["good", "Serving"];
}

function showHeader(status, alarms) {
  const [tone, words] = health(status, alarms);
  $("health").dataset.tone = tone;
  setText($("health"), words);
  const name = asObject(status?.model).name;
  setText($("model"), status ? asText(name) : "");
  const versions = [
    ...new Set((replicasOf(status) ?? []).map((r) => r.version).filter((v) => typeof v === "string" && v)),
  ].sort();
  keyed(
    $("versions"),
    versions.slice(0, 3),
    (v) => v,
    () => el("span", { cls: "chip" }),
    (chip, v) => setText(chip, v),
  );
  const raised = asList(alarms?.alarms).length;
  document.title = `${raised ? `(${raised}) ` : ""}${typeof name === "string" ? `${name} · ` : ""}Moray console`;
}

function showTiles(status, history) {
  const replicas = replicasOf(status);
  const router = asObject(status?.router);
  const gateway = asObject(status?.gateway);
  const rows = asList(history?.rows);
  const failed = sum(rows.map((row) => asObject(row).failed));
  const shed = sum(rows.map((row) => asObject(row).shed));
  const running = replicas ? sum(replicas.map((r) => r.running)) : null;
  const seats = replicas ? sum(replicas.map((r) => asObject(r.capacity).max_num_seqs)) : null;
  const tiles = [
    {
      label: "Replicas",
      value: replicas ? count(ready(replicas).length) : NO_DATA,
      unit: replicas ? "ready" : "",
      more: replicas
        ? `${count(draining(replicas).length)} draining, ${plural(asList(status.gateways).length, "gateway")}`
        : "",
    },
    {
      label: "Running",
      value: count(running),
      unit: seats ? `of ${count(seats)}` : "",
      more: isNumber(gateway.resumed) ? `${plural(gateway.resumed, "stream")} resumed at this gateway` : "",
    },
    {
      label: "Queue",
      value: count(router.queued),
      unit: isNumber(router.queued) ? "waiting" : "",
      more: isNumber(router.queued) ? oldestWords(status) : "",
      series: [{ name: "waiting", key: "queue", cls: "p50" }],
      show: count,
    },
    {
      label: "Output",
      value: short(rate(history, "output_tokens")),
      unit: rate(history, "output_tokens") === null ? "" : "tokens/s",
      series: [{ name: "tokens/s", key: "output_rate", cls: "p50" }],
      show: short,
    },
    {
      label: "Requests",
      value: short(rate(history, "requests")),
      unit: rate(history, "requests") === null ? "" : "per s",
      more: rows.length ? `${count(failed)} failed, ${count(shed)} shed in 10 min` : "",
      tone: failed > 0 ? "bad" : shed > 0 ? "warn" : "",
      series: [{ name: "requests/s", key: "request_rate", cls: "p50" }],
      show: short,
    },
  ];
  const size = history?.bucket_s;
  const per = (x) => (isNumber(x) && isNumber(size) ? x / size : null);
  // Without the newest bucket, which is still being filled.
  const drawn = rowsOf(history).map((row, n, { length }) =>
    n < length - 1 ? { ...row, output_rate: per(row.output_tokens), request_rate: per(row.requests) } : row,
  );
  keyed(
    $("tiles"),
    tiles,
    (tile) => tile.label,
    tileMade,
    (box, tile) => {
      setText(box.querySelector(".value"), tile.value);
      box.querySelector(".value").classList.toggle("missing", tile.value === NO_DATA);
      setText(box.querySelector(".unit"), tile.unit);
      setText(box.querySelector(".more"), tile.more ?? "");
      box.querySelector(".more").dataset.tone = tile.tone ?? "";
      const spark = box.querySelector(".mini");
      spark.hidden = !tile.series || !rows.length;
      if (!spark.hidden) sparkline(spark, drawn, size, tile.series, tile.show, 30);
    },
  );
}

const tileMade = (tile) =>
  el(
    "div",
    { cls: "card tile" },
    el("dt", { text: tile.label }),
    el(
      "dd",
      {},
      el("span", { cls: "value" }),
      " ",
      el("span", { cls: "unit quiet" }),
      el("p", { cls: "more quiet" }),
      el("div", { cls: "mini" }),
    ),
  );

function oldestWords(status) {
  const oldest = asList(asObject(status.queue).rows)
    .map((row) => asObject(row).oldest_s)
    .filter(isNumber);
  if (!oldest.length) return "";
  const most = Math.max(...oldest);
  return most < 1 ? "none for longer than 1 s" : `the oldest for ${age(most)}`;
}

function showLatency(box, title, what, history, prefix) {
  if (!box.firstChild) {
    box.append(
      el("h2", { text: title }),
      el("p", { cls: "what quiet" }),
      el(
        "dl",
        { cls: "figures" },
        ...["p50", "p95"].map((p) => el("div", { cls: p }, el("dt", { text: p }), el("dd"))),
      ),
      el("div", { cls: "plot" }),
    );
  }
  setText(box.querySelector(".what"), what);
  const keys = ["p50", "p95"].map((p) => `${prefix}_${p}`);
  box.querySelectorAll("dd").forEach((figure, n) => {
    const row = newest(history, keys[n]);
    setText(figure, row ? latency(row[keys[n]]) : NO_DATA);
    figure.classList.toggle("missing", !row);
  });
  const series = ["p95", "p50"].map((p) => ({ name: p, key: `${prefix}_${p}`, cls: p }));
  sparkline(box.querySelector(".plot"), asList(history?.rows), history?.bucket_s, series, latency, 84);
}
