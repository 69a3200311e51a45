// The page of a service: asks /v1/completions for one stream after the other, so that their times can be compared.
"use strict";

const $ = (id) => document.getElementById(id);
const SLIDES = { teacher: true, corrected: true };
const MOST_PAST = 50;
let about = null;
let running = null;

function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function choose(place, beside) {
  const methods = about.methods.map((m) => made("option", { value: m.name }, m.name));
  if (beside) methods.unshift(made("option", { value: "" }, "nothing"));
  const method = made("select", { name: "method" }, ...methods);
  const budget = made(
    "select",
    { name: "budget" },
    ...about.budgets.map((b) => made("option", { value: b.phrase }, `${b.phrase} (${Math.round(100 * b.fraction)} %)`)),
  );
  budget.value = "light";
  const most = made("input", { name: "most", type: "number", min: 0, max: 100, step: 1, placeholder: "none" });
  const forBudget = made("label", {}, "budget ", budget);
  const forMost = made("label", {}, "at most % ", most);
  const teacherAlone = about.methods.some((m) => m.name === "greedy-teacher");
  method.value = beside ? (teacherAlone ? "greedy-teacher" : "") : about.methods.find((m) => m.default).name;
  const show = () => {
    const asks = about.methods.some((m) => m.name === method.value && m.asks);
    forBudget.hidden = forMost.hidden = !asks;
    forBudget.style.display = forMost.style.display = asks ? "" : "none";
  };
  method.addEventListener("change", show);
  show();
  $(place).append(made("div", {}, made("label", {}, "decode by ", method), forBudget, forMost));
}

function chosen(place) {
  const field = (name) => $(place).querySelector(`[name=${name}]`);
  const method = about.methods.find((m) => m.name === field("method").value);
  if (!method) return null;
  const asked = { method: method.name };
  if (method.asks) {
    asked.budget = field("budget").value;
    if (field("most").value !== "") asked.max_teacher_fraction = Number(field("most").value) / 100;
  }
  return asked;
}

class Card {
  constructor(asked) {
    this.asked = asked;
    this.begun = performance.now();
    this.first = null;
    this.tokens = this.byTeacher = 0;
    this.said = made("p", { className: "said", lang: "", dir: "auto" });
    this.time = made("dd", {}, "…");
    this.share = made("dd", {}, "…");
    this.calls = made("dd", {}, "…");
    this.gauge = made("i");
    this.told = budgetOf(asked);
    const title = asked.budget ? `${asked.method}, ${asked.budget}` : asked.method;
    const gauge = made("span", { className: "gauge", role: "img" }, this.gauge);
    if (this.told !== null) {
      const mark = made("b", { title: `the budget, ${Math.round(100 * this.told)} %` });
      mark.style.left = `${100 * this.told}%`;
      gauge.append(mark);
    }
    this.bar = gauge;
    this.article = made(
      "article",
      {},
      made("h3", {}, title),
      this.said,
      made(
        "dl",
        { className: "numbers" },
        ...[made("dt", {}, "by the teacher"), made("dd", {}, this.share, gauge)],
        ...[made("dt", {}, "time"), this.time],
        ...[made("dt", {}, "teacher calls"), this.calls],
      ),
    );
    this.show();
    $("outputs").append(this.article);
  }

  add(text, owner) {
    if (this.first === null) this.first = performance.now() - this.begun;
    this.tokens += 1;
    if (SLIDES[owner]) this.byTeacher += 1;
    this.said.append(made("span", { className: owner, title: owner }, text));
    this.show();
  }

  show() {
    const share = this.tokens ? this.byTeacher / this.tokens : 0;
    const told = this.told === null ? "" : ` of ${Math.round(100 * this.told)} %`;
    this.share.textContent = `${Math.round(100 * share)} %${told}`;
    this.gauge.style.width = `${100 * share}%`;
    this.bar.setAttribute("aria-label", `by the teacher: ${this.share.textContent}`);
    this.time.textContent = `${(performance.now() - this.begun).toFixed(0)} ms`;
  }

  end(rest, usage) {
    if (rest) this.said.append(rest);
    const by = usage.by_owner;
    this.tokens = usage.completion_tokens;
    this.byTeacher = (by.teacher || 0) + (by.corrected || 0);
    this.show();
    this.ms = usage.decode_ms;
    const each = this.ms / Math.max(1, this.tokens);
    this.time.textContent = `${this.ms.toFixed(1)} ms, ${each.toFixed(2)} ms a token, first here after ${(this.first ?? 0).toFixed(0)} ms`;
    this.calls.textContent = String(usage.teacher_calls);
  }

  compare(other) {
    if (!(this.ms > 0 && other.ms > 0)) return;
    const ratio = other.ms / this.ms;
    const said = ratio >= 1 ? `${ratio.toFixed(1)} times as fast as` : `${(1 / ratio).toFixed(1)} times as slow as`;
    this.time.append(made("div", {}, `${said} ${other.asked.method}`));
  }

  fail(message) {
    this.article.append(made("p", { className: "bad", role: "alert" }, message));
  }
}

function budgetOf(asked) {
  if (asked.max_teacher_fraction !== undefined) return asked.max_teacher_fraction;
  const budget = about.budgets.find((b) => b.phrase === asked.budget);
  return budget ? budget.fraction : null;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

async function write(text, asked, signal) {
  const card = new Card(asked);
  try {
    const headers = { "Content-Type": "application/json" };
    if (about.needs_key) headers.Authorization = `Bearer ${$("key").value}`;
    const body = JSON.stringify({ prompt: text, stream: true, ...asked });
    const response = await fetch("v1/completions", { method: "POST", headers, body, signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      const choice = piece.choices[0];
      if (choice.finish_reason) card.end(choice.text, choice.usage);
      else card.add(choice.text, choice.owner);
    }
    return card;
  } catch (error) {
    card.fail(error.name === "AbortError" ? "stopped" : error.message);
    return null;
  }
}

async function go() {
  const text = $("text").value;
  if (!text.trim()) return tell("Write a text first.", true);
  if (running) running.abort();
  const mine = (running = new AbortController());
  $("stop").disabled = false;
  $("outputs").replaceChildren();
  tell("writing …");
  const cards = [];
  for (const asked of [chosen("left"), chosen("right")]) {
    if (asked && !mine.signal.aborted) cards.push(await write(text, asked, mine.signal));
  }
  if (running !== mine) return;
  running = null;
  $("stop").disabled = true;
  if (cards.length === 2 && cards[0] && cards[1]) cards[0].compare(cards[1]);
  tell(cards.every(Boolean) ? "done" : "");
  if (cards[0]) remember(text, cards[0]);
}

function tell(message, bad = false) {
  $("status").textContent = message;
  $("status").classList.toggle("bad", bad);
}

// History stays in this browser's tab.
function past() {
  try {
    return JSON.parse(sessionStorage.getItem("kdtw-past")) || [];
  } catch {
    return [];
  }
}

function remember(text, card) {
  const entry = { text, said: card.said.textContent, method: card.asked.method, ms: card.ms };
  const entries = [entry, ...past().filter((e) => e.text !== text || e.method !== entry.method)].slice(0, MOST_PAST);
  try {
    sessionStorage.setItem("kdtw-past", JSON.stringify(entries));
  } catch {
    // No room: history is no more than a convenience.
  }
  showPast();
}

function showPast() {
  const entries = past();
  $("past").hidden = entries.length === 0;
  $("history").replaceChildren(
    ...entries.map((entry) => {
      const button = made("button", { type: "button" }, entry.said || "(nothing)");
      button.append(made("small", {}, `${entry.method}, ${Number(entry.ms).toFixed(1)} ms — ${entry.text}`));
      button.addEventListener("click", () => {
        $("text").value = entry.text;
        $("text").focus();
      });
      return made("li", {}, button);
    }),
  );
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  go();
});
$("stop").addEventListener("click", () => running && running.abort());
$("forget").addEventListener("click", () => {
  sessionStorage.removeItem("kdtw-past");
  showPast();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) go();
  if (event.key === "Escape" && running) running.abort();
});

fetch("about")
  .then((response) => response.json())
  .then((told) => {
    about = told;
    $("model").textContent = told.model;
    document.title = `kdtw ${told.model}`;
    $("key-label").hidden = !told.needs_key;
    choose("left", false);
    choose("right", true);
    showPast();
    document.body.dataset.ready = "yes";
  })
  .catch((error) => tell(`The service does not answer: ${error.message}`, true));
