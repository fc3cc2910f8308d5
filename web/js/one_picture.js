// A search node has one picture: while it runs the best so far, afterwards its result. Nodes 2.0 shows previews below the
// node's output, so the winner twice, and in the next run the best so far below the last winner.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { nodeOf } from "./finish_now.js";

/** The front end's own store of outputs and previews: no documented way leads to what is asked of it here. Without it
 * nothing is taken away. */
const pictures = () => app.extensionManager?._p?._s?.get("nodeOutput");

/** What a node shows is its output, and no preview any more. */
function showOutputOnly(node, id, output) {
  const store = pictures();
  if (!store?.setNodeOutputsByExecutionId) return;
  if (store.removeNodeOutputsForNode) store.removeNodeOutputsForNode(node);
  else store.removeNodeOutputs?.(node.id); // older front ends
  store.setNodeOutputsByExecutionId(id, output);
}

/** To call once. `types`: the nodes that show their result and previews of it. */
export function watchPictures(types) {
  const ours = (id) => [nodeOf(id)].find((node) => types.includes(node?.comfyClass));
  api.addEventListener("executed", ({ detail }) => {
    const id = String(detail.display_node ?? detail.node);
    const node = ours(id);
    if (node && detail.output?.images?.length) showOutputOnly(node, id, detail.output);
  });
  api.addEventListener("b_preview_with_metadata", ({ detail }) => {
    const id = String(detail.displayNodeId);
    const node = ours(id);
    const store = pictures();
    if (node && store?.getNodeOutputs?.(node)?.images?.length) store.setNodeOutputsByExecutionId?.(id, {});
  });
}
