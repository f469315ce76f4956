(() => {
  "use strict";
  const partners = DARK_PARTNERS;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const specs = new Map();
  const drawn = new Set();
  let printing = false;

  // Figures are written in the light colours; on a dark page each is swapped for its partner.
  const recolour = (node, key) => {
    if (Array.isArray(node)) return node.map((child) => recolour(child, key));
    if (node && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([k, v]) => [k, recolour(v, k)]));
    }
    const isColour = typeof node === "string" && /colou?r|colorscale/.test(key);
    return isColour && Object.hasOwn(partners, node) ? partners[node] : node;
  };

  const hiddenSeries = (plot) =>
    new Set(
      [...plot.closest("figure").querySelectorAll('.legend [aria-pressed="false"]')].map((b) => Number(b.dataset.series)),
    );

  const goToCell = (event) => {
    const point = event.points[0];
    const row = point.customdata ?? point.data.meta?.cell;
    if (row !== null && row !== undefined) location.hash = `cell-${row}`;
  };

  const draw = (plot) => {
    const spec = specs.get(plot);
    const themed = systemDark.matches && !printing ? recolour(spec, "") : structuredClone(spec);
    const hidden = hiddenSeries(plot);
    for (const trace of themed.data) if (hidden.has(trace.meta?.series)) trace.visible = false;
    themed.layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
    themed.layout.width = plot.clientWidth;
    plot.querySelector("noscript")?.remove();
    Plotly.react(plot, themed.data, themed.layout, {
      displaylogo: false,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      plotlyServerURL: "",
      showSendToCloud: false,
      typesetMath: false,
    });
    if (!drawn.has(plot)) {
      plot.on("plotly_click", goToCell);
      drawn.add(plot);
    }
  };

  const redraw = () => drawn.forEach(draw);

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    },
    { rootMargin: "600px" },
  );

  for (const plot of document.querySelectorAll(".plot")) {
    specs.set(plot, JSON.parse(plot.nextElementSibling.textContent));
    watcher.observe(plot);
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
      button.closest("figure").querySelectorAll(".plot").forEach(draw);
    });
  }

  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width || printing) return;
    width = innerWidth;
    redraw();
  });
  systemDark.addEventListener("change", redraw);

  const print = (now) => {
    printing = now;
    document.documentElement.classList.toggle("printing", now);
    (now ? [...specs.keys()] : [...drawn]).forEach(draw);
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
})();
