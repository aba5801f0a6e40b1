"use strict";
// ---- a value under the pointer, or under the arrow keys -----------------------------------------
const tip = document.getElementById("tip");
function show(words, x, y) {
  tip.textContent = words;
  tip.classList.add("on");
  const box = tip.getBoundingClientRect();
  const beyond = x + box.width + 24 > innerWidth;
  tip.style.left = Math.max(4, beyond ? x - box.width - 12 : x + 12) + "px";
  tip.style.top = Math.max(4, y - box.height - 10) + "px";
}
function hide() {
  tip.classList.remove("on");
  document.querySelectorAll(".said.on").forEach(mark => mark.classList.remove("on"));
}
for (const mark of document.querySelectorAll(".said")) {
  // The browser's own, late, hint would stand beside ours.
  const title = mark.querySelector("title");
  mark.setAttribute("aria-label", title.textContent);
  title.remove();
  mark.addEventListener("pointermove", event =>
    show(mark.getAttribute("aria-label"), event.clientX, event.clientY));
  mark.addEventListener("pointerleave", hide);
}
for (const drawing of document.querySelectorAll(".drawing")) {
  const marks = [...drawing.querySelectorAll(".said")];
  let at = -1;
  drawing.addEventListener("keydown", event => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !marks.length) return;
    event.preventDefault();
    hide();
    at = (at + by + marks.length) % marks.length;
    marks[at].classList.add("on");
    const box = marks[at].getBoundingClientRect();
    show(marks[at].getAttribute("aria-label"), box.right, box.top);
  });
  drawing.addEventListener("blur", hide);
}
addEventListener("scroll", hide, { passive: true });

// ---- tables that sort ---------------------------------------------------------------------------
const UNITS = { ns: 1e-9, "µs": 1e-6, ms: 1e-3, s: 1, k: 1024, m: 1048576, KiB: 1024,
  MiB: 1048576, GiB: 1073741824, TiB: 1099511627776 };
function value(text) {
  const found = text.match(/^([+-]?[\d,.]+)\s*([a-zA-Zµ]*)/);
  if (!found) return text;
  return parseFloat(found[1].replace(/,/g, "")) * (UNITS[found[2]] ?? 1);
}
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => value(row.cells[column].textContent);
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      // Words, such as why something does not fit, come after all numbers in either order.
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      const order = typeof x === "number" ? x - y : x.localeCompare(y);
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}

// ---- the timeline, zoomed -----------------------------------------------------------------------
function timeline(data, place) {
  const streams = ["compute", "d2h", "h2d", "host"]
    .filter(name => data.slices.some(slice => slice[0] === name));
  const KEYS = [["block, stored mostly kept", "kept"], ["stored mostly swapped", "swapped"],
    ["all recomputed, or run again", "recomputed"], ["copy", "copy"], ["update", "update"],
    ["head, embedding", "other"]];
  place.innerHTML = `<div class="keys"><button data-by=".5" aria-label="zoom in">+</button>
    <button data-by="2" aria-label="zoom out">−</button><button data-by="0">all</button>
    ${KEYS.map(([words, name]) => `<span class="key" style="--of:var(--${name})">${words}</span>`)
      .join("")}</div>
    <canvas tabindex="0" role="img" aria-label="The step in time. Plus and minus zoom, arrow keys
    move, Home shows all. Drag to move, Ctrl and wheel to zoom."></canvas>
    <div class="keys">memory: ${data.categories.map((name, nth) =>
      `<span class="key" style="--of:var(--c${nth})">${name.replaceAll("_", " ")}</span>`)
      .join("")}</div>`;
  place.hidden = false;
  const canvas = place.querySelector("canvas"), ink = canvas.getContext("2d");
  const LEFT = 62, ROW = 30, TOP = 6, GAP = 26;
  let from = 0, to = data.step, width = 0, height = 0;
  const all = point => point[1].reduce((sum, bytes) => sum + bytes, 0);
  const most = Math.max(1, ...data.memory.map(all));
  const hue = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name);
  const kind = ([, what, block]) => ({ recompute: "recomputed", copy: "copy", update: "update" })[what]
    ?? (block === null ? "other" : ["kept", "swapped", "recomputed"][data.decided[block] ?? 0]);
  const x = ns => LEFT + (ns - from) / (to - from) * (width - LEFT);
  const time = ns => ns < 1 ? "0" : ns >= 1e9 ? (ns / 1e9).toFixed(3) + " s"
    : ns >= 1e6 ? (ns / 1e6).toFixed(2) + " ms" : (ns / 1e3).toFixed(1) + " µs";
  function draw() {
    const dots = devicePixelRatio || 1;
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [width * dots, height * dots];
    ink.setTransform(dots, 0, 0, dots, 0, 0);
    ink.clearRect(0, 0, width, height);
    ink.font = "12px system-ui, sans-serif";
    ink.textBaseline = "middle";
    const hues = {};
    for (const slice of data.slices) {
      const [stream, , , start, end] = slice, name = kind(slice);
      if (end < from || start > to) continue;
      const left = Math.max(LEFT, x(start)), right = Math.min(width, x(end));
      ink.fillStyle = hues[name] ??= hue(name);
      ink.fillRect(left, TOP + streams.indexOf(stream) * ROW + 3,
        Math.max(right - left - (right - left > 3 ? .5 : 0), .5), ROW - 6);
    }
    const top = TOP + streams.length * ROW + GAP, bottom = height - 20;
    const y = bytes => bottom - bytes / most * (bottom - top);
    data.categories.forEach((_, nth) => {
      const upto = (point, count) => point[1].slice(0, count).reduce((sum, b) => sum + b, 0);
      ink.fillStyle = hue("c" + nth);
      ink.beginPath();
      const points = data.memory;
      points.forEach((p, i) => {
        if (i) ink.lineTo(x(p[0]), y(upto(points[i - 1], nth + 1)));
        ink.lineTo(x(p[0]), y(upto(p, nth + 1)));
      });
      for (let i = points.length - 1; i >= 0; i--) {
        ink.lineTo(x(points[i][0]), y(upto(points[i], nth)));
        if (i) ink.lineTo(x(points[i][0]), y(upto(points[i - 1], nth)));
      }
      ink.fill();
    });
    ink.fillStyle = hue("paper");
    ink.fillRect(0, 0, LEFT - 1, height);
    ink.fillStyle = hue("ink");
    ink.textAlign = "right";
    streams.forEach((name, row) => ink.fillText(name, LEFT - 8, TOP + (row + .5) * ROW));
    ink.fillText((most / 1073741824).toFixed(1) + " GiB", LEFT - 4, top + 2);
    ink.fillText("0", LEFT - 8, bottom);
    ink.textAlign = "left";
    ink.fillText("memory on the device", LEFT, top - 12);
    ink.fillText(time(from), LEFT, height - 8);
    ink.textAlign = "right";
    ink.fillText(time(to), width - 2, height - 8);
  }
  function zoom(by, around = (from + to) / 2) {
    const length = by ? Math.min(data.step, Math.max(1e3, (to - from) * by)) : data.step;
    const part = (around - from) / (to - from);
    from = Math.min(Math.max(0, around - part * length), data.step - length);
    to = from + length;
    draw();
  }
  function move(by) {
    const length = to - from;
    from = Math.min(Math.max(0, from + by), data.step - length);
    to = from + length;
    draw();
  }
  const at = event => from + (event.offsetX - LEFT) / (width - LEFT) * (to - from);
  place.querySelectorAll("button").forEach(button =>
    button.addEventListener("click", () => zoom(+button.dataset.by)));
  canvas.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : .8, at(event));
  }, { passive: false });
  let held = null;
  canvas.addEventListener("pointerdown", event => {
    held = event.offsetX;
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", () => held = null);
  canvas.addEventListener("pointerleave", hide);
  canvas.addEventListener("pointermove", event => {
    if (held !== null) {
      move((held - event.offsetX) / (width - LEFT) * (to - from));
      held = event.offsetX;
      return hide();
    }
    const ns = at(event), row = streams[Math.floor((event.offsetY - TOP) / ROW)];
    const slice = data.slices.find(s => s[0] === row && s[3] <= ns && ns < s[4]);
    const point = data.memory.filter(p => p[0] <= ns).pop();
    const block = slice && (slice[2] === null ? slice[5] : "block " + slice[2]);
    const alive = point ? (all(point) / 1073741824).toFixed(1) + " GiB alive" : "";
    show(slice ? `${row}: ${slice[1]} ${block}, ${time(slice[4] - slice[3])} from ${time(slice[3])}; ${alive}`
      : `${time(ns)}: ${alive}`, event.clientX, event.clientY);
  });
  canvas.addEventListener("keydown", event => {
    const length = to - from;
    const does = { "+": () => zoom(.5), "-": () => zoom(2), Home: () => zoom(0),
      ArrowLeft: () => move(-length / 4), ArrowRight: () => move(length / 4) }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  });
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
if (TIMELINE) timeline(TIMELINE, document.getElementById("zoom"));
