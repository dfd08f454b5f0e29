"use strict";
// The drawn ladder: only the lines in sight are drawn. `told` is what exports/ladder.py wrote, `rows`
// are the table's, `choose` is called with a row that was clicked.
function makeLadder(told, rows, choose) {
  const REQUEST = "0", REPLY = "1", OPENED = "2", CLOSED = "3", LOG = "4";
  const STEP = 30, HEAD = 26, MOST_BARS = 6, PRINTED = 600, ON_A_PIECE = 10, PAPER = 720, TALLEST = 12e6;
  const box = document.getElementById("ladder");
  const inside = document.getElementById("rungs");
  const drawing = document.getElementById("drawing");
  const paper = document.getElementById("paper");
  const lines = told.shows.length;
  let shown = new Int32Array(0), tops = new Float64Array(0), bottom = 0;
  let begins = new Float64Array(0), ends = new Float64Array(0);
  let bars = [], letter = 7, picked = -1, waiting = false;

  const isOperation = (line) => told.shows[line] === REQUEST || told.shows[line] === REPLY;

  function rowOf(line) {
    if (isOperation(line)) return told.at[line];
    return told.shows[line] === LOG ? told.logs[told.at[line]][0] : -1;
  }

  function when(line) {
    const at = told.at[line];
    switch (told.shows[line]) {
      case REQUEST: return told.sent[at];
      case REPLY: return told.sent[at] + Math.max(told.took[at], 0);
      case OPENED: return told.connections[at][1];
      case CLOSED: return told.connections[at][3];
      default: return told.logs[at][1];
    }
  }

  // Which lines there are, and where: further apart for longer times, on a logarithmic scale.
  function arrange(isShown, everything) {
    const kept = [];
    for (let line = 0; line < lines; line += 1) {
      const row = rowOf(line);
      if (row < 0 ? everything : isShown(row)) kept.push(line);
    }
    shown = Int32Array.from(kept);
    tops = new Float64Array(shown.length);
    begins = new Float64Array(rows.length);
    ends = new Float64Array(rows.length);
    bars = Array.from({ length: MOST_BARS }, () => []);
    const room = Math.max(Math.min(TALLEST / Math.max(shown.length, 1) - STEP, 60), 0);
    const free = bars.map(() => true), barOf = new Map();
    let y = HEAD, before = null;
    shown.forEach((line, place) => {
      const t = when(line);
      const gap = before === null || t === null ? 0 : Math.max(t - before, 0);
      if (t !== null) before = Math.max(t, before === null ? t : before);
      y += STEP + Math.min(9 * Math.log10(gap / 1e6 + 1), room);
      tops[place] = y;
      const at = told.at[line];
      if (told.shows[line] === REQUEST) {
        begins[at] = y;
        const bar = free.indexOf(true);
        if (bar >= 0) {
          free[bar] = false;
          barOf.set(at, bar);
          bars[bar].push(at);
        }
      } else if (told.shows[line] === REPLY) {
        ends[at] = y;
        if (barOf.has(at)) free[barOf.get(at)] = true;
        barOf.delete(at);
      }
    });
    bottom = y + STEP;
    inside.style.height = `${bottom}px`;
    draw();
  }

  function part(name, attributes, text) {
    const made = document.createElementNS(drawing.namespaceURI, name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const cut = (text, room) => (text.length <= room ? text : `${text.slice(0, Math.max(room - 1, 0))}\u2026`);
  const seconds = (t) => (t / 1e9).toFixed(6);
  const kinds = (row) => ["ok", "late", "bad", "silent"].filter((kind) => row.classList.contains(kind));

  // The first place whose value is not below `wanted`; values only grow.
  function firstFrom(count, valueAt, wanted) {
    let low = 0, high = count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (valueAt(middle) < wanted) low = middle + 1; else high = middle;
    }
    return low;
  }
  const placeAt = (y) => firstFrom(tops.length, (place) => tops[place], y);

  // Draw the lines from one place to another; `top` is at the top of the picture.
  function drawInto(svg, from, to, top, width, height) {
    const time = width < 600 ? 74 : 92;
    const vmm = time + 6, guest = width - 16 - 6 * MOST_BARS;
    const room = Math.floor((guest - vmm - 20) / letter);
    const made = [part("path", { class: "life", d: `M${vmm} 0V${height}M${guest} 0V${height}` })];
    bars.forEach((of, bar) => {
      const x = guest + 6 + 6 * bar;
      for (let place = firstFrom(of.length, (n) => ends[of[n]], top); place < of.length; place += 1) {
        const at = of[place];
        if (begins[at] > top + height) break;
        const kind = rows[at].classList.contains("silent") ? "bar silent" : "bar";
        made.push(part("rect", { class: kind, x, y: begins[at] - top, width: 4, height: Math.max(ends[at] - begins[at], 2) }));
      }
    });
    for (let place = from; place < to; place += 1) {
      const line = shown[place], at = told.at[line], y = tops[place] - top;
      const t = when(line), row = rowOf(line);
      const say = (kind, text, end) => {
        if (end) made.push(part("text", { class: "codes", x: guest - 8, y: y - 5, "text-anchor": "end" }, end));
        made.push(part("text", { class: kind, x: vmm + 10, y: y - 5 }, cut(text, room - (end ? end.length + 1 : 0))));
      };
      if (row >= 0 && row === picked) {
        made.push(part("rect", { class: "chosen", x: 0, y: y - STEP + 8, width, height: STEP - 4 }));
      }
      if (t !== null && told.shows[line] !== REPLY) {
        made.push(part("text", { class: "time", x: time, y: y - 5, "text-anchor": "end" }, seconds(t)));
      }
      if (told.shows[line] === REQUEST) {
        const cells = rows[at].cells;
        say("said", `${cells[0].textContent} ${cells[2].textContent.slice(2).trim()}`);
        made.push(part("path", { class: "asks", d: `M${vmm} ${y}H${guest}` }));
        made.push(part("path", { class: "head", d: `M${guest} ${y}l-9 -4v8z` }));
      } else if (told.shows[line] === REPLY) {
        const cells = rows[at].cells, of = kinds(rows[at]), kind = of.join(" ");
        const late = of.includes("late"), sign = of.includes("bad") ? "\u2717 " : "";
        made.push(part("text", { class: late ? "time late" : "time", x: time, y: y - 5, "text-anchor": "end" }, cells[4].textContent));
        say(`said ${kind}`, `${sign}${cells[3].textContent.slice(2)}${late ? ", late" : ""}`, rows[at].dataset.codes || "");
        if (of.includes("silent")) {
          made.push(part("path", { class: "cross", d: `M${guest - 5} ${y - 5}l10 10m0 -10l-10 10` }));
        } else {
          made.push(part("path", { class: `answers ${kind}`, d: `M${guest} ${y}H${vmm}` }));
          made.push(part("path", { class: `head ${kind}`, d: `M${vmm} ${y}l9 -4v8z` }));
        }
      } else if (told.shows[line] === LOG) {
        const [, , source, about, text] = told.logs[at];
        const x = source === "vmm-log" ? vmm : source === "console" ? guest : null;
        if (x !== null) made.push(part("circle", { class: about ? "dot about" : "dot", cx: x, cy: y - 9, r: 3.5 }));
        say(about ? "log about" : "log", `${source}: ${text}`);
      } else {
        const connection = told.connections[at];
        const text = connection[told.shows[line] === OPENED ? 2 : 4];
        say("connection", `connection ${connection[0]} ${text}`);
        made.push(part("path", { class: "opens", d: `M${vmm} ${y}H${guest}` }));
      }
    }
    made.push(part("rect", { class: "top", x: 0, y: 0, width, height: HEAD - 4 }));
    made.push(part("text", { class: "side", x: vmm, y: 16 }, "VMM"));
    made.push(part("text", { class: "side", x: guest, y: 16, "text-anchor": "end" }, "guest"));
    svg.replaceChildren(...made);
  }

  function draw() {
    const width = box.clientWidth, height = box.clientHeight, top = box.scrollTop;
    drawing.setAttribute("width", width);
    drawing.setAttribute("height", height);
    drawInto(drawing, placeAt(top), placeAt(top + height + STEP), top, width, height);
  }

  function drawSoon() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  }

  // Show that a row is chosen; with `bring`, it comes into sight.
  function pick(row, bring) {
    picked = row;
    if (bring && begins[row] && (begins[row] < box.scrollTop + 2 * STEP || ends[row] > box.scrollTop + box.clientHeight)) {
      box.scrollTop = begins[row] - 3 * STEP;
    }
    drawSoon();
  }

  function step(by) {
    const isThere = (place) => place >= 0 && place < shown.length;
    let place = picked < 0 || !begins[picked] ? -1 : placeAt(begins[picked]);
    do place += by; while (isThere(place) && told.shows[shown[place]] !== REQUEST);
    if (isThere(place)) choose(told.at[shown[place]]);
  }

  // Pieces that no page break cuts through.
  function print() {
    const last = Math.min(shown.length, PRINTED);
    const pieces = [];
    for (let from = 0; from < last; from += ON_A_PIECE) {
      const to = Math.min(from + ON_A_PIECE, last);
      const top = tops[from] - STEP - HEAD + 4, height = tops[to - 1] - top + 8;
      const svg = part("svg", { viewBox: `0 0 ${PAPER} ${height}`, class: "piece" });
      drawInto(svg, from, to, top, PAPER, height);
      pieces.push(svg);
    }
    if (last < shown.length) {
      const note = document.createElement("p");
      note.textContent = `The first ${last} of ${shown.length} lines are printed. Filter for others.`;
      pieces.push(note);
    }
    paper.replaceChildren(...pieces);
  }

  box.addEventListener("scroll", drawSoon, { passive: true });
  box.addEventListener("click", (event) => {
    const y = event.clientY - box.getBoundingClientRect().top + box.scrollTop;
    const place = placeAt(y - 4);
    if (place < shown.length && tops[place] - y < STEP && rowOf(shown[place]) >= 0) choose(rowOf(shown[place]));
  });
  box.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  window.addEventListener("resize", drawSoon);
  window.addEventListener("beforeprint", print);
  window.addEventListener("afterprint", () => paper.replaceChildren());

  const probe = part("text", { class: "said" }, "0".repeat(50));
  drawing.replaceChildren(probe);
  letter = probe.getComputedTextLength() / 50 || letter;
  return { arrange, pick };
}
