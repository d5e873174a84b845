"""`serve` as a process: its ready line, and what a signal leaves unanswered."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack

import pytest

from tests.cli.command_line import ROOT, write_noise
from tests.evaluate.exported import FEATURES, make_exported


def ask(address, image):
    """Send a request and return its connection."""
    connection = socket.create_connection(address)
    connection.sendall(
        b"POST /features HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(image), image)
    )
    return connection


def answer(connection):
    """Return the status and the document of an answer that closes its connection."""
    with connection.makefile("rb") as file:
        head, _, body = file.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.multiprocess
def test_sigterm_answers_what_was_accepted(tmp_path):
    folder = make_exported(tmp_path / "exported")
    image = (write_noise(tmp_path, ["a.png"]) / "a.png").read_bytes()
    # The batch would wait for ten minutes: at SIGTERM all requests are in flight.
    arguments = ["serve", str(folder), "--port", "0", "--json", "--wait-ms", "600000"]
    command = [sys.executable, "-m", "cli.main", *arguments]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        ready = json.loads(process.stdout.readline())
        address = ready["host"], ready["port"]
        asked = [stack.enter_context(ask(address, image)) for _ in range(5)]
        while b"swav_queue_images 5.0" not in urllib.request.urlopen(f"{ready['url']}/metrics").read():
            pass
        process.send_signal(signal.SIGTERM)
        answers = [answer(connection) for connection in asked]
        assert [status for status, _ in answers] == [200] * 5
        assert all(len(document["features"][0]) == FEATURES for _, document in answers)
        assert (process.wait(), process.stderr.read()) == (0, b"")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def test_addresses_and_folders_are_checked(refused, tmp_path):
    folder = make_exported(tmp_path / "exported", ("int8",))
    refused(f"serve {folder}", 2, "or a folder with model-fp32.onnx", "Pass the file to serve")
    refused(
        f"serve {folder / 'model-int8.onnx'} --host 192.0.2.1", 2, "must be a free address of this machine"
    )
    refused(f"serve {folder / 'model-int8.onnx'} --host a..b", 2, "must be a free address of this machine")
    refused(f"serve {folder / 'model-int8.onnx'} --wait-ms inf", 2, "--wait-ms")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(f"serve {folder / 'model-int8.onnx'} --port {port}", 2, "Address already in use")
