"""Loads the pack the way ComfyUI does: by path, under a package name of our choosing.

With COMFYUI_PATH set, the tests that need a real ComfyUI run too; without it they are skipped.
"""

import atexit
import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

if comfy_root := os.environ.get("COMFYUI_PATH"):
    sys.path.insert(0, comfy_root)  # `import nodes` must be ComfyUI's
    from comfy.cli_args import args

    args.cpu = True  # before comfy.model_management is imported

    import folder_paths

    user_folder = tempfile.mkdtemp(prefix="noise-search-user-")
    atexit.register(shutil.rmtree, user_folder, ignore_errors=True)
    folder_paths.set_user_directory(user_folder)

sys.path.append(str(ROOT / "tests" / "support"))  # what the tests share
pytest.register_assert_rewrite("conformance_suite")

# The same examples on every machine, and no clock: a busy one is slow, not wrong.
settings.register_profile(
    "noise_search", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fast", settings.get_profile("noise_search"), max_examples=20)  # `dev.py test --fast`
settings.load_profile("noise_search")

spec = importlib.util.spec_from_file_location("noise_search", ROOT / "__init__.py")
sys.modules["noise_search"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)

if comfy_root:  # a test that wants the store says so; to the others nothing may be known from before
    from noise_search.host.memory import store

    store.configure(enabled=False)


DEPEND_ON_COMFYUI = {"host", "nodes", "server"}  # the other folders' tests are the same on every version of it
# Where each process takes a file at a time: the folders with the longest files first, so that the last ones are short.
ORDER = ("server", "project", "host", "nodes", "demo", "verifiers", "report", "search")


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files that have the most tests


def pytest_collection_modifyitems(config, items):
    if "sweep" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("sweep")])
        items[:] = [item for item in items if not item.get_closest_marker("sweep")]
    folder_of = lambda item: item.path.relative_to(ROOT / "tests").parts[0]  # noqa: E731
    items.sort(key=lambda item: ORDER.index(folder_of(item)))
    for item in items:
        folder = folder_of(item)
        if folder not in DEPEND_ON_COMFYUI and item.get_closest_marker("comfyui") is None:
            item.add_marker("any_host")
        if {"chromium", "converted"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker("browser")


def pytest_collection_finish():
    """What is imported and collected by now stays. No collection needs to look at these half a million objects again,
    and the tests that ask whether something is let go make many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def demo():
    """The embedded model, with the conditioning of one prompt."""
    pytest.importorskip("comfy")
    import torch
    from noise_search.host.demo import load_generator

    with torch.inference_mode():
        model, clip, vae = load_generator()
        encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
        positive, negative = encode("a red circle above a blue square"), encode("")
    return SimpleNamespace(model=model, clip=clip, vae=vae, positive=positive, negative=negative, encode=encode)


@pytest.fixture
def store(tmp_path):
    """An evaluation store of the test's own."""
    from noise_search.host.memory.store import Store

    return Store(tmp_path / "store")


class Brightness:
    """A verifier without weights: the mean of the red channel."""

    members = ("red",)
    needs_prompt = False
    prompt_tokens = None
    usual_range = (0.0, 1.0)

    def score(self, images, prompts):
        return images[..., 0].float().mean(dim=(1, 2)).reshape(-1, 1).cpu()


@pytest.fixture(scope="session")
def brightness():
    return Brightness()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real ComfyUI server with the pack as it is installed, started once for all tests."""
    if not comfy_root:
        pytest.skip("COMFYUI_PATH is not set")
    from comfy_server import ComfyServer

    with ComfyServer(Path(comfy_root), tmp_path_factory.mktemp("comfyui"), packed=True) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    import frontend

    try:
        with frontend.browser() as running:
            yield running
    except frontend.NoBrowser as reason:
        frontend.do_without(reason)
