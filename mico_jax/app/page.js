// The page of `mico-jax serve`. Nothing that comes from a file or the server
// becomes markup: every text is set as text.
"use strict";

const at = (id) => document.getElementById(id);
const made = (tag, text = "", kind = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
};

let about = null; // of /health, once the server is ready
let upload = null; // { blob, name, url }
let running = null; // controller of the request that is under way
let recording = null; // { button, stop }

// ------------------------------------------------------------- messages
function say(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

function busy(text) {
  at("busy").textContent = text;
  at("busy").hidden = !text;
}

async function watch() {
  try {
    const state = await (await fetch("health", { cache: "no-store" })).json();
    if (state.status === "ready") return begin(state);
    at("about").textContent = `${state.doing} ...`;
  } catch {
    at("about").textContent = "the server does not answer";
  }
  setTimeout(watch, 700);
}

function begin(state) {
  about = state;
  const { name, step } = state.checkpoint;
  at("about").textContent = `${name}, step ${step}; ${state.gallery.title}`;
  for (const key of Object.keys(state.gallery.modalities)) {
    at("only").append(new Option(key, key));
  }
  at("k").max = state.limits.hits;
  at("modality").append(new Option("choose ...", ""));
  for (const { modality } of state.uploads) {
    at("modality").append(new Option(modality, modality));
  }
  for (const button of document.querySelectorAll("[data-record]")) {
    button.hidden = !navigator.mediaDevices || !ofType(button.dataset.record);
  }
  enable();
}

function enable() {
  at("search").disabled = !about;
  for (const button of document.querySelectorAll("[data-ask]")) {
    const chosen = about?.uploads.find((u) => u.modality === at("modality").value);
    const drawn = button.dataset.ask !== "attention" || chosen?.attention;
    button.disabled = !(about && upload && drawn);
  }
}

// ------------------------------------------------------------- the upload
const ofType = (type) => about?.uploads.find((u) => u.types.includes(type));

function modalityOf(name, type) {
  const dot = name.lastIndexOf(".");
  const suffix = dot < 0 ? "" : name.slice(dot).toLowerCase();
  const found = about?.uploads.find((u) => u.extensions.includes(suffix)) ??
    ofType(type.split("/")[0]);
  return found ? found.modality : "";
}

function take(blob, name) {
  if (!about) return say("the checkpoint is not loaded yet; wait a moment.");
  drop();
  clear();
  say("");
  const most = about.limits.upload_bytes;
  if (blob.size > most) {
    return say(`${name} is larger than ${most / 2 ** 20} MiB, the limit.`);
  }
  upload = { blob, name, url: URL.createObjectURL(blob) };
  at("name").textContent = name;
  at("upload").hidden = false;
  at("modality").value = modalityOf(name, blob.type);
  stated();
  preview();
  if (!at("modality").value) {
    say("say what the file is.");
    at("modality").focus();
  }
}

function drop() {
  if (upload) URL.revokeObjectURL(upload.url);
  upload = null;
  at("upload").hidden = true;
  at("preview").replaceChildren();
  at("file").value = "";
  enable();
}

// What the file does not say of itself.
function stated() {
  const chosen = about.uploads.find((u) => u.modality === at("modality").value);
  const units = (chosen?.statements ?? []).map((s) => s.split("@")[0]);
  at("unit").replaceChildren();
  if (units.length) {
    const none = chosen.required ? "choose a unit ..." : "as the file says";
    at("unit").append(new Option(none, ""));
    for (const unit of units) at("unit").append(new Option(unit, unit));
  }
  at("unit-label").hidden = !units.length;
  at("rate-label").hidden = !chosen?.rated;
  enable();
}

function statement() {
  const rate = at("rate-label").hidden ? "" : at("rate").value;
  return at("unit").value + (rate ? `@${rate}` : "");
}

// The browser shows what it can; of the rest the server makes a preview.
function preview() {
  const kind = upload.blob.type.split("/")[0];
  const tag = { image: "img", audio: "audio", video: "video" }[kind];
  if (!tag) return serverPreview("show");
  show(tag, upload.url, () => serverPreview(tag === "img" ? "show" : "play"));
}

// What the browser did not show may be shown now that more is said of it.
function missing() {
  if (upload && !at("preview").firstChild) serverPreview("show");
}

function show(tag, url, otherwise) {
  const element = made(tag);
  if (tag === "img") element.alt = `preview of ${upload.name}`;
  else element.controls = true;
  element.addEventListener("error", otherwise, { once: true });
  element.src = url;
  at("preview").replaceChildren(element);
}

async function serverPreview(path) {
  const mine = upload;
  at("preview").replaceChildren();
  if (!at("modality").value) return;
  try {
    const answer = await post(path, {});
    const blob = await answer.blob();
    if (upload !== mine) return;
    const tag = { image: "img", audio: "audio", video: "video" };
    const url = URL.createObjectURL(blob);
    show(tag[blob.type.split("/")[0]], url, () => {});
  } catch {
    // A file that has no preview may still be asked about.
  }
}

// ------------------------------------------------------------- recording
async function record(button) {
  if (recording) {
    recording.stop();
    return;
  }
  const kind = button.dataset.record;
  say("");
  try {
    const wanted = kind === "audio" ? { audio: true }
      : { video: true, audio: kind === "video" };
    const stream = await navigator.mediaDevices.getUserMedia(wanted);
    if (kind === "image") await photograph(stream);
    else await film(stream, kind, button);
  } catch (error) {
    say(`nothing was recorded: ${error.message}`);
  }
}

async function photograph(stream) {
  const video = made("video");
  video.srcObject = stream;
  await video.play();
  const canvas = made("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  stream.getTracks().forEach((track) => track.stop());
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg"));
  take(blob, "picture.jpg");
}

function film(stream, kind, button) {
  const recorder = new MediaRecorder(stream);
  const parts = [];
  const label = button.textContent;
  const begun = Date.now();
  const most = about.limits.seconds - 1;
  const clock = setInterval(() => {
    const seconds = Math.round((Date.now() - begun) / 1000);
    button.textContent = `Stop (${seconds} s)`;
    if (seconds >= most) recorder.stop();
  }, 250);
  recorder.addEventListener("dataavailable", (e) => parts.push(e.data));
  recorder.addEventListener("stop", () => {
    clearInterval(clock);
    recording = null;
    button.textContent = label;
    button.classList.remove("live");
    stream.getTracks().forEach((track) => track.stop());
    const blob = new Blob(parts, { type: recorder.mimeType.split(";")[0] });
    take(blob, kind === "audio" ? "recorded sound" : "recorded video");
    at("modality").value = ofType(kind).modality;
    stated();
  });
  recording = { stop: () => recorder.stop() };
  button.classList.add("live");
  button.textContent = "Stop";
  recorder.start();
}

// ------------------------------------------------------------- questions
async function post(path, fields, signal) {
  let answer;
  if (upload) {
    const modality = at("modality").value;
    if (!modality) throw new Error("say what the file is.");
    const given = { ...fields, modality, stated: statement() };
    const wanted = Object.entries(given).filter(([, value]) => value !== "");
    answer = await fetch(`${path}?${new URLSearchParams(wanted)}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: upload.blob,
      signal,
    });
  } else {
    answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(fields),
      signal,
    });
  }
  if (answer.ok) return answer;
  let reason = `the server answered ${answer.status}`;
  try {
    reason = (await answer.json()).error;
  } catch {
    // It was no JSON.
  }
  throw new Error(reason);
}

const WORKING = "working ... (the first question of a kind is compiled)";

// Answers one question; a later one ends it. `more` may ask on after `done`.
async function ask(path, fields, done, more) {
  if (!about) return;
  running?.abort();
  const mine = new AbortController();
  running = mine;
  say("");
  busy(WORKING);
  try {
    done(await (await post(path, fields, mine.signal)).json());
    if (more) await more(mine.signal);
  } catch (error) {
    if (error.name !== "AbortError") {
      clear();
      say(error.message);
    }
  } finally {
    if (running === mine) {
      busy("");
      running = null;
    }
  }
}

function search() {
  const text = at("text").value.trim();
  if (!text && !upload) return say("type a text, or choose a file.");
  if (!at("k").reportValidity()) return;
  const k = Number(at("k").value);
  const fields = { text, k, only: at("only").value };
  const show = ({ hits }) => {
    clear();
    if (!hits.length) write("", "nothing is there to find");
    list(hits);
  };
  // Items come first: how they match takes a pass of the model for each.
  const matches = async (signal) => {
    busy("matching ...");
    const answer = await post("search", { ...fields, match: "1" }, signal);
    const { hits, pair } = await answer.json();
    if (pair) {
      write(`cosine ${pair.score.toFixed(3)}, match ${pair.match.toFixed(3)}`,
        "the text with the file");
    }
    for (const { row, match } of hits) {
      if (match != null) at(`match-${row}`).textContent = told(match);
    }
  };
  ask("search", fields, show, matches);
}

const told = (match) => `match ${match.toFixed(3)}`;

const QUESTIONS = {
  caption: () => ask("caption", {}, ({ caption }) => {
    clear();
    write(caption, "caption");
    untrained("captioning", "write captions");
  }),
  answer: () => {
    const text = at("text").value.trim();
    if (!text) return say("write the question as the text.");
    ask("answer", { text }, ({ answer }) => {
      clear();
      write(answer, text);
      untrained("question_answering", "answer questions");
    });
  },
  attention: () => ask("attention", {}, ({ frames }) => {
    clear();
    at("attention").hidden = false;
    at("frames").replaceChildren(...frames.map(frame));
    fade();
  }),
};

// Says that what was written means little. Objectives may be unknown.
function untrained(objective, what) {
  const { objectives } = about.checkpoint;
  if (!objectives.length || objectives.includes(objective)) return;
  at("written").append(
    made("small", `This checkpoint was not trained to ${what}.`));
}

// ------------------------------------------------------------- answers
function clear() {
  at("written").replaceChildren();
  at("hits").replaceChildren();
  at("frames").replaceChildren();
  at("attention").hidden = true;
}

function write(text, what) {
  const line = made("p", text || "(nothing was written)");
  line.prepend(made("small", what));
  at("written").append(line);
}

function frame({ title, picture, overlay, least, most }) {
  const figure = made("figure");
  const stack = made("div", "", "stack");
  for (const url of [picture, overlay]) {
    const image = made("img");
    image.src = url;
    image.alt = url === picture ? `what the model sees: ${title}` : "attention";
    stack.append(image);
  }
  figure.append(stack, made("figcaption",
    `${title}; weights ${least.toFixed(3)} to ${most.toFixed(3)}`));
  return figure;
}

function fade() {
  for (const image of document.querySelectorAll("#frames img + img")) {
    image.style.opacity = at("opacity").value;
  }
}

// A list, or with "each kind" one list below each heading.
function list(hits) {
  const apart = at("only").value === "each";
  const kinds = apart ? [...new Set(hits.map((hit) => hit.modality))] : [""];
  for (const kind of kinds) {
    const mine = hits.filter((hit) => !kind || hit.modality === kind);
    const items = made("ol");
    items.append(...mine.map(card));
    if (kind) at("hits").append(made("h2", kind));
    at("hits").append(items);
  }
}

function card(hit) {
  const item = made("li");
  const media = made("div", "", "media");
  if (hit.text) {
    media.append(made("blockquote", hit.text));
  } else {
    const image = made("img");
    image.alt = `${hit.modality}: ${hit.name}`;
    image.loading = "lazy";
    image.addEventListener("error", () => {
      media.replaceChildren(made("small", "no preview"));
    });
    image.src = `item/${hit.row}/thumbnail`;
    media.append(image);
  }
  const line = made("div", "", "told");
  line.append(made("b", hit.modality), made("span", hit.score.toFixed(3)));
  const meter = made("meter");
  [meter.min, meter.max, meter.value] = [0, 1, Math.max(0, hit.score)];
  meter.title = "cosine";
  const match = made("small");
  match.id = `match-${hit.row}`;
  item.append(media, line, meter, made("span", hit.name, "name"), match);
  if (hit.plays) item.append(player(hit, media, item));
  return item;
}

function player(hit, media, item) {
  const button = made("button", "Play");
  button.type = "button";
  button.setAttribute("aria-label", `Play ${hit.name}`);
  button.addEventListener("click", async () => {
    button.disabled = true;
    const answer = await fetch(`item/${hit.row}/player`);
    if (!answer.ok) {
      button.textContent = "nothing to play";
      return;
    }
    const blob = await answer.blob();
    const tag = blob.type.startsWith("audio/") ? "audio" : "video";
    const element = made(tag);
    [element.controls, element.autoplay] = [true, true];
    element.loop = tag === "video";
    element.src = URL.createObjectURL(blob);
    if (tag === "video") media.replaceChildren(element);
    else item.append(element);
    button.remove();
    element.focus();
  });
  return button;
}

// ------------------------------------------------------------- events
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
at("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  search();
});
for (const button of document.querySelectorAll("[data-ask]")) {
  button.addEventListener("click", QUESTIONS[button.dataset.ask]);
}
for (const button of document.querySelectorAll("[data-record]")) {
  button.addEventListener("click", () => record(button));
}
at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  if (file) take(file, file.name);
});
at("remove").addEventListener("click", () => {
  drop();
  at("file").focus();
});
at("modality").addEventListener("change", () => {
  say("");
  stated();
  missing();
});
at("unit").addEventListener("change", missing);
at("opacity").addEventListener("input", fade);
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
  });
}
document.addEventListener("drop", (event) => {
  const [file] = event.dataTransfer.files;
  if (file) take(file, file.name);
});
enable();
watch();
