// The page of retouch-portrait: photos go to this machine's own server, sliders ask it for another picture. No framework, nothing from elsewhere.
"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const stage = element("stage"), picture = element("picture"), after = element("after"), before = element("before");
  const SLIDERS = ["blemishes", "tone", "texture", "strength"];
  const MOST = 24;  // zoom
  const photos = [];  // { id, name, width, height, spots, notes, settings, chosen }, in the order they came
  let current = null, defaults = null, divider = 0.5, waiting = 0;
  const view = { zoom: 1, x: 0.5, y: 0.5 };

  // ---- words

  let saying = 0;
  function say(words, seconds = 0) {
    clearTimeout(saying);
    element("status").textContent = words;
    element("status").hidden = !words;
    if (seconds) saying = setTimeout(() => say(""), seconds * 1000);
  }
  function tell(words, seconds) {  // before there is a photo, in place of the page's first words
    if (photos.length) say(words, seconds); else element("hello").querySelector("p").textContent = words;
  }
  async function answer(response) {
    if (response.ok) return response;
    const words = await response.json().then((said) => said.error, () => `the server answers ${response.status}`);
    throw new Error(words);
  }
  const ask = (path, options) => fetch(path, options).then(answer, () => { throw new Error("The server does not answer. Is retouch-portrait still running?"); });

  // ---- photos

  let refused = [];
  async function add(files) {
    const pictures = [...files].filter((file) => file.type.startsWith("image/") || /\.(tiff?|bmp|webp|png|jpe?g|hei[cf]|avif)$/i.test(file.name));
    if (!pictures.length) { tell("No photo among these: a JPEG, PNG, WebP or TIFF is needed.", 5); return; }
    element("hello").hidden = true;
    element("studio").hidden = false;
    waiting += pictures.length;
    for (const file of pictures) {
      say(`Looking at ${file.name}${waiting > 1 ? `, ${waiting - 1} more` : ""} \u2026`);
      try {
        const told = await (await ask(`/api/photo?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file })).json();
        const photo = { ...told, settings: { ...(current ? current.settings : defaults) }, chosen: new Map() };
        photos.push(photo);
        strip();
        if (!current) show(photo);
      } catch (error) { refused.push(error.message); }
      waiting -= 1;
    }
    if (waiting) return;
    say(refused.join("\n"), 12);
    if (!photos.length) { element("hello").hidden = false; element("studio").hidden = true; tell(refused.join("\n")); }
    refused = [];
  }
  function thumb(photo) {
    const button = document.createElement("button"), image = new Image();
    button.type = "button";
    button.title = photo.name;
    image.alt = "";
    image.src = `/photo/${photo.id}/before.jpg`;
    button.append(image);
    button.addEventListener("click", () => show(photo));
    return button;
  }
  function strip() {
    element("strip").replaceChildren(...photos.map((photo, number) => {
      photo.button ??= thumb(photo);
      photo.button.setAttribute("aria-label", `Photo ${number + 1}: ${photo.name}`);
      photo.button.setAttribute("aria-pressed", String(photo === current));
      return photo.button;
    }));
    element("strip").hidden = photos.length < 2;
    element("all").hidden = element("same").hidden = photos.length < 2;
    element("all").textContent = `Download all ${photos.length}`;
  }
  function show(photo) {
    if (photo !== current) { view.zoom = 1; view.x = view.y = 0.5; }
    current = photo;
    before.src = `/photo/${photo.id}/before.jpg`;
    after.src = before.src;
    drawn = "";
    SLIDERS.forEach((name) => { element(name).value = photo.settings[name]; });
    element("children").checked = photo.settings.children;
    strip();
    rings();
    place();
    changed();
  }
  const step = (by) => photos.length && show(photos[(photos.indexOf(current) + by + photos.length) % photos.length]);

  // ---- what the server is asked for: the newest settings, one picture at a time

  function query(photo) {
    const values = new URLSearchParams();
    SLIDERS.forEach((name) => values.set(name, photo.settings[name]));
    values.set("moles", photo.settings.moles);
    values.set("children", photo.settings.children ? "1" : "0");
    if (photo.chosen.size) values.set("chosen", [...photo.chosen].map(([spot, gone]) => `${spot}.${gone ? 1 : 0}`).join("_"));
    return values.toString();
  }
  let drawing = false, wanted = "", drawn = "";
  async function draw() {
    if (drawing) return;
    drawing = true;
    document.body.dataset.drawing = "yes";
    while (wanted !== drawn) {
      const url = wanted, photo = current;
      try {
        const response = await ask(url);
        const left = decodeURIComponent(response.headers.get("x-left") || "");
        await response.blob();  // now the picture lies in the browser's memory, and the image takes it from there
        if (photo === current) { after.src = url; await after.decode().catch(() => {}); facts(left); }
      } catch (error) { say(error.message, 8); }
      drawn = url;
    }
    drawing = false;
    document.body.dataset.drawing = "";
  }
  function changed() {
    if (!current) return;
    SLIDERS.forEach((name) => { element(name).previousElementSibling.querySelector("output").textContent = `${Math.round(current.settings[name] * 100)} %`; });
    document.querySelectorAll("[data-moles]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.moles === current.settings.moles)));
    element("tone").disabled = element("texture").disabled = current.settings.children;
    document.querySelectorAll("[data-moles]").forEach((button) => { button.disabled = current.settings.children; });
    document.querySelectorAll(".spot").forEach(mark);
    element("download").href = `/photo/${current.id}/download?${query(current)}`;
    wanted = `/photo/${current.id}/after.jpg?${query(current)}`;
    draw();
  }
  function facts(left) {
    const counted = (kind, one, several) => {
      const count = current.spots.filter((spot) => spot.kind === kind).length;
      return `${count || "no"} ${count === 1 ? one : several}`;
    };
    const lines = [`${current.name}, ${current.width} \u00d7 ${current.height}`];
    lines.push(`${current.faces} ${current.faces === 1 ? "face" : "faces"}, ${counted("blemish", "blemish", "blemishes")} and ${counted("mole", "mole or freckle", "moles or freckles")} found`);
    const notes = new Set([...current.notes, ...(left ? left.split("; ") : [])]);
    element("facts").textContent = [...lines, ...notes].join("\n");
  }

  // ---- spots

  const key = (spot) => `${spot.face}.${spot.spot}`;
  const goes = (spot) => (current.chosen.has(key(spot)) ? current.chosen.get(key(spot)) : spot.kind === "blemish" || (current.settings.moles === "remove" && !current.settings.children));
  function mark(button) {
    const spot = button.spot, gone = goes(spot);
    button.classList.toggle("goes", gone);
    button.setAttribute("aria-pressed", String(gone));
    button.setAttribute("aria-label", `${spot.kind === "mole" ? "Mole or freckle" : "Blemish"}, ${gone ? "removed" : "kept"}; press to ${gone ? "keep" : "remove"} it`);
  }
  function rings() {
    element("spots").replaceChildren(...current.spots.map((spot) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "spot";
      button.spot = spot;
      button.addEventListener("click", (event) => { if (!event.defaultPrevented) { current.chosen.set(key(spot), !goes(spot)); changed(); } });
      return button;
    }));
  }

  // ---- the picture's place: zoom, and the point (in shares of the photo) in the middle of the stage

  function fit() { return Math.min(stage.clientWidth / current.width, stage.clientHeight / current.height); }
  function place() {
    if (!current) return;
    view.zoom = Math.min(MOST, Math.max(1, view.zoom));
    const scale = fit() * view.zoom, width = current.width * scale, height = current.height * scale;
    const middle = (at, size, room) => (size <= room ? 0.5 : Math.min(1 - room / 2 / size, Math.max(room / 2 / size, at)));
    view.x = middle(view.x, width, stage.clientWidth);
    view.y = middle(view.y, height, stage.clientHeight);
    const left = stage.clientWidth / 2 - view.x * width, top = stage.clientHeight / 2 - view.y * height;
    Object.assign(picture.style, { width: `${width}px`, height: `${height}px`, transform: `translate(${left}px, ${top}px)` });
    const shown = document.body.classList.contains("before") ? 1 : divider;
    const line = Math.min(Math.max(shown * stage.clientWidth - left, 0), width);
    before.style.clipPath = `inset(0 ${width - line}px 0 0)`;
    element("line").style.left = `${divider * stage.clientWidth}px`;
    element("divider").value = divider;
    element("divider").previousElementSibling.querySelector("output").textContent = `${Math.round(divider * 100)} %`;
    element("zoom").textContent = `${Math.round(view.zoom * 100)} %`;
    document.querySelectorAll(".spot").forEach((button) => {
      const size = Math.max(2.8 * button.spot.radius * width, 20);
      Object.assign(button.style, { left: `${button.spot.x * width}px`, top: `${button.spot.y * height}px`, width: `${size}px`, height: `${size}px` });
      button.style.setProperty("--thin", "1.5px");
    });
    document.body.dataset.view = [view.zoom, view.x, view.y, divider].map((value) => value.toFixed(3)).join(" ");
  }
  // The point (x, y), in pixels from the stage's middle, stays where it is.
  function zoom(factor, x = 0, y = 0) {
    const old = view.zoom, scale = fit();
    view.zoom = Math.min(MOST, Math.max(1, old * factor));
    view.x += x / (current.width * scale) * (1 / old - 1 / view.zoom);
    view.y += y / (current.height * scale) * (1 / old - 1 / view.zoom);
    place();
  }
  function move(x, y) {
    view.x -= x / (current.width * fit() * view.zoom);
    view.y -= y / (current.height * fit() * view.zoom);
    place();
  }
  const at = (event) => { const box = stage.getBoundingClientRect(); return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2]; };
  stage.addEventListener("wheel", (event) => { event.preventDefault(); if (current) zoom(Math.exp(-event.deltaY * 0.0015), ...at(event)); }, { passive: false });
  stage.addEventListener("dblclick", (event) => { if (!event.target.spot) { if (view.zoom > 1) { view.zoom = 1; place(); } else zoom(3, ...at(event)); } });
  const fingers = new Map();
  let travelled = 0;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button || !current) return;
    if (!fingers.size) travelled = 0;
    const line = event.target.closest("#line");
    fingers.set(event.pointerId, { at: at(event), line });
    if (!event.target.spot) stage.setPointerCapture(event.pointerId);
    if (!line) stage.classList.add("held");
  });
  stage.addEventListener("pointermove", (event) => {
    const finger = fingers.get(event.pointerId);
    if (!finger) return;
    const now = at(event), old = finger.at;
    travelled += Math.hypot(now[0] - old[0], now[1] - old[1]);
    finger.at = now;
    if (finger.line) { divider = Math.min(1, Math.max(0, now[0] / stage.clientWidth + 0.5)); place(); return; }
    const other = [...fingers].find(([id]) => id !== event.pointerId);
    if (!other) { move(now[0] - old[0], now[1] - old[1]); return; }
    const rest = other[1].at, apart = (point) => Math.hypot(point[0] - rest[0], point[1] - rest[1]);
    zoom(apart(now) / Math.max(apart(old), 1), (now[0] + rest[0]) / 2, (now[1] + rest[1]) / 2);
  });
  for (const end of ["pointerup", "pointercancel"])
    addEventListener(end, (event) => { fingers.delete(event.pointerId); if (!fingers.size) stage.classList.remove("held"); });
  stage.addEventListener("click", (event) => { if (travelled > 6) event.preventDefault(); }, true);  // a drag that began on a ring is no click
  addEventListener("resize", place);

  // ---- controls and keys

  SLIDERS.forEach((name) => element(name).addEventListener("input", () => { current.settings[name] = Number(element(name).value); changed(); }));
  element("divider").addEventListener("input", () => { divider = Number(element("divider").value); place(); });
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  element("children").addEventListener("change", () => { current.settings.children = element("children").checked; changed(); });
  document.querySelectorAll("[data-moles]").forEach((button) => button.addEventListener("click", () => { current.settings.moles = button.dataset.moles; changed(); }));
  element("in").addEventListener("click", () => zoom(1.5));
  element("out").addEventListener("click", () => zoom(1 / 1.5));
  const bare = () => element("rings").setAttribute("aria-pressed", String(!stage.classList.toggle("bare")));
  const reset = () => { current.settings = { ...defaults }; current.chosen.clear(); show(current); };
  element("rings").addEventListener("click", bare);
  element("defaults").addEventListener("click", reset);
  element("same").addEventListener("click", () => { photos.forEach((photo) => { photo.settings = { ...current.settings, children: current.settings.children || photo.settings.children }; }); say("Every photo has these settings now.", 3); });
  element("all").addEventListener("click", async () => {
    say(`Writing ${photos.length} photos \u2026`);
    const body = JSON.stringify(photos.map((photo) => ({ id: photo.id, settings: query(photo) })));
    try {
      const { url } = await (await ask("/api/archive", { method: "POST", body, headers: { "content-type": "application/json" } })).json();
      location.assign(url);
      say("");
    } catch (error) { say(error.message, 8); }
  });
  const original = (on) => { if (current) { document.body.classList.toggle("before", on); place(); } };
  element("hold").addEventListener("pointerdown", () => original(true));
  element("hold").addEventListener("keydown", (event) => { if (event.key === " " || event.key === "Enter") { event.preventDefault(); original(true); } });
  for (const end of ["pointerup", "pointerleave", "blur", "keyup"]) element("hold").addEventListener(end, () => original(false));
  document.querySelectorAll("[data-pick]").forEach((button) => button.addEventListener("click", () => element(button.dataset.pick).click()));
  for (const id of ["files", "folder"])
    element(id).addEventListener("change", () => { add([...element(id).files]); element(id).value = ""; });

  const KEYS = {
    s: bare, r: reset, d: () => element("download").click(), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5),
    0: () => { view.zoom = 1; place(); }, "[": () => step(-1), "]": () => step(1), PageUp: () => step(-1), PageDown: () => step(1),
  };
  const MOVES = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "o") { element("files").click(); return; }
    if (!current) return;
    if (event.key === "b" || event.key === "B") original(true);
    else if (MOVES[event.key] && event.target === stage) move(...MOVES[event.key]);
    else if (KEYS[event.key]) KEYS[event.key]();
    else return;
    event.preventDefault();
  });
  addEventListener("keyup", (event) => { if (event.key === "b" || event.key === "B") original(false); });
  addEventListener("blur", () => original(false));

  // ---- drops, of folders too

  async function inside(entry) {
    if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
    const reader = entry.createReader(), found = [];
    for (;;) {
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) break;
      for (const one of some) found.push(...await inside(one));
    }
    return found.sort((one, other) => one.name.localeCompare(other.name));
  }
  addEventListener("dragover", (event) => { event.preventDefault(); element("drop").hidden = false; });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) element("drop").hidden = true; });
  addEventListener("drop", async (event) => {
    event.preventDefault();
    element("drop").hidden = true;
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry());
    const plain = [...event.dataTransfer.files];
    add(entries.some((entry) => entry && entry.isDirectory) ? (await Promise.all(entries.filter(Boolean).map(inside))).flat() : plain);
  });

  ask("/api/start").then((response) => response.json()).then((values) => { defaults = values; document.body.dataset.ready = "yes"; });
})();
