"use strict";
/* The figures: drawn by plotly when they come into sight, in the page's colours. */

const Curves = {
  specs: {},
  drawn: new Set(),
  seen: null,

  /** Takes the figures and draws those in sight; those drawn before are drawn anew. */
  async start(specs) {
    this.specs = specs;
    const before = new Set([...this.drawn].map((node) => node.dataset.figure));
    this.drawn.clear();
    this.seen?.disconnect();
    this.seen = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) this.draw(entry.target);
    }, { rootMargin: "300px" });
    for (const node of document.querySelectorAll(".plot")) {
      if (before.has(node.dataset.figure)) this.draw(node);
      else this.seen.observe(node);
    }
  },

  draw(node) {
    this.seen.unobserve(node);
    if (this.drawn.has(node)) return;
    const spec = this.specs[node.dataset.figure];
    if (!spec) return;
    const layout = structuredClone(spec.layout);
    Object.assign(layout, this.look(), { margin: { l: 56, r: 12, t: 8, b: 40 } });
    layout.xaxis = { ...layout.xaxis, ...this.axis(), ...this.range(node) };
    layout.yaxis = { ...layout.yaxis, ...this.axis() };
    layout.legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };
    layout.showlegend = spec.data.length > 1;
    const data = spec.data.map((line) => ({ ...line, visible: this.shown(line) }));
    if (document.querySelector("input.run") && this.overSteps(node)) data.push(...this.key(data));
    this.drawn.add(node);
    window.Plotly.newPlot(node, data, layout, { displayModeBar: false, responsive: true });
  },

  drawAll() {
    for (const node of document.querySelectorAll(".plot")) this.draw(node);
  },

  look() {
    const style = getComputedStyle(document.body);
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: style.color, family: style.fontFamily, size: 12 },
      hoverlabel: { bgcolor: style.backgroundColor, font: { color: style.color } },
    };
  },

  axis() {
    const line = getComputedStyle(document.querySelector("header")).borderBottomColor;
    return { gridcolor: line, zerolinecolor: line, automargin: true };
  },

  overSteps(node) {
    return this.specs[node.dataset.figure].layout.xaxis?.title?.text === "step";
  },

  /** The steps that are asked for, for figures over steps. */
  range(node) {
    if (!this.overSteps(node)) return {};
    const [from, to] = ["from-step", "to-step"].map((id) => document.getElementById(id).value);
    if (from === "" && to === "") return { autorange: true };
    const steps = this.specs[node.dataset.figure].data.flatMap((line) => line.x);
    const last = steps.reduce((most, step) => Math.max(most, step), 0);
    return { autorange: false, range: [from === "" ? 0 : +from, to === "" ? last : +to] };
  },

  shown(line) {
    const boxes = [...document.querySelectorAll("input.run")];
    const box = boxes.find((one) => one.value === line.meta?.[0]);
    return box ? box.checked : true;
  },

  /** With several runs colours are explained beside their boxes, and here only the dashes. */
  key(lines) {
    for (const line of lines) line.showlegend = false;
    const labels = new Map(lines.map((line) => [line.meta[1], line.line.dash]));
    if (labels.size < 2) return [];
    return [...labels].map(([name, dash]) => (
      { x: [null], y: [null], name, mode: "lines", line: { dash, color: this.look().font.color } }));
  },

  /** After a change of theme, of steps or of runs. */
  refresh() {
    for (const node of this.drawn) {
      const layout = { ...this.look() };
      for (const [name, value] of Object.entries(this.axis())) {
        layout[`xaxis.${name}`] = layout[`yaxis.${name}`] = value;
      }
      for (const [name, value] of Object.entries(this.range(node))) layout[`xaxis.${name}`] = value;
      const lines = this.specs[node.dataset.figure].data;
      const visible = node.data.map((_, i) => !lines[i] || this.shown(lines[i]));
      const colours = node.data.map((line, i) => (lines[i] ? line.line?.color : layout.font.color));
      window.Plotly.update(node, { visible, ...(this.overSteps(node) && { "line.color": colours }) }, layout);
    }
  },

  save(node, format) {
    const name = node.dataset.figure;
    if (format === "csv") {
      download(`${name}.csv`, csv(this.specs[name].data));
      return;
    }
    this.draw(node);
    window.Plotly.downloadImage(node, { format, filename: name, width: 1000, height: 500 });
  },
};

/** Lines of curve,x,y as a spreadsheet reads them; a text that could be a formula is quoted. */
function csv(lines) {
  const quoted = (value) => `"${String(value).replaceAll('"', '""').replace(/^[=+@-]/, "'$&")}"`;
  const rows = ["curve,x,y"];
  for (const line of lines) {
    line.x.forEach((x, i) => {
      const cells = [x, line.y[i]].map((v) => (typeof v === "number" ? v : quoted(v)));
      rows.push([quoted(line.name ?? ""), ...cells].join(","));
    });
  }
  return rows.join("\n") + "\n";
}

function download(name, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
