// Expert load as a heat map: layers down, shards, experts or replicas across, each against its layer's mean.
// Blue is less than the mean, orange more: a pair that all common forms of colour blindness tell apart.

const HUES = {
  light: {
    less: [33, 102, 172],
    even: [238, 240, 243],
    more: [179, 88, 6],
    none: "#d5d9df",
    ink: "#56606e",
    mark: "#111",
  },
  dark: {
    less: [88, 166, 255],
    even: [38, 44, 53],
    more: [255, 160, 66],
    none: "#1b2027",
    ink: "#9aa5b3",
    mark: "#fff",
  },
};
const dark = matchMedia("(prefers-color-scheme: dark)");
const hues = () => HUES[dark.matches ? "dark" : "light"];
const GUTTER = 30; // pixels for the layers' numbers
const FOOT = 18; // and for the columns'

// ratio: to the mean; reach: the powers of two from even to full colour.
function shade(ratio, reach) {
  const { less, even, more, none } = hues();
  if (!isNumber(ratio)) return none;
  const far = Math.max(-1, Math.min(1, ratio > 0 ? Math.log2(ratio) / reach : -1));
  const to = far < 0 ? less : more;
  return `rgb(${even.map((c, n) => Math.round(c + (to[n] - c) * Math.abs(far))).join(" ")})`;
}

function context2d(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return pen;
}

class HeatMap {
  constructor(canvas, legend, ticks, words) {
    Object.assign(this, { canvas, legend, ticks, words, map: null, at: null });
    canvas.addEventListener("pointermove", (event) => this.hover(event));
    canvas.addEventListener("pointerdown", (event) => this.hover(event));
    canvas.addEventListener("pointerleave", () => this.move(null));
    canvas.addEventListener("keydown", (event) => this.key(event));
    // Read out while it is being read by keyboard only: else every new count would be.
    canvas.addEventListener("focus", () => words.setAttribute("aria-live", "polite"));
    canvas.addEventListener("blur", () => {
      words.removeAttribute("aria-live");
      this.move(null);
    });
    dark.addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  }

  // map: {rows, columns: [name], ratios: [[number | null]], amounts: [[number]] | null, what, against, reach, idle}
  show(map) {
    this.map = map;
    if (this.at && (this.at[0] >= map.rows.length || this.at[1] >= map.columns.length)) this.at = null;
    this.draw();
  }

  draw() {
    const map = this.map;
    const width = this.canvas.parentElement.clientWidth;
    if (!map || !width) return;
    const [rows, columns] = [map.rows.length, map.columns.length];
    this.cellHeight = rows ? Math.max(5, Math.min(24, Math.floor(280 / rows))) : 0;
    this.cellWidth = columns ? (width - GUTTER) / columns : 0;
    const pen = context2d(this.canvas, width, rows * this.cellHeight + FOOT);
    const { ink, mark } = hues();
    const gap = this.cellWidth > 8 && this.cellHeight > 8 ? 2 : this.cellWidth > 4 ? 1 : 0;
    map.ratios.forEach((of, row) =>
      of.forEach((ratio, column) => {
        pen.fillStyle = shade(ratio, map.reach);
        pen.fillRect(
          GUTTER + column * this.cellWidth,
          row * this.cellHeight,
          this.cellWidth - gap,
          this.cellHeight - Math.min(gap, 1),
        );
      }),
    );
    pen.fillStyle = ink;
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const everyRow = Math.ceil(14 / this.cellHeight);
    map.rows.forEach((name, row) => {
      if (row % everyRow === 0) pen.fillText(name, GUTTER - 6, (row + 0.5) * this.cellHeight, GUTTER - 6);
    });
    pen.textAlign = "center";
    const widest = Math.max(...map.columns.map((name) => pen.measureText(name).width), 1);
    const everyColumn = Math.max(1, Math.ceil((widest + 6) / this.cellWidth));
    map.columns.forEach((name, column) => {
      const x = GUTTER + (column + 0.5) * this.cellWidth;
      if (column % everyColumn === 0)
        pen.fillText(name, Math.min(x, width - widest / 2), rows * this.cellHeight + FOOT / 2 + 2);
    });
    if (this.at) {
      const [row, column] = this.at;
      pen.strokeStyle = mark;
      pen.lineWidth = 2;
      pen.strokeRect(
        GUTTER + column * this.cellWidth,
        row * this.cellHeight,
        this.cellWidth - gap,
        this.cellHeight - Math.min(gap, 1),
      );
    }
    this.drawLegend();
    this.tell();
  }

  drawLegend() {
    const reach = this.map.reach;
    const width = this.legend.parentElement.clientWidth;
    const pen = context2d(this.legend, width, 10);
    for (let x = 0; x < width; x += 1) {
      pen.fillStyle = shade(2 ** (reach * ((2 * x) / width - 1)), reach);
      pen.fillRect(x, 0, 1.5, 10);
    }
    const times = (power) => `${Number((2 ** power).toFixed(2))} ×`;
    const words = [`≤ ${times(-reach)}`, "the layer's mean", `≥ ${times(reach)}`];
    keyed(
      this.ticks,
      words,
      (_, at) => at,
      () => el("span"),
      (node, text) => setText(node, text),
    );
  }

  tell() {
    const map = this.map;
    const cells = map.ratios
      .flatMap((of, row) => of.map((ratio, column) => [ratio, row, column]))
      .filter(([r]) => isNumber(r));
    if (!cells.length) return setText(this.words, map.idle);
    const hottest = cells.reduce((a, b) => (b[0] > a[0] ? b : a));
    const [ratio, row, column] = this.at ? [map.ratios[this.at[0]][this.at[1]], ...this.at] : hottest;
    const amount = map.amounts ? `, ${short(map.amounts[row]?.[column])} choices` : "";
    const ofMean = isNumber(ratio) ? `${ratio.toFixed(2)} × ${map.against}` : NO_DATA;
    setText(
      this.words,
      `${this.at ? "" : "Highest: "}layer ${map.rows[row]}, ${map.what} ${map.columns[column]}: ${ofMean}${amount}`,
    );
    this.canvas.setAttribute(
      "aria-label",
      `Expert load, ${map.rows.length} layers by ${plural(map.columns.length, map.what)}; arrow keys read a cell`,
    );
  }

  move(at) {
    this.at = at;
    this.draw();
  }

  hover(event) {
    if (!this.map?.rows.length || !this.cellWidth) return;
    const area = this.canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - area.top) / this.cellHeight);
    const column = Math.floor((event.clientX - area.left - GUTTER) / this.cellWidth);
    const inside = row >= 0 && row < this.map.rows.length && column >= 0 && column < this.map.columns.length;
    this.move(inside ? [row, column] : null);
  }

  key(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Escape") this.move(null);
    if (!step || !this.map?.rows.length || !this.map.columns.length) return;
    event.preventDefault();
    const [row, column] = this.at ?? [-step[0], -step[1]];
    const within = (x, n) => Math.max(0, Math.min(n - 1, x));
    this.move([within(row + step[0], this.map.rows.length), within(column + step[1], this.map.columns.length)]);
  }
}
