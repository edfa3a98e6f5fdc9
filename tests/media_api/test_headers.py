"""Headers of media: what may be shown, what must be saved, and under which name."""

from __future__ import annotations

from email.message import Message

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.media_api.headers import (
    NAME_BYTES,
    checked_name,
    clean_content_type,
    clean_name,
    content_disposition,
    is_inline,
    media_headers,
    name_in_disposition,
)


def read_name(header: bytes) -> str | None:
    """The file name in a header, as a client reads it."""
    message = Message()
    message["Content-Disposition"] = header.decode("ascii")
    return message.get_filename()


class HeaderTests(SynchronousTestCase):
    def test_only_harmless_types_are_shown(self) -> None:
        for kind in ("image/png", "IMAGE/PNG", "text/plain; charset=utf-8", "video/mp4", "audio/x-flac"):
            self.assertTrue(is_inline(kind), kind)
        for kind in ("text/html", "image/svg+xml", "application/pdf", "application/xhtml+xml", "", "image/png+x"):
            self.assertFalse(is_inline(kind), kind)

    def test_names(self) -> None:
        for name, expected in [
            (None, b"inline"),
            ("", b"inline"),
            ("a.png", b'inline; filename="a.png"'),
            ("War; and Peace.pdf", b'inline; filename="War; and Peace.pdf"'),
            ('say "hi"', b"inline; filename*=utf-8''say%20%22hi%22"),
            ("50%.txt", b"inline; filename*=utf-8''50%25.txt"),
            ("☕.txt", b"inline; filename*=utf-8''%E2%98%95.txt"),
            ("../../etc/passwd", b'inline; filename="../../etc/passwd"'),
        ]:
            self.assertEqual(content_disposition("image/png", name), expected)
        self.assertEqual(content_disposition("text/html", "a.html"), b'attachment; filename="a.html"')

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.text(max_size=60))
    def test_a_name_is_read_as_it_was_given(self, text: str) -> None:
        name = clean_name(text)
        header = content_disposition("image/png", name)
        self.assertNotIn(b"\n", header)
        self.assertNotIn(b"\r", header)
        self.assertEqual(read_name(header), name)

    def test_names_are_cleaned_and_bounded(self) -> None:
        self.assertEqual(clean_name("a\r\nSet-Cookie: b\x00\u2028"), "aSet-Cookie: b")
        self.assertIsNone(clean_name("\n"))
        self.assertEqual(clean_name("\ud800x"), "x")
        self.assertEqual(len(clean_name("é" * (NAME_BYTES // 2)) or ""), NAME_BYTES // 2)
        with self.assertRaises(MatrixError) as caught:
            checked_name("é" * (NAME_BYTES // 2 + 1))
        self.assertEqual(caught.exception.errcode, "M_INVALID_PARAM")

    def test_types_are_cleaned(self) -> None:
        for kind in ("image/png", "text/plain; charset=utf-8", "application/vnd.a+json", 'text/plain;charset="x"'):
            self.assertEqual(clean_content_type(kind), kind)
        for broken in (None, "", "image", "image/", "a b/c", "text/plain\nX: y", "text/plain; é", "x/" + "y" * 300):
            self.assertEqual(clean_content_type(broken), "application/octet-stream", broken)

    def test_every_answer_is_fenced_in(self) -> None:
        headers = dict(media_headers("text/html", "a.html", "tag", True))
        self.assertIn(b"sandbox", headers[b"Content-Security-Policy"])
        self.assertIn(b"script-src 'none'", headers[b"Content-Security-Policy"])
        self.assertEqual(headers[b"X-Content-Type-Options"], b"nosniff")
        self.assertEqual(headers[b"Cross-Origin-Resource-Policy"], b"cross-origin")
        self.assertTrue(headers[b"Cache-Control"].startswith(b"private"))
        self.assertIn(b"immutable", headers[b"Cache-Control"])
        self.assertEqual(headers[b"ETag"], b'"tag"')
        public = dict(media_headers("image/png", None, "tag", False))
        self.assertTrue(public[b"Cache-Control"].startswith(b"public"))


class OtherServersTests(SynchronousTestCase):
    """Names that other servers give."""

    @given(st.text(max_size=50))
    @settings(max_examples=200, deadline=None)
    def test_a_name_that_is_written_is_read(self, name: str) -> None:
        name = clean_name(name) or ""
        self.assertEqual(name_in_disposition(content_disposition("image/png", name).decode()), name or None)

    def test_names(self) -> None:
        for value, name in {
            "inline": None,
            "": None,
            None: None,
            "attachment; filename=a.png": "a.png",
            'attachment;FileName="a \\"b\\".png"; size=5': 'a "b".png',
            "inline; filename=\"a.png\"; filename*=UTF-8'en'%C3%A9.png": "é.png",
            "inline; filename*=utf-8''%FF": "\ufffd",
            "inline; filename*=latin-1''%FF": None,
            'inline; filename="never ends': None,
        }.items():
            self.assertEqual(name_in_disposition(value), name, value)
