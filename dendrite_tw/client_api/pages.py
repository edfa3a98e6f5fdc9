"""Pages for a browser: the server's own, a log-in form, and stages of authentication that an app does not know.

Client-Server API, "Login Fallback", and "Fallback" of the user-interactive
authentication.  Each page is complete in itself and loads nothing, but for the
script of the captcha.
"""

from __future__ import annotations

from html import escape
from urllib.parse import parse_qsl

import msgspec

from ..matrix.errors import MatrixError, invalid_param, not_found
from ..web.resource import Exchange
from ..web.routes import Access, Response, Route
from .settings import REGISTER, ClientSettings
from .uia import DUMMY, RECAPTCHA, REGISTRATION_TOKEN, InteractiveAuth

FORM_LIMIT = 65_536
FORM_FIELDS_LIMIT = 20

_STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 24rem; margin: 4rem auto; padding: 0 1rem; color: #222 }
label, input, button { display: block; width: 100%; box-sizing: border-box; margin: .5rem 0; font: inherit }
input, button { padding: .5rem } .error { color: #a00 }
"""

_DONE = """
if (window.onAuthDone) {
    window.onAuthDone();
} else if (window.opener && window.opener.postMessage) {
    window.opener.postMessage("authDone", "*");
}
"""

_LOGIN = """
const form = document.querySelector("form"), note = document.querySelector(".error");
form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = Object.fromEntries(new URLSearchParams(location.search));
    const body = {
        type: "m.login.password",
        identifier: {type: "m.id.user", user: form.user.value},
        password: form.password.value,
    };
    for (const name of ["device_id", "initial_device_display_name"]) {
        if (wanted[name]) body[name] = wanted[name];
    }
    if (wanted.refresh_token === "true") body.refresh_token = true;
    try {
        const answer = await fetch("/_matrix/client/v3/login", {
            method: "POST",
            headers: {"Content-Type": "application/json"},
            body: JSON.stringify(body),
        });
        const login = await answer.json();
        if (!answer.ok) throw new Error(login.error);
        note.textContent = "You are logged in; go back to your app.";
        if (window.matrixLogin && window.matrixLogin.onLogin) window.matrixLogin.onLogin(login);
    } catch (error) {
        note.textContent = error.message;
    }
});
"""


class SessionQuery(msgspec.Struct):
    session: str = ""


class PagesSection:
    """``/_matrix/static`` and ``/auth/{type}/fallback/web``."""

    def __init__(self, settings: ClientSettings, auth: InteractiveAuth) -> None:
        self._settings = settings
        self._auth = auth

    def routes(self) -> list[Route]:
        fallback = "/_matrix/client/v3/auth/{auth_type}/fallback/web"
        login = "/_matrix/static/client/login"
        return [
            *[Route("GET", path, self.landing, Access.PUBLIC) for path in ("/_matrix/static", "/_matrix/static/")],
            *[Route("GET", path, self.login, Access.PUBLIC) for path in (login, f"{login}/")],
            Route("GET", fallback, self.stage, Access.PUBLIC, REGISTER),
            Route("POST", fallback, self.stage_done, Access.PUBLIC, REGISTER, body_limit=FORM_LIMIT),
        ]

    async def landing(self) -> Response:
        name = escape(self._settings.server_name)
        return page(
            "It works",
            f"<p>This is the Matrix homeserver of <b>{name}</b>. Use a Matrix app to log in here.</p>",
        )

    async def login(self) -> Response:
        form = """
<form>
<label>Username <input name="user" autocomplete="username" required></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button>
</form><p class="error"></p>"""
        return page("Log in", form, _LOGIN)

    async def stage(self, auth_type: str, query: SessionQuery) -> Response:
        try:
            session = await self._auth.session(query.session)
        except MatrixError as error:
            return page("Not found", f"<p>{escape(error.error)}</p>", status=404)
        if auth_type in session.completed:
            return done()
        return self._form(auth_type, session.id, "")

    async def stage_done(self, request: Exchange, auth_type: str, query: SessionQuery, body: bytes) -> Response:
        try:
            fields = dict(parse_qsl(body.decode("ascii"), max_num_fields=FORM_FIELDS_LIMIT))
        except ValueError:
            raise invalid_param("The form cannot be read.") from None
        id = fields.get("session", query.session)
        answer = fields.get(self._field(auth_type), "")
        try:
            await self._auth.complete_in_browser(id, auth_type, answer, request.ip)
        except MatrixError as error:
            if error.status == 404:
                return page("Not found", f"<p>{escape(error.error)}</p>", status=404)
            return self._form(auth_type, id, error.error)
        return done()

    def _field(self, stage: str) -> str:
        """The name of the form's field that holds the answer."""
        captcha = self._settings.captcha
        return captcha.form_field if stage == RECAPTCHA and captcha is not None else "token"

    def _form(self, stage: str, session: str, error: str) -> Response:
        head = ""
        captcha = self._settings.captcha
        if stage == REGISTRATION_TOKEN:
            inner = '<label>Registration token <input name="token" required></label>'
        elif stage == RECAPTCHA and captcha is not None:
            head = f'<script src="{escape(captcha.api_js_url)}" async defer></script>'
            inner = f'<div class="{escape(captcha.sitekey_class)}" data-sitekey="{escape(captcha.public_key)}"></div>'
        elif stage == DUMMY:
            inner = "<p>Nothing needs to be filled in.</p>"
        else:
            raise not_found("There is no page for this stage.")
        form = (
            f'<form method="post"><input type="hidden" name="session" value="{escape(session)}">'
            f'{inner}<button>Continue</button></form><p class="error">{escape(error)}</p>'
        )
        return page("Authentication", form, head=head)


def done() -> Response:
    """The page that tells the app that its stage is passed."""
    return page("Done", "<p>You can go back to your app.</p>", _DONE)


def page(title: str, body: str, script: str = "", head: str = "", status: int = 200) -> Response:
    """A page of HTML that no other site can frame."""
    html = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>{head}</head>'
        f"<body><h1>{title}</h1>{body}{f'<script>{script}</script>' if script else ''}</body></html>"
    )
    headers = [
        (b"Content-Security-Policy", b"frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
        (b"Cache-Control", b"no-store"),
        (b"Referrer-Policy", b"no-referrer"),
    ]
    return Response(status, html.encode(), b"text/html; charset=utf-8", headers)
