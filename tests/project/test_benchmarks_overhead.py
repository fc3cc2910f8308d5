"""benchmarks/overhead.py and resident_memory.py: what they make of measurements, and one tiny run on a real server."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def overhead():
    return load("overhead")


def load(name):
    """As a program in the folder of the benchmarks finds it."""
    before = sys.path[:]
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = before


def measured(overhead, wall=10.0, batched=True, picture=b"one"):
    """4 candidates: 6 s of sampling, of which the denoiser is 5."""
    seconds = {("candidates", "sampler"): 5.5, ("candidates", "around the sampler"): 0.3}
    seconds |= {("candidates", "progress bar"): 0.2, ("candidates", "decode"): 1.0, ("candidates", "score"): 0.5}
    runs, denoiser = [("candidates", 1, 16), ("candidates", 3, 16)], [2.0, 3.0]
    if batched:
        seconds |= {("probe", "sampler"): 0.4, ("winner", "sampler"): 0.8, ("winner", "decode"): 0.2}
        runs += [("probe", 1, 2), ("probe", 3, 2), ("winner", 1, 16)]
        denoiser += [0.1, 0.2, 0.7]
    return overhead.Measured(wall, seconds, runs, 0, picture, denoiser)


def test_every_second_of_a_prompt_is_counted_once(overhead):
    phases = measured(overhead).phases()
    assert sum(phases.values()) == pytest.approx(10.0)
    assert phases["rest of the prompt"] == pytest.approx(10 - 6 - 1.5 - 0.4 - 1)
    assert phases["winner rendered again"] == pytest.approx(1.0)


def test_ratios_are_of_neighbours_and_the_probe_is_on_both_sides(overhead):
    searches = [measured(overhead, wall) for wall in (8.0, 9.0, 30.0)]
    stock = [measured(overhead, wall, batched=False) for wall in (10.0, 10.0, 20.0)]
    ratios = overhead.compare(searches, stock)
    assert ratios[overhead.TO_STOCK] == pytest.approx({"median": 0.9, "low": 0.8, "high": 1.5})
    assert ratios[overhead.TO_DENOISER]["median"] == pytest.approx(7.2 / 6.0)
    assert ratios["whole search / denoiser calls"]["low"] == pytest.approx(8 / 5)


def test_tables_and_promises(overhead, capsys):
    results = {
        overhead.AUTOMATIC: [measured(overhead, 9.0)],
        overhead.ALONE: [measured(overhead, 11.0, batched=False, picture=b"another")],
        overhead.STOCK: [measured(overhead, 10.0, batched=False)],
    }
    table = overhead.tables(results)
    assert table["same picture"] == {overhead.AUTOMATIC: 1, overhead.ALONE: 0}
    assert table["batches"] == [[1, 3]]
    assert sum(table["phases"][overhead.STOCK].values()) == pytest.approx(10 / 9)
    promises = overhead.check(table)
    assert [kept for _, kept in promises] == [True, False, False]
    overhead.show(table, argparse.Namespace(repeats=1))
    shown = capsys.readouterr().out
    assert "0.900 [0.900, 0.900]" in shown and "VRAM" not in shown


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_resident_memory_is_read_in_mebibytes():
    memory = load("resident_memory")
    before = memory.resident(Path("/proc/self"))[memory.AFTER]
    block = bytearray(os.urandom(1)) * (64 * 2**20)
    found = memory.resident(Path("/proc/self"))
    assert 56 < found[memory.AFTER] - before < 72 and found[memory.PEAK] >= found[memory.AFTER]
    del block


@pytest.mark.any_host
@pytest.mark.comfyui
@pytest.mark.sweep
@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set")
def test_the_size_without_a_file_runs_on_a_real_server(overhead):
    options = argparse.Namespace(
        size="tiny", candidates=2, steps=2, cfg=1.0, scheduler="simple", pixels=64, weights="fp32",
        dynamic_vram="on", threads=1, repeats=1, processor_time=False,
    )  # fmt: skip
    results = overhead.measure(options)
    for name in (overhead.AUTOMATIC, overhead.ALONE):
        [one] = results[name]
        assert one.runs == [("candidates", 1, 2), ("candidates", 1, 2)]
        assert all(seconds > 0 for seconds in one.denoiser) and one.phases()["rest of the prompt"] > 0
        assert one.picture == results[overhead.STOCK][0].picture
