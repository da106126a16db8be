"""The package needs no network: it judges where no socket can be made."""

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
