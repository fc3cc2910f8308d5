// What the pack adds to ComfyUI's front end: Finish now on the search nodes, what nodes say of their result, two entries
// in the menus of nodes, and two commands.
import { app } from "../../../scripts/app.js";
import { addFinishButton, finishAll, refresh, watchExecution } from "./finish_now.js";
import { growSlots } from "./more_slots.js";
import { watchPictures } from "./one_picture.js";
import { showOutputs, watchResult, watchTexts } from "./result_text.js";
import { menuEntries } from "./search_this.js";
import { showStoredSearches } from "./stored_searches.js";

const PICTURE_NODE = "NoiseSearchPicture";
const SEARCH_NODES = [PICTURE_NODE, "NoiseSearchKSampler", "NoiseSearchSamplerAdvanced"];
const NODES_WITH_TEXT = [...SEARCH_NODES, "NoiseSearchVerifierScore"];

function addStyleSheet() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("../css/noise_search.css", import.meta.url).href;
  document.head.append(link);
}

app.registerExtension({
  name: "NoiseSearch",
  commands: [
    {
      id: "NoiseSearch.StoredSearches",
      label: "Noise Search: Stored searches",
      menubarLabel: "Stored searches",
      icon: "pi pi-database",
      function: showStoredSearches,
    },
    {
      id: "NoiseSearch.FinishNow",
      label: "Noise Search: Finish now",
      menubarLabel: "Finish now",
      icon: "pi pi-flag",
      function: finishAll,
    },
  ],
  menuCommands: [
    { path: ["Extensions", "Noise Search"], commands: ["NoiseSearch.StoredSearches", "NoiseSearch.FinishNow"] },
  ],
  setup() {
    addStyleSheet();
    watchExecution();
    watchTexts();
    watchPictures(SEARCH_NODES);
  },
  nodeCreated(node) {
    if (node.comfyClass === PICTURE_NODE) growSlots(node);
    if (SEARCH_NODES.includes(node.comfyClass)) addFinishButton(node);
    if (NODES_WITH_TEXT.includes(node.comfyClass)) watchResult(node);
  },
  getNodeMenuItems: menuEntries,
  onNodeOutputsUpdated: showOutputs,
  afterConfigureGraph: refresh,
});
