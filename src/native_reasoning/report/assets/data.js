"use strict";
/* What the page carries, and how it is made into elements: text is only ever set as text. */

const LONG = 3000; // characters that are shown at once

/** The text of a compressed part of the page (gzip, base64). */
async function unpack(id) {
  const binary = atob(byId(id).textContent.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** An element with attributes and children; children that are no elements become text. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;

/** Text in which characters that cannot be seen, or that turn others around, are shown by code. */
function visible(text) {
  return text.replace(HIDDEN, (c) => `⟨${c.charCodeAt(0).toString(16).padStart(4, "0")}⟩`);
}

function byId(id) {
  return document.getElementById(id);
}

/** Text with its search hits marked; what is very long is shown when asked for. */
function longText(text, kind, wanted = "") {
  const node = make("div", { class: kind, dir: "auto" });
  if (kind === "trace") node.tabIndex = 0;
  const fill = (part) => node.replaceChildren(...marked(visible(part), wanted));
  fill(text.slice(0, LONG));
  if (text.length <= LONG) return node;
  const button = make("button", { type: "button" }, `Show all ${text.length.toLocaleString("en")} characters`);
  button.addEventListener("click", () => {
    fill(text);
    button.remove();
  });
  return make("div", {}, node, button);
}

function marked(text, wanted) {
  if (!wanted) return [text];
  const parts = [], lower = text.toLowerCase(), word = wanted.toLowerCase();
  let start = 0;
  if (lower.length !== text.length) return [text]; // a few letters change length with their case
  for (let at = lower.indexOf(word); at >= 0 && parts.length < 400; at = lower.indexOf(word, start)) {
    parts.push(text.slice(start, at), make("mark", {}, text.slice(at, at + word.length)));
    start = at + word.length;
  }
  return [...parts, text.slice(start)];
}

function mean(values) {
  return values.length ? values.reduce((sum, x) => sum + x, 0) / values.length : NaN;
}

function signed(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
}

/** Thousandths of nats as nats; NaN where the run had no number. */
function nats(thousandths) {
  return thousandths === null ? NaN : thousandths / 1000;
}

/** A probability from thousandths of nats: 95 %, 0.02 %, <0.01 %. */
function probability(thousandths) {
  if (thousandths === null) return "–";
  const p = 100 * Math.exp(nats(thousandths));
  if (p < 0.01) return "<0.01 %";
  return (p >= 10 ? p.toFixed(1) : p.toPrecision(2)) + " %";
}

/** Runs with sets of groups; a group is a question at a step, with its traces. */
function openRuns(packed) {
  for (const run of packed.runs) {
    for (const set of run.sets) openSet(run, set);
  }
  return packed.runs;
}

function openSet(run, set) {
  let first = 0;
  set.run = run.name;
  set.uplift = new Float64Array(set.traces.length);
  set.groups = set.groups.map(([step, question, row, count], index) => {
    const [prompt, answer, tokens] = set.questions[question];
    const group = { set, step, row, prompt, answer, tokens, b: set.b[index], first, count };
    for (let i = first; i < first + count; i++) {
      set.uplift[i] = mean(set.l[i].map((l, t) => nats(l) - nats(group.b[t])));
    }
    const uplifts = Array.from(set.uplift.subarray(first, first + count));
    group.uplift = mean(uplifts);
    group.spread = Math.max(...uplifts) - Math.min(...uplifts);
    group.longest = Math.max(...set.length.slice(first, first + count));
    first += count;
    return group;
  });
}

/** The traces of a group by worth, those with the same text and answer together. */
function alike({ set, first, count }) {
  const values = set.advantage.length ? set.advantage : set.uplift;
  const worth = (i) => (Number.isFinite(values[i]) ? values[i] : -Number.MAX_VALUE);
  const places = [...Array(count).keys()].map((i) => i + first).sort((a, b) => worth(b) - worth(a));
  const cards = new Map();
  for (const i of places) {
    const key = JSON.stringify([set.traces[i], set.said[i], set.ends[i], set.said_no_think[i]]);
    cards.set(key, [...(cards.get(key) ?? []), i]);
  }
  return [...cards.values()];
}

/** Texts of a set in lower case, made when they are first searched. */
function searchable(set) {
  set.lower ??= set.traces.map((text, i) => `${text}\n${set.said[i]}`.toLowerCase());
  return set.lower;
}

function questionText(group) {
  group.lower ??= `${group.prompt}\n${group.answer}`.toLowerCase();
  return group.lower;
}

/** Address of a trace, as a fragment. */
function address(group, i) {
  const { set } = group;
  return "#trace/" + [set.run, set.label, group.step, group.row, set.k[i]].map(encodeURIComponent).join("/");
}
