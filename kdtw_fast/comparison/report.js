// The script of `kdtw report`'s page: the sentences side by side. Everything foreign becomes a text node.
"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  const el = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const percent = (share) => {
    const value = 100 * share;
    return (value >= 10 || value === 0 ? value.toFixed(0) : value >= 0.01 ? value.toPrecision(2) : "< 0.01") + " %";
  };

  // Light, dark, or as the system has it.
  const themes = ["auto", "light", "dark"];
  const setTheme = (theme) => {
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = "Colours: " + theme;
  };
  let theme = "auto";
  try { theme = localStorage.getItem("kdtw-theme") || theme; } catch { /* a page from a file may have no storage */ }
  setTheme(themes.includes(theme) ? theme : "auto");
  $("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length];
    setTheme(next);
    try { localStorage.setItem("kdtw-theme", next); } catch { /* as above */ }
  });

  let data;
  try {
    const bytes = Uint8Array.from(atob($("data").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    data = JSON.parse(await new Response(stream).text());
  } catch (error) {
    $("found").textContent = "This browser cannot unpack the sentences (" + error + "); it needs DecompressionStream.";
    return;
  }
  const { pieces, marks, end } = data;
  const TEACHER = 1 << 2 | 1 << 4; // owners who are the teacher: asked, corrected
  const byTeacher = (owner) => (TEACHER >> owner & 1) === 1;

  const textOf = (out) => out[1] || (out[2] || []).map((n) => (n === end ? "" : pieces[n])).join("").trimStart();
  const use = (out) => {
    if (!out[3]) return null;
    let count = 0;
    for (const owner of out[3]) count += byTeacher(+owner);
    return count / Math.max(1, out[3].length);
  };

  // --- One output ---------------------------------------------------------------------------------------
  const written = new WeakMap(); // a line -> [its output, its point]

  const line = (out, point) => {
    const node = el("div", "text");
    node.dir = "auto";
    if (!out[3]) {
      node.append(el("span", out[1] ? "untold" : "none", out[1] || "(empty)"));
      return node;
    }
    const [, , numbers, owners] = out, both = new Set(owners).size > 1;
    let run = null, before = "";
    for (let i = 0; i < numbers.length; i++) {
      // the end shows where it tells something: that the teacher stopped what the student began
      if (numbers[i] === end && !(both && byTeacher(+owners[i]))) continue;
      let text = pieces[numbers[i]];
      if (text === "") continue;
      if (owners[i] !== before) {
        if (text.startsWith(" ")) {
          if (node.childNodes.length) node.append(" ");
          text = text.slice(1);
        }
        run = el("span", "run o" + owners[i]);
        run.dataset.open = marks[owners[i]][0];
        run.dataset.close = marks[owners[i]][1];
        node.append(run);
        before = owners[i];
      }
      const token = el("span", "token", text);
      token.dataset.at = i;
      run.append(token);
    }
    if (!node.childNodes.length) node.append(el("span", "none", "(empty)"));
    node.tabIndex = 0;
    node.setAttribute("role", "group");
    node.setAttribute("aria-label", point.label + ": " + textOf(out) + ". Arrow keys go through the tokens.");
    written.set(node, [out, point]);
    return node;
  };

  const gauge = (out, point) => {
    const share = use(out), box = el("span", "gauge");
    if (share === null) return box;
    const bar = el("span", "bar"), fill = el("span", "fill");
    fill.style.width = 100 * share + "%";
    bar.append(fill);
    let words = share.toLocaleString("en", { style: "percent" }).replace("%", " %") + " used";
    if (point.budget !== null) {
      const tick = el("span", "tick");
      tick.style.left = 100 * point.budget + "%";
      bar.append(tick);
      words += ", " + Math.round(100 * point.budget) + " % asked";
    }
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", "of the teacher: " + words);
    box.append(bar, el("span", "words", words));
    return box;
  };

  // --- What a token tells: on hover, touch, or by the arrow keys ------------------------------------------
  const tip = $("tip");
  let current = null;
  const probability = (values, at) => (values && values[at] >= 0 ? percent(Math.exp(-values[at] / 100)) : "–");
  const hide = () => {
    if (current) current.classList.remove("current");
    current = null;
    tip.hidden = true;
  };
  const tell = (token) => {
    if (token === current) return;
    hide();
    current = token;
    token.classList.add("current");
    const [out, point] = written.get(token.closest(".text")), at = +token.dataset.at, owner = +out[3][at];
    const student = owner === 2 && point.asks ? "student, of asking" : owner === 4 ? "student, of its draft" : "student";
    const name = el("bdi", "name", token.textContent);
    const table = el("dl");
    table.append(
      el("dt", "", student), el("dd", "", probability(out[4], at)),
      el("dt", "", "teacher"), el("dd", "", probability(out[5], at)),
    );
    tip.replaceChildren(name, el("p", "", "written by " + marks[owner][2]), table);
    tip.hidden = false;
    const place = token.getClientRects()[0], own = tip.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(place.left, width - own.width - 8));
    const above = place.top - own.height - 8;
    tip.style.left = left + scrollX + "px";
    tip.style.top = (above > 0 ? above : place.bottom + 8) + scrollY + "px";
  };
  const list = $("list");
  list.addEventListener("pointerover", (event) => {
    const token = event.target.closest(".token");
    if (token) tell(token);
    else if (event.pointerType === "mouse") hide();
  });
  list.addEventListener("pointerleave", hide);
  list.addEventListener("focusin", (event) => {
    if (!event.target.matches(".text") || !event.target.matches(":focus-visible")) return;
    const token = event.target.querySelector(".token");
    if (token) tell(token);
  });
  list.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const here = event.target;
    if (!(here instanceof Element) || !written.has(here)) return;
    const tokens = [...here.querySelectorAll(".token")], at = tokens.indexOf(current);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (tokens[to]) tell(tokens[to]);
  });

  // --- Which sentences, in which order --------------------------------------------------------------------
  let pair = null, chosen = new Set(), page = 0, found = [], texts = new Map();

  const fill = (select, names, value) => {
    select.replaceChildren(...names.map((name, i) => {
      const option = el("option", "", name);
      option.value = i;
      return option;
    }));
    select.value = value;
  };

  const methods = () => {
    const box = $("methods");
    box.replaceChildren(...pair.points.map((point, i) => {
      const label = el("label"), input = el("input");
      input.type = "checkbox";
      input.checked = chosen.has(i);
      input.addEventListener("change", () => {
        chosen[input.checked ? "add" : "delete"](i);
        changed(true);
      });
      label.append(input, " ", el("bdi", "", point.label));
      return label;
    }));
  };

  const usePair = (at) => {
    pair = data.pairs[at];
    texts = new Map();
    chosen = new Set(pair.points.flatMap((point, i) => (point.first ? [i] : [])));
    if (!chosen.size) pair.points.slice(0, 6).forEach((_, i) => chosen.add(i));
    const labels = pair.points.map((point) => point.label);
    const last = (group) => pair.points.map((point) => point.group).lastIndexOf(group);
    fill($("better"), labels, Math.max(0, last("training-wheels")));
    fill($("worse"), labels, Math.max(0, last("student")));
    methods();
    changed(true);
  };

  const text = (sentence, i) => {
    let all = texts.get(sentence);
    if (!all) texts.set(sentence, (all = sentence[3].map(textOf)));
    return all[i];
  };
  const gain = (sentence) => sentence[3][+$("better").value][0] - sentence[3][+$("worse").value][0];

  // The two selects beside the order say what they are for, and are there where they are for something.
  const ORDERS = { gain: "Gain: the score of", loss: "Loss: the score of", use: "Teacher use of" };
  const sayOrder = () => {
    const order = $("order").value, label = $("better").closest("label");
    label.hidden = !ORDERS[order];
    label.querySelector("span").textContent = ORDERS[order] || "";
    $("worse").closest("label").hidden = !ORDERS[order] || order === "use";
  };

  const changed = (fromStart) => {
    sayOrder();
    const words = $("search").value.trim().toLowerCase(), differ = $("differ").checked, shown = [...chosen];
    found = pair.sentences.filter((sentence) => {
      if (differ && new Set(shown.map((i) => text(sentence, i))).size < 2) return false;
      if (!words) return true;
      const places = [sentence[1], sentence[2], ...shown.map((i) => text(sentence, i))];
      return places.some((place) => place.toLowerCase().includes(words));
    });
    const order = $("order").value, asked = +$("better").value;
    const keys = { gain: (s) => -gain(s), loss: gain, use: (s) => -(use(s[3][asked]) ?? -1) };
    if (keys[order]) {
      const key = new Map(found.map((sentence) => [sentence, keys[order](sentence)]));
      found.sort((a, b) => key.get(a) - key.get(b) || a[0] - b[0]);
    }
    if (fromStart) page = 0;
    show();
  };

  const given = (name, words) => {
    const row = el("div", "row given");
    const content = el("div", "text", words);
    content.dir = "auto";
    row.append(el("span", "label", name), el("span"), content, el("span"));
    return row;
  };

  const show = () => {
    hide();
    const size = +$("size").value, pages = Math.max(1, Math.ceil(found.length / size));
    page = Math.max(0, Math.min(page, pages - 1));
    const sorted = ["gain", "loss"].includes($("order").value);
    list.replaceChildren(...found.slice(page * size, (page + 1) * size).map((sentence) => {
      const item = el("article"), title = el("h3", "", "Sentence " + (sentence[0] + 1));
      if (sorted) title.append(el("span", "gain", (gain(sentence) >= 0 ? "+" : "−") + Math.abs(gain(sentence)).toFixed(1)));
      item.append(title, given("source", sentence[1]), given("reference", sentence[2]));
      for (const i of [...chosen].sort((a, b) => a - b)) {
        const row = el("div", "row"), label = el("span", "label"), out = sentence[3][i];
        label.append(el("bdi", "", pair.points[i].label));
        const score = el("span", "score", out[0].toFixed(1));
        row.append(label, gauge(out, pair.points[i]), line(out, pair.points[i]), score);
        item.append(row);
      }
      return item;
    }));
    $("found").textContent = found.length + " of " + pair.sentences.length + " sentences, " + chosen.size + " of " +
      pair.points.length + " methods; page " + (page + 1) + " of " + pages;
    for (const button of document.querySelectorAll("[data-step]")) {
      const to = page + Number(button.dataset.step);
      button.disabled = to < 0 || to >= pages;
    }
  };

  let timer = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => changed(true), 150);
  });
  for (const id of ["order", "better", "worse", "differ", "size"]) $(id).addEventListener("change", () => changed(true));
  for (const button of document.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.step);
      show();
      $("sentences").scrollIntoView();
    });
  }
  for (const button of document.querySelectorAll("[data-methods]")) {
    button.addEventListener("click", () => {
      const kind = button.dataset.methods;
      chosen = new Set(pair.points.flatMap((point, i) => (kind === "all" || (kind === "first" && point.first) ? [i] : [])));
      methods();
      changed(true);
    });
  }
  fill($("pair"), data.pairs.map((one) => one.name + " (" + one.task + ")"), 0);
  $("pair").closest("label").hidden = data.pairs.length < 2;
  $("pair").addEventListener("change", () => usePair(+$("pair").value));
  $("controls").disabled = false;
  usePair(0);
})();
