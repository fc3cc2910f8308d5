"""Random and hostile input for the tests and `benchmarks/fuzz.py`: recipes, workflows and files of the store."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

TEXTS = [
    "", "\0", "../../../etc/passwd", "..\\..\\windows\\system32", "/dev/stdin", "file:///etc/passwd", "~/.ssh/id_rsa",
    "\ud800", "\u202e\u0000", "𝕬" * 50, "'; DROP TABLE entries; --", "%s%n{0}", "NaN", "-1", "1e999", "seed", "rotate",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2**31, 2**63, 2**64 - 1, 2**64, -(2**63), 10**400, 0.0, -0.0, 0.5, 1.5, 180, 180.0000001, 4096, 4097,
    1e308, 1e-320, float("nan"), float("inf"), float("-inf"), True, False, None,
]  # fmt: skip
KEYS = ["version", "seed", "moves", "row", "batch", "batch_index", "jumps", "move", "angle", "from", "to", "__class__"]


def plain(chance: random.Random) -> Any:
    return chance.choice(
        [chance.choice(TEXTS), chance.choice(NUMBERS), chance.randrange(2**64), chance.uniform(-1, 200)]
    )


def anything(chance: random.Random, depth: int = 4) -> Any:
    """A random JSON value."""
    kind = chance.random()
    if depth == 0 or kind < 0.4:
        return plain(chance)
    count = chance.choice([0, 1, 2, 3, 8])
    if kind < 0.7:
        return [anything(chance, depth - 1) for _ in range(count)]
    return {chance.choice([*KEYS, *TEXTS]): anything(chance, depth - 1) for _ in range(count)}


def valid(chance: random.Random) -> dict[str, Any]:
    """A recipe as this pack writes them."""
    data: dict[str, Any] = {"version": 1, "seed": chance.randrange(2**64)}
    if chance.random() < 0.5:
        data["moves"] = [
            {"move": "rotate", "seed": chance.randrange(2**64), "angle": chance.uniform(0, 180)}
            for _ in range(chance.choice([1, 2, 5, 40]))
        ]
    if chance.random() < 0.4:
        data["batch"] = chance.choice([1, 2, 4, 4096])
        data["row"] = chance.randrange(data["batch"])
        if chance.random() < 0.3 and data["batch"] < 10:
            data["batch_index"] = [chance.randrange(20) for _ in range(data["batch"])]
    if chance.random() < 0.3:
        data["jumps"] = []
        for _ in range(chance.choice([1, 3])):
            start, to = sorted((chance.random(), chance.random()))
            data["jumps"].append({"seed": chance.randrange(2**64), "from": start, "to": to})
    return data


def mutated(chance: random.Random, data: Any) -> Any:
    """The input with one part somewhere inside changed, added, or taken out."""
    if isinstance(data, dict) and data and chance.random() < 0.8:
        key, other = chance.choice(sorted(data)), dict(data)
        deed = chance.random()
        if deed < 0.15:
            del other[key]
        elif deed < 0.3:
            other[chance.choice([*KEYS, *TEXTS])] = plain(chance)
        else:
            other[key] = mutated(chance, data[key])
        return other
    if isinstance(data, list) and data and chance.random() < 0.8:
        place = chance.randrange(len(data))
        return [*data[:place], mutated(chance, data[place]), *data[place + 1 :] * chance.choice([0, 1, 1, 2])]
    return anything(chance, 2)


def hostile(chance: random.Random) -> str:
    """A text that is no recipe, or hardly one."""
    text = json.dumps(valid(chance))
    depth = chance.choice([10, 1000, 100_000])
    place = chance.randrange(len(text))
    return chance.choice(
        [
            "[" * depth,
            '{"moves":' * depth + "1" + "}" * depth,
            '{"seed": ' + "9" * chance.choice([20, 400, 5000]) + "}",
            '{"seed": 1, "moves": [' + ", ".join(['{"move": "rotate", "seed": 1, "angle": 2}'] * 4097) + "]}",
            "[" + ", ".join(['{"seed": 1}'] * 4097) + "]",
            text[:place],
            text[:place] + chr(chance.randrange(0x110000)) + text[place:],
            text + text,
            "\ufeff" + text,
            chance.choice(TEXTS),
            text.replace("1", chance.choice(["NaN", "Infinity", "1e999", "0x1", "١"])),
        ]
    )


def recipe_texts(count: int, seed: int) -> Iterator[str]:
    """This many texts where a recipe is expected: valid ones, mutated ones, random JSON, and worse."""
    chance = random.Random(seed)
    for _ in range(count):
        kind = chance.random()
        if kind < 0.15:
            yield json.dumps([valid(chance) for _ in range(chance.choice([1, 1, 2, 4]))])
        elif kind < 0.3:
            yield json.dumps(valid(chance))
        elif kind < 0.75:
            data: Any = valid(chance)
            for _ in range(chance.choice([1, 1, 2, 4])):
                data = mutated(chance, data)
            yield json.dumps(data if chance.random() < 0.7 else [data, valid(chance)])
        elif kind < 0.97:
            yield json.dumps(anything(chance))
        else:
            yield hostile(chance)


def workflows(count: int, seed: int, good: dict[str, Any], path: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
    """This many workflows like `good`, in which what is at `path` was tampered with, or of no shape at all.

    path: gives the part of a workflow that holds what is to be changed, such as `extra`.
    """
    chance = random.Random(seed)
    for _ in range(count):
        if chance.random() < 0.1:
            yield anything(chance)
            continue
        workflow = json.loads(json.dumps(good))
        part = path(workflow)
        for key in part:
            for _ in range(chance.choice([1, 1, 2, 5])):
                part[key] = mutated(chance, part[key])
        yield workflow
