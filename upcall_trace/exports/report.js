"use strict";
(() => {
  const byId = (name) => document.getElementById(name);
  const table = byId("table");
  const rows = Array.from(table.tBodies).flatMap((body) => Array.from(body.rows)).filter((row) => row.id);
  const below = rows.map((row) => (row.nextElementSibling && !row.nextElementSibling.id ? row.nextElementSibling : null));
  const early = table.querySelector("tbody:first-of-type tr:first-child.lines");
  const form = byId("filters");
  const texts = rows.map((row, place) => (row.textContent + (below[place] ? below[place].textContent : "")).toLowerCase());
  let bytes = null;
  let picked = null;

  form.hidden = false;
  byId("drawn").hidden = false;
  const ladder = makeLadder(JSON.parse(byId("order").textContent), rows, (place) => show(rows[place], true));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    filter();
  });

  function filter() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = byId("kind").value;
    const code = byId("code").value;
    const conn = byId("conn") ? byId("conn").value : "";
    let matches = 0;
    rows.forEach((row, place) => {
      const codes = (row.dataset.codes || "").split(" ");
      const ofKind = kind === "" || (kind === "found" ? row.dataset.codes : row.classList.contains(kind));
      const shown = ofKind && (code === "" || codes.includes(code)) && (conn === "" || row.dataset.conn === conn) &&
        words.every((word) => texts[place].includes(word));
      row.hidden = !shown;
      if (below[place]) below[place].hidden = !shown;
      if (shown) matches += 1;
    });
    if (early) early.hidden = matches !== rows.length;
    ladder.arrange((place) => !rows[place].hidden, matches === rows.length);
    byId("matching").textContent = `${matches} of ${rows.length}`;
  }

  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 80);
  });
  filter();

  function dump(text) {
    const raw = text.replace(/\*(\d+);/g, (_, size) => "00".repeat(Number(size)));
    const lines = [];
    for (let at = 0; at < raw.length; at += 32) {
      const row = raw.slice(at, at + 32);
      if (lines.length && /^0*$/.test(row) && at + 32 < raw.length) {
        if (lines[lines.length - 1] !== "    *") lines.push("    *");
        continue;
      }
      const pairs = row.match(/../g);
      const plain = pairs.map((pair) => {
        const value = parseInt(pair, 16);
        return value >= 32 && value < 127 ? String.fromCharCode(value) : ".";
      });
      lines.push(`${(at / 2).toString(16).padStart(4, "0")}  ${pairs.join(" ").padEnd(47)}  ${plain.join("")}`);
    }
    return lines.join("\n");
  }

  function show(row, bring) {
    bytes = bytes || JSON.parse(byId("data").textContent);
    const key = row.id.slice(1).replace("-", ".");
    const sides = bytes[key];
    if (picked) picked.classList.remove("picked");
    picked = row;
    row.classList.add("picked");
    ladder.pick(rows.indexOf(row), true);
    if (bring) table.parentElement.scrollTop = row.offsetTop - table.tHead.offsetHeight;
    byId("bytes").textContent = `Bytes of request ${key}`;
    byId("hex").textContent = sides
      ? `request\n${dump(sides[0])}\n\n${sides[1] ? `reply\n${dump(sides[1])}` : "no reply"}`
      : "not in this report";
    byId("message").hidden = false;
  }

  rows.forEach((row) => row.classList.add("pickable"));
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr[id]");
    if (row) show(row, false);
  });
  byId("code").addEventListener("change", filter);
  window.addEventListener("hashchange", () => {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (row && row.matches("tbody tr")) {
      row.hidden = false;
      show(row, true);
    }
  });
})();
