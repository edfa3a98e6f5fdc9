"""The table of messages, held against a dictionary."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.jetstream.index import BLOCK, Index
from dendrite_tw.jetstream.subjects import matches

SUBJECTS = ("a.1", "a.2", "b.1", "c")
FILTERS: tuple[list[str], ...] = ([], ["a.1"], ["a.*"], ["c", "b.1"], ["x"], [">"])


class IndexTests(SynchronousTestCase):
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.integers(0, 2**32))
    def test_like_a_dictionary(self, seed: int) -> None:
        chance = random.Random(seed)
        first = chance.choice((1, 1, 1000))
        index, model, last = Index(first), {}, first - 1
        for step in range(120):
            action = chance.random()
            if action < 0.6:
                last += 1
                subject, size = chance.choice(SUBJECTS), chance.randint(1, 99)
                index.add(last, subject, size, last * 10, last + 7)
                model[last] = (subject, size)
            elif action < 0.65:
                last += chance.choice((1, 5, BLOCK, 3 * BLOCK))
                index.skip_to(last)
            elif model:
                seq = min(model) if chance.random() < 0.6 else chance.choice(list(model))
                entry = index.discard(seq)
                assert entry is not None
                self.assertEqual((entry.subject, entry.size, entry.place), (*model.pop(seq), seq + 7))
            if step % 10 == 0:
                self.compare(index, model, last, chance, seed)

    def compare(
        self, index: Index, model: dict[int, tuple[str, int]], last: int, chance: random.Random, seed: int
    ) -> None:
        note = f"seed {seed}"
        self.assertEqual(list(index.sequences()), sorted(model), note)
        self.assertEqual((index.count, index.last_seq), (len(model), last), note)
        self.assertEqual(index.bytes, sum(size for _, size in model.values()), note)
        self.assertEqual(index.first_seq, min(model, default=last + 1), note)
        for filters in FILTERS:
            fitting = sorted(
                seq for seq, (subject, _) in model.items() if not filters or any(matches(f, subject) for f in filters)
            )
            seq = chance.randint(1, last + 2)
            later = [number for number in fitting if number >= seq]
            self.assertEqual(index.next_matching(seq, filters), later[0] if later else 0, note)
            self.assertEqual(index.count_from(seq, filters), len(later), note)
        for subject in SUBJECTS:
            seqs = [seq for seq, (name, _) in sorted(model.items()) if name == subject]
            state = index.subjects.get(subject)
            if not seqs:
                self.assertIsNone(state, note)
                continue
            assert state is not None
            self.assertEqual((state.count, state.first, state.last), (len(seqs), seqs[0], seqs[-1]), note)
            previous = [number for number in seqs if number < seqs[-1]]
            self.assertEqual(index.previous_of(state, seqs[-1]), previous[-1] if previous else 0, note)
        missing = [seq for seq in range(index.first_seq, last + 1) if seq not in model] if model else []
        self.assertEqual(index.gaps(50), missing[:50], note)

    def test_absent(self) -> None:
        index = Index()
        self.assertIsNone(index.get(1))
        self.assertIsNone(index.discard(1))
        self.assertNotIn(5, index)
        self.assertEqual((index.next(1), index.at_time(0)), (0, 1))

    def test_by_time(self) -> None:
        index = Index()
        for seq in range(1, 6):
            index.add(seq, "a", 1, seq * 100, 0)
        index.discard(3)
        self.assertEqual([index.at_time(at) for at in (0, 100, 250, 300, 500, 501)], [1, 1, 4, 4, 5, 6])

    def test_emptied_blocks_are_given_back(self) -> None:
        index = Index()
        for seq in range(1, 20 * BLOCK):
            index.add(seq, "a", 1, 0, 0)
            index.discard(seq)
        self.assertEqual(len(index._blocks), 1)
        self.assertEqual((index.subjects, len(index._names)), ({}, 2))
