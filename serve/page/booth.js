// The photo booth. It speaks to the API of the service that it came from, and to nobody else.

const at = (id) => document.getElementById(id);
const MOST_PICTURES = 8;
const SEEN_LOSSES = 300;

const state = { key: "", pictures: [], concept: null, losses: [], stop: null };

class Refused extends Error {}

// -- the service ------------------------------------------------------------------------------------------------

async function call(method, path, options = {}) {
  const headers = { Authorization: `Bearer ${state.key}`, ...options.headers };
  const answer = await fetch(path.replace(/^\//, ""), { ...options, method, headers });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({ title: answer.statusText, detail: "" }));
  if (answer.status === 401) askForKey();
  const later = answer.headers.get("Retry-After");
  throw new Refused(`${problem.detail || problem.title}${later ? ` (try again in ${later} s)` : ""}`);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon), line.slice(colon + 1).trimStart()];
      }));
      if (fields.event) yield { event: fields.event, data: JSON.parse(fields.data), id: fields.id };
    }
  }
}

// -- the key ----------------------------------------------------------------------------------------------------

function askForKey() {
  at("key-form").hidden = false;
  at("key").focus();
}

function findKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given) {
    sessionStorage.setItem("imprint-key", given);
    history.replaceState(null, "", location.pathname); // not into bookmarks and shoulders' sight
  }
  state.key = sessionStorage.getItem("imprint-key") ?? "";
  if (!state.key) askForKey();
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = at("key").value.trim();
  sessionStorage.setItem("imprint-key", state.key);
  at("key-form").hidden = true;
  tell("");
  at("files").focus();
});

// -- pictures ---------------------------------------------------------------------------------------------------

function add(files) {
  const pictures = [...files].filter((file) => /^image\/(jpeg|png|webp)$/.test(file.type));
  tell(pictures.length < files.length ? "Only JPEG, PNG and WebP can be used." : "");
  state.pictures = [...state.pictures, ...pictures].slice(0, MOST_PICTURES);
  showThumbs();
}

function showThumbs() {
  at("thumbs").replaceChildren(...state.pictures.map((file, index) => {
    const item = document.createElement("li");
    const image = new Image();
    image.src = URL.createObjectURL(file);
    image.onload = () => URL.revokeObjectURL(image.src);
    image.alt = file.name;
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.addEventListener("click", () => {
      state.pictures.splice(index, 1);
      showThumbs();
      at("files").focus();
    });
    item.append(image, remove);
    return item;
  }));
}

at("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}

// -- teaching ---------------------------------------------------------------------------------------------------

at("teach").addEventListener("submit", (event) => {
  event.preventDefault();
  doing(at("start"), teach);
});

async function teach() {
  if (!state.pictures.length) throw new Refused("Choose a picture first.");
  const body = new FormData();
  state.pictures.forEach((file) => body.append("images", file));
  body.append("class_noun", at("noun").value);
  if (at("steps").value) body.append("steps", at("steps").value);
  body.append("prompts", "a photo of <concept>");
  const concept = await (await call("POST", "/v1/concepts", { body })).json();
  Object.assign(state, { concept, losses: [] });
  at("learning").hidden = false;
  at("draw").hidden = true;
  at("preview").hidden = true;
  at("grid").replaceChildren();
  at("cancel").hidden = false;
  say("status", "waiting for a tuner");
  showLoss();
  at("learning").scrollIntoView({ block: "nearest" });
  try {
    await follow(concept);
  } finally {
    at("cancel").hidden = true;
  }
}

// All that is told of a concept, to its end, also where the connection ends earlier.
async function* story(concept) {
  let last = "0";
  for (let fruitless = 0; fruitless < 5; fruitless += 1) {
    try {
      const answer = await call("GET", concept.links.events, { headers: { "Last-Event-ID": last } });
      for await (const told of events(answer)) {
        yield told;
        if (["succeeded", "failed", "canceled"].includes(told.event)) return;
        last = told.id ?? last;
        fruitless = 0;
      }
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
  throw new Refused("The connection was lost.");
}

async function follow(concept) {
  for await (const { event, data } of story(concept)) {
    if (event === "progress") {
      at("bar").value = data.steps ? data.step / data.steps : 1;
      say("status", `learning: step ${data.step} of ${data.steps}`);
      if (data.loss !== null) state.losses.push(data.loss);
      showLoss();
    } else if (event === "image") {
      preview(data);
    } else {
      at("bar").value = event === "succeeded" ? 1 : at("bar").value;
      say("status", { succeeded: "learned", failed: "failed", canceled: "canceled" }[event]);
      if (event === "failed") throw new Refused(data.error.detail);
      if (event === "succeeded") {
        at("draw").hidden = false;
        at("prompt").focus({ preventScroll: true });
        at("draw").scrollIntoView({ block: "nearest" });
      }
    }
  }
}

function showLoss() {
  const losses = state.losses.slice(-SEEN_LOSSES);
  const top = Math.max(...losses, 1e-9);
  const points = losses.map((loss, n) => `${(300 * n) / Math.max(1, losses.length - 1)},${76 - 72 * (loss / top)}`);
  at("line").setAttribute("points", points.join(" "));
  say("loss", losses.length ? `loss ${losses.at(-1).toFixed(4)}` : "loss");
}

function preview(data) {
  if (data.flagged) return;
  at("preview").hidden = false;
  at("preview").querySelector("img").src = `data:image/png;base64,${data.b64_json}`;
}

at("cancel").addEventListener("click", () => doing(at("cancel"), () => call("POST", state.concept.links.cancel)));

// -- drawing ----------------------------------------------------------------------------------------------------

at("draw").addEventListener("submit", (event) => {
  event.preventDefault();
  doing(at("go"), draw);
});

async function draw() {
  const order = {
    prompt: at("prompt").value, concepts: [state.concept.id], num_images: Number(at("count").value), stream: true,
  };
  if (at("seed").value) order.seed = Number(at("seed").value);
  say("drawing", "waiting");
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await call("POST", "/v1/images", { headers, body: JSON.stringify(order) });
    for await (const { event, data } of events(answer)) {
      if (event === "progress") say("drawing", `step ${data.step} of ${data.steps}`);
      if (event === "image") at("grid").prepend(tile(data));
      if (event === "failed") throw new Refused(data.error.detail);
    }
  } finally {
    say("drawing", "");
  }
}

function tile(data) {
  const item = document.createElement("li");
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  if (data.flagged) {
    caption.textContent = "held back by the safety checker";
    figure.append(caption);
  } else {
    const image = new Image();
    image.src = `data:image/png;base64,${data.b64_json}`;
    image.alt = data.prompt;
    const link = document.createElement("a");
    link.href = image.src;
    link.download = `imprint-${data.seed}.png`;
    link.textContent = `seed ${data.seed}`;
    caption.append(link);
    figure.append(image, caption);
  }
  item.append(figure);
  return item;
}

// -- keeping and forgetting -------------------------------------------------------------------------------------

at("weights").addEventListener("click", () => doing(at("weights"), async () => {
  const answer = await call("GET", `${state.concept.links.weights}?format=imprint`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `${state.concept.id}.zip`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}));

at("forget").addEventListener("click", () => doing(at("forget"), async () => {
  await call("DELETE", state.concept.links.self);
  Object.assign(state, { concept: null, losses: [], pictures: [] });
  showThumbs();
  at("grid").replaceChildren();
  at("preview").querySelector("img").removeAttribute("src");
  at("learning").hidden = true;
  at("draw").hidden = true;
  at("files").focus();
}));

// -- words ------------------------------------------------------------------------------------------------------

function say(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text;
}

function tell(text) {
  at("problem").hidden = !text;
  at("problem").textContent = text;
}

async function doing(button, work) {
  button.disabled = true;
  tell("");
  try {
    await work();
  } catch (error) {
    tell(error instanceof Refused ? error.message : "The service does not answer.");
    at("problem").scrollIntoView({ block: "nearest" });
  } finally {
    button.disabled = false;
  }
}

findKey();
