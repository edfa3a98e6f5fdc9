"""Hypothesis strategies and settings that the tests of the protocol share."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from dendrite_tw.matrix.canonical_json import MAX_INTEGER, MIN_INTEGER

bounded = settings(max_examples=80, deadline=None, derandomize=True)

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)

scalars = st.none() | st.booleans() | st.integers(MIN_INTEGER, MAX_INTEGER) | text

json_values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)

json_objects = st.dictionaries(text, json_values, max_size=5)

loose_json_values: st.SearchStrategy[Any] = st.recursive(
    scalars | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
