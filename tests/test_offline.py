"""The package needs no network, and nobody hears of what it does."""

import os
import subprocess
import sys

NO_SOCKETS = """
import socket, sys
def refuse(*_, **__):
    raise AssertionError("a socket was made")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from imgsafety.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_scan_works_without_sockets(folder, toy_path, toy_policy_path):
    words = ["scan", folder, "--isolate", "--model", toy_path, "--policy", toy_policy_path]
    done = subprocess.run([sys.executable, "-c", NO_SOCKETS, *words], capture_output=True, text=True)
    assert done.returncode == 1 and "3 pictures: 2 allow, 1 review" in done.stderr, done.stderr


def test_the_runtime_keeps_no_identifier_and_no_events(folder, toy_path, toy_policy_path, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    hidden = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"HOME": str(home)}
    words = ["scan", folder, "--model", toy_path, "--policy", toy_policy_path]
    done = subprocess.run([sys.executable, "-m", "imgsafety", *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert list(home.rglob("*")) == []
