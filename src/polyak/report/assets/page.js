// Draws each figure of the page from the facts in it, with Observable Plot. Text from files becomes text nodes
// only. A figure is drawn again when its width changes, and a profile when its slider moves.
"use strict";
(() => {
  const read = () => JSON.parse(document.getElementById("facts").textContent);
  const {words} = read();
  const color = (ink) => `var(--${ink})`;
  const dash = {solid: null, dashed: "5,4", dotted: "1.5,3.5"};
  const NARROW = 460;

  // As `number`, `percent` of words.py.
  const trimmed = (value, digits) => String(Number(value.toPrecision(digits)));
  const number = (value) =>
    Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US") : trimmed(value, 4);
  const percent = (share) =>
    share !== 0 && Math.abs(share) < 1e-5 ? "< 0.001 %" : `${trimmed(100 * share, 3)} %`;
  const steps = (value) => words.steps.replace("{n}", number(value));

  const make = (tag, text, into) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (into) into.append(element);
    return element;
  };

  const ruler = document.createElement("canvas").getContext("2d");
  const widthOf = (text) => {
    ruler.font = "12px system-ui, sans-serif";
    return ruler.measureText(text).width;
  };

  const pointsOf = (line) => line.x.map((x, i) => ({x, y: line.y[i], label: line.label}));

  // Labels beside the ends of lines, pushed apart where they would lie on each other.
  function placed(labels, y, height, margin) {
    const apart = 15, low = margin.top + 5, high = height - margin.bottom - 5;
    const at = labels.map((one) => ({...one, px: Math.min(high, Math.max(low, y(one.y)))}));
    at.sort((a, b) => a.px - b.px);
    for (let i = 1; i < at.length; i++) at[i].px = Math.max(at[i].px, at[i - 1].px + apart);
    for (let i = at.length - 1, floor = high; i >= 0; i--, floor -= apart) at[i].px = Math.min(at[i].px, floor);
    return at.map((one) => ({...one, y: y.invert(one.px)}));
  }

  function extent(values, pad) {
    const [low, high] = d3.extent(values.filter((v) => v !== null && Number.isFinite(v)));
    if (low === undefined) return [0, 1];
    const span = high - low || Math.abs(high) * 0.1 || 1;
    return [low - pad * span, high + pad * span];
  }

  function logTicks([low, high]) {
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of [1, 2, 5]) ticks.push(m * 10 ** e);
    const inside = ticks.filter((t) => t >= low && t <= high);
    return inside.length > 7 ? inside.filter((t) => Number.isInteger(Math.log10(t))) : inside;
  }

  // A label near an edge of the plot reads towards its middle.
  function side(x, [low, high], log) {
    const share = log ? Math.log(x / low) / Math.log(high / low) : (x - low) / (high - low);
    return share < 0.15 ? "start" : share > 0.85 ? "end" : "middle";
  }

  function legend(node, labels) {
    if (labels.length === 0) return;
    const list = make("ul", undefined, node);
    list.className = "legend";
    for (const {label, ink, style} of labels) {
      const item = make("li", undefined, list);
      const swatch = make("span", undefined, item);
      swatch.style.borderTop = `3px ${style || "solid"} ${color(ink)}`;
      make("span", label, item);
    }
  }

  function curves(spec, node) {
    const width = node.clientWidth, narrow = width < NARROW, height = narrow ? 250 : 320;
    const lines = spec.lines || [], bands = spec.bands || [], rules = spec.rules || [];
    const named = lines.filter((line) => line.label && line.y.some((v) => v !== null));
    const every = lines.flatMap(pointsOf).filter((p) => p.y !== null);
    const all = spec.dots || [];
    const ys = [...every.map((p) => p.y), ...all.flatMap((d) => [d.y, d.low, d.high]), ...rules.map((r) => r.y)];
    const edge = bands.flatMap((b) => [...b.low, ...b.high]);
    const xs = [...every.map((p) => p.x), ...all.map((d) => d.x)];
    const yDomain = spec.domain || extent([...ys, ...edge].filter((v) => v !== undefined), 0.06);
    const dots = all.filter((d) => d.y >= yDomain[0] && d.y <= yDomain[1]);
    let xDomain = d3.extent(xs);
    if (xDomain[0] === xDomain[1])
      xDomain = spec.log_x ? [xDomain[0] / 2, xDomain[0] * 2] : [xDomain[0] - 1, xDomain[0] + 1];
    const ends = [
      ...named.map((line) => ({label: line.label, ink: line.ink, style: line.style, y: line.y.findLast((v) => v !== null)})),
      ...rules.map((r) => ({label: r.label, ink: r.ink, style: "dashed", y: r.y})),
    ];
    const beside = !narrow && ends.length > 0;
    const right = beside ? Math.min(190, 20 + Math.max(...ends.map((one) => widthOf(one.label)))) : 14;
    const ticks = d3.ticks(...yDomain, 5).map((t) => number(t));
    const margin = {top: spec.y === spec.title ? 14 : 30, bottom: 44, left: 16 + Math.max(...ticks.map(widthOf), 20), right};
    if (!beside) legend(node, ends);
    const y = d3.scaleLinear(yDomain, [height - margin.bottom, margin.top]);
    const svg = Plot.plot({
      width, height, ariaLabel: spec.alt,
      marginTop: margin.top, marginBottom: margin.bottom, marginLeft: margin.left, marginRight: margin.right,
      x: {type: spec.log_x ? "log" : "linear", domain: xDomain, label: spec.x, labelAnchor: "center", labelArrow: "none",
          ticks: spec.log_x ? logTicks(xDomain) : Math.max(2, Math.floor(width / 110)), tickFormat: number},
      y: {domain: yDomain, label: spec.y === spec.title ? null : spec.y, labelArrow: "none", ticks: 5, tickFormat: number, grid: true},
      marks: [
        ...bands.map((b) => Plot.areaY(b.x.map((x, i) => ({x, low: b.low[i], high: b.high[i]})),
          {x: "x", y1: "low", y2: "high", fill: color(b.ink), fillOpacity: b.ink === "faint" ? 0.5 : 0.12, clip: true})),
        ...rules.map((r) => Plot.ruleY([r.y], {stroke: color(r.ink), strokeDasharray: "5,4"})),
        ...lines.map((line) => Plot.lineY(pointsOf(line),
          {x: "x", y: "y", stroke: color(line.ink), strokeWidth: line.width, strokeDasharray: dash[line.style], clip: true})),
        ...lines.filter((line) => line.x.length === 1).map((line) => Plot.dot(pointsOf(line), {x: "x", y: "y", r: 4, fill: color(line.ink)})),
        Plot.ruleX(dots.filter((d) => d.low !== undefined && d.low !== null),
          {x: "x", y1: "low", y2: "high", stroke: (d) => color(d.ink), strokeWidth: 1.6}),
        Plot.dot(dots, {x: "x", y: "y", r: (d) => (d.label ? 6 : 4), stroke: (d) => color(d.ink), strokeWidth: 1.6,
          fill: (d) => (d.hollow ? "var(--paper)" : color(d.ink))}),
        ...dots.filter((d) => d.label).map((d) => Plot.text([d], {x: "x", y: "y", text: "label", dy: -16,
          fontWeight: 600, fill: "var(--text)", stroke: "var(--paper)", strokeWidth: 4,
          textAnchor: side(d.x, xDomain, spec.log_x)})),
        beside ? Plot.text(placed(ends, y, height, margin), {x: () => xDomain[1], y: "y", text: "label", dx: 8,
          textAnchor: "start", fill: (d) => color(d.ink), fontWeight: 600}) : null,
        every.length > 1 ? Plot.tip(every, Plot.pointer({x: "x", y: "y",
          title: (p) => `${p.label ? `${p.label}\n` : ""}${number(p.y)}\n${spec.x} ${number(p.x)}`})) : null,
      ],
      color: {type: "identity"},
      style: {fontSize: "12px", fontFamily: "inherit", color: "var(--muted)", background: "none", overflow: "visible"},
    });
    show(svg, spec, node);
  }

  function show(svg, spec, node) {
    // One picture with one text: the names of its groups are for tests and styles, not for screen readers.
    for (const group of svg.querySelectorAll("g[aria-label]")) {
      group.dataset.mark = group.getAttribute("aria-label");
      group.removeAttribute("aria-label");
    }
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", spec.alt);
    node.append(svg);
  }

  function staircase(edges, heights) {
    return heights.flatMap((height, i) => [{x: edges[i], y: height}, {x: edges[i + 1], y: height}]);
  }

  function profile(spec, node, place) {
    const frame = spec.frames[place], width = node.clientWidth, narrow = width < NARROW, height = narrow ? 240 : 300;
    const made = staircase(spec.edges, frame.made), target = staircase(spec.edges, frame.target);
    const [low, high] = d3.extent([0, ...frame.made, ...frame.target]);
    const domain = [low * 1.05, high * 1.08 || 1];
    const ticks = d3.ticks(...domain, 5).map(percent);
    legend(node, spec.frames.length > 1
      ? [{label: words.made, ink: "average"}, {label: words.target, ink: "text", style: "dashed"}] : []);
    const svg = Plot.plot({
      width, height, marginTop: 30, marginBottom: 44, marginRight: 14, marginLeft: 16 + Math.max(...ticks.map(widthOf)),
      x: {label: spec.x, labelAnchor: "center", labelArrow: "none", domain: [0, Math.max(1, spec.edges.at(-1))],
          ticks: Math.max(2, Math.floor(width / 110)), tickFormat: number},
      y: {label: spec.y, labelArrow: "none", domain, ticks: 5, tickFormat: percent, grid: true},
      marks: [
        Plot.areaY(made, {x: "x", y1: 0, y2: "y", fill: "var(--average)", fillOpacity: 0.28}),
        Plot.lineY(made, {x: "x", y: "y", stroke: "var(--average)", strokeWidth: 1.8}),
        target.length ? Plot.lineY(target, {x: "x", y: "y", stroke: "var(--text)", strokeWidth: 1.2, strokeDasharray: "5,4"}) : null,
        Plot.ruleY([0], {stroke: "var(--rule)"}),
        frame.median < spec.edges.at(-1) ? Plot.ruleX([spec.edges.at(-1) - frame.median], {stroke: "var(--muted)", strokeDasharray: "1.5,3.5"}) : null,
      ],
      style: {fontSize: "12px", fontFamily: "inherit", color: "var(--muted)", background: "none", overflow: "visible"},
    });
    show(svg, spec, node);
  }

  function numbers(spec, list, place) {
    const frame = spec.frames[place];
    const several = spec.frames.length > 1;
    const rows = [
      ["half-life", frame.half_life, steps],
      ...(several ? [["error", frame.error, percent], ["noise gain", frame.noise_gain, number]] : []),
      ["mean age", frame.mean_age, steps],
      ["weight on start", frame.initial, percent],
      ["half of it", frame.median, steps],
      ["most of it", frame.most, steps],
    ];
    list.replaceChildren();
    for (const [key, value, shown] of rows) {
      const pair = make("div", undefined, list);
      make("dt", words[key], pair);
      const cell = make("dd", shown(value), pair);
      cell.dataset.key = key;
      cell.dataset.value = value;
      if (key === "error") pair.className = value > 0.02 ? "bad" : "good";
    }
  }

  function fill(root) {
    const {plots} = read();
    for (const figure of root.querySelectorAll("figure[data-plot]")) start(figure, plots);
    root.querySelectorAll("button.copy").forEach(copies);
  }

  function start(figure, plots) {
    const spec = plots[Number(figure.dataset.plot)], node = figure.querySelector(".plot");
    const slider = figure.querySelector("input[type=range]"), list = figure.querySelector(".numbers");
    let place = spec.start || 0, drawn = 0;
    const draw = () => {
      if (!node.clientWidth) return; // in a closed <details>
      drawn = node.clientWidth;
      node.replaceChildren();
      spec.frames ? profile(spec, node, place) : curves(spec, node);
    };
    if (slider) {
      figure.querySelector(".slider label").textContent = words.slider;
      slider.addEventListener("input", () => {
        place = Number(slider.value);
        slider.setAttribute("aria-valuetext", steps(spec.frames[place].half_life));
        numbers(spec, list, place);
        draw();
      });
      slider.setAttribute("aria-valuetext", steps(spec.frames[place].half_life));
      list.setAttribute("aria-live", "polite");
    }
    if (list) numbers(spec, list, place);
    draw();
    new ResizeObserver(() => node.clientWidth !== drawn && draw()).observe(node);
  }

  function copies(button) {
    button.addEventListener("click", () => {
      const text = button.parentElement.querySelector("p");
      getSelection().selectAllChildren(text); // also where the clipboard is closed to files
      document.execCommand("copy");
      button.textContent = words.copied;
    });
  }

  fill(document);
  document.addEventListener("polyak:fill", (event) => fill(event.target)); // a live page put in new sections
})();
