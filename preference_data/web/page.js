"use strict";
const $ = id => document.getElementById(id);
const me = { name: "", role: "annotator" };
const RETRY = 3000;  // milliseconds until an answer for which the disk had no room is sent again
let facts = null, at = -1, pair = null, answers = {}, current = 0, shown = 0, saving = false, loading = false;
// While a pair is saved or the next one is on its way, what is on the screen is no longer asked about: nothing is answered then.
const busy = () => saving || loading;

// What is answered but not saved yet is kept in the browser, one entry a pair and annotator.
const draftKey = () => `draft ${facts.set} ${me.role} ${me.name} ${pair.pair}`;
const stored = (key, value) => {
  try {
    if (value === undefined) return localStorage.getItem(key);
    if (value === null) localStorage.removeItem(key); else localStorage.setItem(key, value);
  } catch { /* private mode: the judgement itself is on the server */ }
  return null;
};
async function ask(path, options) {
  const reply = await fetch(path, options);
  const value = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(value.error || reply.statusText), { status: reply.status });
  return value;
}
const query = () => `name=${encodeURIComponent(me.name)}&role=${me.role}`;

async function start() {
  facts = await ask(`/api/state?${query()}`);
  stored("name", me.name); stored("role", me.role);
  $("hello").hidden = true;
  $("who").textContent = me.role === "senior" ? `${me.name}, senior` : me.name;
  $("export").href = `/export?${query()}`;
  $("questions").replaceChildren(...facts.dimensions.map((name, index) => {
    const card = document.createElement("div"), title = document.createElement("h2"), row = document.createElement("div");
    card.className = "question"; card.dataset.name = name; title.textContent = facts.titles[name]; card.title = facts.questions[name];
    row.className = "answers"; row.setAttribute("role", "group"); row.setAttribute("aria-label", facts.titles[name]);
    for (const [value, text, label] of [["1", "1", "Image 1 is better"], ["tie", "=", "No difference"], ["2", "2", "Image 2 is better"]]) {
      const button = document.createElement("button");
      button.textContent = text; button.dataset.value = value; button.setAttribute("aria-label", label); button.tabIndex = -1;
      button.onclick = () => { current = index; answer(value); };
      row.append(button);
    }
    card.onclick = event => { if (event.target.tagName !== "BUTTON") { current = index; draw(); } };
    card.append(title, row);
    return card;
  }));
  if (!facts.queue.length) {
    $("empty").hidden = false;
    $("empty").firstElementChild.textContent = me.role === "senior" ? "No conflicts: the annotators agree so far." : "This set holds no pairs.";
    return;
  }
  $("desk").hidden = false;
  const wanted = facts.queue.findIndex(row => row.pair === location.hash.slice(1));
  await open(wanted >= 0 ? wanted : Math.max(0, facts.queue.findIndex(row => !row.done)));
}

// Goes to another pair once it and its pictures are there; until then everything stays as it is.
async function open(index) {
  if (loading) return;
  const to = (index + facts.queue.length) % facts.queue.length;
  loading = true;
  $("desk").setAttribute("aria-busy", "true");
  try {
    const row = await ask(`/api/pair/${facts.queue[to].pair}?${query()}`);
    await Promise.allSettled(Object.values(row.pictures).map(src => { const image = new Image(); image.src = src; return image.decode(); }));
    at = to;
    pair = row;
  } catch (error) {
    if (!pair) throw error;
    draw(`The next pair cannot be had (${error.message}); try again.`);
    return;
  } finally {
    loading = false;
    $("desk").removeAttribute("aria-busy");
  }
  history.replaceState(null, "", `#${pair.pair}`);
  const draft = stored(draftKey());
  answers = draft ? JSON.parse(draft) : { ...pair.answers };
  current = Math.max(0, facts.dimensions.findIndex(name => !(name in answers)));
  if (!facts.dimensions.some(name => !(name in answers))) current = facts.dimensions.length - 1;
  View.reset();
  peek(false);
  shown = performance.now();
  draw();
  const next = facts.queue[at + 1];  // the browser fetches the next pictures while this pair is judged
  if (next) ask(`/api/pair/${next.pair}?${query()}`).then(row => Object.values(row.pictures).forEach(src => { new Image().src = src; }), () => {});
}

function step(by) { if (!busy()) open(at + by); }

let peeking = false;
function peek(photo) {
  peeking = photo;
  const urls = View.zoomed() ? pair.whole : pair.pictures;  // large pictures come reduced, and whole once there is more to see
  for (const figure of document.querySelectorAll("figure")) {
    const image = figure.querySelector("img"), src = urls[photo ? "photo" : figure.dataset.side];
    if (image.getAttribute("src") !== src) image.src = src;
  }
}
View.onzoom = () => { if (pair) peek(peeking); };

function answer(value) {
  if (busy()) return;
  answers[facts.dimensions[current]] = value;
  stored(draftKey(), JSON.stringify(answers));
  if (current < facts.dimensions.length - 1) current += 1;
  draw();
}

function draw(message) {
  const done = facts.queue.filter(row => row.done).length, open = facts.dimensions.filter(name => !(name in answers));
  $("count").textContent = `${at + 1} / ${facts.queue.length}, ${done} judged`;
  $("progress").firstElementChild.style.width = `${100 * done / facts.queue.length}%`;
  $("progress").setAttribute("aria-valuenow", String(Math.round(100 * done / facts.queue.length)));
  for (const [index, card] of [...$("questions").children].entries()) {
    card.classList.toggle("now", index === current);
    card.classList.toggle("disputed", facts.queue[at].disputed.includes(card.dataset.name));
    for (const button of card.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(answers[card.dataset.name] === button.dataset.value));
  }
  $("save").classList.toggle("waiting", open.length > 0);
  $("hint").textContent = message || facts.questions[facts.dimensions[current]];
}

async function save() {
  if (busy()) return;
  const open_ = facts.dimensions.findIndex(name => !(name in answers));
  if (open_ >= 0) { current = open_; draw(`Still open: ${facts.titles[facts.dimensions[open_]]}`); return; }
  saving = true;
  try {
    const body = { pair: pair.pair, ...me, answers, seconds: Math.round((performance.now() - shown) / 100) / 10 };
    await ask("/api/judgement", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    stored(draftKey(), null);
    facts.queue[at].done = true;
    const later = facts.queue.findIndex((row, index) => index > at && !row.done), any = facts.queue.findIndex(row => !row.done);
    if (later >= 0 || any >= 0) await open(later >= 0 ? later : any);
    else draw("All judged. Thank you. Export holds your judgements; Back goes through them again.");
  } catch (error) {
    const again = error.status === 507, token = pair.pair;
    draw(`Not saved (${error.message}); your answers are kept here, ${again ? "trying again every few seconds." : "try again."}`);
    if (again) setTimeout(() => { if (pair.pair === token) save(); }, RETRY);
  } finally { saving = false; }
}

const KEYS = {
  "1": () => answer("1"), ArrowLeft: () => answer("1"), "0": () => answer("tie"), "=": () => answer("tie"), ArrowDown: () => answer("tie"),
  "2": () => answer("2"), ArrowRight: () => answer("2"), Enter: save,
  ArrowUp: () => { current = Math.max(0, current - 1); draw(); }, Backspace: () => { current = Math.max(0, current - 1); draw(); },
  Tab: event => { current = (current + (event.shiftKey ? facts.dimensions.length - 1 : 1)) % facts.dimensions.length; draw(); },
  "+": () => View.zoomBy(1.4), "-": () => View.zoomBy(1 / 1.4), z: View.reset, "?": () => $("help").showModal(),
  w: () => View.moveBy(0, .12), s: () => View.moveBy(0, -.12), a: () => View.moveBy(.12, 0), d: () => View.moveBy(-.12, 0),
  p: () => step(-1), n: () => step(1), " ": () => peek(true),
};
addEventListener("keydown", event => {
  if ($("desk").hidden || $("help").open || !pair || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act(event);
});
addEventListener("keyup", event => { if (event.key === " " && pair) peek(false); });
$("back").onclick = () => step(-1);
$("skip").onclick = () => step(1);
$("save").onclick = save;
$("keys").onclick = () => $("help").showModal();
for (const button of document.querySelectorAll("#desk button")) button.addEventListener("pointerup", () => setTimeout(() => button.blur()));
$("hello").onsubmit = event => {
  event.preventDefault();
  me.name = $("name").value.trim();
  me.role = $("senior").checked ? "senior" : "annotator";
  if (me.name) start().catch(error => alert(error.message));
};
$("name").value = stored("name") || "";
$("senior").checked = stored("role") === "senior";
if ($("name").value && location.hash) $("hello").requestSubmit(); else $("name").focus();
