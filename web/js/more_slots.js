// Search Picture has as many inputs for more of the winner as one needs: one free pair of slots is shown, the others come
// when it is used.
const PREFIX = "also_";
const WIDTH = 320; // of a new node: what it says while it runs has lines of this length

const numberOf = (slot) => (slot?.name?.startsWith(PREFIX) ? Number(slot.name.slice(PREFIX.length)) : 0);
const highest = (slots, used) => Math.max(0, ...(slots ?? []).filter(used).map(numberOf));

/** Takes away what nobody needs. Widgets have slots too, which lie behind. */
function trim(slots, keep, remove) {
  for (let index = slots.length - 1; index >= 0; index--) if (numberOf(slots[index]) > keep) remove(index);
}

function fit(node, most) {
  const linkedIn = highest(node.inputs, (slot) => slot.link != null);
  const linkedOut = highest(node.outputs, (slot) => slot.links?.length > 0);
  const keep = Math.min(Math.max(linkedIn, linkedOut) + 1, most);
  if ([node.inputs, node.outputs].every((slots) => highest(slots, () => true) === keep)) return;
  const size = [...node.size];
  trim(node.inputs, keep, (index) => node.removeInput(index));
  trim(node.outputs, keep, (index) => node.removeOutput(index));
  for (let number = highest(node.inputs, () => true) + 1; number <= keep; number++) node.addInput(PREFIX + number, "*");
  for (let number = highest(node.outputs, () => true) + 1; number <= keep; number++) node.addOutput(PREFIX + number, "*");
  node.setSize([size[0], Math.max(node.computeSize()[1], size[1])]);
  node.setDirtyCanvas(true, true);
}

/** To call for a new node of this kind. */
export function growSlots(node) {
  const most = highest(node.inputs, () => true);
  const after = (name, work) => {
    const before = node[name];
    node[name] = function () {
      const result = before?.apply(this, arguments);
      work();
      return result;
    };
  };
  after("onConfigure", () => fit(node, most)); // at once: later it would be another change, to be undone apart
  after("onConnectionsChange", () => queueMicrotask(() => node.graph && fit(node, most)));
  trim(node.inputs, 1, (index) => node.removeInput(index));
  trim(node.outputs, 1, (index) => node.removeOutput(index));
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, WIDTH), height]);
}
