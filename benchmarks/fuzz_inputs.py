"""Damaged inputs for `fuzz.py`: seeded mutations of bytes, JSON and YAML."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -1e308, 1e308, float("nan"), float("inf")),
    *(-3, 3.0, 7, 64, 4096, 100_000, 1_000_000, [64, 64], {"height": 5, "width": 70_000}, {"shortest_edge": 3}),
    *("", " ", "x" * 20_000, "../../../etc/passwd", "/etc/passwd", "\ud800", "\u0000", "\u202e", "100", "null", "a/b"),
    *([], {}, [[]], [None], [1, 2, 3], ["a", "a"], {"": ""}, {"0": "a"}, list(range(5000)), ["x"] * 5000),
)
"""Values that a file is not expected to hold where they are put."""
WORDS = (
    *("", "~", "no", "off", "yes", "1e999", ".nan", "-5", "0x1F", "07", "99999999999999999999", "1_000", "[]", "{}"),
    *("[a, b", "{a: b", "'", '"', "!!python/object/apply:os.system ['true']", "*a", "&a [*a, *a]", "|", ">", "- x"),
    *("\t", "a: b: c", "#", "? x", "%YAML 9.9", "---", "...", "<<: 1", "!!binary x", "2001-01-01", "../../x"),
)
"""Words that YAML, or an option, takes for something else than text."""
KEYS = (
    *(
        "",
        "x",
        "__class__",
        "auto_map",
        "pretrained",
        "num_labels",
        "num_classes",
        "label_names",
        "problem_type",
        "dtype",
    ),
    *(
        "model_args",
        "checkpoint_path",
        "pretrained_cfg",
        "img_size",
        "in_chans",
        "drop_rate",
        "features_only",
        "depths",
    ),
    *("hidden_size", "num_channels", "num_hidden_layers", "quantization_config", "torch_dtype", "id2label", "size"),
    *("do_pad", "do_reduce_labels", "do_flip_channel_order", "crop_size", "resample", "image_processor_type", "dfml"),
)
"""Keys that are put where they were not."""
NUMBERS = (0, 1, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**64 - 1)


def bad_bytes(content: bytes, random: Random) -> bytes:
    """Bytes with one to six places changed: bits, runs of bytes, numbers of 1 to 8 bytes; perhaps cut off."""
    found = bytearray(content)
    for _ in range(random.randint(1, 6)):
        near = 64 if random.random() < 0.4 else len(found)  # Headers come first.
        place = random.randrange(min(near, len(found)) + 1)
        kind, length = random.randrange(7), random.choice((1, 2, 4, 8))
        if kind == 0 and place < len(found):
            found[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            number = random.choice(NUMBERS) % 256**length
            found[place : place + length] = number.to_bytes(length, random.choice(("little", "big")))
        elif kind == 2:
            del found[place : place + random.randint(1, 40)]
        elif kind == 3:
            found[place:place] = random.randbytes(random.randint(1, 40))
        elif kind == 4:
            start = random.randrange(len(found) + 1)
            found[place:place] = found[start : start + random.randint(1, 200)]
        elif kind == 5:
            found[place : place + 20] = random.randbytes(20)
        elif random.random() < 0.3:
            del found[place:]
    return bytes(found)


def bad_json(content: Any, random: Random) -> bytes:
    """JSON with one to three values changed, moved, doubled or taken out; now and then its text is damaged too."""
    found = copy.deepcopy(content)
    for _ in range(random.randint(1, 3)):
        places = list(_places(found))
        if not places:
            break
        parent, key = random.choice(places)
        kind = random.randrange(6)
        if kind < 3:
            parent[key] = copy.deepcopy(random.choice(NASTY))
        elif kind == 3:
            del parent[key]
        elif kind == 4:
            other, where = random.choice(places)
            if where in other if isinstance(other, dict) else where < len(other):
                parent[key] = copy.deepcopy(other[where])
        elif isinstance(parent, dict):
            parent[random.choice((*KEYS, f"{key}s"))] = copy.deepcopy(random.choice(NASTY))
        else:
            parent.insert(key, copy.deepcopy(random.choice(NASTY)))
    if random.random() < 0.03:
        found = random.choice(NASTY)
    text = json.dumps(found).encode("utf-8", "surrogatepass")
    if random.random() < 0.02:
        return b"[" * 100_000 + text
    return bad_bytes(text, random) if random.random() < 0.2 else text


def _places(tree: Any) -> Any:
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def bad_yaml(text: str, random: Random) -> bytes:
    """Lines of `option: value` with one to three of them changed; now and then the text is damaged too."""
    lines = text.splitlines()
    for _ in range(random.randint(1, 3)):
        index = random.randrange(len(lines))
        key, colon, _ = lines[index].partition(":")
        kind = random.randrange(5)
        if kind < 2 and colon:
            lines[index] = f"{key}: {random.choice(WORDS)}"
        elif kind == 2:
            lines[index] = random.choice(WORDS)
        elif kind == 3:
            lines.insert(index, lines[random.randrange(len(lines))])
        else:
            cut = random.randrange(len(lines[index]) + 1)
            lines[index] = lines[index][:cut] + random.choice("abc_-: ") + lines[index][cut:]
    found = "\n".join(lines).encode("utf-8", "surrogatepass")
    return bad_bytes(found, random) if random.random() < 0.25 else found
