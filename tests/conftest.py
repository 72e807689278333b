"""Ray reads its mode when it is imported, which Ultralytics does; the server's tests want it with a token."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "token")
