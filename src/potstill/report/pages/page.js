"use strict";
// The page: theme, and which methods are shown. One choice for every chart and every table.
(() => {
  const root = document.documentElement;
  const REFERENCES = ["untrained", "teacher"];
  const hidden = new Set();
  let only = null;
  let seeds = true;

  potstill.shows = (method, part) => {
    if (!seeds && part === "seed") return false;
    if (!method || REFERENCES.includes(method)) return true;
    return only ? method === only : !hidden.has(method);
  };

  const show = () => {
    document.querySelectorAll("tr[data-method]").forEach((row) => {
      row.classList.toggle("out", !potstill.shows(row.dataset.method));
    });
    document.querySelectorAll(".chip[data-method]").forEach((chip) => {
      const { method } = chip.dataset;
      chip.classList.toggle("off", !potstill.shows(method));
      chip.querySelector(".eye").setAttribute("aria-pressed", String(potstill.shows(method)));
      chip.querySelector(".only").setAttribute("aria-pressed", String(method === only));
    });
    const reset = document.getElementById("reset");
    if (reset) reset.disabled = !only && !hidden.size;
    document.getElementById("seeds")?.setAttribute("aria-pressed", String(seeds));
    potstill.redraw();
  };

  potstill.isolate = (method) => {
    if (!method || REFERENCES.includes(method)) return;
    only = only === method ? null : method;
    hidden.clear();
    show();
  };

  const toggle = (method) => {
    const chips = [...document.querySelectorAll(".chip[data-method]")];
    if (only) chips.forEach((c) => c.dataset.method !== only && hidden.add(c.dataset.method));
    only = null;
    if (!hidden.delete(method)) hidden.add(method);
    show();
  };

  const all = () => {
    only = null;
    hidden.clear();
    show();
  };

  const THEMES = ["system", "light", "dark"];
  const KEY = "potstill-theme";
  const button = document.getElementById("theme");
  const kept = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // a browser may forbid storage to files
    }
  };
  const setTheme = (name) => {
    root.dataset.theme = name;
    button.textContent = `theme: ${name}`;
    try {
      localStorage.setItem(KEY, name);
    } catch {
      // it is then forgotten when the page is closed
    }
  };

  // Paper is white and narrow, whatever the screen is.
  const print = (on) => {
    root.classList.toggle("printing", on);
    if (on) potstill.drawAll();
    potstill.resize();
  };

  potstill.tables();
  potstill.charts();
  button.hidden = false;
  setTheme(THEMES.includes(kept()) ? kept() : "system");
  button.addEventListener("click", () => {
    setTheme(THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length]);
  });
  document.querySelectorAll(".chip[data-method]").forEach((chip) => {
    const { method } = chip.dataset;
    chip.querySelector(".only").addEventListener("click", () => potstill.isolate(method));
    chip.querySelector(".eye").addEventListener("click", () => toggle(method));
  });
  document.querySelectorAll("[data-only]").forEach((name) => {
    name.addEventListener("click", () => potstill.isolate(name.dataset.only));
  });
  document.getElementById("reset")?.addEventListener("click", all);
  document.getElementById("seeds")?.addEventListener("click", () => {
    seeds = !seeds;
    show();
  });
  addEventListener("keydown", (event) => event.key === "Escape" && all());
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
})();
