// The comparison page: shows one pair, sends the answer, zooms both pictures together. No framework, nothing from elsewhere.
"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const pictures = element("pictures");
  const frames = [...document.querySelectorAll(".frame")];
  const buttons = [...document.querySelectorAll("[data-choice]")];
  const KEYS = { ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right" };
  const MAX_SCALE = 12;
  const RETRIES = [500, 1000, 2000, 4000, 8000];
  let current = null;
  let busy = true;
  const ahead = new Map();  // keeps the next pictures in memory

  // ---- talking to the server

  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

  async function ask(path, options) {
    for (let attempt = 0; ; attempt++) {
      try {
        const answer = await fetch(path, { credentials: "same-origin", ...options });
        if (answer.status === 401) { location.assign("/"); return new Promise(() => {}); }
        if (answer.ok) { say(""); return await answer.json(); }
        if (answer.status < 500) throw new Error("refused");
      } catch (error) {
        if (error.message === "refused") { location.reload(); return new Promise(() => {}); }
      }
      say("No connection. Your answer is kept; trying again.");
      await pause(RETRIES[Math.min(attempt, RETRIES.length - 1)]);
    }
  }

  function say(words) {
    element("status").textContent = words;
    element("status").hidden = !words;
  }

  // ---- showing a pair

  async function load(image, url) {
    for (let attempt = 0; ; attempt++) {
      image.src = attempt ? `${url}?again=${attempt}` : url;
      try { await image.decode(); if (attempt) say(""); return; } catch { say("A picture does not load; trying again."); }
      await pause(RETRIES[Math.min(attempt, RETRIES.length - 1)]);
    }
  }

  async function show(state) {
    if (!state.trial) { location.assign("/done"); return; }
    current = state.trial;
    element("progress").value = state.answered;
    element("back").hidden = current.position === 0;
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.choice === current.choice)));
    frames.forEach((frame) => frame.classList.remove("chosen"));
    pictures.classList.add("loading");
    view.reset();
    await Promise.all(frames.flatMap((frame) => {
      const reference = frame.querySelector(".reference");
      reference.removeAttribute("src");
      const jobs = [load(frame.querySelector(".version"), current[frame.dataset.side])];
      if (current.reference) jobs.push(load(reference, current.reference));
      return jobs;
    }));
    if (element("original")) element("original").hidden = !current.reference;
    element("count").textContent = `${current.position + 1} of ${state.total}`;
    pictures.classList.remove("loading");
    pictures.setAttribute("aria-busy", "false");
    ahead.clear();
    state.ahead.forEach((url) => { const image = new Image(); image.src = url; ahead.set(url, image); });
    busy = false;
  }

  async function vote(choice) {
    if (busy || !current) return;
    busy = true;
    pictures.setAttribute("aria-busy", "true");
    frames.forEach((frame) => frame.classList.toggle("chosen", choice === "tie" || frame.dataset.side === choice));
    const body = JSON.stringify({ trial: current.token, choice, revise: current.choice !== null });
    const [state] = await Promise.all([ask("/api/vote", { method: "POST", headers: { "content-type": "application/json" }, body }), pause(160)]);
    await show(state);
  }

  async function back() {
    if (busy || !current || current.position === 0) return;
    busy = true;
    await show(await ask(`/api/trial?position=${current.position - 1}`));
  }

  // ---- zoom and pan, in shares of the frame, the same for both pictures

  const view = {
    scale: 1, x: 0, y: 0,
    reset() { this.scale = 1; this.x = this.y = 0; this.apply(); },
    zoom(factor, x = 0.5, y = 0.5) {
      const scale = Math.min(MAX_SCALE, Math.max(1, this.scale * factor));
      this.x = x - (x - this.x) * scale / this.scale;
      this.y = y - (y - this.y) * scale / this.scale;
      this.scale = scale;
      this.apply();
    },
    pan(x, y) { this.x += x; this.y += y; this.apply(); },
    apply() {
      this.x = Math.min(0, Math.max(1 - this.scale, this.x));
      this.y = Math.min(0, Math.max(1 - this.scale, this.y));
      const transform = `translate(${this.x * 100}%, ${this.y * 100}%) scale(${this.scale})`;
      document.querySelectorAll(".stage").forEach((stage) => { stage.style.transform = transform; });
      pictures.classList.toggle("zoomed", this.scale > 1);
      element("scale").textContent = `${Number(this.scale.toFixed(1))}\u00d7`;
    },
  };

  const share = (frame, event) => {
    const box = frame.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  frames.forEach((frame) => {
    const fingers = new Map();
    const middle = () => {
      const all = [...fingers.values()];
      const x = all.reduce((sum, at) => sum + at[0], 0) / all.length;
      const y = all.reduce((sum, at) => sum + at[1], 0) / all.length;
      const box = frame.getBoundingClientRect();
      const apart = all.length > 1 ? Math.hypot((all[0][0] - all[1][0]) * box.width, (all[0][1] - all[1][1]) * box.height) : 0;
      return { x, y, apart };
    };
    frame.addEventListener("wheel", (event) => {
      event.preventDefault();
      view.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...share(frame, event));
    }, { passive: false });
    frame.addEventListener("dblclick", (event) => (view.scale > 1 ? view.reset() : view.zoom(3, ...share(frame, event))));
    frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      frame.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, share(frame, event));
      pictures.classList.add("panning");
    });
    frame.addEventListener("pointermove", (event) => {
      if (!fingers.has(event.pointerId)) return;
      const before = middle();
      fingers.set(event.pointerId, share(frame, event));
      const now = middle();
      view.pan(now.x - before.x, now.y - before.y);
      if (before.apart > 0 && now.apart > 0) view.zoom(now.apart / before.apart, now.x, now.y);
    });
    const lift = (event) => {
      fingers.delete(event.pointerId);
      if (!fingers.size) pictures.classList.remove("panning");
    };
    frame.addEventListener("pointerup", lift);
    frame.addEventListener("pointercancel", lift);
  });

  // ---- buttons and keys

  function original(on) {
    if (!element("original") || (on && !(current && current.reference))) return;
    pictures.classList.toggle("original", on);
    element("original").setAttribute("aria-pressed", String(on));
  }

  buttons.forEach((button) => button.addEventListener("click", () => vote(button.dataset.choice)));
  element("back").addEventListener("click", back);
  element("in").addEventListener("click", () => view.zoom(1.5));
  element("out").addEventListener("click", () => view.zoom(1 / 1.5));
  if (element("original")) {
    const button = element("original");
    button.addEventListener("pointerdown", (event) => { button.setPointerCapture(event.pointerId); original(true); });
    ["pointerup", "pointercancel", "blur"].forEach((name) => button.addEventListener(name, () => original(false)));
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    button.addEventListener("keydown", (event) => { if (event.key === " " || event.key === "Enter") { event.preventDefault(); original(true); } });
    button.addEventListener("keyup", (event) => { if (event.key === " " || event.key === "Enter") original(false); });
  }
  addEventListener("blur", () => original(false));
  addEventListener("keyup", (event) => { if (event.code === "KeyO") original(false); });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const choice = KEYS[event.key];
    if (choice) vote(choice);
    else if (event.key === "Backspace") back();
    else if (event.code === "KeyO") original(true);
    else if (event.key === "+" || event.key === "=") view.zoom(1.5);
    else if (event.key === "-") view.zoom(1 / 1.5);
    else if (event.key === "0") view.reset();
    else return;
    event.preventDefault();
  });

  ask("/api/trial").then(show);
})();
