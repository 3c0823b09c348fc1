"use strict";
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const [map, told, legend, model, colour] = ["map", "told", "legend", "model", "colour"].map((id) => document.getElementById(id));
  const CLASSES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#000000"];
  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [225, 205, 30]];
  const UNKNOWN = "#c3cad1";
  let dots = [], current = -1;

  const element = (name, attributes = {}, text = "") => {
    const made = document.createElementNS(map.namespaceURI, name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.textContent = text;
    return made;
  };
  const ramp = (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), low = Math.min(Math.floor(place), RAMP.length - 2);
    return "rgb(" + RAMP[low].map((a, i) => Math.round(a + (RAMP[low + 1][i] - a) * (place - low))).join(",") + ")";
  };
  const short = (x) => String(Number(Number(x).toPrecision(4)));

  const painter = (column) => {
    legend.replaceChildren();
    if (!column) return () => "#5b8fc2";
    const known = column.values.filter((x) => x !== null);
    if (column.kind === "number") {
      const low = Math.min(...known), high = Math.max(...known);
      const bar = document.createElement("span");
      bar.className = "ramp";
      bar.style.background = "linear-gradient(90deg," + RAMP.map((c) => "rgb(" + c + ")").join(",") + ")";
      legend.append(short(low), bar, short(high));
      return (x) => (x === null ? UNKNOWN : ramp(high > low ? (x - low) / (high - low) : 0.5));
    }
    const counts = new Map();
    known.forEach((x) => counts.set(x, (counts.get(x) || 0) + 1));
    const names = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || (a < b ? -1 : 1)).slice(0, CLASSES.length);
    [...names.map((name, i) => [name, CLASSES[i]]), ...(counts.size > names.length ? [["others", UNKNOWN]] : [])].forEach(([name, shade]) => {
      const entry = document.createElement("span"), mark = document.createElement("i");
      mark.style.background = shade;
      entry.append(mark, name);
      legend.append(entry);
    });
    return (x) => (names.includes(x) ? CLASSES[names.indexOf(x)] : UNKNOWN);
  };

  const chosen = () => data.columns[Number(colour.value)];
  const text = (row) => {
    const column = chosen(), value = column && column.values[row];
    const said = value === null || value === undefined ? "n/a" : column.kind === "number" ? short(value) : value;
    return data.rows[row].name + (column ? ": " + column.name + " " + said : "");
  };
  const go = (row) => { if (data.rows[row].href) location.href = data.rows[row].href; };
  const mark = (place) => {
    if (!dots.length) return;
    if (dots[current]) dots[current].dot.setAttribute("r", 5);
    current = (place + dots.length) % dots.length;
    dots[current].dot.setAttribute("r", 9);
    told.textContent = text(dots[current].row);
  };

  const draw = () => {
    const shown = data.maps[model.value], paint = painter(chosen()), column = chosen();
    dots = [];
    current = -1;
    told.textContent = "";
    shown.places.forEach((place, row) => {
      if (!place) return;
      const dot = element("circle", { class: "dot", cx: place[0] + "%", cy: place[1] + "%", r: 5, fill: paint(column ? column.values[row] : null) });
      dot.append(element("title", {}, text(row)));
      dot.addEventListener("mouseenter", () => mark(dots.findIndex((one) => one.dot === dot)));
      dot.addEventListener("click", () => go(row));
      dots.push({ dot, row });
    });
    dots.sort((a, b) => shown.places[a.row][0] - shown.places[b.row][0]);
    map.replaceChildren(...dots.map((one) => one.dot),
      element("text", { x: "99%", y: "98%", "text-anchor": "end", "font-size": 12, fill: "#57606a" }, "component 1: " + shown.shares[0] + " %"),
      element("text", { x: 6, y: 16, "font-size": 12, fill: "#57606a" }, "component 2: " + shown.shares[1] + " %"));
  };

  const groups = { participant: "participants.tsv", predicted: "predictions", quality: "quality", row: "rows" };
  Object.entries(groups).forEach(([group, label]) => {
    const members = data.columns.map((column, i) => [column, i]).filter(([column]) => column.group === group);
    if (!members.length) return;
    const box = document.createElement("optgroup");
    box.label = label;
    members.forEach(([column, i]) => box.append(new Option(column.name, String(i))));
    colour.append(box);
  });
  if (data.columns.length) colour.value = "0";
  map.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) { event.preventDefault(); mark(current + step); }
    if (event.key === "Enter" && dots[current]) go(dots[current].row);
  });
  model.addEventListener("change", draw);
  colour.addEventListener("change", draw);
  draw();
})();
