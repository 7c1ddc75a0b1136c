// Follows what the server says has changed, and turns links and forms of a page into changes in place.
// Everything works without this file: links lead to pages, and reloading shows what is new.

const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const main = find("#main"), notice = find("#notice"), live = find("#live"), keys = find("#keys");
const PAUSE = 1000; // milliseconds between two updates of the page, however often the run writes

async function get(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${answer.status}`);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// Turns one tree into another and leaves untouched what is the same: focus, scrolling, open details stay.
function patch(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== 1 || old.nodeName !== fresh.nodeName) return old.replaceWith(fresh.cloneNode(true));
  for (const { name } of [...old.attributes])
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes)
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.nodeName === "INPUT" && old.type !== "checkbox" && old !== document.activeElement) old.value = fresh.value;
  patchChildren(old, fresh);
  if (old.nodeName === "SELECT") old.value = fresh.value;
}

function patchChildren(old, fresh) {
  const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
  before.slice(after.length).forEach((node) => node.remove());
  after.forEach((node, k) => (k < before.length ? patch(before[k], node) : old.append(node.cloneNode(true))));
}

// What is in sight, with its place: a live update must not move it. What only the reader's own action may move waits.
function inSight() {
  return all("h1, h2, h3, h4, p, figure, li, tr, dl, summary, .card, .text", main)
    .map((node) => [node, node.getBoundingClientRect()])
    .filter(([, box]) => box.height > 0 && box.bottom > 0 && box.top < innerHeight);
}
const moved = (seen) =>
  seen.some(([node, box]) => {
    const now = node.getBoundingClientRect();
    return node.isConnected && (Math.abs(now.top - box.top) > 1 || Math.abs(now.left - box.left) > 1);
  });

function steadily(part, fresh) {
  const seen = inSight(), height = part.offsetHeight, kept = part.cloneNode(true);
  const above = part.getBoundingClientRect().bottom <= 0;
  patchChildren(part, fresh);
  if (above) scrollBy({ top: part.offsetHeight - height, behavior: "instant" });
  if (!moved(seen)) return true;
  patchChildren(part, kept);
  return false;
}

// Live updates -----------------------------------------------------------------------------------------------------
let source = null, latest = {}, timer = null;
const waiting = new Map(); // element -> what to do when the reader asks for it

function listen() {
  const address = document.hidden ? "" : main.dataset.events;
  if (source?.address === address && source.readyState < EventSource.CLOSED) return schedule();
  source?.close();
  source = null;
  if (!address) return;
  latest = {};
  source = Object.assign(new EventSource(address), { address });
  source.onopen = () => show("on", "live");
  source.onerror = () => show("off", "no connection");
  source.onmessage = ({ data }) => {
    Object.assign(latest, JSON.parse(data));
    schedule();
  };
}

function show(kind, text) {
  live.className = kind === "on" ? "soft on" : kind;
  if (live.textContent !== text) live.textContent = text;
}

const stale = () => all("[data-live]", main).filter(({ dataset: { live, version } }) => latest[live] && latest[live] !== version);
const schedule = () => (timer ??= setTimeout(update, 50));

async function update() {
  try {
    const parts = stale(), rows = parts.filter((part) => part.nodeName === "TR");
    if (rows.length) await updateRows(rows);
    for (const part of parts) if (part.nodeName !== "TR") await updatePart(part);
    if (source?.readyState === EventSource.OPEN) show("on", "live");
  } catch {
    show("off", "no answer");
  }
  setTimeout(() => {
    timer = null;
    if (stale().length) schedule();
  }, PAUSE);
}

async function updateRows(rows) {
  const fresh = await get(`/part/rows?${rows.map((row) => `run=${row.dataset.live}`).join("&")}`);
  for (const row of rows) {
    const now = all("tr", fresh).find((other) => other.dataset.live === row.dataset.live);
    if (!now) continue;
    row.dataset.version = now.dataset.version;
    patchChildren(row, now);
    row.classList.remove("fresh");
    requestAnimationFrame(() => row.classList.add("fresh"));
  }
  tick();
}

async function updatePart(part) {
  const { live: key, src, hold } = part.dataset, version = latest[key];
  if (hold !== undefined) {
    part.dataset.version = version;
    return wait(part, () => visit(location.href, "replace"));
  }
  const fresh = (await get(src)).body;
  if (!part.isConnected) return;
  part.dataset.version = version;
  if (key === "standing") {
    said(fresh);
    return patchChildren(part, fresh); // has room of its own, and always tells how the run stands
  }
  const selection = getSelection();
  const selecting = !selection.isCollapsed && part.contains(selection.anchorNode);
  if (selecting || (!document.hidden && !steadily(part, fresh))) wait(part, () => patchChildren(part, fresh));
  else waiting.delete(part), notify();
}

function said(fresh) {
  const status = find(".status", fresh)?.textContent.trim(), line = find("#said");
  if (line.dataset.status && line.dataset.status !== status) line.textContent = status;
  line.dataset.status = status;
}

function wait(part, then) {
  waiting.set(part, then);
  notify();
}

function notify() {
  for (const part of waiting.keys()) if (!part.isConnected) waiting.delete(part);
  const text = `New: ${[...waiting.keys()].map((part) => part.dataset.name).join(", ")}`;
  notice.hidden = !waiting.size;
  if (waiting.size && notice.firstElementChild.textContent !== text) notice.firstElementChild.textContent = text;
}

function reveal(which = () => true) {
  const now = [...waiting].filter(([part]) => which(part));
  now.forEach(([part]) => waiting.delete(part));
  notify();
  now.forEach(([, change]) => change());
}

// Links and forms in place -----------------------------------------------------------------------------------------
let visiting = 0;
async function visit(address, how = "push") {
  const number = ++visiting;
  const page = await get(address).catch(() => null);
  if (number !== visiting) return; // a later one has overtaken it
  const fresh = page && find("#main", page);
  if (!fresh) return location.assign(address);
  if (how === "push") history.pushState(null, "", address);
  if (how === "replace") history.replaceState(null, "", address);
  document.title = page.title;
  patch(main, fresh);
  all(".text, .side", main).forEach((node) => node.scrollTo(0, 0));
  waiting.clear();
  notify();
  tick();
  listen();
}

const addressOf = (form) => {
  const given = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  return `${new URL(form.action).pathname}?${given}`;
};

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-visit]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  visit(link.href);
});
document.addEventListener("submit", (event) => {
  if (!event.target.matches("form[data-visit]")) return;
  event.preventDefault();
  visit(addressOf(event.target));
});
let typing = null;
document.addEventListener("input", ({ target }) => {
  if (target.matches("[name=run]")) return choose(target);
  const form = target.form;
  if (!form?.matches("[data-visit]")) return;
  clearTimeout(typing);
  typing = setTimeout(() => visit(addressOf(form), "replace"), target.nodeName === "SELECT" ? 0 : 150);
});
addEventListener("popstate", () => visit(location.href, ""));

// Choosing runs to compare: the choice outlives filtering, pages and reloads -----------------------------------------
const chosen = new Set(JSON.parse(sessionStorage.getItem("chosen") ?? "[]"));

function choose(box) {
  if (box.checked) chosen.add(box.value);
  else chosen.delete(box.value);
  sessionStorage.setItem("chosen", JSON.stringify([...chosen]));
  tick();
}

function tick() {
  const form = find("#compare");
  if (!form) return;
  const most = Number(form.dataset.most), boxes = all("[name=run]:not([type=hidden])", document);
  for (const box of boxes) {
    box.checked = chosen.has(box.value);
    box.disabled = !box.checked && chosen.size >= most;
  }
  const here = new Set(boxes.map((box) => box.value));
  form.replaceChildren(...[...chosen].filter((name) => !here.has(name)).map((name) => {
    const field = document.createElement("input");
    return Object.assign(field, { type: "hidden", name: "run", value: name });
  }));
  find("#chosen").textContent = chosen.size ? `${chosen.size} chosen${chosen.size >= most ? ", no more than that" : ""}` : `tick up to ${most} runs to compare`;
  find("#compare-button").disabled = chosen.size < 2;
  find("#clear").hidden = !chosen.size;
}

// Keys -------------------------------------------------------------------------------------------------------------
document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
  if (target.matches("input:not([type=checkbox]), select, textarea")) return;
  if (key.startsWith("Arrow") && target.closest(".scroll, .side, .text")) return; // they scroll
  if (key === "?") keys.showModal();
  else if (key === "/" && find("#q")) find("#q").focus();
  else {
    const link = all("[data-key]", main).find((other) => other.dataset.key === key);
    if (!link) return;
    link.click();
  }
  event.preventDefault();
});
const help = find("#help");
help.hidden = false;
help.addEventListener("click", () => keys.showModal());
document.addEventListener("click", ({ target }) => {
  if (target.id !== "clear") return;
  chosen.clear();
  choose({});
});
find("button", notice).addEventListener("click", () => reveal());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) reveal((part) => part.dataset.hold === undefined); // but what is being read stays
  listen(); // browsers allow six connections to a server; a page in the background holds none
});
tick();
listen();
