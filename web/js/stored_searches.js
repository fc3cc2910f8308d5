// The dialog that lists the stored searches. Prompts are other people's text: they only ever become text nodes.
import { request } from "./requests.js";

const MEGABYTE = 2 ** 20;
const LONGEST_TOOLTIP = 1000;

/** An element with properties and children; strings become text. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < MEGABYTE ? `${(bytes / 1024).toFixed(0)} KB` : `${(bytes / MEGABYTE).toFixed(1)} MB`;
}

const when = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
const plural = (count, word, words) => `${count.toLocaleString()} ${count === 1 ? word : words}`;

/** Asks before something is deleted. True only where the answer is yes. */
function confirmed(question, action) {
  return new Promise((resolve) => {
    const yes = element("button", { type: "button", className: "noise-search-danger", textContent: action });
    const no = element("button", { type: "button", textContent: "Cancel", autofocus: true });
    const dialog = element(
      "dialog",
      { className: "noise-search-dialog noise-search-confirm" },
      element("p", { textContent: question }),
      element("div", { className: "noise-search-actions" }, no, yes),
    );
    yes.addEventListener("click", () => dialog.close("yes"));
    no.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

class StoredSearches {
  constructor() {
    this.enabled = element("input", { type: "checkbox", id: "noise-search-enabled" });
    this.limit = element("input", { type: "number", id: "noise-search-limit", min: 16, max: 1000000, step: 1 });
    this.place = element("p", { className: "noise-search-place" });
    this.problem = element("p", { className: "noise-search-problem", hidden: true });
    this.problem.setAttribute("role", "alert");
    this.list = element("div", { className: "noise-search-list" });
    this.deleteAll = element("button", { type: "button", className: "noise-search-danger", textContent: "Delete all" });
    const close = element("button", { type: "button", textContent: "Close" });
    this.dialog = element(
      "dialog",
      { className: "noise-search-dialog noise-search-stored" },
      element("h2", { textContent: "Stored searches" }),
      element("p", {
        textContent:
          "Every scored candidate is kept. Queue a search again, after Finish now, Cancel or a crash, or with more " +
          "candidates, and it goes on from there.",
      }),
      element(
        "div",
        { className: "noise-search-settings" },
        element("label", {}, this.enabled, "Store searches"),
        element("label", {}, "Size limit", this.limit, "MB"),
      ),
      this.problem,
      this.list,
      this.place,
      element("div", { className: "noise-search-actions" }, this.deleteAll, close),
    );
    this.enabled.addEventListener("change", () => this.change("store", { enabled: this.enabled.checked }));
    this.limit.addEventListener("change", () => this.change("store", { limit_mb: this.limit.valueAsNumber }));
    this.deleteAll.addEventListener("click", async () => {
      const question = `Delete ${this.count} and all their candidates? Saved pictures stay.`;
      if (await confirmed(question, "Delete all")) await this.change("store/delete", { all: true });
    });
    close.addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => this.dialog.remove());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // the backdrop
    });
    // The front end's own shortcuts stay out of what is typed here.
    this.dialog.addEventListener("keydown", (event) => event.stopPropagation());
  }

  async show() {
    document.body.append(this.dialog);
    this.dialog.showModal();
    await this.change("store");
  }

  /** Asks the server for a change, or without a body for the state, and shows what is there now. */
  async change(path, body) {
    try {
      this.fill(await request(path, body));
    } catch (error) {
      this.complain(error.message);
      if (this.overview) this.fill(this.overview, error.message);
    }
  }

  complain(text) {
    this.problem.textContent = text;
    this.problem.hidden = !text;
  }

  fill(overview, error = "") {
    this.overview = overview;
    this.enabled.checked = overview.enabled;
    this.limit.value = overview.limit_mb;
    this.complain(error || overview.problem);
    this.place.textContent = `${size(overview.bytes)} in ${overview.path}`;
    this.count = plural(overview.searches.length, "search", "searches");
    this.deleteAll.disabled = overview.searches.length === 0;
    this.list.replaceChildren(this.table(overview.searches));
  }

  table(searches) {
    if (searches.length === 0) {
      return element("p", { className: "noise-search-empty", textContent: "Nothing is stored yet." });
    }
    const head = (textContent, className = "") => element("th", { textContent, className });
    const number = "noise-search-number";
    const heads = [head("Prompt"), head("Search"), head("Candidates", number), head("Size", number)];
    return element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...heads, head("Last used"), head(""))),
      element("tbody", {}, ...searches.map((search) => this.row(search))),
    );
  }

  row(search) {
    const remove = element("button", { type: "button", className: "noise-search-danger", textContent: "Delete" });
    remove.addEventListener("click", async () => {
      const what = plural(search.candidates, "candidate", "candidates");
      const question = `Delete this search and its ${what}? Saved pictures stay.`;
      if (await confirmed(question, "Delete")) await this.change("store/delete", { searches: [search.id] });
    });
    const prompt = element("td", { title: search.prompt.slice(0, LONGEST_TOOLTIP) });
    prompt.append(element("div", { className: "noise-search-prompt", textContent: search.prompt || "(no prompt)" }));
    return element(
      "tr",
      {},
      prompt,
      element("td", { textContent: search.algorithm }),
      element("td", { className: "noise-search-number", textContent: search.candidates.toLocaleString() }),
      element("td", { className: "noise-search-number", textContent: size(search.bytes) }),
      element("td", { textContent: when(search.used), title: `Begun ${when(search.created)}` }),
      element("td", {}, remove),
    );
  }
}

export async function showStoredSearches() {
  if (!document.querySelector(".noise-search-stored")) await new StoredSearches().show();
}
