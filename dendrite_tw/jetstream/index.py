"""Which messages a stream holds: a table in memory of sequence, subject, size, time and place.

It costs about 24 bytes a message, whatever the payload, so that a long backlog on disk does not become a
heap in memory.  The table is cut into blocks of `BLOCK` sequences; a block goes when its last message goes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from dendrite_tw.jetstream.subjects import is_literal, matches

BLOCK = 1024


class SubjectState:
    """What is known about one subject: its number in the blocks, how many messages, the first and the
    last.
    """

    __slots__ = ("count", "first", "last", "name", "number")

    def __init__(self, name: str, number: int, seq: int) -> None:
        self.name = name
        self.number = number
        self.count = 0
        self.first = seq
        self.last = seq


class _Block:
    __slots__ = ("live", "places", "sizes", "subjects", "times")

    def __init__(self) -> None:
        self.subjects = array("I")
        """Number of the subject; 0 says that there is no message."""
        self.sizes = array("I")
        self.times = array("q")
        self.places = array("Q")
        self.live = 0

    def pad(self, count: int) -> None:
        """Leave out ``count`` sequences."""
        zeros = [0] * count
        self.subjects.extend(zeros)
        self.sizes.extend(zeros)
        self.times.extend(zeros)
        self.places.extend(zeros)


class Entry:
    """What the index knows of one message."""

    __slots__ = ("place", "seq", "size", "subject", "time")

    def __init__(self, seq: int, subject: str, size: int, time: int, place: int) -> None:
        self.seq = seq
        self.subject = subject
        self.size = size
        self.time = time
        self.place = place


class Index:
    """The live messages of a stream by sequence and by subject."""

    def __init__(self, first_seq: int = 1) -> None:
        self.first_seq = first_seq
        self.last_seq = first_seq - 1
        self.count = 0
        self.bytes = 0
        self.subjects: dict[str, SubjectState] = {}
        self._names: list[SubjectState | None] = [None]
        self._free_numbers: list[int] = []
        self._blocks: dict[int, _Block] = {}
        self._tail = -1

    def add(self, seq: int, subject: str, size: int, time: int, place: int) -> None:
        """Enter the message with the next sequence, or a later one."""
        number, offset = divmod(seq, BLOCK)
        block = self._blocks.get(number)
        if block is None:
            block = self._new_block(number)
        missing = offset - len(block.subjects)
        if missing > 0:
            block.pad(missing)
        state = self.subjects.get(subject)
        if state is None:
            state = self._new_subject(subject, seq)
        state.count += 1
        state.last = seq
        block.subjects.append(state.number)
        block.sizes.append(size)
        block.times.append(time)
        block.places.append(place)
        block.live += 1
        if not self.count:
            self.first_seq = seq
        self.last_seq = seq
        self.count += 1
        self.bytes += size

    def _new_block(self, number: int) -> _Block:
        """The block that takes messages from now on; the last one stays, even empty, until then."""
        tail = self._blocks.get(self._tail)
        if tail is not None and not tail.live:
            del self._blocks[self._tail]
        self._tail = number
        block = self._blocks[number] = _Block()
        return block

    def _new_subject(self, subject: str, seq: int) -> SubjectState:
        if self._free_numbers:
            number = self._free_numbers.pop()
        else:
            number = len(self._names)
            self._names.append(None)
        state = self.subjects[subject] = SubjectState(subject, number, seq)
        self._names[number] = state
        return state

    def skip_to(self, last_seq: int) -> None:
        """Let sequences pass without a message, so that the next one is ``last_seq`` + 1."""
        if last_seq > self.last_seq:
            self.last_seq = last_seq
            if not self.count:
                self.first_seq = last_seq + 1

    def get(self, seq: int) -> Entry | None:
        number, offset = divmod(seq, BLOCK)
        block = self._blocks.get(number)
        if block is None or offset >= len(block.subjects):
            return None
        state = self._names[block.subjects[offset]]
        if state is None:
            return None
        return Entry(seq, state.name, block.sizes[offset], block.times[offset], block.places[offset])

    def __contains__(self, seq: int) -> bool:
        number, offset = divmod(seq, BLOCK)
        block = self._blocks.get(number)
        return block is not None and offset < len(block.subjects) and block.subjects[offset] != 0

    def move(self, seq: int, place: int) -> None:
        """The message now lies at another place."""
        number, offset = divmod(seq, BLOCK)
        self._blocks[number].places[offset] = place

    def discard(self, seq: int) -> Entry | None:
        """Take a message out; returns what was known of it, or ``None`` if it was not there."""
        number, offset = divmod(seq, BLOCK)
        block = self._blocks.get(number)
        if block is None or offset >= len(block.subjects):
            return None
        state = self._names[block.subjects[offset]]
        if state is None:
            return None
        entry = Entry(seq, state.name, block.sizes[offset], block.times[offset], block.places[offset])
        block.subjects[offset] = 0
        block.live -= 1
        if not block.live and number != self._tail:
            del self._blocks[number]
        self.count -= 1
        self.bytes -= entry.size
        if seq == self.first_seq:
            self.first_seq = self.next(seq + 1) or self.last_seq + 1
        self._leave_subject(state, seq)
        return entry

    def _leave_subject(self, state: SubjectState, seq: int) -> None:
        state.count -= 1
        if not state.count:
            del self.subjects[state.name]
            self._names[state.number] = None
            self._free_numbers.append(state.number)
        elif seq == state.first:
            state.first = state.last if state.count == 1 else self._next_numbered(seq + 1, state.number)
        elif seq == state.last:
            state.last = state.first if state.count == 1 else self._previous_numbered(seq - 1, state.number)

    def _block_numbers(self, seq: int) -> Iterator[int]:
        """Blocks that exist, from the one of ``seq`` on."""
        first, last = max(seq, self.first_seq) // BLOCK, self.last_seq // BLOCK
        if last - first > 2 * len(self._blocks):
            yield from sorted(number for number in self._blocks if number >= first)
        else:
            for number in range(first, last + 1):
                if number in self._blocks:
                    yield number

    def next(self, seq: int) -> int:
        """The first live sequence from ``seq`` on; 0 when there is none."""
        if not self.count or seq > self.last_seq:
            return 0
        seq = max(seq, self.first_seq)
        if seq in self:
            return seq
        for number in self._block_numbers(seq):
            subjects = self._blocks[number].subjects
            start = max(seq - number * BLOCK, 0)
            for offset in range(start, len(subjects)):
                if subjects[offset]:
                    return number * BLOCK + offset
        return 0

    def _next_numbered(self, seq: int, wanted: int) -> int:
        for number in self._block_numbers(seq):
            try:
                offset = self._blocks[number].subjects.index(wanted, max(seq - number * BLOCK, 0))
            except ValueError:
                continue
            return number * BLOCK + offset
        return 0

    def _previous_numbered(self, seq: int, wanted: int) -> int:
        for number in sorted((n for n in self._blocks if n <= seq // BLOCK), reverse=True):
            subjects = self._blocks[number].subjects
            for offset in range(min(seq - number * BLOCK, len(subjects) - 1), -1, -1):
                if subjects[offset] == wanted:
                    return number * BLOCK + offset
        return 0

    def previous_of(self, state: SubjectState, seq: int) -> int:
        """The sequence of the message of the same subject before this one; 0 if there is none."""
        if seq <= state.first:
            return 0
        return self._previous_numbered(seq - 1, state.number)

    def next_matching(self, seq: int, filters: list[str]) -> int:
        """The first live sequence from ``seq`` on with a subject of the filters (all, if there are none)."""
        if not filters:
            return self.next(seq)
        if len(filters) == 1 and is_literal(filters[0]):
            state = self.subjects.get(filters[0])
            if state is None or seq > state.last:
                return 0
            return state.first if seq <= state.first else self._next_numbered(seq, state.number)
        wanted = self.matching(filters)
        if len(wanted) == len(self.subjects):
            return self.next(seq)
        numbers = {state.number for state in wanted if state.last >= seq}
        if not numbers:
            return 0
        for number in self._block_numbers(seq):
            subjects = self._blocks[number].subjects
            for offset in range(max(seq - number * BLOCK, 0), len(subjects)):
                if subjects[offset] in numbers:
                    return number * BLOCK + offset
        return 0

    def matching(self, filters: list[str]) -> list[SubjectState]:
        """The subjects that the filters include (all, if there are none)."""
        if not filters:
            return list(self.subjects.values())
        if all(is_literal(pattern) for pattern in filters):
            return [self.subjects[pattern] for pattern in dict.fromkeys(filters) if pattern in self.subjects]
        return [state for state in self.subjects.values() if any(matches(pattern, state.name) for pattern in filters)]

    def count_from(self, seq: int, filters: list[str]) -> int:
        """How many live messages from ``seq`` on have a subject of the filters."""
        if seq <= self.first_seq:
            return sum(state.count for state in self.matching(filters)) if filters else self.count
        if seq > self.last_seq:
            return 0
        if filters:
            numbers = {state.number for state in self.matching(filters)}
            counts: Callable[[array[int]], int] = lambda part: sum(n in numbers for n in part)  # noqa: E731
        else:
            counts = lambda part: len(part) - part.count(0)  # noqa: E731
        return sum(
            counts(self._blocks[number].subjects[max(seq - number * BLOCK, 0) :]) for number in self._block_numbers(seq)
        )

    def sequences(self, seq: int = 0) -> Iterator[int]:
        """All live sequences from ``seq`` on, in order; the index may lose messages meanwhile."""
        while found := self.next(max(seq, 1)):
            yield found
            seq = found + 1

    def gaps(self, limit: int) -> list[int]:
        """Sequences between the first and the last that have no message, ``limit`` at most."""
        missing: list[int] = []
        if self.count:
            for seq in range(self.first_seq, self.last_seq + 1):
                if len(missing) >= limit:
                    break
                if seq not in self:
                    missing.append(seq)
        return missing

    def at_time(self, time: int) -> int:
        """The first live sequence that was stored at ``time`` (nanoseconds) or later; ``last_seq`` + 1 if
        none.
        """
        for number in self._block_numbers(self.first_seq):
            block = self._blocks[number]
            for offset, stored in enumerate(block.times):
                if stored >= time and block.subjects[offset]:
                    return number * BLOCK + offset
        return self.last_seq + 1
