"use strict";
// Charts: drawn by Vega when they come into view. Colours are the style sheet's, so a theme needs no new drawing.
(() => {
  const plots = [...document.querySelectorAll(".plot")];
  const spec = (plot) => (plot.spec ??= JSON.parse(plot.nextElementSibling.textContent));
  const axis = { domain: false, gridColor: "var(--grid)", labelColor: "var(--ink)", tickColor: "var(--rule)", tickCount: 6, labelFlush: false };
  const title = { titleColor: "var(--ink)", titleFontWeight: "normal", titleFontSize: 12, titlePadding: 8 };
  const config = {
    background: null,
    font: getComputedStyle(document.body).fontFamily,
    view: { stroke: null, cursor: "default" },
    axis: { ...axis, ...title, labelFontSize: 11.5 },
    legend: { ...title, labelColor: "var(--ink)", gradientLength: 190, gradientThickness: 8 },
  };

  // Vega lies packed in the page; the policy knows its hash, so that it may run unpacked.
  const unpack = async () => {
    const packed = atob(document.getElementById("vega").textContent);
    const bytes = new Uint8Array(packed.length); // a plain loop: Uint8Array.from takes ten times as long
    for (let i = 0; i < packed.length; i += 1) bytes[i] = packed.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  let library;
  const loaded = () => (library ??= unpack());

  const methods = (plot) => [...new Set(spec(plot).data.values.map(({ method }) => method))];
  const hidden = (plot) => methods(plot).filter((method) => !potstill.shows(method));

  // A chart without any of the chosen methods says so, instead of being empty.
  const mark = (plot) => {
    const left = methods(plot).some((method) => method && potstill.shows(method));
    plot.closest("figure").classList.toggle("blank", !left);
  };

  const dress = (plot) => {
    mark(plot);
    plot.view?.signal("hidden", hidden(plot)).signal("single", potstill.shows("", "seed")).run();
  };

  // The interpreter of expressions (`ast`) makes no code from texts, which the policy forbids.
  const draw = (plot) => {
    if (plot.drawn) return plot.drawn;
    const whole = { ...structuredClone(spec(plot)), width: plot.clientWidth, height: plot.clientHeight };
    if (!matchMedia("(hover: hover)").matches) whole.layer.forEach((layer) => delete layer.params); // a finger scrolls
    whole.autosize = { type: "fit", contains: "padding" };
    const options = { mode: "vega-lite", ast: true, actions: false, renderer: "svg", config, defaultStyle: false };
    options.logLevel = 1; // errors alone: it warns of a layer whose methods are all left out
    plot.drawn = vegaEmbed(plot, whole, options).then(({ view }) => {
      plot.view = view;
      view.addEventListener("click", (event, item) => potstill.isolate(item?.datum?.method));
      dress(plot);
    });
    return plot.drawn;
  };

  // One chart at a time, so that each is on the screen before the next is begun.
  const queue = [];
  const work = async () => {
    await draw(queue[0]);
    queue.shift();
    if (queue.length) setTimeout(work);
  };
  const enqueue = (plot) => {
    if (queue.push(plot) === 1) loaded().then(() => setTimeout(work));
  };

  // One line a point; a record is a line where its x is a list.
  const rows = (plot) => {
    const { data, usermeta } = spec(plot);
    const found = [["method", "part", "seed", usermeta.x, usermeta.y, "low", "high"]];
    for (const { method, part, seed, x, y, problem, low, high } of data.values) {
      const xs = [problem ?? x].flat();
      [y].flat().forEach((value, i) => {
        if (value !== null) found.push([method, part, seed, xs[i], value, low, high]);
      });
    }
    return found;
  };

  potstill.redraw = () => plots.forEach(dress);
  potstill.drawAll = () => Promise.all(window.vegaEmbed ? plots.map(draw) : []);
  potstill.resize = () => plots.forEach((plot) => plot.view?.width(plot.clientWidth).run());
  addEventListener("resize", potstill.resize);

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
