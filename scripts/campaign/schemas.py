"""Values that fit a JSON schema, and such with parts replaced, as hypothesis strategies.

    fitting({"type": "integer", "minimum": 1})     1, 64, 2**70, ...
    changed(schema)                                the same with up to three parts of any kind

Of the words of JSON schema it knows those that stand in a config's; another one is an error, so
that a schema does not grow past what is drawn from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

Values = st.SearchStrategy[Any]
Schema = Mapping[str, Any]

WORDS = "16k 1m auto yarn ntk nll passkey none lora full 0 -1 1e9 q_proj base . a=b = nll@16k<0"
WORDS = [*WORDS.split(), "", " ", "9" * 5000, "../x", "\x1b\u202e"]
NUMBERS = [0, -1, 7, 64, 2048, 16384, 10**30, -(2**63), 0.5, 1e-9, 3e38, 1e308]
ODD = [*NUMBERS, 1e999, float("nan"), None, True]
MOST_KEYS = 6
"""Of those that may be left out: with more of them hardly a config holds together."""
KNOWN = frozenset(
    "type enum const anyOf $ref properties required additionalProperties items minItems pattern"
    " minimum maximum exclusiveMinimum exclusiveMaximum title description default $defs".split()
)


def text() -> Values:
    """What people write into configs, and any text."""
    return st.sampled_from(WORDS) | st.text(max_size=20)


def anything() -> Values:
    """Any value that YAML can write."""
    plain = st.sampled_from(ODD) | text() | st.integers() | st.floats()
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | _mapping(text(), inner), max_leaves=8
    )


def fitting(schema: Schema, known: Mapping[str, Schema] | None = None) -> Values:
    """Values that fit `schema`; `known` holds what its references name.

    Raises:
        ValueError: the schema has a word that nothing here draws for.
    """
    known = schema.get("$defs", {}) if known is None else known
    if unknown := set(schema) - KNOWN:
        raise ValueError(f"nothing here draws for {sorted(unknown)} of {dict(schema)}")
    if "$ref" in schema:
        return fitting(known[schema["$ref"].rpartition("/")[2]], known)
    if "anyOf" in schema:
        return st.one_of([fitting(part, known) for part in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    draws: dict[Any, Callable[[Schema, Mapping[str, Schema]], Values]] = {
        "object": _object,
        "array": _array,
        "integer": lambda one, _: _number(one, st.integers, int),
        "number": lambda one, _: _number(one, st.floats, float),
        "boolean": lambda one, _: st.booleans(),
        "null": lambda one, _: st.none(),
        "string": lambda one, _: st.from_regex(one["pattern"]) if "pattern" in one else text(),
        None: lambda one, _: anything(),
    }
    return draws[schema.get("type")](schema, known)


@st.composite
def changed(draw: st.DrawFn, schema: Schema) -> Any:
    """A value that fits, up to three of its parts replaced, or put beside the others."""
    value = draw(fitting(schema))
    for _ in range(draw(st.integers(0, 3))):
        part = draw(st.sampled_from(list(_containers(value)) or [None]))
        if part is None:
            return draw(anything())
        places = list(part) if isinstance(part, dict) else range(len(part))
        if places and draw(st.booleans()):
            part[draw(st.sampled_from(places))] = draw(anything())
        elif isinstance(part, dict):
            part[draw(text())] = draw(anything())
        else:
            part.append(draw(anything()))
    return value


def _containers(value: Any) -> list[Any]:
    """`value` and all inside it that holds others."""
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for part in inner for found in _containers(part))]


def _object(schema: Schema, known: Mapping[str, Schema]) -> Values:
    parts = {name: fitting(part, known) for name, part in schema.get("properties", {}).items()}
    needed = {name: parts.pop(name) for name in schema.get("required", ())}
    if parts or needed:
        return _members(needed, parts)
    others = schema.get("additionalProperties", True)
    return _mapping(text(), anything() if others is True else fitting(others, known))


@st.composite
def _members(draw: st.DrawFn, needed: dict[str, Values], parts: dict[str, Values]) -> Any:
    chosen = dict(needed)
    for name in draw(st.sets(st.sampled_from(sorted(parts)), max_size=MOST_KEYS)):
        chosen[name] = parts[name]
    return {name: draw(values) for name, values in sorted(chosen.items())}


def _mapping(keys: Values, values: Values) -> Values:
    return st.dictionaries(keys, values, max_size=3)


def _array(schema: Schema, known: Mapping[str, Schema]) -> Values:
    least = schema.get("minItems", 0)
    items = fitting(schema.get("items", {}), known)
    return st.lists(items, min_size=least, max_size=least + 3)


def _number(schema: Schema, strategy: Callable[..., Values], kind: type) -> Values:
    """Numbers in the schema's bounds: those that break programs, and any."""

    def fits(number: Any) -> bool:
        return bool(
            schema.get("minimum", number) <= number <= schema.get("maximum", number)
            and ("exclusiveMinimum" not in schema or number > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or number < schema["exclusiveMaximum"])
        )

    known = [kind(number) for number in NUMBERS if kind is float or isinstance(number, int)]
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    bounds = {} if kind is int else {"allow_nan": False, "allow_infinity": False}
    drawn = strategy(min_value=low, max_value=high, **bounds).filter(fits)
    return st.sampled_from([number for number in known if fits(number)]) | drawn
