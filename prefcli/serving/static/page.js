// The page of `prefcli serve`: a form, a request, and what the server answered.
// Texts of users and of the server become text nodes only (`element`, `textContent`), never markup.

import { EXAMPLES } from "./examples.js";

const MAX_ANSWERS = 10;
const MAX_STATISTICS = 10;
// Of errors whose hints by the server are for programs.
const HINTS = {
  0: "It may have been stopped: start it again with prefcli serve. Your texts are still here.",
  401: "Enter the token that the server was started with.",
  413: "Shorten the texts, or start the server with a larger --max-body-mb.",
};
const number = new Intl.NumberFormat("en");
const byId = (id) => document.getElementById(id);
const letter = (index) => String.fromCharCode(65 + index);

let pending = null; // the AbortController of the requests in progress
let model = null; // what /v1/model answered

class Problem extends Error {
  constructor(status, message, hint) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

// Strings among the children become text.
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// The form: one block for each turn, with the prompt and a text area for each answer.

const turnBlocks = () => [...byId("turns").children];
const areas = (block) => [...block.querySelectorAll("textarea")];
const answerCount = () => areas(turnBlocks()[0]).length - 1;

function field() {
  const area = element("textarea", { dir: "auto", spellcheck: "false", rows: 8 });
  return element("div", { class: "field" }, element("label", {}, element("span"), area));
}

function addTurn(count = answerCount()) {
  const answers = element("div", { class: "answers" }, ...Array.from({ length: count }, field));
  byId("turns").append(element("fieldset", {}, element("legend"), field(), answers));
  relabel();
}

function addAnswer() {
  for (const block of turnBlocks()) block.querySelector(".answers").append(field());
  relabel();
}

function removeAnswer(index) {
  for (const block of turnBlocks()) block.querySelectorAll(".answers .field")[index].remove();
  relabel();
  byId(answerCount() < MAX_ANSWERS ? "add-answer" : "compare").focus();
}

function relabel() {
  const several = turnBlocks().length > 1;
  const count = answerCount();
  turnBlocks().forEach((block, turn) => {
    const legend = block.querySelector("legend");
    legend.textContent = `Turn ${turn + 1}`;
    legend.hidden = !several;
    block.querySelectorAll(".field").forEach((box, index) => {
      const what = index ? `Answer ${letter(index - 1)}` : "Prompt";
      box.querySelector("span").textContent = several ? `${what}, turn ${turn + 1}` : what;
      box.querySelector("textarea").rows = index ? 8 : 3;
      box.querySelector("button")?.remove();
      if (index && !turn && count > 2) {
        const remove = element("button", { type: "button", class: "small" }, `Remove answer ${letter(index - 1)}`);
        remove.addEventListener("click", () => {
          removeAnswer(index - 1);
          changed();
        });
        box.append(remove);
      }
    });
  });
  byId("add-answer").hidden = count >= MAX_ANSWERS;
  byId("remove-turn").hidden = !several;
  byId("compare").textContent = count > 2 ? "Rank" : "Compare";
}

function fill({ prompts, answers }) {
  cancel();
  byId("turns").replaceChildren();
  prompts.forEach((prompt, turn) => {
    addTurn(answers.length);
    const [first, ...others] = areas(turnBlocks()[turn]);
    first.value = prompt;
    others.forEach((area, index) => (area.value = answers[index][turn]));
  });
  showResult();
  say("");
}

// One text where there is one turn, else a list of them.
function conversation() {
  const texts = turnBlocks().map((block) => areas(block).map((area) => area.value));
  const [prompt, ...responses] = texts[0].map((_, index) => texts.map((turn) => turn[index]));
  const plain = (turns) => (turns.length > 1 ? turns : turns[0]);
  return { prompt: plain(prompt), responses: responses.map(plain) };
}

// Requests

async function ask(path, body, signal) {
  const token = byId("token").value.trim();
  if (/[^\x21-\x7e]/.test(token)) throw new Problem(401, "a token has no spaces and no letters beyond ASCII");
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  const request = { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" };
  let response, answer;
  try {
    response = await fetch(path, request);
    answer = await response.text();
  } catch (error) {
    throw signal?.aborted ? error : new Problem(0, "the server does not answer");
  }
  try {
    answer = JSON.parse(answer);
  } catch {
    throw new Problem(response.status, `the server answered with status ${response.status} and no JSON`);
  }
  if (response.ok) return answer;
  const what = response.status === 401 && token ? "this is not the server's token" : answer.error;
  throw new Problem(response.status, what ?? `the server answered with status ${response.status}`, answer.hint);
}

const compareBody = (prompt, a, b) => ({ prompt, response_a: a, response_b: b, details: true });

// Two answers are compared. More are ranked, and the best is compared with each of the others.
async function answers({ prompt, responses }, signal) {
  if (responses.length === 2) {
    const body = compareBody(prompt, ...responses);
    const comparison = await ask("v1/compare", body, signal);
    return { path: "v1/compare", body, comparison };
  }
  const body = { prompt, responses };
  const ranked = await ask("v1/rank", body, signal);
  const [best, ...others] = ranked.ranking;
  const pairs = await Promise.all(
    others.map(async (other) => {
      const comparison = await ask("v1/compare", compareBody(prompt, responses[best], responses[other]), signal);
      return { names: [letter(best), letter(other)], comparison };
    }),
  );
  return { path: "v1/rank", body, ranked, pairs };
}

async function submit() {
  cancel();
  const controller = (pending = new AbortController());
  setPending(true);
  try {
    const asked = conversation();
    const answer = await answers(asked, controller.signal);
    showResult(answer);
    if (JSON.stringify(conversation()) !== JSON.stringify(asked)) changed();
    if (!model) describe();
  } catch (error) {
    if (pending === controller) complain(error);
  } finally {
    if (pending === controller) setPending(false);
  }
}

function cancel() {
  if (!pending) return;
  pending.abort();
  setPending(false);
  say("Cancelled.");
}

function setPending(yes) {
  if (!yes) pending = null;
  if (!yes && document.activeElement === byId("cancel")) byId("compare").focus();
  byId("cancel").hidden = !yes;
  byId("result").classList.toggle("stale", yes);
  if (yes) say("Waiting for the answer …");
}

// What is also a heading is for screen readers only.
function say(text, isHeading = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("unseen", isHeading);
  byId("problem").replaceChildren();
}

function complain(error) {
  say("");
  if (!(error instanceof Problem)) error.hint = "This is a fault of the page.";
  const hint = HINTS[error.status] ?? error.hint ?? "";
  byId("problem").append(element("p", { class: "caution" }, `Error: ${error.message}`), element("p", {}, hint));
  if (error.status === 401) {
    byId("token-field").hidden = false;
    byId("token").focus();
  }
}

async function describe() {
  try {
    model = await ask("v1/model");
    const { body_bytes: bytes, seconds } = model.limits;
    byId("model").textContent = `Answered by ${model.runs.join(", ")} (${model.architecture}).`;
    byId("limits").textContent =
      `Limits: texts of ${number.format(bytes / 2 ** 20)} MiB together, ${seconds} seconds. ` +
      "Requests that would have to wait behind too many others are refused.";
  } catch (error) {
    complain(error);
  }
}

// Results

function percent(share) {
  if (share === 0 || share === 1) return `${share * 100}%`;
  if (share < 0.001) return "<0.1%";
  if (share > 0.999) return ">99.9%";
  return `${(share * 100).toFixed(1)}%`;
}

const outcomes = (comparison) => [comparison.winner_model_a, comparison.winner_model_b, comparison.winner_tie];

function bar(label, share, style) {
  const fill = element("span", { class: `bar ${style}` });
  fill.style.width = `${share * 100}%`;
  const track = element("span", { class: "track", "aria-hidden": "true" }, fill);
  const value = element("span", { class: "value" }, percent(share));
  return element("li", {}, element("span", { class: "label" }, label), track, value);
}

// A cell may be a list: a value for two columns.
function table(caption, columns, rows) {
  const cell = (content, index) => {
    if (Array.isArray(content)) return element("td", { colspan: 2, class: "both" }, ...content);
    return element(index ? "td" : "th", index ? {} : { scope: "row" }, content);
  };
  const head = element("tr", {}, ...columns.map((column) => element("th", { scope: "col" }, column)));
  const body = rows.map((row) => element("tr", {}, ...row.map(cell)));
  const parts = [element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body)];
  const box = { class: "scroll", role: "region", "aria-label": caption, tabindex: 0 };
  return element("div", box, element("table", {}, ...parts));
}

function verdictTitle({ verdict }, [a, b]) {
  if (verdict === "A" || verdict === "B") return `Answer ${verdict === "A" ? a : b} is preferred`;
  return verdict === "tie" ? "Probably a tie" : "Too close to call";
}

function whyTooClose(comparison) {
  if (comparison.verdict !== "too close to call") return [];
  const [first, second] = outcomes(comparison).sort((one, other) => other - one);
  const lead = `The most likely outcome is only ${((first - second) * 100).toFixed(1)} points ahead of the next.`;
  return [element("p", { class: "note" }, comparison.orders_agree ? lead : "It depends on the order of the answers.")];
}

const rankTitle = ({ ranking }) => `Answer ${letter(ranking[0])} is most likely the best`;

// How often the run was right when it was as certain.
function record({ record: known }) {
  if (!known) return [];
  const [low, high] = known.ci.map(percent);
  const share = `${percent(known.right)} (95% interval: ${low} to ${high})`;
  const battles = `${number.format(known.battles)} held-out battles with such a lead`;
  return [element("p", { class: "note" }, `Of ${battles}, ${share} ended as the run found most likely.`)];
}

function judgement(comparison, [a, b]) {
  const [left, right, tie] = outcomes(comparison);
  const bars = [
    bar(`answer ${a} preferred`, left, "a"),
    bar(`answer ${b} preferred`, right, "b"),
    bar("a tie", tie, "tie"),
  ];
  const parts = [...whyTooClose(comparison), element("ul", { class: "plot" }, ...bars), ...record(comparison)];
  if (!comparison.rewards) return parts;
  const [first, second] = comparison.rewards.map((reward) => reward.toFixed(4));
  return [...parts, element("p", { class: "note" }, `Rewards: ${a} ${first}, ${b} ${second}.`)];
}

function orderEffect({ orders, orders_agree: agree }, [a, b]) {
  const [given, swapped] = orders;
  const title = element("h3", {}, "Order of the answers");
  if (given.every((share, index) => Math.abs(share - swapped[index]) < 1e-6))
    return [title, element("p", {}, "It does not matter: the probabilities are the same with the answers swapped.")];
  const style = agree ? {} : { class: "caution" };
  const sentence = agree ? "Both orders agree on what is preferred." : "The order changes the preference.";
  const rows = [
    [`${a} first, ${b} second`, ...given.map(percent)],
    [`${b} first, ${a} second`, ...swapped.map(percent)],
  ];
  const columns = ["shown", `${a} preferred`, `${b} preferred`, "tie"];
  return [title, element("p", style, sentence), table("Probabilities by order", columns, rows)];
}

function cutSentences(pairs) {
  const sentences = pairs.flatMap(({ names: [a, b], comparison }) =>
    comparison.cuts.map(({ run, field, tokens, kept }) => {
      const name = { prompt: "Of the prompt", response_a: `Of answer ${a}`, response_b: `Of answer ${b}` }[field];
      const counts = `${number.format(kept)} of ${number.format(tokens)} tokens were read`;
      const against = pairs.length > 1 ? ` when ${a} was compared with ${b}` : "";
      const limit = model?.max_tokens[run];
      const why = limit ? `${run} reads ${number.format(limit)} tokens at a time` : `${run} has no room for more`;
      return `${name} ${counts}${against}: ${why}.`;
    }),
  );
  const title = element("h3", {}, "What was read");
  if (!sentences.length) return [title, element("p", {}, "All of it: nothing was cut.")];
  return [title, ...sentences.map((sentence) => element("p", { class: "caution" }, sentence))];
}

function spell(value, unit) {
  if (unit === "yes/no") return value ? "yes" : "no";
  if (unit === "share") return `${(value * 100).toFixed(1)}%`;
  return number.format(Number(value.toPrecision(4)));
}

const moves = (odds, [a, b]) => `${odds < 0 ? b : a} +${Math.abs(odds).toFixed(2)}`;

function contributions({ contributions: all }, names) {
  if (!all.length) return [];
  const [a, b] = names;
  const largest = Math.abs(all[0].log_odds);
  const sum = (some) => some.reduce((total, { log_odds: odds }) => total + odds, 0);
  const rows = all.slice(0, MAX_STATISTICS).map(({ description, unit, a: left, b: right, log_odds: odds }) => {
    const fill = element("span", { class: `bar ${odds < 0 ? "b" : "a"}` });
    fill.style.width = `${(Math.abs(odds) / largest) * 100}%`;
    const track = element("span", { class: "track" }, fill);
    const towards = element("span", { class: "towards" }, moves(odds, names));
    const values = right === null ? [[spell(left, unit)]] : [spell(left, unit), spell(right, unit)];
    return [description, ...values, element("span", { class: "moves" }, track, towards)];
  });
  const others = all.slice(MAX_STATISTICS);
  if (others.length) rows.push([`${others.length} others`, [""], moves(sum(others), names)]);
  rows.push(["together", [""], moves(sum(all), names)]);
  return [
    element("h3", {}, "What moved it"),
    element("p", { class: "note" }, `In log-odds of ${a} against ${b}: 0.69 doubles the odds.`),
    table("Statistics of the answers", ["statistic", `in ${a}`, `in ${b}`, "moves towards"], rows),
  ];
}

function pair({ names, comparison }) {
  const [left, right, tie] = outcomes(comparison).map(percent);
  const [a, b] = names;
  const summary = `${a} against ${b}: ${a} ${left}, ${b} ${right}, tie ${tie}`;
  const parts = [judgement, orderEffect, contributions].flatMap((part) => part(comparison, names));
  return element("details", {}, element("summary", {}, summary), ...parts);
}

function ranking({ ranking: order, scores, p_best: best }, [{ names, comparison }]) {
  const verdict = verdictTitle(comparison, names);
  const bars = order.map((index, place) => bar(`${place + 1}. answer ${letter(index)}`, best[index], "a"));
  const listed = order.map((index) => `${letter(index)} ${scores[index].toFixed(3)}`).join(", ");
  return [
    element("p", {}, `${names.join(" against ")}: ${verdict[0].toLowerCase()}${verdict.slice(1)}.`),
    element("p", { class: "note" }, "How likely each answer is to be the best:"),
    element("ul", { class: "plot" }, ...bars),
    element("p", { class: "note" }, `Scores: ${listed}.`),
  ];
}

// Characters that a terminal or a reader does not show are escaped as JSON allows.
const json = (value, indent) =>
  JSON.stringify(value, null, indent).replace(
    /[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

function curl(path, body) {
  const address = new URL(path, location.href).href;
  const token = byId("token").value ? ' -H "Authorization: Bearer $PREFCLI_TOKEN"' : "";
  return `curl ${address} -H "Content-Type: application/json"${token} --data-binary @- <<'END'\n${json(body)}\nEND`;
}

// Written when it is opened: texts may be long.
function source(title, text) {
  const code = element("pre", { tabindex: 0, role: "region", "aria-label": title });
  const copy = element("button", { type: "button", class: "small" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      copy.textContent = "Selected: press Ctrl+C";
    }
  });
  const details = element("details", {}, element("summary", {}, title), code, copy);
  details.addEventListener("toggle", () => (code.textContent ||= text()));
  return details;
}

function showResult(answer) {
  const result = byId("result");
  result.hidden = !answer;
  result.classList.remove("stale", "changed");
  result.replaceChildren();
  if (!answer) return;
  const { path, body, comparison, ranked, pairs } = answer;
  const names = ["A", "B"];
  const title = ranked ? rankTitle(ranked) : verdictTitle(comparison, names);
  const heading = element("h2", {}, title);
  const stale = element("p", { class: "caution changed" }, "The texts have changed since.");
  const parts = ranked
    ? [
        ...ranking(ranked, pairs),
        ...cutSentences(pairs),
        element("h3", {}, "The best against the others"),
        ...pairs.map(pair),
      ]
    : [
        ...judgement(comparison, names),
        ...orderEffect(comparison, names),
        ...cutSentences([{ names, comparison }]),
        ...contributions(comparison, names),
      ];
  const sources = [
    source("The request as a curl command", () => curl(path, body)),
    source("The answer as JSON", () => json(ranked ?? comparison, 2)),
  ];
  result.append(heading, stale, ...parts, element("h3", {}, "From other programs"), ...sources);
  say(title, true);
  if (heading.getBoundingClientRect().top > innerHeight * 0.7) heading.scrollIntoView();
}

const changed = () => byId("result").classList.add("changed");

// What the user does

for (const example of EXAMPLES) {
  const button = element("button", { type: "button" }, example.name);
  button.addEventListener("click", () => fill(example));
  byId("examples").append(button);
}
const on = (id, event, action) => byId(id).addEventListener(event, action);
on("add-answer", "click", () => {
  addAnswer();
  areas(turnBlocks()[0]).at(-1).focus();
  changed();
});
on("add-turn", "click", () => {
  addTurn();
  areas(turnBlocks().at(-1))[0].focus();
  changed();
});
on("remove-turn", "click", () => {
  turnBlocks().at(-1).remove();
  relabel();
  byId("add-turn").focus();
  changed();
});
on("clear", "click", () => {
  fill({ prompts: [""], answers: [[""], [""]] });
  areas(turnBlocks()[0])[0].focus();
});
on("cancel", "click", cancel);
on("form", "submit", (event) => {
  event.preventDefault();
  submit();
});
on("form", "keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    submit();
  }
});
on("turns", "input", changed);

addTurn(2);
describe();
