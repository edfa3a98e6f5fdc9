"""Our server and Synapse: every story of `tests.interop.stories`, each server as host and as guest."""

from __future__ import annotations

from collections.abc import Callable

from tests.interop.pair import PairTestCase, Play
from tests.interop.stories import STORIES, Story


class StoriesTests(PairTestCase):
    """A test for each story, direction and room version."""


def _test_of(story: Story, host: str, version: str) -> Callable[[StoriesTests], None]:
    def test(self: StoriesTests) -> None:
        ours, synapse = self.pair.both()
        play = Play(ours, synapse, version) if host == "ours" else Play(synapse, ours, version)
        self.play(lambda: story.scene(play))

    test.__doc__ = story.scene.__doc__
    return test


for _story in STORIES:
    for _host in _story.hosts:
        for _version in _story.versions:
            _name = f"test_{_story.name}_at_{_host}_v{_version}"
            setattr(StoriesTests, _name, _test_of(_story, _host, _version))
