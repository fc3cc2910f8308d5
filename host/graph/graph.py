"""The user's graph, as a node of it sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ...search.recipe import METADATA
from . import classes, travel
from .asked import answers
from .files import contents
from .links import is_link


@dataclass(frozen=True)
class Graph:
    """Where in the user's graph a node runs: what ComfyUI hands over as hidden inputs.

    node_id: in what is executed. display_id: in the user's workflow, where it is another one because node expansion put
    the node there; what the user sees and what is kept goes by `user_id`. asked: the values that the node asked for.
    """

    node_id: str | None = None
    prompt: Mapping[str, Any] | None = None
    extra_pnginfo: dict[str, Any] | None = None
    display_id: str | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, hidden: Any, given: dict[str, Any] | None = None) -> Graph:
        """given: what `execute` was called with; what was asked for is taken out of it."""
        if hidden is None:  # outside an execution
            return cls()
        found = {} if given is None else answers(hidden, given)
        node_id, dynprompt = hidden.unique_id, hidden.dynprompt
        extra = getattr(hidden, "extra_pnginfo", None)
        return cls(node_id, all_nodes(dynprompt), extra, dynprompt.get_display_node_id(node_id), found)

    @property
    def user_id(self) -> str | None:
        """The node that the user knows: progress, texts, Finish now and saved pictures are of this one."""
        return self.node_id if self.display_id is None else self.display_id

    @property
    def runs(self) -> list[Any]:
        """What this node wrote into the metadata so far, an entry for each time that it ran in this prompt."""
        runs = self.searches.get(self.user_id)
        return list(runs) if isinstance(runs, list) else []

    @property
    def searches(self) -> dict[str | None, Any]:
        """What all nodes wrote there; a client may have sent anything."""
        searches = (self.extra_pnginfo or {}).get(METADATA)
        return searches if isinstance(searches, dict) else {}

    def uses(self, output: str) -> bool:
        """Whether a node takes this output of the node; True, too, where that cannot be told."""
        prompt = self.prompt or {}
        taken = [value for node in prompt.values() for value in node.get("inputs", {}).values()]
        for node_id in {self.node_id, self.user_id}:
            names = classes.output_names(prompt.get(str(node_id), {}).get("class_type", ""))
            if output not in names or [node_id, names.index(output)] in taken:
                return True
        return False

    def typed(self, name: str) -> bool:
        """Whether the value of an input stands in the node itself, so that nothing is linked to it."""
        node = (self.prompt or {}).get(str(self.node_id), {})
        return not is_link(node.get("inputs", {}).get(name))

    @cached_property
    def files(self) -> dict[str, str]:
        """What is in the files that this node and those before it name."""
        return contents(self.prompt, self.user_id)

    @property
    def workflow(self) -> Any:
        """What the browser shows of this graph; a client need not send it."""
        return (self.extra_pnginfo or {}).get("workflow")

    def winners(self, seed: int | None = None, scored: bool = True) -> travel.Winners | None:
        """What the workflow itself says that this run finds: it comes from a saved picture, and nothing is changed.
        Raises travel.Unusable where it says so in a way that cannot be used. seed: the node's; scored: whether its
        verifier gives scores."""
        return travel.find(self.workflow, self.prompt, self.user_id, len(self.runs), seed, lambda: self.files, scored)

    def replaced_files(self) -> list[str]:
        """The names of files that are others than those that the winners in the workflow were made with."""
        return travel.replaced(self.workflow, self.prompt, self.user_id, lambda: self.files)


def all_nodes(dynprompt: Any) -> dict[str, Any]:
    """The workflow that is being executed, with the nodes that node expansion added to it, in API format.

    dynprompt: the hidden input of that name.
    """
    return {node_id: dynprompt.get_node(node_id) for node_id in dynprompt.all_node_ids()}
