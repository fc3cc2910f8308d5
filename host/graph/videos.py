"""Whether a picture in the graph is a video, whose frames belong together."""

from __future__ import annotations

from ..known import FRAME_COUNTS
from . import classes
from .graph import Graph
from .links import inputs_of, is_link, links_of, upstream


def makes_videos(graph: Graph, start: str = "image") -> bool:
    """Whether the latent behind this input has frames: the node that makes it says how many, and it is not one."""
    prompt = graph.prompt or {}
    link = links_of(prompt, str(graph.node_id)).get(start)
    behind = upstream(prompt, link[0]) if link else {}
    for node_id, node in behind.items():
        kind = classes.node_class(str(node.get("class_type", "")))
        if not kind.gives({"LATENT"}):
            continue
        counts = [value for name, value in inputs_of(prompt, node_id).items() if name in FRAME_COUNTS]
        if any(is_link(count) or isinstance(count, int) and count > 1 for count in counts):
            return True
    return False
