"""Which servers a room keeps out."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.acl import MAX_REMEMBERED, ServerACL
from dendrite_tw.matrix.errors import MatrixError

from .strategies import bounded, json_objects


def acl(allow: Any = ("*",), deny: Any = (), **more: Any) -> ServerACL:
    listed = {"allow": allow, "deny": deny}
    content = {key: list(value) if isinstance(value, tuple) else value for key, value in listed.items()}
    return ServerACL({**content, **more})


class ServerACLTests(SynchronousTestCase):
    def test_the_order_of_the_rules(self) -> None:
        rules = acl(allow=("*.good.example", "good.example", "1.2.3.4"), deny=("evil.*", "bad.good.example"))
        for name in ("good.example", "a.good.example", "GOOD.example", "a.b.good.example:8448", "1.2.3.4"):
            self.assertTrue(rules.allows(name), name)
        for name in (
            "evil.example",
            "evil.example:1234",
            "EVIL.example",
            "bad.good.example",
            "other.example",
            "1.2.3.5",
        ):
            self.assertFalse(rules.allows(name), name)

    def test_nothing_allowed_is_nobody_allowed(self) -> None:
        contents: list[dict[str, Any]] = [{}, {"allow": []}, {"allow": "*"}, {"allow": [7, None]}, {"deny": []}]
        for content in contents:
            self.assertFalse(ServerACL(content).allows("a.example"), content)

    def test_ip_literals(self) -> None:
        literals = ("1.2.3.4", "1.2.3.4:99", "[::1]", "[2001:db8::1]:8448")
        for name in literals:
            self.assertTrue(acl().allows(name))
            self.assertTrue(acl(allow_ip_literals="false").allows(name))
            self.assertFalse(acl(allow_ip_literals=False).allows(name))
            self.assertFalse(acl(deny=("[*]", "1.2.*")).allows(name))
        self.assertTrue(acl(allow_ip_literals=False).allows("1.2.3.4.example"))

    def test_one_character(self) -> None:
        rules = acl(deny=("a?.example",))
        self.assertFalse(rules.allows("ab.example"))
        self.assertTrue(rules.allows("abc.example"))
        self.assertTrue(rules.allows("a.example"))

    def test_malformed_names_are_not_allowed(self) -> None:
        for name in ("", "a b", "[::1", "a.example:x", "a.example\n"):
            self.assertFalse(acl().allows(name), name)

    def test_the_refusal(self) -> None:
        acl().check("a.example")
        refused = self.assertRaises(MatrixError, acl(deny=("a.example",)).check, "a.example:99")
        self.assertEqual((refused.status, refused.errcode), (403, "M_FORBIDDEN"))

    def test_verdicts_are_remembered_and_bounded(self) -> None:
        rules = acl(deny=("evil.example",))
        for number in range(MAX_REMEMBERED + 5):
            self.assertTrue(rules.allows(f"s{number}.example"))
        self.assertFalse(rules.allows("evil.example"))
        self.assertFalse(rules.allows("evil.example"))

    @bounded
    @given(json_objects, json_objects)
    def test_no_content_raises(self, content: dict[str, Any], more: dict[str, Any]) -> None:
        ServerACL(content).allows("a.example")
        ServerACL({"allow": list(more), "deny": list(more.values())}).allows("a.example")
