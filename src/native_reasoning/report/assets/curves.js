"use strict";
/* The figures: drawn by plotly when they come into sight, in the page's colours. */

const Curves = {
  specs: {},
  drawn: new Set(),
  seen: null,

  /** Takes the figures and draws each when it comes into sight. */
  start(specs) {
    this.specs = specs;
    this.seen = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) this.draw(entry.target);
    }, { rootMargin: "300px" });
    for (const node of document.querySelectorAll(".plot")) this.seen.observe(node);
  },

  draw(node) {
    this.seen.unobserve(node);
    const spec = this.specs[node.dataset.figure];
    if (!spec || this.drawn.has(node)) return;
    const layout = { ...structuredClone(spec.layout), ...this.look(), margin: { l: 56, r: 12, t: 8, b: 40 } };
    layout.xaxis = { ...layout.xaxis, ...this.axis(), ...this.range(node) };
    layout.yaxis = { ...layout.yaxis, ...this.axis() };
    layout.legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };
    layout.showlegend = spec.data.length > 1;
    layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom"; // a finger scrolls
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
    const [from, to] = ["from-step", "to-step"].map((id) => byId(id).value);
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

  /** After a change of theme or of runs, and, if ``steps``, of the steps that are asked for. */
  refresh({ steps = false } = {}) {
    for (const node of this.drawn) {
      const layout = { ...this.look() };
      for (const [name, value] of Object.entries(this.axis())) {
        layout[`xaxis.${name}`] = layout[`yaxis.${name}`] = value;
      }
      for (const [name, value] of Object.entries(steps ? this.range(node) : {})) layout[`xaxis.${name}`] = value;
      const lines = this.specs[node.dataset.figure].data;
      const visible = node.data.map((_, i) => !lines[i] || this.shown(lines[i]));
      const colours = node.data.map((line, i) => (lines[i] ? line.line?.color : layout.font.color));
      window.Plotly.update(node, { visible, ...(this.overSteps(node) && { "line.color": colours }) }, layout);
    }
  },

  /** A file of a figure: numbers, or a picture on white paper with title and every name. */
  save(node, format) {
    const name = node.dataset.figure;
    const { data, layout } = this.specs[name];
    if (format === "csv") {
      download(`${name}.csv`, csv(data));
      return;
    }
    this.draw(node);
    const { x, y } = zoom(node);
    const title = node.closest("figure").querySelector("h3").textContent;
    const picture = {
      data: data.filter((line) => this.shown(line)),
      layout: {
        ...layout, title: { text: title }, paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff",
        font: { color: "#1b1f24", size: 13 }, showlegend: data.length > 1, margin: { l: 70, r: 20, t: 60, b: 60 },
        xaxis: { ...layout.xaxis, ...x, gridcolor: "#d5dae0" }, yaxis: { ...layout.yaxis, ...y, gridcolor: "#d5dae0" },
      },
    };
    window.Plotly.downloadImage(picture, { format, filename: name, width: 1000, height: 560 });
  },
};

/** The ranges that a reader chose by dragging, by axis. */
function zoom(node) {
  const { xaxis, yaxis } = node.layout;
  const chosen = (axis) => (axis.autorange === false ? { autorange: false, range: [...axis.range] } : {});
  return { x: chosen(xaxis), y: chosen(yaxis) };
}

/** Rows for a spreadsheet, with the ends of bars; a text that could be a formula is quoted. */
function csv(lines) {
  const quoted = (value) => `"${String(value).replaceAll('"', '""').replace(/^[=+@-]/, "'$&")}"`;
  const rows = ["run,curve,x,y,low,high"];
  for (const line of lines) {
    const [run, curve] = line.meta ?? ["", line.name];
    const { array, arrayminus = array } = line.error_y ?? {};
    line.x.forEach((x, i) => {
      const ends = array ? [line.y[i] - arrayminus[i], line.y[i] + array[i]] : ["", ""];
      const cells = [x, line.y[i], ...ends].map((v) => (typeof v === "number" || v === "" ? v : quoted(v)));
      rows.push([quoted(run), quoted(curve), ...cells].join(","));
    });
  }
  return rows.join("\n") + "\n";
}

function download(name, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
