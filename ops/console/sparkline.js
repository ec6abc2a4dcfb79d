// Lines over the last ten minutes, in SVG. What is not known is a gap, not a zero.

const SPAN_S = 600;
const WIDTH = 600;

// series: [{name, key, cls}]; rows: /moray/history's; show(value): its words. Returns nothing; draws into `box`.
function sparkline(box, rows, bucketS, series, show, height) {
  let image = box.querySelector("svg");
  if (!image) {
    image = svg("svg", { class: "spark", role: "img", preserveAspectRatio: "none", viewBox: `0 0 ${WIDTH} ${height}` });
    image.append(svg("line", { class: "base", x1: 0, x2: WIDTH, y1: height - 0.5, y2: height - 0.5 }));
    for (const { cls } of series)
      image.append(svg("path", { class: `area ${cls}` }), svg("path", { class: `line ${cls}` }));
    image.append(svg("line", { class: "cursor", y1: 0, y2: height, visibility: "hidden" }));
    const top = el("span", { cls: "top quiet" });
    const readout = el("span", { cls: "readout" });
    box.replaceChildren(
      top,
      image,
      readout,
      el("div", { cls: "axis quiet" }, el("span", { text: "10 min ago" }), el("span", { text: "now" })),
    );
    image.addEventListener("pointermove", (event) => point(box, event));
    image.addEventListener("pointerleave", () => point(box, null));
  }
  const sound = rows.filter((row) => isNumber(asObject(row).at_s));
  const end = Math.max(nowS(), ...sound.map((row) => row.at_s));
  const x = (atS) => WIDTH * (1 - (end - atS) / SPAN_S);
  const values = sound.flatMap((row) => series.map(({ key }) => row[key])).filter(isNumber);
  const most = values.length ? Math.max(...values) : 0;
  const y = (value) => height - 2 - (height - 8) * (most > 0 ? value / most : 0);
  const paths = image.querySelectorAll("path");
  series.forEach(({ key }, n) => {
    const runs = stretches(sound, key, bucketS).map((run) => run.map((row) => [x(row.at_s), y(row[key])]));
    // A stretch of one bucket is a dot: a line of no length with round ends.
    const line = runs.map((run) => `M${points(run)}${run.length === 1 ? "h0" : ""}`);
    const area = runs.map((run) => `M${points([[run[0][0], height], ...run, [run[run.length - 1][0], height]])}Z`);
    paths[2 * n].setAttribute("d", area.join(""));
    paths[2 * n + 1].setAttribute("d", line.join(""));
  });
  const names = series.map(({ name }) => name).join(" and ");
  image.setAttribute(
    "aria-label",
    values.length ? `${names} of ten minutes, at most ${show(most)}` : `${names}: ${NO_DATA}`,
  );
  setText(box.querySelector(".top"), values.length ? show(most) : NO_DATA);
  box.points = sound.map((row) => ({ x: x(row.at_s), row }));
  box.tell = (row) => `${clock(row.at_s)}: ${series.map(({ name, key }) => `${name} ${show(row[key])}`).join(", ")}`;
}

const points = (run) => run.map((at) => at.map((c) => c.toFixed(1)).join(" ")).join("L");

// Rows in a run without a gap in that value.
function stretches(rows, key, bucketS) {
  const runs = [];
  let before = null;
  for (const row of rows) {
    if (isNumber(row[key])) {
      if (before === null || (isNumber(bucketS) && row.at_s - before > 1.5 * bucketS)) runs.push([]);
      runs[runs.length - 1].push(row);
      before = row.at_s;
    } else {
      before = null;
    }
  }
  return runs;
}

function point(box, event) {
  const cursor = box.querySelector(".cursor");
  const readout = box.querySelector(".readout");
  const area = box.querySelector("svg").getBoundingClientRect();
  const at = event && area.width ? (WIDTH * (event.clientX - area.left)) / area.width : null;
  const nearest =
    at === null ? null : box.points.reduce((a, b) => (a && Math.abs(a.x - at) <= Math.abs(b.x - at) ? a : b), null);
  cursor.setAttribute("visibility", nearest ? "visible" : "hidden");
  if (nearest) for (const end of ["x1", "x2"]) cursor.setAttribute(end, nearest.x.toFixed(1));
  setText(readout, nearest ? box.tell(nearest.row) : "");
}
