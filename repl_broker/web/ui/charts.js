// The three live charts, by uPlot (vendor/). Colours are the stylesheet's.

import { $, latency, rate, say } from "./format.js";

const SPAN_SECONDS = [60, 300]; // at least and at most
const CHARTS = [
  { id: "chart-published", lines: [["published", "--teal"]], format: rate, unit: "messages a second published" },
  { id: "chart-delivered", lines: [["delivered", "--blue"]], format: rate, unit: "messages a second delivered" },
  {
    id: "chart-latency",
    lines: [["most", "--amber"], ["half", "--violet"]],
    format: latency,
    unit: "99th percentile of commit latency",
  },
];

export class Charts {
  #series;
  #plots = [];
  #drawn = 0;

  constructor(series) {
    this.#series = series;
    const redraw = () => this.build();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    this.build();
    new ResizeObserver(() => this.#fit()).observe($("charts"));
  }

  /** Make the plots afresh: colours are fixed once a plot is made. */
  build() {
    for (const { plot } of this.#plots) plot.destroy();
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    this.#plots = CHARTS.map((chart) => {
      const host = $(chart.id);
      const axis = { stroke: colour("--quiet"), font: "11px system-ui, sans-serif", ticks: { show: false } };
      const options = {
        width: host.clientWidth || 300,
        height: host.clientHeight || 140,
        cursor: { y: false, points: { size: 7 } },
        legend: { show: false },
        padding: [8, 6, 0, 0],
        scales: {
          x: { range: (_, least, most) => [most - span(most - least), most] },
          y: { range: (_, least, most) => [0, most > 0 ? most * 1.15 : 1] },
        },
        axes: [
          { ...axis, grid: { show: false }, size: 24, space: 90, incrs: [15, 30, 60, 120, 300], values: (_, at) => at.map(longTime) },
          {
            ...axis,
            grid: { stroke: colour("--line"), width: 1 },
            size: 54,
            space: 34,
            values: (_, at) => at.map((value) => (value === 0 ? "0" : chart.format(value))),
          },
        ],
        series: [
          {},
          ...chart.lines.map(([, name]) => ({
            stroke: colour(name),
            fill: chart.lines.length === 1 ? `${colour(name)}22` : undefined,
            width: 1.75,
            points: { show: false },
          })),
        ],
        hooks: { setCursor: [(plot) => this.#read(chart, plot)] },
      };
      return { chart, plot: new uPlot(options, this.#data(chart), host) };
    });
  }

  /** Draw what the series have now. */
  draw() {
    if (document.hidden || !$("charts").offsetParent) return;
    this.#drawn++;
    for (const { chart, plot } of this.#plots) {
      plot.setData(this.#data(chart));
      if (plot.cursor.idx !== null && plot.cursor.idx !== undefined) this.#read(chart, plot);
      if (this.#drawn % 10 === 1) describe(chart, this.#data(chart)[1]);
    }
  }

  #data(chart) {
    return [this.#series.time, ...chart.lines.map(([name]) => this.#series.columns[name])];
  }

  /** What is under the pointer, in words beside the title. */
  #read(chart, plot) {
    const at = plot.cursor.idx;
    const text =
      at === null || at === undefined || plot.cursor.left < 0
        ? ""
        : `${longTime(plot.data[0][at])} · ${plot.data.slice(1).map((column) => chart.format(column[at])).join(" / ")}`;
    say($(`${chart.id}-at`), text);
  }

  #fit() {
    for (const { chart, plot } of this.#plots) {
      const { clientWidth: width, clientHeight: height } = $(chart.id);
      if (width && (width !== plot.width || height !== plot.height)) plot.setSize({ width, height });
    }
  }
}

function describe(chart, column) {
  const values = column.filter((value) => value !== null);
  const text = values.length
    ? `Now ${chart.format(values.at(-1))}, at most ${chart.format(Math.max(...values))} in the last minutes`
    : "Nothing yet";
  $(chart.id).setAttribute("aria-label", `${chart.unit}: ${text}.`);
}

function longTime(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}

function span(seconds) {
  return Math.min(SPAN_SECONDS[1], Math.max(SPAN_SECONDS[0], seconds));
}
