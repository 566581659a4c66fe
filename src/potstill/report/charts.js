"use strict";
// Charts: drawn by plotly.js when they come into view, in the colours of the reader's theme.
(() => {
  const plots = [...document.querySelectorAll(".plot")];
  const spec = (plot) => (plot.spec ??= JSON.parse(plot.nextElementSibling.textContent));

  // plotly.js lies packed in the page; the policy knows its hash, so that it may run unpacked.
  const unpack = async () => {
    const packed = atob(document.getElementById("plotly").textContent);
    const bytes = new Uint8Array(packed.length); // a plain loop: Uint8Array.from takes ten times as long
    for (let i = 0; i < packed.length; i += 1) bytes[i] = packed.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  let library;
  const loaded = () => (library ??= unpack());

  // A colour of the style sheet as rgb(): light-dark() is resolved by the browser.
  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);
  const colour = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };

  const theme = (layout) => {
    const look = {
      "font.color": colour("--ink"),
      "font.family": getComputedStyle(document.body).fontFamily,
      "font.size": 12,
      "hoverlabel.bgcolor": colour("--card"),
      "hoverlabel.bordercolor": colour("--rule"),
      "hoverlabel.font.color": colour("--ink"),
      "modebar.color": colour("--soft"),
      "modebar.activecolor": colour("--accent"),
      "modebar.bgcolor": "rgba(0,0,0,0)",
    };
    for (const axis of ["xaxis", "yaxis"]) {
      look[`${axis}.gridcolor`] = colour("--grid");
      look[`${axis}.linecolor`] = colour("--rule");
    }
    for (const kind of ["shapes", "annotations"])
      layout[kind].forEach((mark, i) => {
        look[`${kind}[${i}].visible`] = potstill.shows(mark.name);
      });
    return look;
  };

  const visible = (data) => data.map(({ meta }) => potstill.shows(meta.method, meta.part));

  // A chart that holds nothing of the chosen methods says so, instead of being empty.
  const mark = (plot, data) => {
    const left = data.some(({ meta }) => meta.method && potstill.shows(meta.method));
    plot.closest("figure").classList.toggle("blank", !left);
  };

  const dress = (plot) => {
    if (!plot.drawn) return;
    Plotly.update(plot, { visible: visible(plot.data) }, theme(plot.layout));
    mark(plot, plot.data);
  };

  // The same before the first drawing, so that it is the only one: "a.b[0].c" is a path.
  const put = (layout, path, value) => {
    const keys = path.match(/[^.[\]]+/g);
    const last = keys.pop();
    keys.reduce((part, key) => (part[key] ??= {}), layout)[last] = value;
  };

  const draw = (plot) => {
    if (plot.drawn) return;
    plot.drawn = true;
    const { data, layout } = structuredClone(spec(plot));
    if (plot.clientWidth < 480) layout.margin.r = Math.min(layout.margin.r, 8);
    Object.entries(theme(layout)).forEach(([path, value]) => put(layout, path, value));
    visible(data).forEach((shown, i) => (data[i].visible = shown));
    const config = {
      responsive: true,
      displaylogo: false,
      displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    };
    Plotly.newPlot(plot, data, layout, config);
    mark(plot, data);
    plot.on("plotly_click", ({ points }) => potstill.isolate(points[0].data.meta.method));
  };

  // One chart at a time, so that each is on the screen before the next is begun.
  const queue = [];
  const work = () => {
    draw(queue.shift());
    if (queue.length) setTimeout(work);
  };
  const enqueue = (plot) => {
    if (queue.push(plot) === 1) loaded().then(() => setTimeout(work));
  };

  // One line a point; what a trace holds of several runs is told apart by its gaps.
  const rows = (plot) => {
    const { data, layout } = spec(plot);
    const title = (axis) => layout[axis].title?.text ?? axis[0];
    const found = [["method", "part", "seed", title("xaxis"), title("yaxis"), "low", "high"]];
    for (const trace of data) {
      const { method, part, seeds = [] } = trace.meta;
      if (trace.type === "heatmap") {
        trace.z[0].forEach((z, i) => found.push([method, part, "", trace.customdata[0][i], z, "", ""]));
        continue;
      }
      let run = 0;
      const gaps = trace.x.includes(null);
      const bar = trace.error_x ?? trace.error_y;
      const middle = trace.error_x ? trace.x : trace.y;
      trace.x.forEach((x, i) => {
        if (x === null) return (run += 1);
        const seed = seeds[gaps ? run : i] ?? "";
        const ends = bar ? [middle[i] - bar.arrayminus[i], middle[i] + bar.array[i]] : [];
        return found.push([method, part, seed, x, trace.y[i], ...ends.map((v) => Number(v.toFixed(4)))]);
      });
    }
    if (data[0]?.type === "heatmap") found[0] = ["method", "part", "seed", "problem", "share of seeds", "", ""];
    return found;
  };

  potstill.redraw = () => plots.forEach(dress);
  potstill.drawAll = () => {
    if (window.Plotly) plots.forEach(draw);
  };
  potstill.resize = () => plots.forEach((plot) => plot.drawn && Plotly.Plots.resize(plot));

  potstill.charts = () => {
    document.querySelectorAll("figure .csv").forEach((button) => {
      const figure = button.closest("figure");
      const section = figure.closest("section");
      const name = `${section.dataset.name ?? ""}-${figure.dataset.name}`.replace(/^-/, "");
      button.addEventListener("click", () =>
        potstill.save(name, potstill.csv(rows(figure.querySelector(".plot")))),
      );
    });
    if (!("DecompressionStream" in window)) {
      plots.forEach((plot) => (plot.textContent = "This browser is too old to draw charts; CSV has their data."));
      return;
    }
    const watcher = new IntersectionObserver(
      (entries) =>
        entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
          watcher.unobserve(target);
          enqueue(target);
        }),
      { rootMargin: "500px" },
    );
    plots.forEach((plot) => watcher.observe(plot));
    if (plots.length) (window.requestIdleCallback ?? setTimeout)(() => loaded());
  };
})();
