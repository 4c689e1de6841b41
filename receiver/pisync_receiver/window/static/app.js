"use strict";
// Small comforts; every page reads and every act works without this file.
(() => {
  const language = document.documentElement.lang || "en";
  const exact = new Intl.DateTimeFormat(language, {dateStyle: "full", timeStyle: "long"});

  // The exact moment in the viewer's zone; the page says it in UTC.
  function placeTimes(root) {
    for (const element of root.querySelectorAll("time[datetime]:not([data-placed])")) {
      const moment = new Date(element.dateTime);
      if (!isNaN(moment)) element.title = exact.format(moment) + "\n" + element.title;
      element.dataset.placed = "";
    }
  }

  // Charts: the table is the data, the plot is a picture of it.
  const drawn = new Set();

  function colours(wanted) {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return {
      axis: of("--muted"), grid: of("--edge"),
      series: (wanted || "accent silent new well failing retired").split(" ").map((name) => of("--" + name)),
    };
  }

  function read(table) {
    const rows = [...table.tBodies[0].rows];
    const names = [...table.tHead.rows[0].cells].slice(1).map((cell) => cell.textContent);
    const days = rows.map((row) => Date.parse(row.cells[0].textContent) / 1000);
    const series = names.map((_, at) => rows.map((row) => {
      const value = row.cells[at + 1].dataset.v;
      return value === "" ? null : Number(value);
    }));
    return {names, days, series};
  }

  function draw(figure) {
    const table = figure.querySelector("details table"), place = figure.querySelector(".plot");
    if (!table || !place || !window.uPlot || place.clientWidth === 0) return;
    const {names, days, series} = read(table);
    if (days.length < 2 || days.some(isNaN)) return;
    const {axis, grid, series: palette} = colours(figure.dataset.colours);
    const bars = figure.dataset.chart === "bars";
    const day = new Intl.DateTimeFormat(language, {day: "numeric", month: "short", timeZone: "UTC"});
    const axes = {stroke: axis, grid: {stroke: grid, width: 1}, ticks: {stroke: grid, width: 1}};
    const lines = names.map((name, at) => {
      const colour = palette[at % palette.length];
      return {
        label: name, stroke: colour, width: bars ? 0 : 2, fill: bars ? colour : undefined, spanGaps: false,
        points: {show: !bars}, paths: bars ? uPlot.paths.bars({size: [0.7, 40]}) : undefined,
      };
    });
    const values = bars ? stack(series) : series;
    if (bars) { lines.reverse(); values.reverse(); }  // the tallest first: the others stand before it
    place.replaceChildren();
    new uPlot({
      width: place.clientWidth, height: 200, tzDate: (s) => uPlot.tzDate(new Date(s * 1e3), "UTC"),
      legend: {show: bars || names.length > 1, live: false}, cursor: {show: false}, padding: [8, 16, 0, 0],
      scales: {x: {range: (_, low, high) => [low - 43200, high + 43200]}, y: {range: (_, __, high) => [0, high * 1.08 || 1]}},
      axes: [
        {...axes, incrs: [1, 2, 4, 7, 14, 28].map((days) => days * 86400), values: (_, splits) => splits.map((s) => day.format(new Date(s * 1e3)))},
        {...axes, size: 60, label: figure.dataset.unit || undefined, labelSize: 18},
      ],
      series: [{}, ...lines],
    }, [days, ...values], place);
    figure.querySelector("details")?.removeAttribute("open");
    drawn.add(figure);
  }

  // Bars stand on each other: each series becomes the sum of itself and all before it.
  function stack(series) {
    const sums = new Array(series[0]?.length || 0).fill(0);
    return series.map((values) => values.map((value, at) => (sums[at] += value || 0)));
  }

  function drawAll(root) {
    for (const figure of root.querySelectorAll("figure.chart")) if (!drawn.has(figure)) draw(figure);
  }

  function redraw() {
    for (const figure of drawn) if (figure.isConnected) draw(figure); else drawn.delete(figure);
  }

  // Live parts.
  const offline = () => document.getElementById("offline");
  const tags = new WeakMap();

  document.addEventListener("htmx:config:request", (event) => {
    if (document.hidden && event.detail.ctx.sourceEvent?.type === "every") event.preventDefault();
  });
  document.addEventListener("htmx:before:response", (event) => {
    const {ctx} = event.detail, {raw} = ctx.response, tag = raw.headers.get("etag");
    if (raw.redirected || raw.status === 401 || raw.status === 403) return void location.reload();
    if (offline()) offline().hidden = raw.ok;
    // What has not changed is not put into the page again: a reader's selection and open details stay.
    if (!raw.ok || (tag && tags.get(ctx.sourceElement) === tag)) return event.preventDefault();
    tags.set(ctx.sourceElement, tag);
  });
  document.addEventListener("htmx:error", (event) => {
    if (event.detail.ctx && offline()) offline().hidden = false;
  });
  document.addEventListener("htmx:after:swap", () => { placeTimes(document); drawAll(document); });

  let resized;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(redraw, 200); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.addEventListener("click", (event) => { if (event.target.closest("[data-print]")) print(); });

  for (const button of document.querySelectorAll("[data-print]")) button.hidden = false;

  // A button that is pressed again while its form is on the way would act twice.
  let pressed = {};
  document.addEventListener("submit", (event) => {
    const {submitter, timeStamp} = event;
    if (event.target.method !== "post") return;
    if (submitter === pressed.submitter && timeStamp - pressed.at < 10000) event.preventDefault();
    else pressed = {submitter, at: timeStamp};
  });

  // The next step of a long act: after a moment in which a person can read what was done.
  const next = document.querySelector("form[data-continue]");
  if (next) setTimeout(() => next.requestSubmit(), 500);

  placeTimes(document);
  drawAll(document);
})();
