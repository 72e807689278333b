"""One average fed by many: workers push parameters, readers pull versions.

It runs on Ray, ``pip install "polyak[server]"``. For one trainer no server is needed: ``polyak.EMA``.
"""

from polyak.server.client import Client as Client
from polyak.server.client import Receipt as Receipt
from polyak.server.client import SharedAverage as SharedAverage
from polyak.server.server import Server as Server
from polyak.server.server import start as start
