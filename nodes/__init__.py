"""The nodes: sockets, widgets and tooltips, nothing else."""

from comfy_api.latest import ComfyExtension, io

from ..host.memory.routes import register_routes
from . import demo, ensemble, graph, picture, report, samplers, searches, verifiers, vlm


class NoiseSearchExtension(ComfyExtension):
    """Everything the pack adds to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_routes()
        return [
            *samplers.NODES,
            *picture.NODES,
            *searches.NODES,
            *graph.NODES,
            *verifiers.NODES,
            *demo.NODES,
            *ensemble.NODES,
            *report.NODES,
            *vlm.NODES,
        ]
