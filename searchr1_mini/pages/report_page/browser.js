"use strict";
// What comes from the model or the corpus is read from the JSON element and reaches the page as textContent alone.

const data = JSON.parse(document.getElementById("data").textContent);
const { ids, texts } = data.vocabulary;
const KINDS = ["prompt", "policy", "observation"];
const WRITERS = { prompt: "the prompt", policy: "the policy", observation: "the engine" };
const LETTERS = data.runs.map((_, index) => (data.runs.length > 1 ? String.fromCharCode(65 + index) : ""));
const CARD_TITLE = data.runs.length > 1 ? "h4" : "h3"; // below the title of a run, where there are several
const [step, question, least, most, finish, color, legend, matches, panes, readout] = [
  "step", "question", "least", "most", "finish", "color", "legend", "matches", "panes", "token",
].map((id) => document.getElementById(id));
const tokenOf = new WeakMap(); // element -> what is known of its token

function make(tag, className, text, children = []) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

function option(value, text, isDisabled = false) {
  const element = make("option", "", text);
  element.value = value;
  element.disabled = isDisabled;
  return element;
}

// The rollouts

const isWanted = (rollout) =>
  (least.value === "" || rollout.reward >= Number(least.value)) &&
  (most.value === "" || rollout.reward <= Number(most.value)) &&
  (finish.value === "" || rollout.finish === finish.value);
const groupsAt = (run, number) => run.steps.find((one) => one.step === number)?.groups ?? [];
const mean = (group) => group.rollouts.reduce((sum, rollout) => sum + rollout.reward, 0) / group.rollouts.length;
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : noun.endsWith("ch") ? "es" : "s"}`;

function allSteps() {
  const numbers = new Set(data.runs.flatMap((run) => run.steps.map((one) => one.step)));
  return [...numbers].sort((one, other) => one - other);
}

function questionsAt(number) { // id -> [group of run A or undefined, group of run B or undefined, ..]
  const found = new Map();
  data.runs.forEach((run, index) => {
    for (const group of groupsAt(run, number)) {
      if (!found.has(group.id)) found.set(group.id, data.runs.map(() => undefined));
      found.get(group.id)[index] ??= group;
    }
  });
  return found;
}

// The controls

function fillSteps() {
  const before = step.value;
  const steps = allSteps().map((number) => [number, data.runs.some((run) =>
    groupsAt(run, number).some((group) => group.rollouts.some(isWanted)))]);
  step.replaceChildren(...steps.map(([number, has]) => option(number, has ? `${number}` : `${number} (no match)`, !has)));
  const open = steps.filter(([, has]) => has).map(([number]) => number);
  const inAllRuns = open.filter((number) => data.runs.every((run) => groupsAt(run, number).length > 0));
  const after = open.find((number) => before !== "" && number >= Number(before));
  const wanted = after ?? inAllRuns.at(-1) ?? open.at(-1);
  step.value = wanted ?? "";
  fillQuestions();
}

function fillQuestions() {
  const before = question.value;
  const options = [];
  const found = questionsAt(Number(step.value));
  for (const [id, groups] of found) {
    if (!groups.some((group) => group?.rollouts.some(isWanted))) continue;
    const means = groups.map((group, index) => group && `${LETTERS[index]} ${mean(group).toFixed(2)}`.trim());
    options.push(option(id, `${means.filter(Boolean).join(", ")} · ${groups.find(Boolean).question}`));
  }
  question.replaceChildren(...options);
  const telling = (one) => { // all runs have the question; rewards differ
    const groups = found.get(one.value);
    const differs = groups.some((group) => new Set(group?.rollouts.map((rollout) => rollout.reward)).size > 1);
    return 2 * groups.every(Boolean) + differs;
  };
  const best = Math.max(...options.map(telling));
  const picked = options.find((one) => one.value === before) ?? options.find((one) => telling(one) === best);
  if (picked) question.value = picked.value;
  show();
}

function move(select, by) {
  for (let index = select.selectedIndex + by; index >= 0 && index < select.length; index += by) {
    if (select.options[index].disabled) continue;
    select.selectedIndex = index;
    select.dispatchEvent(new Event("change"));
    return;
  }
}

// The panes, one a run

function show() {
  const groups = questionsAt(Number(step.value)).get(question.value) ?? [];
  const shown = groups.flatMap((group) => group?.rollouts.filter(isWanted) ?? []).length;
  const all = groups.reduce((n, group) => n + (group?.rollouts.length ?? 0), 0);
  matches.textContent = all ? `${shown} of ${plural(all, "rollout")} shown` : "No rollout matches.";
  panes.replaceChildren(...(all ? data.runs.map((run, index) => pane(run, index, groups[index])) : []));
  readout.hidden = true;
  tint();
}

function pane(run, index, group) {
  const element = make("section", "pane");
  if (data.runs.length > 1) element.append(make("h3", "", `${LETTERS[index]}: ${run.name}`));
  if (!group) {
    element.append(make("p", "soft", "This run's sample does not have the question at this step."));
    return element;
  }
  element.append(make("p", "", group.question, [make("br"), make("small", "", `gold: ${group.gold.join(" / ")}`)]));
  if (group.prompt) {
    const tokens = make("div", "tokens", "", [segment(group.prompt, { run, rollout: {} })]);
    element.append(make("details", "", "", [make("summary", "", "The prompt, the same for all"), reachable(tokens, "prompt")]));
  }
  const cards = group.rollouts.map((rollout, n) => isWanted(rollout) && card(run, rollout, n + 1)).filter(Boolean);
  element.append(make("div", "group", "", cards));
  return element;
}

function card(run, rollout, number) {
  const told = [` · reward ${rollout.reward}`];
  if (rollout.advantage !== null) told.push(`advantage ${signed(rollout.advantage)}`);
  told.push(plural(rollout.searches, "search"), `ended by ${rollout.finish}`);
  if (rollout.answer !== null) told.push(`answer: ${rollout.answer}`);
  if (rollout.in_update === false) told.push("not in the update");
  const tokens = make("div", "tokens", "", rollout.segments.map((one) => segment(one, { run, rollout })));
  return make("article", edgeOf(rollout.is_right), "", [make(CARD_TITLE, "", `Rollout ${number}`),
    make("p", "", "", [markOf(rollout.is_right), told.join(" · ")]), reachable(tokens, `rollout ${number}`)]);
}

const edgeOf = (isRight) => `card ${isRight ? "is-right" : "is-wrong"}`;
const markOf = (isRight) => make("strong", isRight ? "right" : "wrong", isRight ? "✓ right" : "✗ wrong");

function reachable(tokens, name) { // one tab stop; arrow keys within, see `onKey`
  tokens.setAttribute("role", "listbox");
  tokens.setAttribute("aria-label", `Tokens of ${name}; arrow keys move`);
  const first = tokens.querySelector(".token");
  if (first) first.tabIndex = 0;
  return tokens;
}

function segment([kind, held, logprobs = [], ratios = [], advantages = []], { run, rollout }) {
  const writer = KINDS[kind];
  const isMasked = writer === "prompt" || (writer === "observation" && run.masks_observations);
  const element = make("span", writer);
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", WRITERS[writer]);
  const tokens = typeof held === "string" ? [[-1, held]] : held.map((number) => [ids[number], texts[number]]);
  element.append(...tokens.map(([id, text], index) => {
    const token = make("span", isMasked || rollout.in_update === false ? "token" : "token trained", text);
    token.setAttribute("role", "option");
    if (!text.trim()) token.setAttribute("aria-label", text ? JSON.stringify(text) : "part of a character");
    token.tabIndex = -1;
    tokenOf.set(token, {
      text, id, writer, isMasked, isUsed: rollout.in_update,
      logprob: known(logprobs[index]), ratio: known(ratios[index]),
      advantage: isMasked ? null : known(advantages[index]) ?? rollout.advantage ?? null,
    });
    return token;
  }));
  return element;
}

const known = (thousandths) => (thousandths === undefined || thousandths === null ? null : thousandths / 1000);

// One token

function tell(token) {
  const of = tokenOf.get(token);
  const told = [JSON.stringify(of.text), `written by ${WRITERS[of.writer]}`];
  if (of.id >= 0) told.splice(1, 0, `id ${of.id}`);
  told.push(of.isMasked ? "mask 0" : of.isUsed === false ? "mask 1, not in the update" : "mask 1");
  if (of.logprob !== null) told.push(`log-prob ${of.logprob.toFixed(3)} (p ${Math.exp(of.logprob).toFixed(3)})`);
  if (!of.isMasked) {
    told.push(of.ratio === null ? "ratio not logged" : `ratio ${of.ratio.toFixed(3)}`);
    told.push(of.advantage === null ? "advantage not logged" : `advantage ${signed(of.advantage, 3)}`);
  }
  readout.textContent = told.join(" · ");
  readout.hidden = false;
}

const TINTS = { // a number -> its strength from -1 to 1
  logprob: (of) => of.logprob !== null && of.logprob / 4,
  ratio: (of) => of.ratio !== null && Math.log(Math.max(of.ratio, 1e-3)) / 0.3,
  advantage: (of) => of.advantage !== null && of.advantage / 1.5,
};
const SCALES = { // what the strengths of the legend stand for
  logprob: [[-1, "−4 and below"], [0, "0"]],
  ratio: [[-1, "0.74 and below"], [0, "1"], [1, "1.35 and above"]],
  advantage: [[-1, "−1.5 and below"], [0, "0"], [1, "+1.5 and above"]],
};

function paint(token, strength) { // below 0 with a line above it too, for those who see no hue
  token.classList.toggle("low", strength <= -0.05);
  token.style.setProperty("--tint", Math.min(Math.abs(strength), 1).toFixed(2));
}

function tint() {
  panes.classList.toggle("tinted", color.value !== "");
  legend.hidden = color.value === "";
  if (color.value === "") return;
  for (const token of panes.querySelectorAll(".token")) paint(token, TINTS[color.value](tokenOf.get(token)) || 0);
  legend.replaceChildren(`${color.selectedOptions[0].text}:`, ...SCALES[color.value].map(([strength, text]) => {
    const sample = make("span", "token", text);
    paint(sample, strength);
    return sample;
  }));
}

function onKey(event) {
  const list = event.target.closest(".token") && event.target.closest(".tokens");
  if (!list) return;
  const tokens = [...list.querySelectorAll(".token")];
  const starts = [...list.children].map((one) => tokens.indexOf(one.firstChild)).filter((index) => index >= 0);
  const here = tokens.indexOf(event.target);
  const there = {
    ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tokens.length - 1,
    ArrowDown: starts.find((start) => start > here), ArrowUp: starts.findLast((start) => start < here),
  }[event.key];
  if (!tokens[there]) return;
  event.preventDefault();
  tokens[there].focus();
}

function beOnlyTabStop(token) { // of its rollout
  for (const other of token.closest(".tokens").querySelectorAll('.token[tabindex="0"]')) other.tabIndex = -1;
  token.tabIndex = 0;
}

for (const name of ["pointerover", "focusin"]) {
  panes.addEventListener(name, (event) => {
    const token = event.target.closest(".token");
    if (token) tell(token);
    if (token && name === "focusin") beOnlyTabStop(token);
  });
}
panes.addEventListener("click", (event) => event.target.closest(".token")?.focus());
panes.addEventListener("keydown", onKey);
for (const button of document.querySelectorAll("button[data-moves]")) {
  button.addEventListener("click", () => move(document.getElementById(button.dataset.moves), Number(button.dataset.by)));
}
finish.addEventListener("change", fillSteps);
for (const control of [least, most]) control.addEventListener("input", fillSteps);
step.addEventListener("change", fillQuestions);
question.addEventListener("change", show);
color.addEventListener("change", tint);
const everyRollout = data.runs.flatMap((run) => run.steps.flatMap((one) => one.groups.flatMap((group) => group.rollouts)));
finish.append(...[...new Set(everyRollout.map((rollout) => rollout.finish))].sort().map((name) => option(name, name)));
const controls = document.getElementById("controls");
controls.hidden = everyRollout.length === 0;
controls.addEventListener("submit", (event) => event.preventDefault());
fillSteps();
