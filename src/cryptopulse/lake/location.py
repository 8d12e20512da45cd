"""Location of a lake: a local folder, S3, or Azure Data Lake Storage; and the options of delta-rs and Spark for it.

All code that opens a table gets its address and storage options here. Credentials come from the usual environment
variables (AWS_*, AZURE_*) or from the setting `storage.options`, which wins; they are kept as secrets, so that no
log, error or representation shows them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import unquote

from pydantic import SecretStr

from cryptopulse.errors import ConfigurationError

if TYPE_CHECKING:  # the tables need pyarrow, which a command that only reads the settings need not wait for
    from cryptopulse.lake.tables import Table

Kind = Literal["local", "s3", "azure"]

_SCHEMES: dict[str, Kind] = {"s3": "s3", "s3a": "s3", "abfss": "azure", "abfs": "azure", "az": "azure"}
_FORMS = "a local folder, s3://bucket/prefix or abfss://container@account.dfs.core.windows.net/prefix"
_PREFIX_PART = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,62}")
_CONTAINER = re.compile(r"[a-z0-9$][a-z0-9-]{2,62}")
# Not allowed in a local path. delta-rs makes a URL of it: one of its readers unescapes that twice (`a%20b` would be
# read as `a b`), another takes \ for /, and control characters are an error. [ and ] are a pattern to DuckDB.
_NOT_LOCAL = re.compile(r"%[0-9A-Fa-f]{2}|[\x00-\x1f\x7f\\\[\]]")
_ACCOUNT_HOST = re.compile(r"[a-z0-9]{3,24}\.(dfs|blob)\.[a-z0-9.-]+")

# delta-rs accepts several names for an option; `LakeLocation.option` takes the first.
_NAMES: dict[Kind, dict[str, tuple[str, ...]]] = {
    "local": {},
    "s3": {
        "aws_endpoint_url": ("aws_endpoint_url", "aws_endpoint_url_s3", "aws_endpoint"),
        "aws_region": ("aws_region", "aws_default_region"),
        "aws_access_key_id": ("aws_access_key_id",),
        "aws_secret_access_key": ("aws_secret_access_key",),
        "aws_session_token": ("aws_session_token",),
        "aws_virtual_hosted_style_request": ("aws_virtual_hosted_style_request",),
        "aws_s3_allow_unsafe_rename": ("aws_s3_allow_unsafe_rename",),
    },
    "azure": {
        "azure_storage_account_name": ("azure_storage_account_name",),
        "azure_storage_endpoint": ("azure_storage_endpoint", "azure_endpoint"),
        "azure_storage_account_key": ("azure_storage_account_key", "azure_storage_access_key"),
        "azure_storage_sas_token": ("azure_storage_sas_token", "azure_storage_sas_key"),
        "azure_client_id": ("azure_client_id", "azure_storage_client_id"),
        "azure_client_secret": ("azure_client_secret", "azure_storage_client_secret"),
        "azure_tenant_id": ("azure_tenant_id", "azure_storage_tenant_id"),
    },
}

OPTION_NAME: Final = re.compile(
    r"(aws|azure)_[a-z0-9_]+|allow_http|connect_timeout|timeout|proxy_url|max_retries|retry_timeout"
)
"""Pattern of a name in `storage.options` (lower case): those that delta-rs knows."""


@dataclass(frozen=True)
class LakeLocation:
    """Where a lake's tables are. Create it with `of`."""

    url: str
    """Absolute path of a local folder, or a URL; without a slash at its end."""
    folder: Path | None = None
    """The local folder, None for a lake elsewhere."""
    options: Mapping[str, SecretStr] = field(default_factory=dict, repr=False)
    """Storage options from the configuration, by delta-rs' names in lower case."""

    @classmethod
    def of(cls, lake: str | Path, options: Mapping[str, SecretStr] | None = None) -> LakeLocation:
        """Parses `lake`: a folder, `file://…`, `s3://…` (`s3a://`), `abfss://…` (`abfs://`, `az://`).

        Raises ValueError, in one line without secrets, for anything else.
        """
        text = str(lake)
        found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(/.*)", text, re.DOTALL)
        if not found:  # a path has no scheme
            return cls(*_local(text))
        scheme, address = found[1].lower(), found[2]
        if scheme == "file":
            host = re.match(r"//([^/]+)", address)
            if host and host[1] != "localhost":
                raise ValueError(f"file://{host[1]}/ is a folder of another machine; write file:///folder")
            path = "/" + address[len(host[0]) if host else 0 :].lstrip("/")
            return cls(*_local(unquote(path, errors="surrogateescape")))
        if scheme not in _SCHEMES:
            raise ValueError(f"{scheme}: is no storage for a lake; write {_FORMS}")
        return cls(_url(scheme, address.lstrip("/")), None, options or {})

    def __str__(self) -> str:
        """The address, without any credentials."""
        return self.url

    @property
    def kind(self) -> Kind:
        """The kind of storage."""
        return "local" if self.folder else _SCHEMES[self.url.partition(":")[0]]

    def table_url(self, table: Table) -> str:
        """The address of `table` for delta-rs: `<lake>/<schema>/<table>`."""
        return f"{self.url}/{table.schema}/{table.name}"

    def table_folder(self, table: Table) -> Path | None:
        """The local folder of `table`, None when the lake is elsewhere."""
        return self.folder and self.folder / table.schema / table.name

    @property
    def option_text(self) -> str:
        """The option that names this lake to another command, quoted for a shell: `--lake '/a b'`."""
        return f"--lake {shlex.quote(self.url)}"

    @property
    def is_plain(self) -> bool:
        """Whether DuckDB can be given the paths of this lake's files: a local folder without a pattern (`*`, `?`) or a
        partition (`symbol=x`, which would replace the column of that name) in its path.
        """
        return self.folder is not None and not set("*?=") & set(self.url)

    @property
    def storage_options(self) -> dict[str, str]:
        """delta-rs options from the configuration, secrets in clear text. delta-rs reads the environment by itself."""
        given = {name: value.get_secret_value() for name, value in self.options.items()}
        endpoint = self.option("aws_endpoint_url") if self.kind == "s3" else None
        if endpoint and endpoint.startswith("http:"):
            given.setdefault("aws_allow_http", "true")  # an explicit http:// is intended
        return given

    @property
    def spark_url(self) -> str:
        """The lake's address for Spark, whose S3 scheme is s3a and whose Azure addresses name the account.

        Raises ConfigurationError for an `az://` address when the account is unknown.
        """
        if self.kind == "s3":
            return self.url.replace("s3://", "s3a://", 1)
        if self.url.startswith("az://"):
            container, _, prefix = self.url.removeprefix("az://").partition("/")
            return f"abfss://{container}@{self.account_host}/{prefix}".rstrip("/")
        return self.url

    def spark_table_url(self, table: Table) -> str:
        """The address of `table` for Spark."""
        return f"{self.spark_url}/{table.schema}/{table.name}"

    @property
    def hadoop_options(self) -> dict[str, str]:
        """Options of Spark's Hadoop file systems for this lake, secrets in clear text.

        Set them on `sparkContext._jsc.hadoopConfiguration()` of the running session: given to the session's builder as
        `spark.hadoop.*` they become arguments of the Java process, which every user of the machine can read.
        """
        if self.kind == "local":
            return {}
        if self.kind == "s3":
            endpoint, token = self.option("aws_endpoint_url"), self.option("aws_session_token")
            is_virtual = (self.option("aws_virtual_hosted_style_request") or "").lower() == "true"
            options = {
                "fs.s3a.endpoint": endpoint,
                "fs.s3a.endpoint.region": self.option("aws_region"),
                "fs.s3a.access.key": self.option("aws_access_key_id"),
                "fs.s3a.secret.key": self.option("aws_secret_access_key"),
                "fs.s3a.session.token": token,
                # Servers other than Amazon's seldom have a host name for each bucket.
                "fs.s3a.path.style.access": "true" if endpoint and not is_virtual else None,
                "fs.s3a.connection.ssl.enabled": "false" if endpoint and endpoint.startswith("http:") else None,
                "fs.s3a.aws.credentials.provider": "org.apache.hadoop.fs.s3a.TemporaryAWSCredentialsProvider"
                if token
                else None,
            }
            return {name: value for name, value in options.items() if value}
        host = self.account_host
        key, sas = self.option("azure_storage_account_key"), self.option("azure_storage_sas_token")
        if key:
            return {f"fs.azure.account.key.{host}": key}
        if sas:
            return {f"fs.azure.account.auth.type.{host}": "SAS", f"fs.azure.sas.fixed.token.{host}": sas.lstrip("?")}
        client, secret = self.option("azure_client_id"), self.option("azure_client_secret")
        tenant = self.option("azure_tenant_id")
        oauth = f"fs.azure.account.oauth2.client.{{}}.{host}"
        found = {f"fs.azure.account.auth.type.{host}": "OAuth"}
        provider = f"fs.azure.account.oauth.provider.type.{host}"
        if client and secret and tenant:
            return found | {
                provider: "org.apache.hadoop.fs.azurebfs.oauth2.ClientCredsTokenProvider",
                oauth.format("id"): client,
                oauth.format("secret"): secret,
                oauth.format("endpoint"): f"https://login.microsoftonline.com/{tenant}/oauth2/token",
            }
        # Without any secret: the machine's own identity, as with delta-rs.
        found |= {provider: "org.apache.hadoop.fs.azurebfs.oauth2.MsiTokenProvider"}
        return found | ({oauth.format("id"): client} if client else {})

    @property
    def slug(self) -> str:
        """A file name for this place: readable, and different for every address."""
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.url).strip("-")[:80]
        return f"{readable}-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"

    def option(self, name: str) -> str | None:
        """An option by the first of its names: from the configuration, else from the environment; None if unset."""
        environment = {given.lower(): value for given, value in os.environ.items()}
        for source in ({n: v.get_secret_value() for n, v in self.options.items()}, environment):
            for alias in _NAMES[self.kind][name]:
                if source.get(alias):
                    return source[alias]
        return None

    @property
    def account_host(self) -> str:
        """The host of an Azure lake's account: `account.dfs.core.windows.net`.

        Raises ConfigurationError when the account is unknown.
        """
        if self.url.startswith("abfs"):
            return self.url.partition("@")[2].partition("/")[0]
        account = self.option("azure_storage_account_name")
        if not account:
            raise ConfigurationError(
                f"The lake {self.url} does not say in which storage account: write "
                "abfss://container@account.dfs.core.windows.net/prefix, or set AZURE_STORAGE_ACCOUNT_NAME."
            )
        return f"{account}.dfs.core.windows.net"


def _local(text: str) -> tuple[str, Path]:
    if not text.strip():  # an unset shell variable: the tables would land in the current folder
        raise ValueError(f"the name is empty; write {_FORMS}")
    folder = Path(os.path.expanduser(text)).absolute()  # noqa: PTH111 - Path's own raises for ~name of no user
    if folder == Path(folder.anchor):
        raise ValueError("/ is no folder for a lake; name one in it")
    _check_local(str(folder))
    _check_local(os.path.realpath(folder))  # the path that delta-rs uses
    if folder.parts[1:2] == ("dbfs",):
        raise ValueError("/dbfs is a mount on which commits are not safe; write the storage's own address, abfss://…")
    return str(folder), folder


def _check_local(path: str) -> None:
    """Raises ValueError that names what is not allowed in a lake's path."""
    if found := _NOT_LOCAL.search(path):
        part = found[0] if found[0].isprintable() else f"the control character {found[0]!r}"
        raise ValueError(f"a lake's path can't have {part} in it (Delta readers take it for a URL): {path!r}")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"a lake's path can't have bytes in it that are not UTF-8 (with LC_ALL=C, set PYTHONUTF8=1): {path!r}"
        ) from None


def _url(scheme: str, address: str) -> str:
    """The URL of an address on S3 or Azure. Raises ValueError for secrets and characters that need escapes."""
    if "?" in address or "#" in address or ":" in address:
        raise ValueError(
            f"a {scheme}:// address has no keys, tokens or ports in it; give those as storage.options or by environment"
        )
    place, *prefix = address.rstrip("/").split("/")
    if not all(_PREFIX_PART.fullmatch(part) for part in prefix):
        raise ValueError(f"a {scheme}:// prefix is made of letters, digits and . _ - = between single slashes")
    if _SCHEMES[scheme] == "s3":
        if not _BUCKET.fullmatch(place):
            raise ValueError(f"{scheme}:// needs a bucket's name first: s3://bucket/prefix")
        return "/".join(("s3:/", place, *prefix))
    container, at, host = place.partition("@")
    if not _CONTAINER.fullmatch(container) or (at and not _ACCOUNT_HOST.fullmatch(host)):
        raise ValueError(f"{scheme}:// is written abfss://container@account.dfs.core.windows.net/prefix")
    if not at:
        return "/".join(("az:/", container, *prefix))
    return "/".join(("abfss:/", f"{container}@{host.replace('.blob.', '.dfs.', 1)}", *prefix))
