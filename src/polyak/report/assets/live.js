// Asks for the page's parts again while somebody looks, and puts in the sections that have changed. What a reader
// did stays: the half-life chosen on a slider, what was opened, scrolled to, or has the focus.
"use strict";
(() => {
  const json = (id, root = document) => JSON.parse(root.getElementById(id).textContent);
  const {every, words, tag: first} = json("live");
  const CONTROLS = "input, button, summary, [tabindex]";
  const chosen = new Map(); // half-lives, by the names of plots
  let tag = first, facts = json("facts"), held = false, restoring = false, waiting = null, timer = 0, failed = 0;

  const sectionsOf = (root) => [...root.querySelectorAll("main > section")];
  const keyOf = (section, {plots}) => section.outerHTML
    + [...section.querySelectorAll("[data-plot]")].map((one) => JSON.stringify(plots[Number(one.dataset.plot)])).join();
  const known = new Map(sectionsOf(document).map((one) => [one.id, keyOf(one, facts)]));
  const plotOf = (slider) => facts.plots[Number(slider.closest("figure").dataset.plot)];

  const note = document.createElement("span"), state = document.createElement("span"), changed = document.createElement("span");
  note.className = "live";
  state.setAttribute("role", "status");
  note.append(state, changed);
  document.querySelector(".kicker").append(note);
  const say = (text, lost) => {
    if (state.textContent !== text) state.textContent = text;
    note.classList.toggle("lost", lost);
  };
  say(words.live, false);

  function put(text) {
    const page = new DOMParser().parseFromString(text, "text/html"), next = json("facts", page);
    const fresh = sectionsOf(page).filter((one) => known.get(one.id) !== keyOf(one, next));
    document.getElementById("facts").textContent = page.getElementById("facts").textContent;
    facts = next;
    // What is in view stays there, however much longer the sections above it have become.
    const seen = [...document.querySelectorAll("main > section")].find((one) => one.getBoundingClientRect().bottom > 0);
    const top = seen?.getBoundingClientRect().top;
    for (const section of fresh) {
      known.set(section.id, keyOf(section, next));
      replace(document.getElementById(section.id), section);
    }
    if (seen) scrollBy({top: document.getElementById(seen.id).getBoundingClientRect().top - top, behavior: "instant"});
    changed.textContent = words["changed at"].replace("{time}", new Date().toLocaleTimeString(document.documentElement.lang));
  }

  function replace(old, section) {
    const all = (root, what) => [...root.querySelectorAll(what)];
    const focused = all(old, CONTROLS).indexOf(document.activeElement);
    const opened = all(old, "details").map((one) => one.open), scrolled = all(old, ".scroll").map((one) => one.scrollLeft);
    old.replaceWith(section);
    all(section, "details").forEach((one, i) => { one.open = opened[i] ?? false; });
    section.dispatchEvent(new CustomEvent("polyak:fill", {bubbles: true}));
    all(section, "input[type=range]").forEach(choose);
    all(section, ".scroll").forEach((one, i) => { one.scrollLeft = scrolled[i] ?? 0; });
    if (focused >= 0) all(section, CONTROLS)[focused]?.focus({preventScroll: true});
  }

  // A longer run has other half-lives to choose from: the nearest to the one that was chosen.
  function choose(slider) {
    const {name, frames} = plotOf(slider);
    if (!chosen.has(name)) return;
    const away = frames.map((frame) => Math.abs(Math.log(frame.half_life / chosen.get(name))));
    slider.value = away.indexOf(Math.min(...away));
    restoring = true;
    slider.dispatchEvent(new Event("input", {bubbles: true}));
    restoring = false;
  }

  async function look() {
    try {
      const answer = await fetch("parts", {headers: {"If-None-Match": tag}, cache: "no-store"});
      if (answer.status === 200) {
        const text = await answer.text();
        tag = answer.headers.get("ETag");
        if (held) waiting = text;
        else put(text);
      } else if (answer.status !== 304) throw new Error(answer.statusText);
      failed = 0;
      say(words.live, false);
    } catch {
      failed += 1;
      say(words.lost, true);
    }
    later();
  }

  function later() {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(look, 1000 * every * Math.min(2 ** failed, 16));
  }

  document.addEventListener("input", ({target}) => {
    if (!restoring && target.matches("figure input[type=range]"))
      chosen.set(plotOf(target).name, plotOf(target).frames[Number(target.value)].half_life);
  });
  document.addEventListener("pointerdown", ({target}) => { held = target.matches("input[type=range]"); });
  for (const end of ["pointerup", "pointercancel"])
    document.addEventListener(end, () => {
      held = false;
      if (waiting !== null) setTimeout(() => { if (waiting !== null) put(waiting); waiting = null; });
    });
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
  later();
})();
