"use strict";
// Shows the values under the pointer, or under the arrow keys, in the line below a chart. Without it nothing is lost:
// axes, ticks and the last, lowest and highest values are in the page.
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart);
  const readout = svg.closest("figure").querySelector(".readout");
  const facts = readout.textContent;
  const cursor = svg.querySelector(".cursor");
  const format = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });
  const steps = [...new Set(chart.lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  let place = steps.length - 1;

  const nearest = (points, step) =>
    points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));

  const show = (step) => {
    const left = (100 * (step - chart.x[0])) / (chart.x[1] - chart.x[0]) + "%";
    cursor.setAttribute("x1", left);
    cursor.setAttribute("x2", left);
    cursor.classList.add("on");
    const values = chart.lines.map((line) => {
      const [at, value] = nearest(line.points, step);
      return line.name + " " + format.format(value) + (at === step ? "" : " (step " + format.format(at) + ")");
    });
    readout.textContent = "Step " + format.format(step) + ": " + values.join(", ");
  };

  const hide = () => {
    cursor.classList.remove("on");
    readout.textContent = facts;
  };

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const fraction = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = chart.x[0] + fraction * (chart.x[1] - chart.x[0]);
    place = steps.indexOf(nearest(steps.map((value) => [value]), step)[0]);
    show(steps[place]);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    place = Math.min(steps.length - 1, Math.max(0, place + move));
    show(steps[place]);
  });
}
