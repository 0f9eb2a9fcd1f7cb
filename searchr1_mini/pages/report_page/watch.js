
// Watch it learn: the same questions at every evaluation, with a slider over them

function answerCard({ question: asked, gold, answer, is_right: isRight, segments }) {
  const text = make("div", "tokens", "", segments.map(([kind, said]) => make("span", KINDS[kind], said)));
  const told = `gold: ${gold.join(" / ")} · answer: ${answer ?? "none"} · `;
  return make("article", edgeOf(isRight), "", [
    make(CARD_TITLE, "", asked), make("p", "", told, [markOf(isRight)]), text]);
}

function watchRun(run, index) {
  if (run.watched.length < 2) return null;
  const slider = make("input"), when = make("output"), cards = make("div", "group");
  slider.type = "range";
  slider.max = run.watched.length - 1;
  slider.setAttribute("aria-label", "evaluation");
  const showAt = () => {
    const { when: told, answers } = run.watched[slider.value];
    const nRight = answers.filter((one) => one.is_right).length;
    when.textContent = `${told}: ${nRight} of ${plural(answers.length, "question")} right`;
    slider.setAttribute("aria-valuetext", when.textContent);
    cards.replaceChildren(...answers.map(answerCard));
  };
  slider.addEventListener("input", showAt);
  slider.value = slider.max;
  showAt();
  const name = data.runs.length > 1 ? [make("h3", "", `${LETTERS[index]}: ${run.name}`)] : [];
  return make("section", "pane", "", [...name, make("div", "slider", "", [slider, when]), cards]);
}

const watchedRuns = data.runs.map(watchRun).filter(Boolean);
document.getElementById("watched").append(...watchedRuns);
document.getElementById("watch").hidden = watchedRuns.length === 0;
