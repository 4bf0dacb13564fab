// Reads /v1/step/trace-events and draws it. What models, clients and operators wrote is set as text
// only, never as HTML.
"use strict";

const EVENTS = "v1/step/trace-events";
const KEY = "step-api-key";
const SILENT_MS = 30000; // The server is never as silent as that.
const STATES = {
  waiting: "waiting",
  running: "running",
  finished: "finished",
  pruned: "pruned",
  decided: "ended by the decision",
  over_budget: "over budget",
  cut_off: "cut off",
  failed: "failed",
};
const CALLS = {
  running: "running",
  finished: "all traces ended",
  decided: "decided",
  over_budget: "over budget",
  cut_off: "client has gone",
  failed: "failed",
};
const WHY = {
  unbeatable: "no other answer can win any more",
  likely: "no other answer is likely to win",
  seconds: "its time is over",
  tokens: "its tokens are spent",
};

const part = (id) => document.getElementById(id);
const cards = new Map(); // The number of a call to its card.
let clockOffset = 0; // Seconds that the server's clock is ahead of ours.

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function percent(share) {
  return `${Math.round(100 * share)}%`;
}

function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function child(parent, kind, name) {
  const element = document.createElement(kind);
  element.className = name;
  parent.append(element);
  return element;
}

/** One call on the page. */
class Card {
  constructor(number) {
    this.root = part("call").content.cloneNode(true).firstElementChild;
    this.root.id = `call-${number}`;
    this.traces = [];
    this.answers = [];
    for (const name of ["h3", ".state", ".id", ".verdict", ".numbers"]) {
      this[name] = this.root.querySelector(name);
    }
    setText(this.h3, `Call ${number}`);
  }

  draw(call) {
    this.call = call;
    this.root.dataset.state = call.state;
    setText(this[".state"], CALLS[call.state]);
    setText(this[".id"], call.id);
    this[".id"].title = `The response's id: ${call.id}`;
    setText(this[".verdict"], verdict(call));
    this.drawAnswers(call);
    this.drawTraces(call);
    this.drawNumbers();
  }

  drawNumbers() {
    const { traces, seconds, began } = this.call;
    const number = (state) => traces.states.filter((other) => other === state).length;
    const tokens = traces.tokens.reduce((sum, own) => sum + own, 0);
    const past = seconds ?? Math.max(0, Date.now() / 1000 + clockOffset - began);
    const all = traces.states.length;
    const parts = [`${past.toFixed(1)} s`, `${number("finished")} of ${all} traces finished`];
    for (const state of ["running", "waiting", "pruned"]) {
      if (number(state) > 0) parts.push(`${number(state)} ${state}`);
    }
    parts.push(count(tokens, "token", "tokens"));
    setText(this[".numbers"], parts.join(" · "));
  }

  drawAnswers(call) {
    const list = this.root.querySelector(".answers");
    while (this.answers.length > call.answers.length) this.answers.pop().row.remove();
    call.answers.forEach((group, place) => {
      if (place === this.answers.length) {
        const row = child(list, "li", "");
        const answer = child(row, "span", "answer");
        const bar = child(child(row, "span", "meter"), "span", "");
        const share = child(row, "span", "percent");
        this.answers.push({ row, answer, bar, share, traces: child(row, "span", "count") });
      }
      const shown = this.answers[place];
      setText(shown.answer, group.answer);
      shown.answer.title = group.answer;
      shown.bar.style.width = percent(group.share);
      setText(shown.share, percent(group.share));
      setText(shown.traces, count(group.traces, "trace", "traces"));
    });
  }

  drawTraces(call) {
    const list = this.root.querySelector(".traces");
    const { states, tokens, scores, gave } = call.traces;
    const longest = Math.max(1, ...tokens);
    list.classList.toggle("answered", states.includes("finished"));
    states.forEach((state, number) => {
      if (number === this.traces.length) {
        const row = child(list, "li", "");
        child(row, "span", "sign");
        const bar = child(child(row, "span", "track"), "span", "bar");
        this.traces.push({ row, bar, gave: child(row, "span", "gave") });
      }
      const { row, bar, gave: answer } = this.traces[number];
      const score = scores[number];
      row.dataset.state = state;
      row.classList.toggle("best", number === call.best);
      const length = (100 * tokens[number]) / longest;
      bar.style.width = length > 0 ? `${Math.max(2, length)}%` : "0";
      bar.classList.toggle("low", score !== null && score < 0.5);
      bar.classList.toggle("high", score !== null && score >= 0.5);
      if (score !== null) {
        bar.style.setProperty("--part", `${200 * (score < 0.5 ? score : score - 0.5)}%`);
      }
      setText(answer, answerOf(call, gave[number], state, number));
      const told = [
        `Trace ${number}: ${STATES[state]}`,
        count(tokens[number], "token", "tokens"),
        score === null ? "no score yet" : `score ${score.toFixed(2)}`,
      ];
      if (answer.textContent) told.push(`answer ${answer.textContent}`);
      const title = told.join(", ");
      if (row.title !== title) {
        row.title = title;
        row.ariaLabel = title;
      }
    });
  }
}

function answerOf(call, place, state, number) {
  if (place === null) return state === "finished" ? "none" : "";
  const text = place < 0 ? "another" : call.answers[place].answer;
  return number === call.best ? `${text} ★` : text;
}

function verdict(call) {
  const lead = call.answers[0];
  const why = call.why in WHY ? `: ${WHY[call.why]}` : "";
  if (call.state === "cut_off") return "The client has gone away";
  if (call.state === "failed") return "Failed: the client has the reason";
  if (call.state !== "running") {
    const closed = call.state === "finished" ? "" : ` (${CALLS[call.state]}${why})`;
    if (call.answer === null) return `No trace gave an answer${closed}`;
    return `Answer ${call.answer} with ${percent(call.share)}${closed}`;
  }
  if (call.closed !== null) return `${CALLS[call.closed]}${why}`;
  return lead === undefined ? "No answer yet" : `${lead.answer} leads with ${percent(lead.share)}`;
}

function draw(event) {
  clockOffset = event.now - Date.now() / 1000;
  for (const call of event.calls) {
    if (!cards.has(call.number)) cards.set(call.number, new Card(call.number));
    cards.get(call.number).draw(call);
  }
  for (const [number, card] of cards) {
    if (!event.order.includes(number)) {
      card.root.remove();
      cards.delete(number);
    }
  }
  const shown = event.order.map((number) => cards.get(number));
  const running = shown.filter((card) => card.call.state === "running");
  place(part("running"), running);
  place(part("ended"), shown.filter((card) => card.call.state !== "running"));
  part("ended-part").hidden = running.length === shown.length;
  part("none").hidden = running.length > 0;
  const more = event.running - running.length;
  part("more").hidden = more <= 0;
  setText(part("more"), `${more} more running`);
  drawServer(event.server, event.running);
}

/** Put cards into a part of the page, in order; those that are in their place are not touched. */
function place(container, wanted) {
  wanted.forEach((card, index) => {
    const there = container.children[index];
    if (there !== card.root) container.insertBefore(card.root, there ?? null);
  });
}

function drawServer(server, running) {
  setText(part("voted"), server.voted);
  setText(part("model"), `votes by ${server.model}`);
  document.title = `${running > 0 ? `(${running}) ` : ""}${server.voted}`;
  setText(part("calls-running"), String(running));
  setText(part("requests-running"), String(server.running ?? "–"));
  setText(part("requests-waiting"), String(server.waiting ?? "–"));
  setText(part("kv-use"), server.kv_use === undefined ? "–" : percent(server.kv_use));
  part("kv-bar").style.width = percent(server.kv_use ?? 0);
  const notes = [];
  if (!server.scored) notes.push("This server scores no traces: their bars have no colour.");
  if (server.servers > 1) {
    notes.push(
      `This is one of ${server.servers} API servers: calls to the others are not shown. ` +
        "With --api-server-count 1 all are.",
    );
  }
  note(notes.join(" "));
}

function note(text) {
  part("notice").hidden = text === "";
  setText(part("notice"), text);
}

function say(state, text) {
  part("line").dataset.state = state;
  setText(part("line"), text);
}

/** Yield the data of server-sent events, as they come. */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const lines = event.split("\n").filter((line) => line.startsWith("data: "));
      yield lines.map((line) => line.slice(6)).join("\n");
    }
  }
}

/** Read until the line breaks. Returns what to say of that. */
async function read() {
  const key = sessionStorage.getItem(KEY);
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  const stop = new AbortController();
  let alarm = setTimeout(() => stop.abort(), SILENT_MS);
  try {
    const response = await fetch(EVENTS, { headers, signal: stop.signal, cache: "no-store" });
    if (response.status === 401) {
      sessionStorage.removeItem(KEY);
      return key === null ? "needs the API key" : "the API key is wrong";
    }
    if (!response.ok) {
      const body = await response.json().catch(() => ({}));
      note(body.error?.message ?? `The server answers ${response.status}.`);
      return "refused";
    }
    part("key-form").hidden = true;
    for (const card of cards.values()) card.root.remove();
    cards.clear(); // A server that has started again counts its calls anew.
    for await (const data of eventsOf(response.body)) {
      clearTimeout(alarm);
      alarm = setTimeout(() => stop.abort(), SILENT_MS);
      say("live", "live");
      if (data !== "") draw(JSON.parse(data));
    }
    return "the server has closed the line";
  } catch (error) {
    if (error instanceof TypeError || error.name === "AbortError") return "no connection";
    throw error;
  } finally {
    clearTimeout(alarm);
  }
}

/** Wait until the user has given a key. */
function askForKey() {
  const form = part("key-form");
  form.hidden = false;
  part("key").focus();
  return new Promise((given) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, part("key").value.trim());
      part("key").value = "";
      given();
    };
  });
}

async function main() {
  for (let wait = 1; ; wait = Math.min(2 * wait, 30)) {
    const began = Date.now();
    const why = await read();
    if (Date.now() - began > 5000) wait = 1;
    if (sessionStorage.getItem(KEY) === null && why.includes("API key")) {
      say("lost", why);
      await askForKey();
      wait = 0.5;
      continue;
    }
    say("lost", `${why}; again in ${wait} s`);
    await new Promise((over) => setTimeout(over, 1000 * wait));
  }
}

setInterval(() => {
  for (const card of cards.values()) {
    const live = part("line").dataset.state === "live";
    if (live && card.call.state === "running") card.drawNumbers();
  }
}, 250);
main();
