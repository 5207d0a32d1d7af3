"""As a service: a saved detector behind the Open Inference Protocol (extra `serve`).

make_app            the FastAPI application, for a server of your own
serve               uvicorn on loopback, until SIGTERM
ServeSettings       where, how much at once, to whom
"""

from __future__ import annotations

from covary.serving.http.app import make_app
from covary.serving.http.run import make_server, serve
from covary.serving.http.settings import ServeSettings

__all__ = ["ServeSettings", "make_app", "make_server", "serve"]
