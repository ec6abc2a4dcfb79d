"""The page: its parts in this folder as one HTML text, and the policy that lets nothing else run in it. Pure.

One response holds it all, so that a browser needs no second request, which would need a key where keys are configured;
and the policy can name the style and the script by their hashes.
"""

import base64
import hashlib
import re
from typing import NamedTuple

# In this order: one script, in which what is declared first can be used by what comes later.
SCRIPTS = (
    "format.js",
    "elements.js",
    "feeds.js",
    "sparkline.js",
    "heatmap.js",
    "overview.js",
    "sections.js",
    "experts.js",
    "rollouts.js",
    "actions.js",
    "start.js",
)
STYLE = "page.css"
FRAME = "page.html"
_BETWEEN = re.compile(r"\s*([{};])\s*")  # rules and declarations
_STYLE_HERE, _SCRIPTS_HERE = "/* page.css */", "/* scripts */"


class Page(NamedTuple):
    """What is sent."""

    html: bytes
    headers: dict[str, str]


def assemble(frame: str, style: str, scripts: list[str]) -> Page:
    """The page of the parts' texts. Raises ValueError if the frame lacks a part's place."""
    if frame.count(_STYLE_HERE) != 1 or frame.count(_SCRIPTS_HERE) != 1:
        raise ValueError(f"{FRAME} needs {_STYLE_HERE} and {_SCRIPTS_HERE} once each")
    style, script = _BETWEEN.sub(r"\1", _compact(style)), "\n".join(map(_compact, scripts))
    html = _compact(frame).replace(_STYLE_HERE, style).replace(_SCRIPTS_HERE, script)
    return Page(html.encode(), _headers(style, script))


def _compact(text: str) -> str:
    """Without indentation and lines that are comments; string literals of more than one line are not used here."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _headers(style: str, script: str) -> dict[str, str]:
    policy = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "img-src": "data:",  # the tab's icon
        "connect-src": "'self'",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",  # else a foreign page could lay itself over the buttons
        # No string becomes markup or code, whatever the gateway is told to show.
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-cache",  # after an upgrade the page is the new gateway's
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
    }


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
