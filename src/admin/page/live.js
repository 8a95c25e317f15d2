// Fetches the page again every second and takes over what has changed. Nodes stay where they are, so
// that what has the focus keeps it, what is unfolded stays so, and nothing is read out twice.
"use strict";
(() => {
  const EVERY = 1000, PATIENCE = 4000;
  const find = (id) => document.getElementById(id);
  const live = find("live"), pause = find("pause"), news = find("news");
  let paused = false, timer = 0, asking = false;
  let told = words();

  // What each subject is said to be, in a word.
  function words() {
    const all = [...document.querySelectorAll("[data-subject]")];
    return new Map(all.map((node) => [node.dataset.subject, node.textContent]));
  }

  function adopt(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
      old.replaceWith(fresh);
    } else if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
    } else if (old.nodeType === Node.ELEMENT_NODE) {
      for (const { name } of [...old.attributes]) {
        // The reader unfolds, not the page.
        if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
      }
      for (const { name, value } of fresh.attributes) {
        if (old.getAttribute(name) !== value) old.setAttribute(name, value);
      }
      const was = [...old.childNodes], now = [...fresh.childNodes];
      now.forEach((node, at) => (at < was.length ? adopt(was[at], node) : old.append(node)));
      was.slice(now.length).forEach((node) => node.remove());
    }
  }

  // The sections of another gateway state (a drain begins) must not be made of each other.
  function sections(old, fresh) {
    const key = (node) => node.getAttribute("data-port") || node.getAttribute("aria-labelledby") || node.className;
    const known = new Map([...old.children].map((node) => [key(node), node]));
    [...fresh.children].forEach((node, at) => {
      const same = known.get(key(node));
      known.delete(key(node));
      const there = same ?? node;
      if (old.children[at] !== there) old.insertBefore(there, old.children[at] ?? null);
      if (same) adopt(same, node);
    });
    known.forEach((node) => node.remove());
  }

  function take(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const main = fresh.getElementById("main");
    if (!main) throw new Error("no page");
    sections(find("main"), main);
    for (const is of ["version", "phase", "uptime", "engine", "now"]) {
      const of = (from) => from.querySelector(`header [data-is=${is}]`);
      adopt(of(document), of(fresh));
    }
    document.title = fresh.title;
    adopt(document.querySelector("link[rel=icon]"), fresh.querySelector("link[rel=icon]"));
    const heard = words();
    // Only a change of the word is worth interrupting somebody who listens.
    const changed = [...heard].filter(([subject, word]) => told.get(subject) !== word);
    if (changed.length) news.textContent = changed.map((one) => one.join(": ")).join(", ");
    told = heard;
  }

  function show(stale) {
    document.body.classList.toggle("stale", stale);
    const text = paused ? "paused, as of" : stale ? "no answer since" : "live,";
    if (live.textContent !== text) live.textContent = text;
  }

  async function look() {
    clearTimeout(timer);
    if (paused || document.hidden || asking) return;
    asking = true;
    try {
      const answer = await fetch("/?update", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
      if (!answer.ok) throw new Error(answer.statusText);
      const text = await answer.text();
      if (!paused) take(text);
      show(false);
    } catch {
      // A gateway that is gone has no more to say; the last figures stay, and are said to be old.
      if (!document.body.classList.contains("stale")) news.textContent = "The gateway does not answer";
      show(true);
    }
    asking = false;
    timer = setTimeout(look, EVERY);
  }

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    show(document.body.classList.contains("stale"));
    look();
  });
  document.addEventListener("visibilitychange", look);
  show(false);
  timer = setTimeout(look, EVERY);
})();
