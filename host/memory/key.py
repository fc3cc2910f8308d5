"""The key of the evaluation store: what determines the candidates of a search, as a hash.

Everything that reaches the sampler, the autoencoder and the verifier is read by its content, so that a prompt from a
list, a wildcard or an edited image makes another key, whatever the graph says. What cannot be read makes no key at all.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..graph.files import model_files
from ..graph.links import upstream
from ..sampling.stock import Sampling
from .content import Content
from .functions import file_of
from .machine import machine
from .weights import Unreadable

FORMAT = 3  # of the key: what was made with another is not found


def search_key(
    sampling: Sampling, vae: Any, verifier: Any, prompt: str, frames: int, versions: Mapping[str, str], files: Any = ()
) -> str:
    """The key, in hex, of all candidates that these would make of the same recipe. Takes what `read_search` takes."""
    return read_search(sampling, vae, verifier, prompt, frames, versions, files).digest()


def read_search(
    sampling: Sampling,
    vae: Any,
    verifier: Any,
    prompt: str,
    frames: int,
    versions: Mapping[str, str],
    files: Any = (),
    before: Content | None = None,
) -> Content:
    """All that determines the candidates of a search.

    versions: of ComfyUI, torch and this pack. files: (name, bytes, time) of those behind the networks. before: what was
    read before the search; what has changed since is what sampling leaves behind, and does not count from now on.
    Raises Unreadable, which says what cannot be read.
    """
    parts = {
        **of_this_machine(versions, files),
        "guider": sampling.source,
        "sampler": sampling.sampler,
        "sigmas": sampling.sigmas,
        "latent": {**sampling.latent, **sampling.ratios},
        "rounding": sampling.to_intermediate_dtype,
        "vae": vae,
        "verifier": identity(verifier),
        "prompt": prompt,
        "frames": frames,
    }
    return _read([sampling.model], parts, before)


def read_picture(
    workflow: Mapping[str, Any],
    models: Sequence[Any],
    verifier: Any,
    prompts: Sequence[str],
    frames: int,
    versions: Mapping[str, str],
    files: Any = (),
    before: Content | None = None,
) -> Content:
    """All that determines the candidates of a search of a picture. workflow: its nodes and what comes into them;
    models: those among that. Else as `read_search`."""
    parts = {
        **of_this_machine(versions, files),
        "workflow": dict(workflow),
        "verifier": identity(verifier),
        "prompts": list(prompts),
        "frames": frames,
    }
    return _read(models, parts, before)


def of_this_machine(versions: Mapping[str, str], files: Any) -> dict[str, Any]:
    """What is in every key."""
    return {
        "format": FORMAT,
        "host": host_source(),
        "versions": dict(versions),
        "machine": machine(),
        "files": list(files),
    }


def _read(models: Sequence[Any], parts: Mapping[str, Any], before: Content | None) -> Content:
    content = Content(before)
    for model in models:
        content.know(model.model)
    for name, part in parts.items():
        content.add(name, "")
        content.add(part, name)
    return content


def identity(verifier: Any) -> str:
    """What a verifier says of itself. Raises Unreadable where it says nothing."""
    own = getattr(verifier, "identity", None)
    if not callable(own):
        raise Unreadable(f"the verifier {', '.join(verifier.members)} does not say what determines its values")
    return own()


@functools.cache
def host_source() -> str:
    """A hash of ComfyUI's own modules: between its releases they change under the same version."""
    digest = hashlib.blake2b(digest_size=16)
    root = file_of("comfy.samplers").parent
    for file in sorted(path for path in root.rglob("*.py") if path.is_file()):
        digest.update(f"{file.relative_to(root).as_posix()} {file.stat().st_size}".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def files_behind(prompt: Mapping[str, Any] | None, node_id: str | None) -> list[tuple[str, int, int]]:
    """(name, bytes, time in nanoseconds) of the model files that the nodes upstream of a node name in their widgets."""
    found: dict[str, tuple[str, int, int]] = {}
    for node in upstream(prompt or {}, str(node_id)).values():
        for value in node.get("inputs", {}).values():
            if isinstance(value, str) and 0 < len(value) < 256 and value not in found:
                for path in list(model_files(value, ("custom_nodes", "configs")).values())[:1]:
                    stat = os.stat(path)
                    found[value] = (value, stat.st_size, stat.st_mtime_ns)
    return sorted(found.values())
