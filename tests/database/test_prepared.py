"""Which statements a connection prepares, and what it sends for them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.database.prepared import MOST, Prepared

SQL = "SELECT a FROM t WHERE b = %s AND c LIKE 'x%%' LIMIT %s"


class PreparedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.prepared = Prepared()

    def test_from_the_second_time_on(self) -> None:
        self.assertIsNone(self.prepared.message(SQL, 2))
        second = "PREPARE s1 AS SELECT a FROM t WHERE b = $1 AND c LIKE 'x%%' LIMIT $2; EXECUTE s1 (%s, %s)"
        self.assertEqual(self.prepared.message(SQL, 2), second)
        self.assertEqual(self.prepared.message(SQL, 2), "EXECUTE s1 (%s, %s)")

    def test_what_the_server_does_not_want_goes_as_text(self) -> None:
        self.prepared.message(SQL, 2)
        self.prepared.message(SQL, 2)
        self.prepared.give_up(SQL)
        self.assertIsNone(self.prepared.message(SQL, 2))

    def test_several_statements_in_one_are_left_alone(self) -> None:
        for _ in range(3):
            self.assertIsNone(self.prepared.message("SELECT 1; SELECT %s", 1))

    def test_their_number_is_bounded(self) -> None:
        for number in range(10 * MOST):
            for _ in range(2):
                self.prepared.message(f"SELECT {number} + %s", 1)
        self.assertIsNone(self.prepared.message(f"SELECT {10 * MOST - 1} + %s", 1))
        self.assertEqual(self.prepared.message("SELECT 0 + %s", 1), "EXECUTE s1 (%s)")
