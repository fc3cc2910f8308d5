// The entries "Search this" and "Search this picture" of a node's menu: a search in the place of a sampler, or on the
// wire behind a picture.
import * as frontEnd from "./front_end.js";
import { INSIDE_INPUT, INSIDE_OUTPUT, inputOf, isActive, outputOf, ROOT, SavedWorkflow } from "./saved_workflow.js";

const KSAMPLER = "NoiseSearchKSampler";
const ADVANCED = "NoiseSearchSamplerAdvanced";
const PICTURE = "NoiseSearchPicture";
const VERIFIER = "NOISE_SEARCH_VERIFIER";
const USE_PICTURE = 'Choose "Search this picture" here instead: it searches everything that makes the picture.';
const NONE_FOUND = /^\(none/; // what a list of files says that has none

// Loaders of verifiers, the one that follows people's taste best first; `its` are names that are meant for it, where its
// list has files for others too.
const LOADERS = [
  { type: "NoiseSearchImageReward" },
  { type: "NoiseSearchPickScore", its: /pick/i },
  { type: "NoiseSearchHPS", its: /hps/i },
  { type: "NoiseSearchCLIPScore" },
];

// KSampler leaves out the last but one of a schedule's sigmas for these, BasicScheduler does not.
const OWN_SCHEDULE = ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"];

/** Why something cannot be had, for the user. */
class Refusal extends Error {}

/** How each sampler is replaced: (edit) => the new node. edit: {workflow, graph, node, values}. */
const REPLACEMENTS = {
  KSampler: ({ workflow, graph, node, values }) => {
    const made = frontEnd.newNode(KSAMPLER, values);
    const names = node.inputs.map(({ name }) => [name, name]);
    graph.replace(node, made, Object.fromEntries(names), { LATENT: "latent" });
    seedMoved(workflow, graph, node, "seed", made);
    return made;
  },
  SamplerCustomAdvanced: (edit) => {
    const noise = noiseOf(edit);
    const { graph, node } = edit;
    const values = frontEnd.valuesOf(graph.id, noise.id);
    const made = frontEnd.newNode(ADVANCED, { ...values, seed: values.noise_seed });
    const link = graph.linkTo(node, "noise");
    const others = graph.linksFrom(noise.id).filter((one) => one !== link);
    graph.disconnect([link]);
    const names = Object.fromEntries(["guider", "sampler", "sigmas", "latent_image"].map((name) => [name, name]));
    graph.replace(node, made, names, { output: "latent", denoised_output: "denoised_latent" });
    takeSeed(edit, made, noise, others.length > 0);
    return made;
  },
  SamplerCustom: (edit) => {
    const { graph, node, values } = edit;
    mustBe(edit, "add_noise", (value) => value === true, "It adds no noise: it goes on with what came before.");
    const guider = addBeside(edit, "CFGGuider", { cfg: values.cfg });
    const made = frontEnd.newNode(ADVANCED, { ...values, seed: values.noise_seed });
    hand(edit, guider, ["model", "positive", "negative", "cfg"]);
    const names = { sampler: "sampler", sigmas: "sigmas", latent_image: "latent_image", noise_seed: "seed" };
    graph.replace(node, made, names, { output: "latent", denoised_output: "denoised_latent" });
    seedMoved(edit.workflow, graph, node, "noise_seed", made);
    graph.connect({ id: guider.id, slot: 0 }, made, "guider", "GUIDER");
    return made;
  },
  KSamplerAdvanced: (edit) => {
    const { graph, node, values, workflow } = edit;
    const leftover = "It hands on a picture that is not finished, so there is nothing yet to judge.";
    mustBe(edit, "add_noise", (value) => value === "enable", "It adds no noise: it goes on with what came before.");
    const last = graph.isTaken(node, "steps") ? 10000 : values.steps; // at the end nothing is left over, whatever it says
    mustBe(edit, "end_at_step", (value) => value >= last, leftover);
    if (OWN_SCHEDULE.includes(values.sampler_name)) {
      throw new Refusal(`${values.sampler_name} has steps here that Search Sampler (Advanced) cannot be given.`);
    }
    const guider = addBeside(edit, "CFGGuider", { cfg: values.cfg });
    const sampler = addBeside(edit, "KSamplerSelect", values);
    const schedule = addBeside(edit, "BasicScheduler", { ...values, denoise: 1 });
    const model = graph.linkTo(node, "model");
    hand(edit, guider, ["model", "positive", "negative", "cfg"]);
    if (model) graph.connect({ id: model.origin_id, slot: model.origin_slot }, schedule, "model", "MODEL");
    hand(edit, sampler, ["sampler_name"]);
    hand(edit, schedule, ["scheduler", "steps"]);
    let sigmas = { id: schedule.id, slot: 0 };
    if (values.start_at_step > 0 || graph.isTaken(node, "start_at_step")) {
      const split = addBeside(edit, "SplitSigmas", { step: values.start_at_step });
      graph.connect(sigmas, split, "sigmas", "SIGMAS");
      hand(edit, split, ["start_at_step"], { start_at_step: "step" });
      sigmas = { id: split.id, slot: 1 };
    }
    const made = frontEnd.newNode(ADVANCED, { ...values, seed: values.noise_seed });
    graph.replace(node, made, { latent_image: "latent_image", noise_seed: "seed" }, { LATENT: "latent" });
    seedMoved(workflow, graph, node, "noise_seed", made);
    graph.connect({ id: guider.id, slot: 0 }, made, "guider", "GUIDER");
    graph.connect({ id: sampler.id, slot: 0 }, made, "sampler", "SAMPLER");
    graph.connect(sigmas, made, "sigmas", "SIGMAS");
    return made;
  },
};

/** Refuses where a widget that the new node does not have says something else than what the new node does. */
function mustBe({ graph, node, values }, name, fits, why) {
  if (graph.isTaken(node, name)) throw new Refusal(`Its ${name} is set from elsewhere, and a search has no such input.`);
  if (!fits(values[name])) throw new Refusal(why);
}

/** What refers to the seed of a node, and to the widget below it, follows to the search. */
function seedMoved(workflow, graph, node, name, made) {
  workflow.widgetMoved(graph, node.id, name, made.id, "seed");
  workflow.widgetMoved(graph, node.id, frontEnd.CONTROL, made.id, frontEnd.controlOf(made.type));
}

/** A new node left of the sampler. */
function addBeside({ graph, node }, type, values) {
  const made = frontEnd.newNode(type, values);
  return graph.add(made, [node.pos[0] - made.size[0] - 40, node.pos[1]]);
}

/** Hands links of the sampler, and what refers to its widgets, to another node. */
function hand({ workflow, graph, node }, to, inputs, names = {}) {
  for (const name of inputs) {
    const link = graph.linkTo(node, name);
    if (link) graph.goTo(link, to, names[name] ?? name);
    workflow.widgetMoved(graph, node.id, name, to.id, names[name] ?? name);
  }
}

/** The RandomNoise that a sampler's noise comes from. */
function noiseOf({ graph, node }) {
  const from = graph.origin(graph.linkTo(node, "noise"));
  const noise = from && graph.node(from.id);
  if (!from) throw new Refusal("Nothing is connected to its noise.");
  if (!noise) throw new Refusal("Its noise comes from outside of the subgraph.");
  if (noise.type === "DisableNoise") throw new Refusal("It adds no noise: it goes on with what came before.");
  if (!isActive(noise)) throw new Refusal("Its noise is switched off (muted or bypassed).");
  if (noise.type !== "RandomNoise") {
    throw new Refusal(`Its noise comes from ${noise.title || frontEnd.titleOf(noise.type)}, not from RandomNoise.`);
  }
  return noise;
}

/** Gives the search the seed of a RandomNoise, which goes where nothing else uses it. */
function takeSeed({ workflow, graph }, made, noise, shared) {
  const link = graph.linkTo(noise, "noise_seed");
  if (shared) {
    if (link) graph.connect({ id: link.origin_id, slot: link.origin_slot }, made, "seed", "INT");
    return;
  }
  if (link) graph.goTo(link, made, "seed");
  seedMoved(workflow, graph, noise, "noise_seed", made);
  graph.remove(noise);
}

/** Where the latent of a sampler becomes a picture: {place, node}. Says so where it becomes something else. */
function decoderOf(workflow, graph, node) {
  let other;
  const found = workflow.forwards(graph, node.id, ["LATENT"], (place, next) => {
    if (inputOf(next, "VAE") < 0 || !isActive(next)) return undefined;
    if (outputOf(next, "IMAGE") >= 0) return { place, node: next };
    if (outputOf(next, "LATENT") < 0) other ??= next;
    return undefined;
  });
  if (!found && other) {
    throw new Refusal(`Its latent becomes no picture (${frontEnd.titleOf(other.type)}), and verifiers judge pictures.`);
  }
  return found;
}

/** Outputs of a type that a node could use, nearest first: behind it, in its graph, around its graph. */
function* sources(workflow, graph, node, type) {
  const giving = (nodes, way) =>
    nodes.filter((one) => isActive(one) && outputOf(one, type) >= 0 && one !== node)
      .map((one) => ({ way, id: one.id, slot: outputOf(one, type), node: one }));
  const way = workflow.wayTo(graph.id);
  yield* giving(workflow.behind(graph, node), way);
  yield* giving(graph.nodes, way);
  for (const [slot, input] of (graph.data.inputs ?? []).entries()) {
    if (graph.id !== ROOT && input.type === type) yield { way, id: INSIDE_INPUT, slot };
  }
  for (let level = way.length - 1; level >= 0; level--) yield* giving(way[level].graph.nodes, way.slice(0, level));
}

/** Connects the VAE that the workflow decodes with. False where there is none. */
function connectVae(workflow, graph, made, decoder) {
  const link = decoder && decoder.place.graph.linkTo(decoder.node, decoder.node.inputs[inputOf(decoder.node, "VAE")].name);
  const origin = link && decoder.place.graph.origin(link);
  const all = origin ? [{ way: decoder.place.way, ...origin }] : [];
  for (const source of [...all, ...sources(workflow, graph, made, "VAE")]) {
    const end = workflow.reach(graph, source, "VAE", "vae");
    if (!end) continue;
    graph.connect(end, made, "vae", "VAE");
    return true;
  }
  return false;
}

/** Connects a verifier: one of the workflow, or a loader that has files here. What it is called, or "". */
function connectVerifier(workflow, graph, made) {
  const feedsAnother = ({ way, id, slot }) => {
    const at = way.length ? workflow.graphs.get(way.at(-1).node.type) : workflow.graphs.get(ROOT);
    return at.linksFrom(id, slot).some((link) => at.node(link.target_id) && outputOf(at.node(link.target_id), VERIFIER) >= 0);
  };
  for (const source of sources(workflow, graph, made, VERIFIER)) {
    const end = feedsAnother(source) ? undefined : workflow.reach(graph, source, VERIFIER, "verifier");
    if (!end) continue;
    graph.connect(end, made, "verifier", VERIFIER);
    return source.node ? source.node.title || frontEnd.titleOf(source.node.type) : "the subgraph's verifier";
  }
  for (const { type, its } of LOADERS.filter((loader) => frontEnd.knows(loader.type))) {
    const [file] = frontEnd.choicesOf(type, "model_name").filter((name) => (its ?? /./).test(name) && !NONE_FOUND.test(name));
    if (file === undefined) continue;
    const loader = frontEnd.newNode(type, { model_name: file });
    graph.add(loader, [made.pos[0] - loader.size[0] - 40, made.pos[1] + made.size[1] / 2]);
    graph.connect({ id: loader.id, slot: 0 }, made, "verifier", VERIFIER);
    return `${frontEnd.titleOf(type)} (${file})`;
  }
  return "";
}

const NO_VERIFIER =
  "No verifier is connected, as no file of one was found: put one into models/verifiers (the help of ImageReward says " +
  "which), or connect a node that gives one.";

/** What was done, in a message. */
function say(what, vae, verifier) {
  const missing = [vae ? "" : "No VAE was found: connect the one that decodes the picture.", verifier ? "" : NO_VERIFIER];
  const done = `${what}${verifier ? ` It judges with ${verifier}.` : ""} Undo takes it back.`;
  frontEnd.toast(vae && verifier ? "success" : "warn", [done, ...missing].filter(Boolean).join(" "));
}

function searchSampler(workflow, graph, node) {
  const decoder = decoderOf(workflow, graph, node);
  const values = frontEnd.valuesOf(graph.id, node.id);
  const made = REPLACEMENTS[node.type]({ workflow, graph, node, values });
  const vae = connectVae(workflow, graph, made, decoder);
  const verifier = connectVerifier(workflow, graph, made);
  return () => say(`${frontEnd.titleOf(made.type)} is in the place of ${frontEnd.titleOf(node.type)}.`, vae, verifier);
}

/** Puts Search Picture behind an output that gives a picture; where that is given out of a subgraph, outside of it. */
function searchPicture(workflow, graph, node, output) {
  const images = node.outputs.flatMap(({ type }, slot) => (type === "IMAGE" ? [slot] : []));
  const slot = output ?? images.find((one) => graph.linksFrom(node.id, one).length) ?? images[0];
  const links = graph.linksFrom(node.id, slot);
  const leaving = graph.id !== ROOT && links.find((link) => link.target_id === INSIDE_OUTPUT);
  if (leaving) {
    const faces = workflow.facesOf(graph.id);
    if (faces.length > 1) {
      throw new Refusal(`This subgraph is used ${faces.length} times: choose "Search this picture" on one of its nodes.`);
    }
    return searchPicture(workflow, faces[0].graph, faces[0].node, leaving.target_slot);
  }
  const made = frontEnd.newNode(PICTURE);
  if (!isActive(node)) made.mode = node.mode; // what is off stays off
  graph.add(made, [node.pos[0] + node.size[0] + 40, node.pos[1]]);
  for (const link of links) graph.comeFrom(link, { id: made.id, slot: outputOf(made, "IMAGE") });
  graph.connect({ id: node.id, slot }, made, "image", "IMAGE");
  const verifier = connectVerifier(workflow, graph, made);
  const title = node.title || frontEnd.titleOf(node.type);
  return () => say(`${frontEnd.titleOf(PICTURE)} is behind ${title}: it searches what makes that picture.`, true, verifier);
}

/** The picture that comes of a sampler. */
function searchPictureOf(workflow, graph, node) {
  const decoder = decoderOf(workflow, graph, node);
  if (!decoder) throw new Refusal("No node was found that makes a picture of its latent.");
  return searchPicture(workflow, decoder.place.graph, decoder.node);
}

let busy = false;

/** Does one of the above to the open workflow. */
async function edit(node, how, advice = "") {
  if (busy) return;
  busy = true;
  try {
    const workflow = new SavedWorkflow(frontEnd.savedNow());
    const graph = workflow.graphs.get(frontEnd.graphIdOf(node));
    const told = how(workflow, graph, graph.node(node.id));
    await frontEnd.exchange(workflow.saved());
    told();
  } catch (error) {
    if (error instanceof Refusal) frontEnd.toast("warn", [error.message, advice].filter(Boolean).join(" "));
    else {
      console.error(error);
      frontEnd.toast("error", `The workflow is as it was: ${error.message}`);
    }
  } finally {
    busy = false;
  }
}

/** The entries for a node's menu. */
export function menuEntries(node) {
  if (!frontEnd.canEdit()) return [];
  const entries = [];
  const isSampler = Object.hasOwn(REPLACEMENTS, node.type) && frontEnd.knows(KSAMPLER) && frontEnd.knows(ADVANCED);
  const hasPicture = outputOf(node, "IMAGE") >= 0 && ![PICTURE, KSAMPLER, ADVANCED].includes(node.type);
  const advice = frontEnd.knows(PICTURE) ? USE_PICTURE : "";
  if (isSampler) entries.push({ content: "Search this", callback: () => edit(node, searchSampler, advice) });
  if (frontEnd.knows(PICTURE) && (isSampler || hasPicture)) {
    const how = hasPicture ? searchPicture : searchPictureOf;
    entries.push({ content: "Search this picture", callback: () => edit(node, (workflow, graph, one) => how(workflow, graph, one)) });
  }
  return entries;
}
