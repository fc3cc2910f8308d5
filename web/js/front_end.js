// What is asked of the front end that it makes no promise of, in one place. Each is looked for first; where a front end
// has it no more, or not yet, `canEdit` is false and the pack's entries are not in its menus.
import { app } from "../../../scripts/app.js";
import { ROOT } from "./saved_workflow.js";

const root = () => app.rootGraph ?? app.graph;
const history = () => app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));

/** Whether the open workflow can be exchanged for another in one step that Undo takes back. */
export function canEdit() {
  const steps = history();
  return (
    typeof root()?.serialize === "function" &&
    typeof steps?.redo === "function" &&
    Array.isArray(steps.undoQueue) &&
    Array.isArray(steps.redoQueue) &&
    typeof (steps.captureCanvasState ?? steps.checkState) === "function"
  );
}

export const knows = (type) => type in LiteGraph.registered_node_types;
export const titleOf = (type) => LiteGraph.registered_node_types[type]?.title ?? type;

/** The id of the graph that a node on the canvas is in, as the saved workflow has it. */
export const graphIdOf = (node) => (node.graph && node.graph !== root() ? node.graph.id : ROOT);

/** The open workflow as it would be saved. */
export const savedNow = () => structuredClone(JSON.parse(JSON.stringify(root().serialize())));

// The widget below a seed, by the name that it has on ComfyUI's own samplers. Front ends before 1.58 call it "fixed" on
// nodes that ask for this as its first value.
export const CONTROL = "control_after_generate";
const nameOf = (widget) => (widget.name === "fixed" && widget.options?.values?.includes?.("fixed") ? CONTROL : widget.name);

/** {name: value} of the widgets of the node with this id in this graph. */
export function valuesOf(graphId, id) {
  const graph = graphId === ROOT ? root() : root().subgraphs?.get(graphId);
  const widgets = graph?.getNodeById(id)?.widgets ?? [];
  return Object.fromEntries(widgets.map((widget) => [nameOf(widget), widget.value]));
}

/** Makes a node for its saved form, which it gives to `use` with its widgets; it is on no canvas before or after. */
function withNew(type, use) {
  const node = LiteGraph.createNode(type);
  try {
    return use(node);
  } finally {
    node.onRemoved?.(); // what lies over the canvas for it goes
  }
}

/** The saved form of a new node, with these widget values where it has such widgets. */
export function newNode(type, values = {}) {
  return withNew(type, (node) => {
    for (const widget of node.widgets ?? []) {
      if (Object.hasOwn(values, nameOf(widget))) widget.value = values[nameOf(widget)];
    }
    node.setSize?.(node.computeSize());
    return JSON.parse(JSON.stringify(node.serialize()));
  });
}

/** What the widget below a new node's seed is called here. */
export const controlOf = (type) => withNew(type, (node) => node.widgets.find((one) => nameOf(one) === CONTROL)?.name);

/** What a new node's list of choices offers. */
export function choicesOf(type, name) {
  return withNew(type, (node) => {
    const values = node.widgets?.find((widget) => widget.name === name)?.options?.values;
    return (typeof values === "function" ? values() : values) ?? [];
  });
}

/** Exchanges the open workflow for a saved one: a Redo of what was never done, so that one Undo takes it back. The
 * subgraph that is open stays open. */
export async function exchange(saved) {
  const steps = history();
  const capture = () => (steps.captureCanvasState ? steps.captureCanvasState() : steps.checkState());
  const open = app.canvas.graph;
  const place = open && open !== root() ? open.id : ROOT;
  capture(); // what was done before is a step of its own
  const before = steps.undoQueue.length;
  steps.redoQueue.splice(0, steps.redoQueue.length, saved);
  await steps.redo();
  const inner = place === ROOT ? undefined : root().subgraphs?.get(place);
  if (inner && app.canvas.graph !== inner) app.canvas.setGraph(inner);
  for (let wait = 0; wait < 3; wait++) await frame(); // sizes are found while it is drawn
  capture();
  steps.undoQueue.splice(before + 1);
  app.canvas.setDirty(true, true);
}

export function toast(severity, detail, life = 12000) {
  app.extensionManager.toast.add({ severity, summary: "Noise Search", detail, life });
}
