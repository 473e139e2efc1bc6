"use strict";
/* The trace inspector: filters on top, questions on the left, the chosen one's traces beside. */

const PAGE = 50;
const STRONGEST = 2; // nats of l − b at which a token has its full colour

const Inspector = {
  runs: [],
  found: [],
  listed: 0,
  chosen: null,

  /** Takes runs (openRuns) and shows them. */
  start(runs) {
    this.runs = runs.filter((run) => run.sets.length);
    byId("inspector").hidden = !this.runs.length;
    if (!this.runs.length) return;
    this.fillSelect("f-run", this.runs.map((run) => run.name));
    this.fillSets();
    this.index();
    this.filter();
    this.follow();
  },

  fillSelect(id, names) {
    const select = byId(id);
    const now = select.value;
    select.replaceChildren(...names.map((name) => make("option", { value: name }, visible(name))));
    if (names.includes(now)) select.value = now;
  },

  fillSets() {
    this.fillSelect("f-set", this.run().sets.map((set) => set.label));
    for (const option of byId("f-show").options) {
      option.disabled = ["right", "wrong"].includes(option.value) && !this.set().right.length;
      if (option.disabled && option.selected) byId("f-show").value = "all";
    }
  },

  run() {
    return this.runs.find((run) => run.name === byId("f-run").value);
  },

  set() {
    return this.run().sets.find((set) => set.label === byId("f-set").value);
  },

  /** Where the same question is met again, in any run and at any step. */
  index() {
    this.again = new Map();
    for (const run of this.runs) {
      for (const set of run.sets) {
        for (const group of set.groups) {
          const key = `${group.prompt}\u0000${group.answer}`;
          if (!this.again.has(key)) this.again.set(key, []);
          this.again.get(key).push(group);
        }
      }
    }
  },

  // -- What is asked for ---------------------------------------------------------------------------

  filter() {
    const set = this.set();
    const wanted = byId("f-text").value.toLowerCase().trim();
    const from = byId("f-from").value === "" ? -Infinity : +byId("f-from").value;
    const to = byId("f-to").value === "" ? Infinity : +byId("f-to").value;
    const fits = this.condition(set, byId("f-show").value);
    const lower = wanted ? searchable(set) : null;
    this.found = [];
    let traces = 0;
    for (const group of set.groups) {
      if (group.step < from || group.step > to) continue;
      const whole = !wanted || questionText(group).includes(wanted);
      let hits = 0;
      for (let i = group.first; i < group.first + group.count; i++) {
        if (fits(i) && (whole || lower[i].includes(wanted))) hits++;
      }
      if (hits) this.found.push({ group, hits });
      traces += hits;
    }
    this.found.sort(this.order(byId("f-order").value));
    byId("found").textContent = `${traces.toLocaleString("en")} traces of ${this.found.length.toLocaleString("en")} questions`;
    this.listed = 0;
    byId("groups").replaceChildren();
    this.list();
    if (!this.found.some((hit) => hit.group === this.chosen)) {
      this.choose(this.found[0]?.group, { quietly: true });
    }
  },

  condition(set, show) {
    return {
      all: () => true,
      helped: (i) => set.uplift[i] > 0,
      hurt: (i) => set.uplift[i] < 0,
      open: (i) => set.ends[i] !== 1,
      empty: (i) => set.traces[i].trim() === "",
      right: (i) => set.right[i] === 1,
      wrong: (i) => set.right.length > 0 && set.right[i] < 1,
    }[show];
  },

  order(name) {
    const by = {
      last: (g) => -g.step, first: (g) => g.step, best: (g) => -g.uplift, worst: (g) => g.uplift,
      spread: (g) => -g.spread, long: (g) => -g.longest,
    }[name];
    const place = ({ group }) => (Number.isFinite(by(group)) ? by(group) : Number.MAX_VALUE);
    return (a, b) => place(a) - place(b) || a.group.row - b.group.row;
  },

  list() {
    const next = this.found.slice(this.listed, this.listed + PAGE);
    this.listed += next.length;
    byId("groups").append(...next.map((hit) => this.item(hit)));
    byId("more").hidden = this.listed >= this.found.length;
    byId("more").textContent = `More (${(this.found.length - this.listed).toLocaleString("en")})`;
  },

  item({ group, hits }) {
    const count = hits === group.count ? `${hits} traces` : `${hits} of ${group.count} traces`;
    const button = make("button", { type: "button", "aria-current": group === this.chosen },
      make("span", { class: "quiet" }, `step ${group.step} · ${signed(group.uplift)} nats · ${count}`),
      make("span", { class: "prompt", dir: "auto" }, visible(group.prompt.slice(0, 300))));
    button.group = group;
    return make("li", {}, button);
  },

  // -- The chosen question -------------------------------------------------------------------------

  choose(group, { quietly = false, trace = null } = {}) {
    this.chosen = group ?? null;
    for (const button of byId("groups").querySelectorAll("button")) {
      button.setAttribute("aria-current", button.group === group);
    }
    const detail = byId("detail");
    detail.replaceChildren();
    if (!group) return;
    const { set } = group;
    const cards = alike(group);
    detail.append(
      make("h3", {}, `Step ${group.step}, row ${group.row}`),
      make("h4", {}, "Question"), longText(group.prompt, "question"),
      make("h4", {}, "Reference answer"), longText(group.answer, "question"),
      this.before(group) ?? "",
      make("h4", {}, set.advantage.length ? "Traces, by advantage" : "Traces, by uplift"),
      make("p", { class: "quiet" }, "Blue tokens of the reference became likelier through the trace, orange ones (dotted) less likely."),
      ...cards.map((same, place) => this.card(group, same, place + 1, same.includes(trace))),
    );
    if (!quietly) detail.focus({ preventScroll: trace !== null });
    if (trace !== null) detail.querySelector(".chosen")?.scrollIntoView({ block: "center" });
  },

  /** The same question at other steps and in other runs. */
  before(group) {
    const met = this.again.get(`${group.prompt}\u0000${group.answer}`);
    if (met.length < 2) return null;
    const many = this.runs.length > 1;
    const rows = met.slice(0, 200).map((other) => {
      const { set } = other;
      const ids = [...Array(other.count).keys()].map((i) => i + other.first);
      const best = ids.reduce((a, b) => (set.uplift[b] > set.uplift[a] ? b : a));
      const link = make("a", { href: address(other, best), "aria-current": other === group }, `step ${other.step}`);
      return make("tr", {}, make("th", { scope: "row" }, link, many ? ` ${visible(set.run)}` : ""),
        make("td", { class: "n" }, signed(other.uplift)),
        make("td", { dir: "auto" }, visible(set.traces[best].slice(0, 160)) || "(empty)"));
    });
    const head = [make("th", { scope: "col" }, "when"), make("th", { scope: "col", class: "n" }, "uplift"),
      make("th", { scope: "col" }, "best trace")];
    return make("details", { open: "" }, make("summary", {}, `Before and after: this question ${met.length} times${many ? ", in all runs" : ""}`),
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Before and after" },
        make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows))));
  },

  /** ``same``: traces that are alike, by place. */
  card(group, same, rank, chosen) {
    const { set } = group, [i] = same;
    const ends = ["cut", "closed", "ended the turn", "not closed"][set.ends[i]];
    const facts = [`${set.length[i]} tokens`, ends, `uplift ${signed(set.uplift[i])}`];
    if (set.reward.length && set.reward[i] !== null) {
      facts.unshift(`advantage ${signed(set.advantage[i])}`, `reward ${set.reward[i]} (${set.base[i]} without)`);
    }
    if (set.right.length) facts.unshift(correctness(set.right[i]));
    const said = set.said[i] ? [make("p", { class: "quiet" }, "It answered: "), longText(set.said[i], "trace")] : [];
    if (set.said_no_think.length) said.push(make("p", { class: "quiet" }, "Without thinking: "), longText(set.said_no_think[i], "trace"));
    return make("article", { class: `card trace-card${chosen ? " chosen" : ""}` },
      make("h5", {}, `#${rank}` + (same.length > 1 ? ` × ${same.length}` : "")), ` ${facts.join(" · ")} `,
      make("a", { href: address(group, i), "aria-label": `link to trace ${rank}` }, "link"),
      longText(set.traces[i] || "(empty)", "trace", byId("f-text").value.trim()),
      this.answer(group, i), this.numbers(group, i), ...said);
  },

  answer(group, i) {
    const line = make("p", { class: "answer" });
    group.tokens.forEach((token, t) => line.append(this.token(group, i, token, t)));
    return line;
  },

  token(group, i, token, t) {
    const l = group.set.l[i][t], b = group.b[t];
    const gain = nats(l) - nats(b);
    const shown = visible(token).replaceAll("\n", "⏎") || " ";
    const node = make("span", { class: `token ${gain > 0 ? "gain" : "loss"}` }, shown);
    if (!(Math.abs(gain) >= 0.01)) node.className = "token";
    node.style.setProperty("--a", Math.round(45 * Math.min(Math.abs(gain) / STRONGEST, 1)) + 5);
    node.tip = `“${shown}”  l − b ${signed(gain)} nats\nafter this trace ${probability(l)} (l ${signed(nats(l))})\nwithout ${probability(b)} (b ${signed(nats(b))})`;
    return node;
  },

  numbers(group, i) {
    const details = make("details", {}, make("summary", {}, "Numbers of each token"));
    details.addEventListener("toggle", () => {
      if (details.childElementCount > 1) return;
      const head = ["token", "without", "after", "l − b"].map((t) => make("th", { scope: "col" }, t));
      const rows = group.tokens.map((token, t) => {
        const l = group.set.l[i][t], b = group.b[t];
        return make("tr", {}, make("th", { scope: "row" }, make("bdi", { class: "token" }, visible(token))),
          make("td", { class: "n" }, probability(b)), make("td", { class: "n" }, probability(l)),
          make("td", { class: "n" }, signed(nats(l) - nats(b))));
      });
      details.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers" },
        make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows))));
    });
    return details;
  },

  // -- Links and keys ------------------------------------------------------------------------------

  /** Opens the trace that the address names; false if it names none that is here. */
  follow() {
    const match = /^#trace\/(.+)$/.exec(location.hash);
    if (!match) return false;
    let names;
    try {
      names = match[1].split("/").map(decodeURIComponent);
    } catch {
      return false;
    }
    const [run, label, step, row, k] = names;
    const set = this.runs.find((one) => one.name === run)?.sets.find((one) => one.label === label);
    const group = set?.groups.find((one) => one.step === +step && one.row === +row);
    if (!group) {
      byId("found").textContent = "The trace of this link is not in this page.";
      return false;
    }
    if (set !== this.set()) {
      byId("f-run").value = run;
      this.fillSets();
      byId("f-set").value = label;
      this.filter();
    }
    const ids = [...Array(group.count).keys()].map((i) => i + group.first);
    this.choose(group, { trace: ids.find((i) => set.k[i] === +k) ?? group.first });
    return true;
  },

  keys(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...byId("groups").querySelectorAll("button")];
    const place = buttons.indexOf(document.activeElement);
    if (step === undefined || place < 0) return;
    event.preventDefault();
    if (step > 0 && place === buttons.length - 1) this.list();
    const next = byId("groups").querySelectorAll("button")[place + step];
    if (!next) return;
    next.focus();
    this.choose(next.group, { quietly: true });
  },
};

function correctness(share) {
  if (share === null) return "not judged";
  return { 0: "answered wrong", 1: "answered right" }[share] ?? `answered right by ${Math.round(100 * share)} %`;
}
