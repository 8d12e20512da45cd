"""Storage as real as it gets without a cloud: an S3 server (moto) and a Blob server (Azurite) on this machine.

Each is a process of its own and keeps everything in memory. The S3 server checks signatures, and writes an object that
must not exist yet while nobody else writes, as S3 does. `python tests/cluster/storage_servers.py` is that server.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
from requirements import ROOT, missing

AZURITE = ROOT / ".node" / "node_modules" / ".bin" / "azurite-blob"
LOSE_ANSWERS = "/lose-answers"
"""Path of the S3 server: POST a number to it, and so many conditional writes are done but answered with 500."""
FETCHED = "/fetched"
"""Path of the S3 server: the objects that were read since it was last asked, as a JSON list."""

_REGION = "eu-central-1"
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = base64.b64encode(b"the key of a storage account that only this test knows").decode()


@dataclass
class Storage:
    """One server with one bucket or container."""

    kind: str
    root: str
    """URL under which lakes can be."""
    options: dict[str, str]
    """What gets there, by delta-rs' names."""
    secret: str
    """The one among the options that nobody may see."""
    process: subprocess.Popen[str] = field(repr=False)

    def new_lake(self) -> str:
        """The URL of a lake that nobody has used."""
        return f"{self.root}/{uuid.uuid4().hex[:12]}"

    @property
    def environment(self) -> dict[str, str]:
        """The options as environment variables."""
        return {name.upper(): value for name, value in self.options.items()}

    def lose_answers(self, number: int) -> None:
        """The next conditional writes succeed, but the writer hears of a fault."""
        httpx.post(self.options["aws_endpoint_url"] + LOSE_ANSWERS, content=str(number)).raise_for_status()

    def fetched(self) -> list[str]:
        """Which objects were read since the last call."""
        answer = httpx.get(self.options["aws_endpoint_url"] + FETCHED)
        paths: list[str] = answer.raise_for_status().json()
        return paths

    def close(self) -> None:
        """Ends the server."""
        self.process.kill()
        self.process.wait()


def start_s3() -> Storage:
    """An S3 server with the bucket `lakes` and one user who may do everything."""
    if importlib.util.find_spec("moto") is None:
        missing("The Python package moto[s3,server]")
    process = subprocess.Popen([sys.executable, str(Path(__file__))], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    options = {
        "aws_endpoint_url": told["url"],
        "aws_region": _REGION,
        "aws_access_key_id": told["key_id"],
        "aws_secret_access_key": told["secret"],
        "aws_allow_http": "true",
    }
    return Storage("s3", "s3://lakes", options, told["secret"], process)


def start_azurite() -> Storage:
    """A Blob server with the container `lakes` in an account of its own."""
    if not AZURITE.exists():
        missing("Azurite in the folder .node")
    if shutil.which("node") is None:
        missing("Node.js")
    process = subprocess.Popen(
        [
            *("node", str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"),
            *("--skipApiVersionCheck", "--disableTelemetry", "--silent"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"AZURITE_ACCOUNTS": f"{_ACCOUNT}:{_ACCOUNT_KEY}"},
    )
    assert process.stdout is not None
    address = next(word for line in process.stdout for word in line.split() if word.startswith("http://127"))
    options = {
        "azure_storage_account_name": _ACCOUNT,
        "azure_storage_account_key": _ACCOUNT_KEY,
        "azure_storage_endpoint": f"{address}/{_ACCOUNT}",
        "azure_allow_http": "true",
    }
    _create_container(options["azure_storage_endpoint"], "lakes")
    return Storage("azure", f"abfss://lakes@{_ACCOUNT}.dfs.core.windows.net", options, _ACCOUNT_KEY, process)


def _create_container(endpoint: str, name: str) -> None:
    """By the REST interface, signed with the account's key."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    canonical = "".join(f"{key}:{value}\n" for key, value in sorted(headers.items()))
    text = "PUT" + "\n" * 12 + f"{canonical}/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(_ACCOUNT_KEY), text.encode(), hashlib.sha256).digest()
    signed = headers | {"Authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"}
    httpx.put(f"{endpoint}/{name}?restype=container", headers=signed, trust_env=False).raise_for_status()


Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _AsS3Writes:
    """Around moto, which looks whether an object exists and then writes it, so that two writers could both succeed."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._one_writes = threading.Lock()
        self._answers_to_lose = 0
        self._fetched: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == FETCHED:
            told, self._fetched = json.dumps(self._fetched).encode(), []
            start_response("200 OK", [("Content-Length", str(len(told)))])
            return [told]
        if environ["REQUEST_METHOD"] == "GET":
            self._fetched.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == LOSE_ANSWERS:
            self._answers_to_lose = int(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            start_response("200 OK", [("Content-Length", "0")])
            return [b""]
        if environ["REQUEST_METHOD"] != "PUT" or "HTTP_IF_NONE_MATCH" not in environ:
            return self._application(environ, start_response)
        with self._one_writes:
            if not self._answers_to_lose:
                return list(self._application(environ, start_response))
            self._answers_to_lose -= 1
            list(self._application(environ, lambda *_: lambda _: None))
        start_response("500 Internal Server Error", [("Content-Length", "0")])
        return [b""]


def _serve() -> None:
    """Serves S3 on a free port and says, in one line of JSON, where and to whom."""
    os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "4"  # those below; whatever comes later must be signed
    import boto3
    import botocore.auth
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    # The first SDK for Java signs it; the signature is checked with Python's, which leaves it out.
    botocore.auth.SIGNED_HEADERS_BLACKLIST.remove("user-agent")

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *_: object) -> None:
            """Says nothing."""

    application = _AsS3Writes(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    nobody = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": _REGION, "endpoint_url": url}
    boto3.client("s3", **nobody).create_bucket(
        Bucket="lakes", CreateBucketConfiguration={"LocationConstraint": _REGION}
    )
    iam = boto3.client("iam", **nobody)
    iam.create_user(UserName="lake")
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="lake", PolicyName="lake", PolicyDocument=json.dumps(everything))
    key = iam.create_access_key(UserName="lake")["AccessKey"]
    sys.stdout.write(json.dumps({"url": url, "key_id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}) + "\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    _serve()
