"""How whole files become damaged ones: bytes, fields, tokens and JSON values, drawn by hypothesis."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

INTEGERS = (0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 1e38, -1e38, 1e300, 348.0, 351.5, 2e9)
TEXTS = (
    "",
    "n/a",
    "nan",
    "-inf",
    "1e999",
    "\x00",
    "\ufeff",
    "é",
    "\ud7ff",
    "../../etc/passwd",
    "*",
    "<b>",
    "=1+1",
    "9" * 5000,
)
SIZES = {"b": 8, "B": 8, "h": 16, "H": 16, "i": 32, "I": 32, "q": 64, "Q": 64}

Field = tuple[int, str]  # place and struct format of a number


def damaged(bases: Sequence[bytes], fields: Sequence[Field] = ()) -> st.SearchStrategy[bytes]:
    """One of some files with a few changes; sometimes noise alone."""
    changes = [_flip, _cut, _insert, _remove, _repeat, _number, *([_field(fields)] * 14 if fields else [])]

    @st.composite
    def draw_one(draw: Callable[..., Any]) -> bytes:
        if draw(st.integers(0, 19)) == 0:
            return draw(st.binary(max_size=600))
        raw = bytearray(draw(st.sampled_from(bases)))
        for _ in range(draw(st.integers(1, 4))):
            draw(st.sampled_from(changes))(draw, raw)
        return bytes(raw)

    return draw_one()


def _place(draw: Callable[..., Any], raw: bytearray) -> int:
    return draw(st.integers(0, max(len(raw) - 1, 0)))


def _flip(draw: Callable[..., Any], raw: bytearray) -> None:
    if raw:
        raw[_place(draw, raw)] ^= draw(st.integers(1, 255))


def _cut(draw: Callable[..., Any], raw: bytearray) -> None:
    del raw[_place(draw, raw) :]


def _insert(draw: Callable[..., Any], raw: bytearray) -> None:
    at = _place(draw, raw)
    raw[at:at] = draw(st.binary(min_size=1, max_size=16))


def _remove(draw: Callable[..., Any], raw: bytearray) -> None:
    at = _place(draw, raw)
    del raw[at : at + draw(st.integers(1, 64))]


def _repeat(draw: Callable[..., Any], raw: bytearray) -> None:
    at = _place(draw, raw)
    part = raw[at : at + draw(st.integers(1, 64))]
    raw[at:at] = part * draw(st.integers(1, 40))


def _number(draw: Callable[..., Any], raw: bytearray) -> None:
    _write(draw, raw, _place(draw, raw), draw(st.sampled_from("hiqfdQ")))


def _field(fields: Sequence[Field]) -> Callable[[Callable[..., Any], bytearray], None]:
    def change(draw: Callable[..., Any], raw: bytearray) -> None:
        _write(draw, raw, *draw(st.sampled_from(fields)))

    return change


def _write(draw: Callable[..., Any], raw: bytearray, at: int, form: str) -> None:
    """A number at a place, mostly an extreme one."""
    if form in "fd":
        value = draw(st.sampled_from(FLOATS) | st.floats(width=32 if form == "f" else 64))
        value = value if form == "d" or not abs(value) > 3e38 or value in (float("inf"), float("-inf")) else 1e38
    else:
        value = draw(st.sampled_from(INTEGERS)) % 2 ** SIZES[form]
        value -= 2 ** SIZES[form] if form.islower() and value >= 2 ** (SIZES[form] - 1) else 0
    packed = struct.pack(f"<{form}", value)
    if at + len(packed) <= len(raw):
        raw[at : at + len(packed)] = packed


# --- text -----------------------------------------------------------------------------------------------------------


def json_values() -> st.SearchStrategy[Any]:
    """Anything that JSON can hold, and numbers that it should not."""
    leaves = (
        st.none()
        | st.booleans()
        | st.sampled_from(INTEGERS)
        | st.sampled_from(FLOATS)
        | st.sampled_from(TEXTS)
        | st.text(max_size=8)
        | st.just(10**400)
    )
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    )


def other_json(bases: Sequence[Any], keys: Sequence[str] = ()) -> st.SearchStrategy[bytes]:
    """The text of a JSON document in which some entries were replaced, removed, renamed or added."""

    @st.composite
    def draw_one(draw: Callable[..., Any]) -> bytes:
        content = json.loads(json.dumps(draw(st.sampled_from(bases))))
        for _ in range(draw(st.integers(1, 3))):
            content = _other_value(draw, content, keys)
        text = json.dumps(content, ensure_ascii=draw(st.booleans()))
        return text.encode("utf-8", "surrogatepass")

    return draw_one()


def _other_value(draw: Callable[..., Any], content: Any, keys: Sequence[str]) -> Any:
    """The content with one entry changed, somewhere in it."""
    if isinstance(content, dict) and content and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(content)))
        what = draw(st.integers(0, 9))
        if what == 0:
            return {name: value for name, value in content.items() if name != key}
        if what == 1:
            return {**content, draw(st.sampled_from(keys) if keys else st.text(max_size=6)): content[key]}
        return {**content, key: _other_value(draw, content[key], keys)}
    if isinstance(content, list) and content and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(content) - 1))
        return [*content[:at], _other_value(draw, content[at], keys), *content[at + 1 :]]
    return draw(json_values())


def tables(heading: Sequence[str], words: Sequence[str]) -> st.SearchStrategy[bytes]:
    """A tab-separated table, now and then ragged, in another encoding or with other line ends."""

    @st.composite
    def draw_one(draw: Callable[..., Any]) -> bytes:
        names = draw(st.lists(st.sampled_from(heading) | st.sampled_from(TEXTS), min_size=0, max_size=5))
        cells = st.sampled_from(words) | st.sampled_from(TEXTS) | st.text(max_size=4) | st.floats().map(str)
        width = st.just(len(names)) if draw(st.integers(0, 3)) else st.integers(0, 6)
        rows = [draw(st.lists(cells, min_size=n, max_size=n)) for n in draw(st.lists(width, max_size=6))]
        end = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
        text = end.join(draw(st.sampled_from("\t\t\t\t, "))[:1].join(row) for row in [names, *rows])
        return text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])), "replace")

    return draw_one()
