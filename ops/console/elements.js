// The page's elements. Data enters by textContent and attributes only; the policy forbids any other way.

const $ = (id) => document.getElementById(id);

function el(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  const { text, cls, ...attributes } = options;
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function svg(tag, attributes = {}) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Makes `parent` hold one child per item, in order. A node stays while its key does: focus and open details live on.
function keyed(parent, items, keyOf, make, update) {
  const there = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const times = new Map(); // two items may have one key
  items.forEach((item, at) => {
    const name = String(keyOf(item, at));
    times.set(name, (times.get(name) ?? 0) + 1);
    const key = `${times.get(name)} ${name}`;
    let node = there.get(key);
    if (node) there.delete(key);
    else {
      node = make(item);
      node.dataset.key = key;
    }
    update(node, item);
    if (parent.children[at] !== node) parent.insertBefore(node, parent.children[at] ?? null);
  });
  for (const gone of there.values()) gone.remove();
}

// A table that becomes cards on a phone, where its roles keep it a table to a screen reader.
// columns: [{label, cls?, cell(td, item)}]; no items: the words `empty`.
function table(box, caption, columns, items, keyOf, empty) {
  let made = box.querySelector(":scope > table");
  if (!made) {
    const th = (c) => el("th", { scope: "col", role: "columnheader", text: c.label, cls: c.cls ?? "" });
    const head = el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...columns.map(th)));
    const title = el("caption", { text: caption, cls: "unseen" });
    made = el("table", { role: "table" }, title, head, el("tbody", { role: "rowgroup" }));
    box.replaceChildren(made, el("p", { cls: "empty quiet" }));
  }
  const words = box.querySelector(":scope > .empty");
  made.hidden = items.length === 0;
  words.hidden = items.length > 0;
  setText(words, empty);
  const td = (c) => el("td", { role: "cell", "data-label": c.label, cls: c.cls ?? "" });
  const make = () => el("tr", { role: "row" }, ...columns.map(td));
  keyed(made.tBodies[0], items, keyOf, make, (tr, item) => {
    columns.forEach((column, n) => column.cell(tr.cells[n], item));
  });
}

// A share of 1 as a bar, with its words; `tone` colours it, the words say the same.
function bar(box, label, share, words) {
  let meter = box.querySelector(".bar");
  if (!meter) {
    meter = el("div", { cls: "bar", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100" }, el("i"));
    box.replaceChildren(el("div", { cls: "meter" }, meter, el("span")));
  }
  const known = isNumber(share);
  const width = known ? Math.min(Math.max(share, 0), 1) : 0;
  meter.firstChild.style.width = `${(100 * width).toFixed(1)}%`;
  meter.dataset.tone = width >= 0.95 ? "bad" : width >= 0.8 ? "warn" : "good";
  meter.setAttribute("aria-label", label);
  if (known) meter.setAttribute("aria-valuenow", String(Math.round(100 * width)));
  else meter.removeAttribute("aria-valuenow");
  meter.setAttribute("aria-valuetext", words);
  setText(meter.nextSibling, words);
}
