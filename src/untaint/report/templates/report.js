"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll(".card")];
  const groups = [...document.querySelectorAll(".group")];
  const cardOf = new Map(cards.map((card) => [Number(card.dataset.i), card]));
  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };

  // Marks: written form of the key -> "fine" or "poison". A browser may refuse to keep them.
  const marks = new Map();
  try {
    for (const [line, mark] of JSON.parse(localStorage.getItem(data.store) || "[]")) {
      if (typeof line === "string" && (mark === "fine" || mark === "poison")) marks.set(line, mark);
    }
  } catch { marks.clear(); }
  const keep = () => {
    try { localStorage.setItem(data.store, JSON.stringify([...marks])); } catch { /* marks then last until the page is closed */ }
  };
  const setLines = (lines, mark) => {
    for (const line of lines) {
      if (mark) marks.set(line, mark); else marks.delete(line);
    }
    keep();
    showMarks();
  };
  const setMark = (indices, mark) => setLines(indices.map((index) => data.pictures[index].line), mark);
  const toggle = (index, mark) => setMark([index], marks.get(data.pictures[index].line) === mark ? "" : mark);
  const press = (root, mark) => {
    for (const button of root.querySelectorAll("[data-mark]")) button.setAttribute("aria-pressed", String(button.dataset.mark === mark));
  };
  const showMarks = () => {
    for (const [index, card] of cardOf) {
      const mark = marks.get(data.pictures[index].line);
      card.classList.toggle("fine", mark === "fine");
      card.classList.toggle("poison", mark === "poison");
      press(card, mark);
    }
    if (current >= 0) press(by("look"), marks.get(data.pictures[current].line));
    const fine = [...marks.values()].filter((mark) => mark === "fine").length;
    by("marked").textContent = `${fine} marked fine, ${marks.size - fine} marked poison.`;
    by("saved").hidden = marks.size === 0;
  };

  // Which cards are shown, in which order.
  const choice = (id) => (by(id) ? by(id).value : "");
  const wanted = (index) => {
    const picture = data.pictures[index];
    const show = choice("show");
    const mark = marks.get(picture.line);
    if (choice("class") && picture.label !== choice("class")) return false;
    if (!picture.key.toLowerCase().includes(choice("search").toLowerCase())) return false;
    if (show === "aside") return picture.verdict === "set aside";
    if (show === "unmarked") return !mark;
    return show === "all" || mark === show;
  };
  const orders = {
    worst: (a, b) => data.pictures[a].rank - data.pictures[b].rank,
    least: (a, b) => data.pictures[b].rank - data.pictures[a].rank,
    key: (a, b) => data.pictures[a].key.localeCompare(data.pictures[b].key, undefined, { numeric: true }),
  };
  const apply = () => {
    let found = 0;
    for (const group of groups) {
      const list = group.querySelector(".cards");
      const inside = [...list.children].sort((a, b) => orders[choice("order")](a.dataset.i, b.dataset.i));
      let here = 0;
      for (const card of inside) {
        card.hidden = !wanted(Number(card.dataset.i));
        here += card.hidden ? 0 : 1;
      }
      list.append(...inside);
      group.hidden = here === 0;
      found += here;
    }
    if (by("found")) by("found").textContent = found === 1 ? "1 picture" : `${found} pictures`;
    if (by("nothing")) by("nothing").hidden = found > 0;
    fillRows(true);
  };

  // The list of what has no thumbnail, some at a time.
  const listedLine = (at) => data.rest.lines[at] ?? data.rest.keys[at];
  const listedOf = (name) => data.rest.keys.flatMap((_, at) => data.rest.names[data.rest.labels[at]] === name ? [listedLine(at)] : []);
  let place = 0;
  const fillRows = (anew) => {
    const body = by("rows");
    if (!body || !by("rest").open) return;
    if (anew) { body.replaceChildren(); place = 0; }
    const rest = data.rest, label = choice("class"), part = choice("search").toLowerCase();
    let room = 200;
    for (; place < rest.keys.length && room > 0; place++) {
      const name = rest.names[rest.labels[place]];
      if ((label && name !== label) || !rest.keys[place].toLowerCase().includes(part)) continue;
      const row = make("tr");
      row.append(make("td", rest.keys[place], "key"), make("td", name), make("td", rest.scores[place], "number"),
        make("td", rest.ps[place], "number"), make("td", rest.texts[rest.reasons[place]]), make("td", marks.get(listedLine(place)) || ""));
      body.append(row);
      room--;
    }
    by("more").hidden = place >= rest.keys.length;
  };

  // One picture closer, with its trajectories.
  let current = -1;
  const svg = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const path = (values, x, y) => {
    let text = "", down = false;
    values.forEach((value, index) => {
      if (value === null) { down = false; return; }
      text += `${down ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
      down = true;
    });
    return text;
  };
  const figure = (watcher, index, low, high) => {
    const width = 300, height = 170, left = 34, right = 292, top = 8, bottom = 146;
    const epochs = watcher.epochs, last = epochs.length - 1;
    const x = (i) => (last ? left + (i / last) * (right - left) : (left + right) / 2);
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    const line = watcher.margins[index];
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describe(watcher, line) });
    for (const value of new Set([low, 0, high])) {
      picture.append(svg("line", { class: value === 0 ? "zero" : "grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
        svg("text", { x: left - 5, y: y(value) + 3.5, "text-anchor": "end" }, String(value).replace("-", "\u2212")));
    }
    for (const i of new Set([0, last])) picture.append(svg("text", { x: x(i), y: height - 10, "text-anchor": i ? "end" : "start" }, `epoch ${epochs[i]}`));
    const seen = epochs.map((_, i) => i).filter((i) => watcher.low[i] !== null);
    const edge = [...seen.map((i) => [i, watcher.high[i]]), ...seen.reverse().map((i) => [i, watcher.low[i]])];
    picture.append(svg("polygon", { class: "band", points: edge.map(([i, v]) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(" ") }),
      svg("path", { class: "middle", d: path(watcher.middle, x, y) }), svg("path", { class: "this", d: path(line, x, y) }));
    line.forEach((value, i) => {
      const alone = value !== null && (line[i - 1] ?? null) === null && (line[i + 1] ?? null) === null;
      if (alone) picture.append(svg("circle", { cx: x(i), cy: y(value), r: 3 }));
    });
    const result = make("figure"), caption = make("figcaption");
    caption.append(make("b", watcher.name));
    if (watcher.says[index]) caption.append(make("span", ` last took it for \u201c${watcher.says[index]}\u201d`, "soft"));
    result.append(caption, picture);
    return result;
  };
  const describe = (watcher, line) => {
    const ends = line.filter((value) => value !== null);
    const middle = watcher.middle.filter((value) => value !== null);
    if (!ends.length) return `${watcher.name}: not recorded.`;
    return `${watcher.name}: the margin goes from ${ends[0]} to ${ends.at(-1)}` + (middle.length ? `; the probes' median ends at ${middle.at(-1)}.` : ".");
  };
  const round = (value) => { // to the next round number further from 0
    if (!value) return 0;
    const power = 10 ** Math.floor(Math.log10(Math.abs(value)));
    return Math.sign(value) * [1, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= Math.abs(value) * 0.999) * power;
  };
  const look = (index) => {
    const picture = data.pictures[index];
    current = index;
    by("look-key").textContent = picture.key;
    const image = document.querySelector(`.open[data-i="${index}"] > *`);
    by("photo").replaceChildren(image ? image.cloneNode(true) : make("span"));
    const facts = [["Labelled", picture.label], ["Verdict", picture.verdict], ["Score", `${picture.score}, rank ${picture.rank.toLocaleString("en")}`]];
    if (picture.p) facts.push(["p-value", picture.p.replace("p = ", "")]);
    if (picture.reason) facts.push(["Reason", picture.reason]);
    data.parts.forEach((name, i) => {
      const [value, above] = picture.parts[i];
      facts.push([name.replace(/[_-]/g, " "), above ? `${value}, above ${above} of all pictures` : value]);
    });
    by("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
    const values = data.watchers.flatMap((w) => [...w.low, ...w.high, ...w.margins[index]]).filter((value) => value !== null);
    const low = round(Math.min(0, ...values)), high = round(Math.max(0.1, ...values));
    by("lines").replaceChildren(...data.watchers.map((watcher) => figure(watcher, index, low, high)));
    if (!data.watchers.length) by("lines").append(make("p", "The run kept no trajectories.", "soft"));
    by("lines-legend").hidden = !data.watchers.length;
    press(by("look"), marks.get(picture.line));
    if (!by("look").open) by("look").showModal();
  };
  const visible = () => cards.length ? groups.flatMap((g) => g.hidden ? [] : [...g.querySelectorAll(".card:not([hidden])")]).map((c) => Number(c.dataset.i)) : [];
  const step = (by_) => {
    const list = visible(), at = list.indexOf(current);
    if (at >= 0 && list[at + by_] !== undefined) look(list[at + by_]);
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const card = button.closest(".card");
    if (button.classList.contains("open")) look(Number(button.dataset.i));
    else if (button.dataset.mark) toggle(card ? Number(card.dataset.i) : current, button.dataset.mark);
    else if (button.dataset.listed !== undefined) {
      setLines(listedOf(button.closest(".group").dataset.class), button.dataset.listed);
      fillRows(true);
    } else if (button.dataset.bulk !== undefined) {
      setMark([...button.closest(".group").querySelectorAll(".card:not([hidden])")].map((c) => Number(c.dataset.i)), button.dataset.bulk);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
    const open = by("look").open, card = event.target.closest(".card");
    const index = open ? current : card ? Number(card.dataset.i) : -1;
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const mark = { f: "fine", p: "poison", u: "" }[event.key.toLowerCase()];
    if (index < 0 || (move === undefined && mark === undefined)) return;
    event.preventDefault();
    if (mark !== undefined) { setMark([index], mark); return; }
    if (open) { step(move); return; }
    const list = visible(), next = list[list.indexOf(index) + move];
    if (next !== undefined) cardOf.get(next).querySelector(".open").focus();
  });
  by("before").addEventListener("click", () => step(-1));
  by("after").addEventListener("click", () => step(1));
  by("shut").addEventListener("click", () => by("look").close());
  by("look").addEventListener("click", (event) => { if (event.target === by("look")) by("look").close(); });
  by("look").addEventListener("close", () => {
    const card = cardOf.get(current);
    if (card) card.querySelector(".open").focus();
    current = -1;
  });
  by("save").addEventListener("click", () => {
    const text = [...marks].map(([line, mark]) => `${mark}\t${line}\n`).join("");
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = "marks.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  by("clear").addEventListener("click", () => {
    if (confirm(`Forget all ${marks.size} marks?`)) { marks.clear(); keep(); showMarks(); apply(); }
  });
  for (const id of ["class", "show", "order"]) by(id)?.addEventListener("change", apply);
  by("search")?.addEventListener("input", apply);
  by("rest")?.addEventListener("toggle", () => fillRows(true));
  by("more")?.addEventListener("click", () => fillRows(false));
  addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("details")) fold.open = true; });
  showMarks();
  apply();
})();
