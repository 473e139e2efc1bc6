"use strict";
/* Puts the page together. */

function themes() {
  const select = byId("theme");
  const apply = (theme) => {
    document.documentElement.style.colorScheme = theme;
    Curves.refresh();
  };
  try {
    select.value = localStorage.getItem("nrt-theme") || select.value;
  } catch { /* a page without storage */ }
  select.addEventListener("change", () => {
    apply(select.value);
    try {
      localStorage.setItem("nrt-theme", select.value);
    } catch { /* the same */ }
  });
  apply(select.value);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Curves.refresh());
  addEventListener("beforeprint", () => {
    Curves.drawAll();
    apply("light");
  });
  addEventListener("afterprint", () => apply(select.value));
}

function listen() {
  byId("curve-tools").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("curve-tools").addEventListener("change", (event) => {
    Curves.refresh({ steps: event.target.type === "number" });
  });
  byId("all-steps").addEventListener("click", () => {
    byId("from-step").value = byId("to-step").value = "";
    Curves.refresh({ steps: true });
  });
  byId("curves").addEventListener("click", (event) => {
    const format = event.target.dataset.save;
    if (format) Curves.save(event.target.closest("figure").querySelector(".plot"), format);
  });
  byId("filters").addEventListener("input", (event) => {
    if (["f-run", "f-set"].includes(event.target.id)) Inspector.fillSets();
    Inspector.filter();
  });
  byId("groups").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) Inspector.choose(button.group, { quietly: innerWidth > 700 });
  });
  byId("groups").addEventListener("keydown", (event) => Inspector.keys(event));
  byId("more").addEventListener("click", () => Inspector.list());
  addEventListener("hashchange", () => Inspector.follow());
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") byId("tip").hidden = true;
  });
  for (const kind of ["mouseover", "click"]) document.addEventListener(kind, tip);
}

function tip(event) {
  const box = byId("tip"), text = event.target.tip;
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const at = event.target.getBoundingClientRect();
  box.style.left = Math.max(4, Math.min(at.left, innerWidth - box.offsetWidth - 8)) + "px";
  const below = at.bottom + 6;
  box.style.top = (below + box.offsetHeight > innerHeight ? at.top - box.offsetHeight - 6 : below) + "px";
}

async function loadPlotly() {
  const script = make("script");
  script.nonce = document.currentScript?.nonce ?? document.querySelector("script[nonce]").nonce;
  script.textContent = await unpack("data-plotly");
  document.head.append(script);
}

/** Loads a page that is written again while a run trains, until the reader looks into a trace. */
function refresh() {
  const box = byId("refresh");
  if (!box) return;
  byId("inspector").addEventListener("click", () => { box.checked = false; });
  setInterval(() => box.checked && location.reload(), 1000 * box.value);
}

async function begin() {
  themes();
  listen();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  await loadPlotly();
  Inspector.start(openRuns(JSON.parse(await unpack("data-traces"))));
  Curves.start(JSON.parse(await unpack("data-figures")));
  document.body.dataset.ready = "true";
  refresh();
}

begin();
