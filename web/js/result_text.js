// What a node has to say of its result: in its own output ("text"), so it is still there after the job, where front ends
// take away what a node said while it ran.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { nodeOf } from "./finish_now.js";

const WIDGET = "noise_search_result";
const WHILE_RUNNING = "$$node-text-preview"; // the front end's own widget for the text of a running node
const CHARACTERS = 44; // in a line on a node of usual width; only until the text is measured
const LINE = 16;
const PADDING = 10;
const HIGHEST = 220;

const watched = new WeakSet(); // nodes that have something to say
const said = new Map(); // execution ids -> what they said last, while they have no result

function remove(node, name) {
  const widget = node.widgets?.find((one) => one.name === name);
  if (widget) node.removeWidget(widget);
}

/** The height that a text takes, at the width that it has now. */
function heightOf(content) {
  const lines = content.textContent.split("\n").map((line) => Math.max(Math.ceil(line.length / CHARACTERS), 1));
  const height = content.offsetHeight || lines.reduce((sum, count) => sum + count, 0) * LINE;
  return Math.min(height + PADDING, HIGHEST);
}

function fit(node) {
  node.expandToFitContent?.();
  node.setDirtyCanvas(true, true);
}

function add(node) {
  const content = document.createElement("div");
  const row = document.createElement("div");
  row.className = "noise-search-result";
  row.append(content);
  row.addEventListener("wheel", (event) => event.stopPropagation()); // scrolls the text, not the canvas
  const widget = node.addDOMWidget(WIDGET, "noise_search_result", row, {
    serialize: false,
    margin: 0,
    hideOnZoom: false,
    getMinHeight: () => heightOf(content),
    getMaxHeight: () => heightOf(content),
  });
  widget.serialize = false; // no value of the node
  widget.content = content;
  new ResizeObserver(() => fit(node)).observe(content); // on a narrower node it has more lines
  return widget;
}

/** Shows a text on the node, in place of what it said while it ran. Other people's text: it only becomes a text node. */
function show(node, text) {
  remove(node, WHILE_RUNNING);
  const widget = node.widgets?.find((one) => one.name === WIDGET) ?? add(node);
  widget.content.textContent = text;
  requestAnimationFrame(() => fit(node));
}

function showOutput(node, output) {
  if (Array.isArray(output?.text) && output.text.length) show(node, output.text.join("\n\n"));
}

/** The node of a place such as "3", or "<id of a subgraph>:3". */
function nodeAt(place) {
  const parts = String(place).split(":");
  const root = app.rootGraph ?? app.graph;
  const graph = parts.length > 1 ? root?.subgraphs?.get(parts[0]) : root;
  return graph?.getNodeById(parts.at(-1)) ?? undefined;
}

/** To call for a new node. */
export function watchResult(node) {
  watched.add(node);
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.apply(this, arguments);
    for (const id of said.keys()) if (nodeOf(id) === this) said.delete(id);
    showOutput(this, output);
  };
}

/** Outputs came from elsewhere: an older run was opened, or a workflow's tab. */
export function showOutputs(outputs) {
  for (const [place, output] of Object.entries(outputs ?? {})) {
    const node = nodeAt(place);
    if (watched.has(node)) showOutput(node, output);
  }
}

export function watchTexts() {
  api.addEventListener("progress_text", ({ detail }) => {
    const node = nodeOf(detail.nodeId);
    if (!watched.has(node)) return;
    said.set(String(detail.nodeId), detail.text);
    remove(node, WIDGET); // of an earlier run
  });
  // Without a result (after Cancel or an error) the last that it said stays.
  for (const event of ["execution_success", "execution_error", "execution_interrupted"]) {
    api.addEventListener(event, () => {
      for (const [id, text] of said) {
        const node = nodeOf(id);
        if (watched.has(node)) show(node, text);
      }
      said.clear();
    });
  }
}
