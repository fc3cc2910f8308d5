// A workflow as it is saved (the format of its file), and what is found and changed in it. Nothing here knows the
// browser: it is plain data in, plain data out, and so the same under every front end.

export const ROOT = null; // the graph that no subgraph is around
export const INSIDE_INPUT = -10; // what the saved format calls the two ends of a subgraph's own links
export const INSIDE_OUTPUT = -20;
const NEVER = 2;
const BYPASS = 4;
const GAP = 40;
const TITLE = 30;

const accepts = (type, wanted) => type === wanted || (typeof type === "string" && type.split(",").includes(wanted));
export const isActive = (node) => node.mode !== NEVER && node.mode !== BYPASS;
/** The first output of a node that gives a type, or -1. */
export const outputOf = (node, type) => (node.outputs ?? []).findIndex((output) => accepts(output.type, type));
export const inputOf = (node, type) => (node.inputs ?? []).findIndex((input) => accepts(input.type, type));
const named = (node, name) => (node.inputs ?? []).findIndex((input) => input.name === name);

/** One graph of a workflow: the outermost, or the definition of a subgraph. Its links are objects in either. */
class Graph {
  constructor(workflow, data, id) {
    Object.assign(this, { workflow, data, id });
    this.links = (data.links ?? []).map((link) => {
      if (!Array.isArray(link)) return link;
      const [id, origin_id, origin_slot, target_id, target_slot, type] = link;
      return { id, origin_id, origin_slot, target_id, target_slot, type };
    });
  }

  get nodes() {
    return this.data.nodes;
  }

  node(id) {
    return this.nodes.find((node) => String(node.id) === String(id));
  }

  /** The link at an input of a node, by the input's name. */
  linkTo(node, name) {
    const id = node.inputs?.[named(node, name)]?.link;
    return this.links.find((link) => link.id === id);
  }

  linksFrom(id, slot) {
    return this.links.filter(
      (link) => String(link.origin_id) === String(id) && (slot === undefined || link.origin_slot === slot),
    );
  }

  /** The lists of link ids that an end of a link keeps: of an output, or of a subgraph's input. */
  listOf(id, slot) {
    if (id === INSIDE_INPUT) return (this.data.inputs[slot].linkIds ??= []);
    return (this.node(id).outputs[slot].links ??= []);
  }

  /** Where an input's link comes from, past Reroutes: {id, slot}. */
  origin(link) {
    for (let step = 0; link && step < 1000; step++) {
      const node = this.node(link.origin_id);
      if (node?.type !== "Reroute") return { id: link.origin_id, slot: link.origin_slot };
      link = this.links.find((one) => one.id === node.inputs[0].link);
    }
    return undefined;
  }

  connect({ id, slot }, node, name, type) {
    const target_slot = named(node, name);
    const link = {
      id: this.workflow.newLinkId(), origin_id: id, origin_slot: slot, target_id: node.id, target_slot, type,
    };
    this.links.push(link);
    this.listOf(id, slot).push(link.id);
    node.inputs[target_slot].link = link.id;
  }

  /** Gives a link another beginning; its id, and so its bends on the canvas, stay. */
  comeFrom(link, { id, slot }) {
    const list = this.listOf(link.origin_id, link.origin_slot);
    list.splice(list.indexOf(link.id), 1);
    Object.assign(link, { origin_id: id, origin_slot: slot });
    this.listOf(id, slot).push(link.id);
  }

  /** Gives a link another end, an input by name. */
  goTo(link, node, name) {
    const before = this.node(link.target_id)?.inputs[link.target_slot];
    if (before?.link === link.id) before.link = null;
    Object.assign(link, { target_id: node.id, target_slot: named(node, name) });
    node.inputs[link.target_slot].link = link.id;
  }

  /** Takes a node away, with its links. */
  remove(node) {
    const at = (id) => String(id) === String(node.id);
    this.disconnect(this.links.filter((link) => at(link.origin_id) || at(link.target_id)));
    this.data.nodes = this.nodes.filter((one) => one !== node);
  }

  disconnect(links) {
    const gone = new Set(links.map((link) => link.id));
    this.links = this.links.filter((link) => !gone.has(link.id));
    const keep = (ids) => ids?.filter((id) => !gone.has(id));
    for (const one of this.nodes) {
      for (const input of one.inputs ?? []) if (gone.has(input.link)) input.link = null;
      for (const output of one.outputs ?? []) output.links = keep(output.links) ?? output.links;
    }
    for (const end of [...(this.data.inputs ?? []), ...(this.data.outputs ?? [])]) end.linkIds = keep(end.linkIds);
    for (const reroute of this.reroutes) reroute.linkIds = keep(reroute.linkIds);
  }

  /** Puts a new node in the place of another, with its id. names: what the inputs and outputs of the old one that go on
   * with the new one are called there; the other links stay at the old one's id and are to be moved or cut before. */
  replace(old, node, inputs, outputs) {
    const links = Object.keys(inputs).map((name) => [this.linkTo(old, name), inputs[name]]);
    const { id, pos, mode, flags, order, color, bgcolor, title } = old;
    Object.assign(node, { id, pos, mode, flags, order });
    Object.assign(node, Object.fromEntries(Object.entries({ color, bgcolor, title }).filter(([, value]) => value)));
    node.size = [Math.max(old.size[0], node.size[0]), node.size[1]];
    this.nodes.splice(this.nodes.indexOf(old), 1, node);
    for (const [link, name] of links) if (link) this.goTo(link, node, name);
    for (const [before, now] of Object.entries(outputs)) {
      const from = old.outputs.findIndex(({ name }) => name === before);
      const to = node.outputs.findIndex(({ name }) => name === now);
      for (const link of this.linksFrom(id, from)) Object.assign(link, { moved_to: to });
      node.outputs[to].links = old.outputs[from].links ?? [];
    }
    for (const link of this.linksFrom(id)) {
      link.origin_slot = link.moved_to ?? link.origin_slot;
      delete link.moved_to;
    }
  }

  get reroutes() {
    return this.data.reroutes ?? this.data.extra?.reroutes ?? [];
  }

  /** Puts a new node (as `serialize` gives it) where nothing lies, as near to a place as can be. */
  add(node, [x, y]) {
    node.id = this.workflow.newNodeId();
    node.order = this.nodes.length;
    const [width, height] = node.size;
    const free = (top) =>
      this.nodes.every(({ pos, size, flags }) => {
        const below = flags?.collapsed ? TITLE : size[1] + TITLE;
        return x + width + GAP / 2 < pos[0] || pos[0] + size[0] + GAP / 2 < x || top + height + TITLE < pos[1] ||
          pos[1] + below < top;
      });
    let top = y;
    for (let step = 1; step < 400 && !free(top); step++) top = y + GAP * (step % 2 ? (step + 1) / 2 : -step / 2);
    node.pos = [x, top];
    this.nodes.push(node);
    return node;
  }

  /** What a widget's value is given to the outside by (promoted to the face of the subgraph, or linked), or null. */
  isTaken(node, name) {
    if (node.inputs?.[named(node, name)]?.link != null) return true;
    return this.workflow.promotions(this.id).some(([id, widget]) => id === String(node.id) && widget === name);
  }
}

/** Work on a copy of a saved workflow; `data` is the copy. */
export class SavedWorkflow {
  constructor(saved) {
    this.data = structuredClone(saved);
    this.definitions = this.data.definitions?.subgraphs ?? [];
    this.graphs = new Map([[ROOT, new Graph(this, this.data, ROOT)]]);
    for (const definition of this.definitions) this.graphs.set(definition.id, new Graph(this, definition, definition.id));
  }

  /** The workflow as it is saved. */
  saved() {
    for (const [id, graph] of this.graphs) {
      graph.data.links = id !== ROOT ? graph.links : graph.links.map((one) => [
        one.id, one.origin_id, one.origin_slot, one.target_id, one.target_slot, one.type,
      ]);
    }
    return this.data;
  }

  /** Ids that nothing in any graph has: front ends share one count among them. */
  newNodeId() {
    const used = [...this.graphs.values()].flatMap((graph) => graph.nodes.map(({ id }) => Number(id) || 0));
    const id = Math.max(0, this.data.last_node_id ?? 0, ...this.states("lastNodeId"), ...used) + 1;
    this.count("lastNodeId", "last_node_id", id);
    return id;
  }

  newLinkId() {
    const used = [...this.graphs.values()].flatMap((graph) => graph.links.map(({ id }) => id));
    const id = Math.max(0, this.data.last_link_id ?? 0, ...this.states("lastLinkId"), ...used) + 1;
    this.count("lastLinkId", "last_link_id", id);
    return id;
  }

  states(name) {
    return [this.data, ...this.definitions].map((graph) => graph.state?.[name] ?? 0);
  }

  count(name, old, value) {
    for (const graph of [this.data, ...this.definitions]) if (graph.state) graph.state[name] = value;
    this.data[old] = value;
  }

  /** The nodes that stand for a subgraph: [{graph, node}]. */
  facesOf(id) {
    if (id === ROOT) return [];
    return [...this.graphs.values()].flatMap((graph) =>
      graph.nodes.filter(({ type }) => type === id).map((node) => ({ graph, node })),
    );
  }

  /** The way from the outermost graph into one, as [{graph, node}] of faces: the first, where there are several. */
  wayTo(id) {
    const [face] = this.facesOf(id);
    return face ? [...this.wayTo(face.graph.id), face] : [];
  }

  /** Whether one graph is there once only, so that it can be given an input of its own. */
  isSingle(id) {
    if (id === ROOT) return true;
    const faces = this.facesOf(id);
    return faces.length === 1 && this.isSingle(faces[0].graph.id);
  }

  /** Entries of older front ends for the widgets on a subgraph's face: [id of the inner node, its widget]. */
  promotions(id) {
    return this.facesOf(id).flatMap(({ node }) => node.properties?.proxyWidgets ?? []);
  }

  /** A widget went to another node, or has another name: what refers to it follows. */
  widgetMoved(graph, from, name, to, newName) {
    const follow = (entry) => {
      if (String(entry[0]) !== String(from) || entry[1] !== name) return false;
      entry.splice(0, 2, typeof entry[0] === "number" ? Number(to) : String(to), newName);
      return true;
    };
    if (graph.id === ROOT) this.data.extra?.linearData?.inputs?.forEach((entry) => Array.isArray(entry) && follow(entry));
    for (const face of this.facesOf(graph.id)) {
      const found = (face.node.properties?.proxyWidgets ?? []).filter(follow);
      if (found.length && name !== newName) this.widgetMoved(face.graph, face.node.id, name, face.node.id, newName);
    }
  }

  /** What is behind an output when links are followed forwards, into subgraphs and out of them: calls
   * `look(place, node)` for every node that takes it, until that gives something. place: the faces around it. */
  forwards(graph, id, types, look) {
    const seen = new Set();
    const todo = [];
    const spread = (way, at, from, slots) => {
      for (const link of at.linksFrom(from)) {
        if (slots === undefined || slots.includes(link.origin_slot)) todo.push([way, at, link]);
      }
    };
    const slotsOf = (node) => node.outputs.flatMap((output, slot) => (types.some((t) => accepts(output.type, t)) ? [slot] : []));
    spread(this.wayTo(graph.id), graph, id, slotsOf(graph.node(id)));
    for (let next = todo.shift(); next; next = todo.shift()) {
      const [way, at, link] = next;
      if (link.target_id === INSIDE_OUTPUT) {
        const face = way.at(-1);
        if (face) spread(way.slice(0, -1), face.graph, face.node.id, [link.target_slot]);
        continue;
      }
      const node = at.node(link.target_id);
      const key = [...way.map((face) => face.node.id), link.target_id, link.target_slot].join(":");
      if (!node || seen.has(key)) continue;
      seen.add(key);
      const inner = this.graphs.get(node.type);
      if (inner && inner.id !== ROOT) {
        const slot = inner.data.inputs?.findIndex((input) => input.name === node.inputs[link.target_slot]?.name);
        spread([...way, { graph: at, node }], inner, INSIDE_INPUT, [slot]);
        continue;
      }
      const found = look({ way, graph: at }, node);
      if (found !== undefined) return found;
      spread(way, at, node.id, slotsOf(node));
    }
    return undefined;
  }

  /** The nodes whose outputs reach a node of the same graph, nearest first. */
  behind(graph, node) {
    const found = [node];
    for (const one of found) {
      for (const input of one.inputs ?? []) {
        const link = graph.links.find(({ id }) => id === input.link);
        const source = link && graph.node(link.origin_id);
        if (source && !found.includes(source)) found.push(source);
      }
    }
    return found.slice(1);
  }

  /** Makes an output, {way, graph, id, slot}, reachable in a graph: {id, slot} there, or undefined. Out of subgraphs
   * along what they are given, into subgraphs by an input of their own. */
  reach(graph, source, type, name) {
    let { way, id, slot } = source;
    const home = this.wayTo(graph.id);
    const around = () => way.every((face, depth) => face.node === home[depth]?.node);
    while (!around()) {
      if (id !== INSIDE_INPUT) return undefined; // made in there
      const face = way.at(-1);
      const inner = this.graphs.get(face.node.type);
      const given = face.graph.origin(face.graph.linkTo(face.node, inner.data.inputs[slot].name));
      if (!given) return undefined;
      ({ id, slot } = given);
      way = way.slice(0, -1);
    }
    const levels = home.slice(way.length);
    if (levels.length && !this.isSingle(graph.id)) return undefined;
    for (const face of levels) ({ id, slot } = this.bringIn(face, { id, slot }, type, name));
    return { id, slot };
  }

  /** Brings an output into a subgraph by an input of its own: {id, slot} inside. */
  bringIn({ graph, node }, { id, slot }, type, name) {
    const inner = this.graphs.get(node.type).data;
    inner.inputs ??= [];
    for (const [index, input] of inner.inputs.entries()) {
      const link = graph.linkTo(node, input.name);
      if (link && link.origin_id === id && link.origin_slot === slot) return { id: INSIDE_INPUT, slot: index };
    }
    const taken = new Set([...inner.inputs, ...(node.inputs ?? [])].map((input) => input.name));
    let free = name;
    for (let number = 1; taken.has(free); number++) free = `${name}_${number}`;
    inner.inputs.push({ id: crypto.randomUUID(), name: free, type, linkIds: [] });
    (node.inputs ??= []).push({ name: free, type, link: null });
    graph.connect({ id, slot }, node, free, type);
    return { id: INSIDE_INPUT, slot: inner.inputs.length - 1 };
  }
}
