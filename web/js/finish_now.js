// The button Finish now on a search node: pressable while the node runs.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { request } from "./requests.js";

const WIDGET = "finish_now";
const TOOLTIP =
  "While the search runs: end it after the current candidate and go on with the best so far. Queue again to go on.";
const LABELS = { idle: "Finish now", running: "Finish now", finishing: "Finishing…" };

const buttons = new WeakMap(); // node -> its <button>
const asked = new Map(); // ids of running nodes that were asked to finish -> how far they are
let running = []; // of the nodes that execute: {id, value}: the id of the node shown, how far
let lit = []; // the buttons that are not idle

function toast(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "Noise Search", detail, life: 8000 });
}

/** The node that an execution id such as "5:3" (node 3 inside the subgraph node 5) stands for, if it is open here. */
export function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

function setState(button, state, ids = []) {
  if (button.dataset.state !== state) {
    button.dataset.state = state;
    button.disabled = state !== "running";
    button.textContent = LABELS[state];
  }
  button.ids = ids;
}

/** Brings every button in line with what runs. A node inside a subgraph that is used twice has two ids. */
function paint() {
  const idsOf = new Map();
  for (const { id } of running) {
    const node = nodeOf(id);
    const button = node && buttons.get(node);
    if (button) idsOf.set(button, [...(idsOf.get(button) ?? []), id]);
  }
  for (const button of lit) if (!idsOf.has(button)) setState(button, "idle");
  for (const [button, ids] of idsOf) setState(button, ids.every((id) => asked.has(id)) ? "finishing" : "running", ids);
  lit = [...idsOf.keys()];
}

function setRunning(nodes) {
  running = nodes;
  const values = new Map(nodes.map(({ id, value }) => [id, value]));
  for (const [id, value] of asked) {
    // Back at the start: of a list of inputs, the next one is searched for.
    if (!(values.get(id) >= value)) asked.delete(id);
    else asked.set(id, values.get(id));
  }
  paint();
}

function ask(ids) {
  for (const id of ids) asked.set(id, running.find((node) => node.id === id)?.value ?? 0);
  paint();
}

async function finish(ids) {
  ask(ids);
  try {
    const answers = await Promise.all(ids.map((id) => request("finish", { node_id: id })));
    if (answers.every(({ finishing }) => finishing.length === 0)) {
      throw new Error("This node is not searching yet, or not any more.");
    }
  } catch (error) {
    for (const id of ids) asked.delete(id);
    paint();
    toast("error", `The search could not be asked to finish. ${error.message}`);
  }
}

/** The command: every search of this server, also those that no button here stands for. */
export async function finishAll() {
  try {
    const { finishing } = await request("finish", {});
    ask(finishing);
    if (finishing.length === 0) toast("info", "No search is running.");
    else toast("info", "Finishing: the search ends after the current candidate.");
  } catch (error) {
    toast("error", `The search could not be asked to finish. ${error.message}`);
  }
}

/** Adds the button to a new search node. It always has its own row, so that the node keeps its size. */
export function addFinishButton(node) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "noise-search-finish";
  button.title = TOOLTIP;
  setState(button, "idle");
  button.addEventListener("click", () => finish(button.ids));
  const row = document.createElement("div");
  row.className = "noise-search-finish-row";
  row.append(button);
  // Not a value of the node: neither in saved workflows nor in prompts. The last widget, so it shifts no other.
  const widget = node.addDOMWidget(WIDGET, "noise_search_finish", row, { serialize: false, margin: 0 });
  widget.serialize = false;
  widget.computeLayoutSize = undefined; // a plain row: Nodes 2.0 would stretch it with the node
  buttons.set(node, button);
}

/** Listens to what the server executes. `refresh` is for when the graph on show has changed. */
export function watchExecution() {
  api.addEventListener("progress_state", ({ detail }) => {
    const values = new Map(); // a node that others were put in the place of is as far as the one that is farthest
    for (const { node_id, display_node_id, state, value } of Object.values(detail.nodes)) {
      const id = display_node_id ?? node_id;
      if (state === "running") values.set(id, Math.max(value, values.get(id) ?? 0));
    }
    setRunning([...values].map(([id, value]) => ({ id, value })));
  });
  for (const event of ["execution_start", "execution_success", "execution_error", "execution_interrupted"]) {
    api.addEventListener(event, () => setRunning([]));
  }
}

export { paint as refresh };
