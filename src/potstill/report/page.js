"use strict";
// Draws the charts when they come into view, in the colours of the reader's theme, under one legend.
(() => {
  const plots = [...document.querySelectorAll(".plot")];
  const hidden = new Set();
  let seeds = true;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const theme = () => ({
    "font.color": colour("--ink"),
    "font.family": getComputedStyle(document.body).fontFamily,
    "font.size": 12,
    "xaxis.gridcolor": colour("--grid"),
    "yaxis.gridcolor": colour("--grid"),
    "xaxis.linecolor": colour("--rule"),
    "yaxis.linecolor": colour("--rule"),
    "hoverlabel.bgcolor": colour("--card"),
    "hoverlabel.bordercolor": colour("--rule"),
    "hoverlabel.font.color": colour("--ink"),
    "modebar.color": colour("--soft"),
    "modebar.activecolor": colour("--accent"),
    "modebar.bgcolor": "rgba(0,0,0,0)",
  });

  const shown = (trace) => !hidden.has(trace.meta.method) && (seeds || trace.meta.part !== "seed");

  const dress = (plot) => {
    if (!plot.drawn) return;
    const change = theme();
    for (const kind of ["shapes", "annotations"])
      plot.layout[kind].forEach((mark, i) => {
        change[`${kind}[${i}].visible`] = !hidden.has(mark.name);
      });
    Plotly.update(plot, { visible: plot.data.map(shown) }, change);
  };

  const draw = (plot) => {
    if (plot.drawn) return;
    plot.drawn = true;
    const spec = JSON.parse(plot.nextElementSibling.textContent);
    if (plot.clientWidth < 480) spec.layout.margin.r = 6;
    const config = {
      responsive: true,
      displaylogo: false,
      displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    };
    Plotly.newPlot(plot, spec.data, spec.layout, config).then(() => dress(plot));
  };

  const press = (chip) => {
    const { method, do: order } = chip.dataset;
    const chips = [...document.querySelectorAll(".chip[data-method]")];
    if (order === "seeds") seeds = !seeds;
    else if (order === "all") hidden.clear();
    else if (order === "none") chips.forEach((c) => hidden.add(c.dataset.method));
    else if (!hidden.delete(method)) hidden.add(method);
    chips.forEach((c) => c.setAttribute("aria-pressed", String(!hidden.has(c.dataset.method))));
    document.querySelectorAll('[data-do="seeds"]').forEach((c) => c.setAttribute("aria-pressed", String(seeds)));
    plots.forEach(dress);
  };

  document.querySelectorAll(".chip").forEach((chip) => chip.addEventListener("click", () => press(chip)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(dress));
  addEventListener("beforeprint", () => plots.forEach(draw));

  const watcher = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => { draw(e.target); watcher.unobserve(e.target); }),
    { rootMargin: "600px" },
  );
  plots.forEach((plot) => watcher.observe(plot));
})();
