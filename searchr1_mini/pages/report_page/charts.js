
// The charts: the values of a step under the pointer or a finger, and by the arrow keys; without script, of one point

function readable(chart) {
  const at = new Map(); // x -> what is told of the lines' points there
  for (const point of chart.querySelectorAll("circle:has(title)")) {
    const x = Number(point.getAttribute("cx"));
    at.set(x, [...(at.get(x) ?? []), point.textContent]);
  }
  const xs = [...at.keys()].sort((one, other) => one - other);
  const guide = document.createElementNS(chart.namespaceURI, "line"), told = make("output");
  const frame = chart.querySelectorAll(".grid"); // from the lowest to the highest
  for (const [name, value] of Object.entries({ class: "guide", y1: frame[0].getAttribute("y1"),
    y2: frame[frame.length - 1].getAttribute("y1"), visibility: "hidden" })) guide.setAttribute(name, value);
  chart.querySelector("g").prepend(guide);
  chart.parentElement.append(told);
  for (const [name, value] of Object.entries({ role: "slider", tabindex: 0, "aria-valuemin": 0,
    "aria-valuemax": xs.length - 1, "aria-label": chart.querySelector("title").textContent })) chart.setAttribute(name, value);
  let here = xs.length - 1;
  const show = (index) => {
    here = Math.min(Math.max(index, 0), xs.length - 1);
    told.textContent = at.get(xs[here]).join(" · ");
    for (const end of ["x1", "x2"]) guide.setAttribute(end, xs[here]);
    guide.setAttribute("visibility", "visible");
    chart.setAttribute("aria-valuenow", here);
    chart.setAttribute("aria-valuetext", told.textContent);
  };
  const hide = () => { told.textContent = ""; guide.setAttribute("visibility", "hidden"); };
  const follow = (event) => {
    const x = new DOMPoint(event.clientX, 0).matrixTransform(chart.getScreenCTM().inverse()).x;
    show(xs.reduce((best, one, index) => (Math.abs(one - x) < Math.abs(xs[best] - x) ? index : best), 0));
  };
  chart.setAttribute("aria-valuenow", here);
  for (const name of ["pointermove", "pointerdown"]) chart.addEventListener(name, follow);
  for (const name of ["pointerleave", "blur"]) chart.addEventListener(name, hide);
  chart.addEventListener("focus", () => show(here));
  chart.addEventListener("keydown", (event) => {
    const to = { ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1,
      Home: 0, End: xs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
}

document.querySelectorAll("figure svg").forEach(readable);
