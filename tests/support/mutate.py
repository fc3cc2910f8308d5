"""How many small faults in the code would the tests notice? Makes a random sample of them, one at a time, in a copy.

    python dev.py mutate --fast --seed 1 --sample 200 search report/table.py

Each mutant is run against the tests that cover its line, the quickest first, up to the first that fails. Messages and
docstrings are left out. The mutations are mutmut's; its own runner wants a package that is imported by the name of its
folder, and a pack of ComfyUI is loaded by path, so what runs them is here. It forks (Linux, macOS): PyTorch, and
ComfyUI where COMFYUI_PATH names one, are imported once.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import difflib
import gc
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import coverage
import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parents[2]
BATCHES = (8.0, 60.0)  # seconds of tests for one mutant, and for one that survives those; by what they took without one
LIMIT_SECONDS = 120  # of a batch: the mutant ended in a loop
FOUND, TIMED_OUT, SURVIVED, UNTESTED = "found", "out of time", "survived", "no test"


@dataclass(frozen=True)
class Mutant:
    path: str
    line: int
    old: cst.CSTNode
    new: cst.CSTNode


class Finder(cst.CSTVisitor):
    """Every mutant of a file."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, path: str):
        self.path = path
        self.found: list[Mutant] = []
        self.depth = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.depth += 1
        if skipped(node, self.depth):
            return False
        for kind, mutate in mutation_operators:
            if isinstance(node, kind):
                line = self.get_metadata(PositionProvider, node).start.line
                self.found += [Mutant(self.path, line, node, new) for new in mutate(node)]
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self.depth -= 1


def skipped(node: cst.CSTNode, depth: int) -> bool:
    """Whether a mutation of this, or of what is in it, would say nothing: messages, types, imports."""
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom | cst.Raise | cst.FormattedString):
        return True
    if isinstance(node, cst.SimpleString | cst.ConcatenatedString):
        return not isinstance(node, cst.SimpleString) or " " in node.value or node.value.startswith(('"""', 'r"""'))
    if isinstance(node, cst.Call):  # a cast is a type, the console is a message
        name = cst.Module([]).code_for_node(node.func)
        return name in ("cast", "TypeVar") or name.startswith("log_to_console")
    # at the top, `Name = Callable[...]` is a type
    return depth == 0 and isinstance(node, cst.Assign) and isinstance(node.value, cst.Subscript)


def mutants_of(folder: Path, path: str) -> tuple[cst.Module, list[Mutant]]:
    wrapper = MetadataWrapper(cst.parse_module((folder / path).read_text(encoding="utf-8")))
    finder = Finder(path)
    wrapper.visit(finder)
    return wrapper.module, finder.found


def code_of(module: cst.Module, mutant: Mutant) -> str | None:
    """The file with this mutation, or None where it is no other program."""
    new = module.deep_replace(mutant.old, mutant.new)
    assert isinstance(new, cst.Module)
    try:
        return None if meaning(new.code) == meaning(module.code) else new.code
    except SyntaxError:
        return None


def meaning(code: str) -> str:
    """A program without its layout, and without zip's `strict`, which only asserts."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
    return ast.dump(tree)


class Watched:
    """A pytest plugin: which lines each test runs, and how long it takes."""

    def __init__(self, measured: coverage.Coverage):
        self.measured = measured
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.measured.switch_context(item.nodeid)
        start = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - start

    def pytest_runtest_logreport(self, report):
        if not report.passed:
            self.failed.add(report.nodeid)


class Only:
    """A pytest plugin: these tests and no others, by file, the quickest file first."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds = seconds
        self.files: Counter[str] = Counter()
        for test, spent in seconds.items():
            self.files[test.partition("::")[0]] += spent

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted(
            (item for item in items if item.nodeid in self.seconds),
            key=lambda item: self.files[item.nodeid.partition("::")[0]],
        )


def in_child(folder: Path, work: Callable[[], int], limit: float | None = None) -> int | None:
    """The exit status of this work in a process of its own, None where it took more CPU than `limit`."""
    scratch = tempfile.mkdtemp(dir=folder.parent)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.chdir(folder)
            os.environ["TMPDIR"] = tempfile.tempdir = scratch
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
                with open(os.devnull, "w") as nowhere:
                    for stream in (1, 2):
                        os.dup2(nowhere.fileno(), stream)
            status = work()
            sys.stdout.flush()
        except BaseException as error:  # the child must never go on as its parent
            status = 99
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(status)
    waited = 5 * limit if limit else None  # for what sleeps, on a busy machine
    start = time.monotonic()
    try:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if waited is not None and time.monotonic() - start > waited:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.02)
    except BaseException:
        os.killpg(child, signal.SIGKILL)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def run_pytest(arguments: list[str], plugin: object) -> int:
    """Without what takes seconds to start and says only how a test failed."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    plain = ("-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "--rootdir", os.getcwd())
    return int(pytest.main([*arguments, *plain], [plugin]))


@dataclass(frozen=True)
class Covering:
    """seconds: what each test takes; lines: the tests that run a line, of each file."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]

    def of(self, path: str, line: int) -> list[dict[str, float]]:
        """The tests to run for this line, with their seconds, in batches; for one that runs at import, those of its
        file."""
        lines = self.lines.get(path, {})
        tests = set(lines.get(line, ()))
        if not tests - {""}:
            tests = {test for one in lines.values() for test in one} if "" in tests else set()
        left = deque(sorted((self.seconds[test], test) for test in tests if test in self.seconds))
        batches: list[dict[str, float]] = []
        for enough in BATCHES:
            batch: dict[str, float] = {}
            while left and (not batch or sum(batch.values()) + left[0][0] <= enough):
                seconds, test = left.popleft()
                batch[test] = seconds
            batches += [batch] * bool(batch)
        return batches


def cover(folder: Path, paths: list[str], tests: list[str]) -> Covering:
    """Runs the tests once."""
    out = folder.parent / "covering.pickle"

    def work() -> int:
        measured = coverage.Coverage(data_file=None, include=[str(folder / path) for path in paths], config_file=False)
        watched = Watched(measured)
        measured.start()
        run_pytest(tests, watched)
        measured.stop()
        data = measured.get_data()
        lines = {path: data.contexts_by_lineno(str(folder / path)) for path in paths}
        seconds = {test: spent for test, spent in watched.seconds.items() if test not in watched.failed}
        out.write_bytes(pickle.dumps(Covering(seconds, lines)))
        return 0

    if in_child(folder, work) != 0:
        sys.exit("the tests could not be run")
    covering: Covering = pickle.loads(out.read_bytes())
    return covering


def copied(to: Path) -> str:
    """Copies what git knows of; returns a hash of it."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    whole = hashlib.sha256()
    for name in sorted(filter(None, names)):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
            whole.update(name.encode() + (to / name).read_bytes())
    return whole.hexdigest()


def import_once() -> None:
    """What every test imports and no mutant changes."""
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    if host := os.environ.get("COMFYUI_PATH"):
        sys.path.insert(0, host)
        from comfy.cli_args import args

        args.cpu = True
        import comfy.samplers  # noqa: F401
        import comfy_api.latest  # noqa: F401

        import nodes  # noqa: F401
    gc.freeze()  # nothing of this is garbage


def tried(folder: Path, module: cst.Module, mutant: Mutant, code: str, covering: Covering) -> str:
    batches, file, status = covering.of(mutant.path, mutant.line), folder / mutant.path, 0
    try:
        write(file, code)
        for tests in batches:
            files = sorted({test.partition("::")[0] for test in tests})
            status = in_child(
                folder, lambda files=files, tests=tests: run_pytest(["-x", *files], Only(tests)), LIMIT_SECONDS
            )
            if status != 0:
                return TIMED_OUT if status is None else FOUND
    finally:
        write(file, module.code)
    return SURVIVED if batches else UNTESTED


def write(file: Path, code: str) -> None:
    """Without what Python compiled of it, which it would take for the new file where the size is the same."""
    file.write_text(code, encoding="utf-8")
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()


def change(module: cst.Module, code: str) -> str:
    """The changed lines."""
    lines = difflib.unified_diff(module.code.splitlines(), code.splitlines(), n=0, lineterm="")
    return "\n".join(f"    {line}" for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def tests_of(path: str) -> str:
    """The folder of tests that is named as a path, or as what it is in."""
    folder = Path("tests", path)
    while not (ROOT / folder).is_dir():
        folder = folder.parent
    return folder.as_posix()


def files_in(folder: Path, names: list[str]) -> Iterator[str]:
    for name in names:
        path = folder / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield file.relative_to(folder).as_posix()


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutate", description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", help="files and folders to change")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=int, default=100, help="how many mutants")
    parser.add_argument("--tests", nargs="+", help="files and folders; by default those named as the paths")
    parser.add_argument("--line", type=int, help="only the mutants of this line, all of them")
    options = parser.parse_args()
    options.tests = options.tests or sorted({*map(tests_of, options.paths)})
    work = Path(tempfile.mkdtemp(prefix="mutants-"))
    atexit.register(shutil.rmtree, work, ignore_errors=True)
    folder = work / "pack"
    key = hashlib.sha256(json.dumps([copied(folder), options.paths, options.tests]).encode()).hexdigest()
    paths = list(files_in(folder, options.paths))
    import_once()
    cache = ROOT / ".cache" / f"covering-{key[:16]}.pickle"
    if not cache.is_file():
        say("Running the tests once, to see which lines each one covers ...")
        covering = cover(folder, paths, options.tests)
        cache.parent.mkdir(exist_ok=True)
        cache.write_bytes(pickle.dumps(covering))
    covering = pickle.loads(cache.read_bytes())
    modules, pool = {}, []
    for path in paths:
        modules[path], found = mutants_of(folder, path)
        pool += [one for one in found if options.line in (None, one.line)]
    random.Random(options.seed).shuffle(pool)
    say(f"seed {options.seed}: {options.sample} of {len(pool):,} mutants, {len(covering.seconds):,} tests")
    outcomes: list[tuple[str, str]] = []
    for mutant in pool:
        if len(outcomes) == options.sample and options.line is None:
            break
        module = modules[mutant.path]
        code = code_of(module, mutant)
        if code is None:
            continue
        outcome = tried(folder, module, mutant, code, covering)
        outcomes.append((mutant.path, outcome))
        if outcome in (SURVIVED, UNTESTED):
            say(f"{len(outcomes)}. {outcome}: {mutant.path}:{mutant.line}\n{change(module, code)}")
    show(outcomes)
    return 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show(outcomes: list[tuple[str, str]]) -> None:
    counts = Counter(outcomes)
    say("\n| file | mutants | found | out of time | survived | no test | found % |\n|---|---|---|---|---|---|---|")
    for path in [*sorted({path for path, _ in outcomes}), None]:
        row = [
            sum(n for (p, o), n in counts.items() if path in (None, p) and o == one)
            for one in (FOUND, TIMED_OUT, SURVIVED, UNTESTED)
        ]
        total = sum(row)
        share = (row[0] + row[1]) / total if total else 0
        say(f"| {path or 'all'} | {total} | {' | '.join(map(str, row))} | {share:.0%} |")


if __name__ == "__main__":
    sys.exit(main())
