// One conversation over OpenAI's Realtime events; see docs/talk.md.

const RATE = 24000;
const LEAST = 0.15;      // seconds; the server takes no turn of less than 0.1
const TOO_SHORT = "hold the button, or Space, while you speak";
const $ = (id) => document.getElementById(id);
let socket, speaker, microphone, opening;
let answer = null;       // the answer under way: its item's id, its element, when it was asked for
let playing = null;      // the answer whose sound is in the speaker
let talking = false, beginning = false;
const turns = new Map(); // item id -> element

let held = false;        // whether the button is, or Space
let heard = 0;           // samples of the turn under way
let trouble = "";        // what went wrong, shown until somebody speaks or writes again
const waiting = new Map();  // event_id -> what was sent and is neither taken nor refused
let asked = 0;
const state = (text) => { $("state").textContent = text; };
const rest = () => state(trouble || (talking ? "listening" : "ready"));
const fail = (text) => { trouble = text; rest(); };
const send = (event) => { if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(event)); };

// Send an event; resolves with the first event of the server that `taken` finds to be its answer.
function ask(event, taken) {
  return new Promise((resolve, reject) => {
    const event_id = `ask_${asked++}`;
    waiting.set(event_id, { taken, resolve, reject });
    send({ ...event, event_id });
  });
}

// An error that names no event refuses all that waits.
function refuse(message, event_id = null) {
  for (const [id, { reject }] of [...waiting].filter(([id]) => id === (event_id ?? id))) {
    waiting.delete(id);
    reject(new Error(message));
  }
}

// -- connection ------------------------------------------------------------------------------------------------------

function connect() {
  opening ??= new Promise((ready, failed) => {
    const protocols = ["realtime"];
    const key = encodeURIComponent($("key").value).replace(/[()]/g, escape);  // base64's signs may not stand there
    if (key) protocols.push(`openai-insecure-api-key.${key}`);
    const address = new URL("v1/realtime", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    socket = new WebSocket(address, protocols);
    let opened = false;
    socket.onopen = () => {
      opened = true;
      if (turns.size) $("turns").append(note("— a new conversation: the model knows nothing of what stands above", "li"));
      rest();
      configure();
      ready();
    };
    socket.onmessage = ({ data }) => handle(JSON.parse(data));
    socket.onclose = async ({ reason }) => {
      opening = answer = null;
      $("stop").disabled = !playing;
      release();
      const why = opened ? `closed: ${reason || "the connection was lost"}` : await whyRefused();
      fail(why);
      refuse(why);
      failed(new Error(why));
    };
  });
  return opening;
}

// A browser does not tell a page why a WebSocket was refused; a request by other means does.
async function whyRefused() {
  try {
    const key = $("key").value;
    const told = await fetch("v1/models", { headers: key ? { authorization: `Bearer ${key}` } : {} });
    if (told.status === 401) return key ? "this key is not the server's" : "the server asks for a key: write it below";
    return told.ok ? "the server took no conversation; try again" : (await told.json()).error.message;
  } catch {
    return "the server cannot be reached";
  }
}

function configure() {
  const free = $("turns-by").value === "free";
  const decoding = { mode: $("mode").value || null, verify: $("verify").value };
  const format = { type: "audio/pcm", rate: microphone?.context.sampleRate ?? RATE };
  const input = { format, transcription: { model: "own" }, turn_detection: free ? { type: "server_vad" } : null };
  send({ type: "session.update", session: { type: "realtime", decoding, audio: { input } } });
}

// -- sound -----------------------------------------------------------------------------------------------------------

async function openSpeaker() {
  if (speaker) return speaker.context.resume();
  const context = new AudioContext({ sampleRate: RATE });
  await context.audioWorklet.addModule("page/worklets.js");
  speaker = new AudioWorkletNode(context, "playback", { outputChannelCount: [1] });
  speaker.connect(context.destination);
  speaker.port.onmessage = ({ data }) => {
    if (data.began && playing) $("first").textContent = `${Math.round(performance.now() - playing.asked)} ms`;
    if (data.gap) $("gap").textContent = `${Math.round(1000 * data.gap)} ms`;
    if (data.finished) { playing = null; rest(); $("stop").disabled = !answer; }
    if (data.cleared && playing) {  // the server gets what was really played
      send({ type: "conversation.item.truncate", event_id: "interrupt", item_id: playing.id, content_index: 0,
             audio_end_ms: Math.floor(1000 * data.played / RATE) });
      playing.element.append(note("— interrupted"));
      playing = null;
    }
  };
}

async function openMicrophone() {
  if (microphone) return microphone.context.resume();
  if (!navigator.mediaDevices) throw new Error("a browser gives the microphone on localhost or over https alone");
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
  });
  const context = new AudioContext();
  await context.audioWorklet.addModule("page/worklets.js");
  microphone = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  context.createMediaStreamSource(stream).connect(microphone);
  microphone.port.onmessage = ({ data }) => {
    $("level").style.transform = `scaleY(${talking ? Math.min(1, 6 * Math.hypot(...data) / Math.sqrt(data.length)) : 0})`;
    if (!talking) return;
    heard += data.length;
    send({ type: "input_audio_buffer.append", event_id: "append", audio: base64(data) });
  };
  configure();
}

function base64(wave) {
  const samples = new Int16Array(wave.length);
  for (let i = 0; i < wave.length; i++) samples[i] = 32767 * Math.max(-1, Math.min(1, wave[i]));
  return btoa(String.fromCharCode(...new Uint8Array(samples.buffer)));
}

function wave(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (sample) => sample / 32768);
}

// -- what is shown ---------------------------------------------------------------------------------------------------

function turn(id, role) {
  if (turns.has(id)) return turns.get(id);
  const element = document.createElement("li");
  element.className = `turn ${role}`;
  const who = document.createElement("span");
  who.className = "who";
  who.textContent = role === "user" ? "You" : "Model";
  const text = document.createElement("span");
  text.className = "text";
  element.append(who, text);
  $("turns").append(element);
  element.scrollIntoView({ block: "end" });
  turns.set(id, element);
  return element;
}

function note(text, kind = "span") {
  const element = document.createElement(kind);
  element.className = "cut";
  element.textContent = ` ${text}`;
  return element;
}

function writer(number) { return number ? `head ${number - 1}` : "backbone"; }

function addText(element, text, writers) {
  const piece = document.createElement("span");
  piece.className = `w${Math.min(writers?.[0] ?? 0, 10)}`;
  piece.title = [...new Set(writers ?? [0])].map(writer).join(", ");
  piece.textContent = text;
  element.querySelector(".text").append(piece);
}

function addCodes(element, writers) {
  let bars = element.querySelector(".codes");
  if (!bars) {
    bars = document.createElement("div");
    bars.className = "codes";
    bars.setAttribute("aria-hidden", "true");
    element.append(bars);
  }
  for (const number of writers) {
    const bar = document.createElement("i");
    bar.className = `w${Math.min(number, 10)}`;
    bar.title = writer(number);
    bars.append(bar);
  }
}

// -- events of the server --------------------------------------------------------------------------------------------

const handlers = {
  "session.created": ({ session }) => { $("model").textContent = session.model; },
  "input_audio_buffer.speech_started": () => { trouble = ""; clearSound(); state("listening"); },
  "input_audio_buffer.committed": ({ item_id }) => { turn(item_id, "user"); },
  "conversation.item.added": ({ item }) => {
    if (item.role !== "user") return;
    const written = item.content.map((part) => part.text ?? "").join("");
    const element = turn(item.id, "user");
    if (written) element.querySelector(".text").textContent = written;
  },
  "conversation.item.input_audio_transcription.delta": (event) => {
    addText(turn(event.item_id, "user"), event.delta, event.writers);
  },
  "response.output_item.added": ({ item }) => {
    answer = { id: item.id, element: turn(item.id, "assistant"), asked: performance.now() };
    $("stop").disabled = false;
    $("gap").textContent = "0 ms";
    state("answering");
  },
  "response.output_audio_transcript.delta": (event) => addText(turn(event.item_id, "assistant"), event.delta, event.writers),
  "response.output_text.delta": (event) => addText(turn(event.item_id, "assistant"), event.delta, event.writers),
  "vita_audio_pl.codes": (event) => addCodes(turn(event.item_id, "assistant"), event.writers),
  "response.output_audio.delta": (event) => {
    if (answer?.id !== event.item_id) return;
    playing = answer;
    speaker?.port.postMessage({ wave: wave(event.delta) });
  },
  "response.done": ({ response }) => {
    const { backbone_passes: passes, drafted, accepted } = response.decoding ?? {};
    if (passes) $("passes").textContent = `${passes} for ${response.usage.output_tokens} tokens`;
    const sum = (numbers) => (numbers ?? []).reduce((a, b) => a + b, 0);
    $("kept").textContent = sum(drafted) ? `${Math.round(100 * sum(accepted) / sum(drafted))} %` : "–";
    speaker?.port.postMessage({ ended: true });
    if (!playing) rest();
    if (response.status === "failed") fail(response.status_details.error.message);
    answer = null;
    $("stop").disabled = !playing;
  },
  error: ({ error }) => {
    if (error.event_id === "interrupt") return;  // the answer had ended by itself
    if (error.event_id === "append" && hold()) release();  // the turn is lost, and what would follow is none
    fail(error.message);
    refuse(error.message, error.event_id);
  },
};

function handle(event) {
  handlers[event.type]?.(event);
  for (const [id, { taken, resolve }] of waiting) if (taken(event)) {
    waiting.delete(id);
    resolve(event);
    return;
  }
}

function clearSound() { if (playing) speaker.port.postMessage({ clear: true }); }

function interrupt() {
  if (answer) send({ type: "response.cancel", event_id: "interrupt" });
  clearSound();
  $("stop").disabled = true;
}

// -- what people do --------------------------------------------------------------------------------------------------

async function begin() {
  if (talking || beginning) return;
  beginning = true;
  trouble = "";
  try {
    await Promise.all([openSpeaker(), openMicrophone(), connect()]);
  } catch (error) {
    fail(error.message);
    return;
  } finally {
    beginning = false;
  }
  if (hold() && !held) { fail(TOO_SHORT); return; }  // let go while the browser asked for the microphone
  if (hold()) { interrupt(); send({ type: "input_audio_buffer.clear" }); }
  talking = true;
  heard = 0;
  $("talk").setAttribute("aria-pressed", "true");
  state("listening");
}

function release() {
  talking = held = false;
  $("talk").setAttribute("aria-pressed", "false");
}

async function end() {
  const spoke = talking;
  release();
  if (!spoke) return;
  rest();
  if (!hold()) return;
  if (heard < LEAST * microphone.context.sampleRate) {
    send({ type: "input_audio_buffer.clear" });
    fail(TOO_SHORT);
    return;
  }
  try {
    await ask({ type: "input_audio_buffer.commit" }, ({ type }) => type === "input_audio_buffer.committed");
  } catch {
    return;  // it is shown why
  }
  send({ type: "response.create" });
}

const hold = () => $("turns-by").value === "hold";
$("talk").addEventListener("pointerdown", () => { held = true; if (hold()) begin(); });
for (const kind of ["pointerup", "pointercancel", "pointerleave"]) $("talk").addEventListener(kind, () => hold() && end());
$("talk").addEventListener("click", () => { if (!hold()) talking ? end() : begin(); });
// Space talks from anywhere but where it means something else; Enter does so on the button
const talks = ({ code, target }) => target === $("talk") ? ["Space", "Enter"].includes(code)
  : code === "Space" && !["INPUT", "SELECT", "BUTTON"].includes(target.tagName);
document.addEventListener("keydown", (event) => {
  if (event.code === "Escape") interrupt();
  if (!talks(event) || !hold()) return;
  event.preventDefault();
  if (event.repeat) return;
  held = true;
  begin();
});
document.addEventListener("keyup", (event) => { if (talks(event) && hold()) { event.preventDefault(); end(); } });
$("stop").addEventListener("click", interrupt);
$("write").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = $("text"), text = field.value.trim();
  if (!text || field.readOnly) return;
  field.readOnly = true;  // until the server has taken it
  trouble = "";
  try {
    await Promise.all([openSpeaker(), connect()]);
    interrupt();
    const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
    await ask({ type: "conversation.item.create", item },
              ({ type, item }) => type === "conversation.item.added" && item.content[0]?.type === "input_text");
  } catch (error) {
    fail(error.message);
    return;
  } finally {
    field.readOnly = false;
  }
  field.value = "";
  send({ type: "response.create" });
});
$("unlock").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["mode", "verify", "turns-by"]) $(id).addEventListener("change", () => {
  $("talk-label").textContent = hold() ? "Hold to talk" : "Speak freely";
  if (talking) end();
  configure();
});
