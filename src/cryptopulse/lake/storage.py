"""Opens the lake's tables on any storage, and translates the storage's errors."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from obstore.exceptions import AlreadyExistsError, BaseError
from pyarrow import fs

from cryptopulse.errors import ConfigurationError, LakeDamaged, LakeFull, LakeUnreachable
from cryptopulse.folders import is_full
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import BRONZE, TABLES, Table, other_columns

_REFUSED = re.compile(r"\b(400 Bad Request|401 Unauthorized|403 Forbidden)\b|lacked the necessary privileges")
_NO_SUCH_PLACE = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound|AccountNotFound|FilesystemNotFound)</Code>")
_UNUSABLE = re.compile(
    r"Invalid Access Key|Account must be specified|[Mm]issing (region|bucket|credentials)|builder error"
)
_UNREACHABLE = re.compile(
    r"error sending request|HTTP error|Error performing|connection (refused|reset)|timed out|dns error"
)
_LISTINGS, _LISTED_AGAIN_S = 4, 0.02
_START_FIRST = "`cryptopulse process --once {}` repairs what a power cut tore. If it says the same:"
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_CAUSES = ("operation timed out", "Connection refused", "dns error", "invalid peer certificate", "connection closed")


def is_there(lake: LakeLocation, table: Table) -> bool:
    """Whether `table` exists. Raises ConfigurationError and LakeUnreachable, see `storage`."""
    with storage(lake):
        return DeltaTable.is_deltatable(lake.table_url(table), lake.storage_options)


def open_table(lake: LakeLocation, table: Table) -> DeltaTable:
    """The newest version of `table`. Raises what `storage` raises, TableNotFoundError, LakeDamaged, and
    ConfigurationError for a table of another version of CryptoPulse.
    """
    with storage(lake):
        try:
            delta = delta_table(lake.table_url(table), lake.storage_options)
        except TableNotFoundError:
            raise
        except DeltaError as error:
            if not lake.folder and _explained(lake, str(error)):  # the storage failed, not the table
                raise
            what = f"can't be opened ({str(error).splitlines()[0]})"
            raise damaged(lake, table, f"{what}. {_START_FIRST.format(lake.option_text)}") from error
    if differs := other_columns(table, pa.schema(delta.schema().to_arrow())):
        where = lake.table_url(table)
        remedy = (
            "Open it with the version that made it, or name another lake."
            if table is BRONZE
            else f"Stop the pipeline, delete {where} and run `cryptopulse rebuild {lake.option_text}`: it makes silver "
            "and gold again from bronze."
        )
        raise ConfigurationError(
            f"Table {table.qualified} was made by another version of CryptoPulse ({differs}). {remedy}"
        )
    return delta


def delta_table(url: str, options: dict[str, str] | None) -> DeltaTable:
    """The newest version of a table, opened by deltalake; raises its errors.

    A listing of a folder is no snapshot: while commits come, it may show one and lack the one before. So a log with a
    gap is listed again before it counts as damaged.
    """
    left = _LISTINGS
    while True:
        left -= 1
        try:
            return DeltaTable(url, storage_options=options)
        except DeltaError as error:
            if not left or "found gap" not in str(error):
                raise
        time.sleep(_LISTED_AGAIN_S)


def existing_tables(lake: LakeLocation) -> list[Table]:
    """The tables that exist. Raises ConfigurationError when there is none."""
    found = [table for table in TABLES if is_there(lake, table)]
    if not found:
        raise ConfigurationError(
            f"There is no lake at {lake}: name it with --lake, or fill one with `cryptopulse demo`."
        )
    return found


def damaged(lake: LakeLocation, table: Table, what: str) -> LakeDamaged:
    """The error that says what is wrong with `table` (`what`: a sentence without its subject), with the remedy when a
    start of the pipeline can't repair it.
    """
    where = lake.table_url(table)
    if table is BRONZE:
        remedy = (
            f"Restore a copy of {where}, or move it away and start again: the messages that only it held are then "
            "gone, but silver and gold keep what was made of them as long as they are not rebuilt."
        )
    elif lake.folder:
        remedy = f"Run `cryptopulse rebuild {lake.option_text}`, which makes silver and gold again from bronze."
    else:
        remedy = f"Delete {where} and run `cryptopulse rebuild {lake.option_text}`, which makes it again from bronze."
    return LakeDamaged(f"Table {table.qualified} {what} {remedy}", table.qualified)


def full(lake: LakeLocation) -> LakeFull:
    """The error for a full disk under `lake`."""
    return LakeFull(
        f"The disk under {lake} is full. Free some space and start again: nothing is lost, the log keeps what has "
        "arrived."
    )


def file_system(lake: LakeLocation, url: str) -> Any:
    """Arrow's own file system with the folder `url` of a lake as its root."""
    if lake.folder:
        return fs.SubTreeFileSystem(url, fs.LocalFileSystem())
    place, _, path = url.partition("://")[2].partition("/")
    if lake.kind == "s3":
        endpoint = lake.option("aws_endpoint_url")
        given = {
            "access_key": lake.option("aws_access_key_id"),
            "secret_key": lake.option("aws_secret_access_key"),
            "session_token": lake.option("aws_session_token"),
            "region": lake.option("aws_region"),
            "endpoint_override": endpoint and urlsplit(endpoint).netloc,
            "scheme": endpoint and urlsplit(endpoint).scheme,
            "force_virtual_addressing": lake.option("aws_virtual_hosted_style_request") == "true" or None,
        }
        system = fs.S3FileSystem(**{name: value for name, value in given.items() if value})
    else:
        system = _azure(lake)
    return fs.SubTreeFileSystem(f"{place.partition('@')[0]}/{path}", system)


def _azure(lake: LakeLocation) -> Any:
    account, _, domain = lake.account_host.partition(".")
    endpoint = lake.option("azure_storage_endpoint")
    given = {
        "account_key": lake.option("azure_storage_account_key"),
        "sas_token": lake.option("azure_storage_sas_token"),
        "client_id": lake.option("azure_client_id"),
        "client_secret": lake.option("azure_client_secret"),
        "tenant_id": lake.option("azure_tenant_id"),
    }
    if given["account_key"] or given["sas_token"]:  # as delta-rs, which prefers them; Arrow refuses several
        given = {name: given[name] for name in ("account_key", "sas_token")}
        given["sas_token"] = None if given["account_key"] else given["sas_token"]
    if endpoint:
        address = urlsplit(endpoint)
        given |= dict.fromkeys(("blob_storage_authority", "dfs_storage_authority"), address.netloc)
        given |= dict.fromkeys(("blob_storage_scheme", "dfs_storage_scheme"), address.scheme)
    elif domain != "dfs.core.windows.net":  # a national cloud
        given["blob_storage_authority"] = f".{domain.replace('dfs', 'blob', 1)}"
        given["dfs_storage_authority"] = f".{domain}"
    return fs.AzureFileSystem(account, **{name: value for name, value in given.items() if value})


@contextmanager
def storage(lake: LakeLocation) -> Iterator[None]:
    """Translates storage errors of delta-rs and obstore to one-line errors of `cryptopulse.errors`.

    ConfigurationError: refused credentials, a missing bucket. LakeUnreachable: the storage does not answer (after
    three minutes of retries). LakeFull: the disk of a local lake is full. Other errors pass through. The original text
    is not repeated: a request's address may carry a token.
    """
    try:
        yield
    except (OSError, DeltaError, BaseError) as error:
        if lake.folder and is_full(error):
            raise full(lake) from error
        if isinstance(error, (CommitFailedError, TableNotFoundError, AlreadyExistsError)):
            raise
        found = None if lake.folder else _explained(lake, str(error))
        if found is None:
            raise
        raise found from None


@contextmanager
def reading(lake: LakeLocation, table: Table) -> Iterator[None]:
    """As `storage`, for a query of `table`: also raises LakeDamaged for a file that is not as it was written."""
    with storage(lake):
        try:
            yield
        except Exception as error:
            if "Parquet error" not in str(error):  # a plain Exception, known only by its text
                raise
            if not lake.folder and (found := _explained(lake, str(error))):
                raise found from None
            what = f"has a file that can't be read ({str(error).splitlines()[0]})"
            raise damaged(lake, table, f"{what}. {_START_FIRST.format(lake.option_text)}") from error


def _explained(lake: LakeLocation, text: str) -> ConfigurationError | LakeUnreachable | None:
    """The error for a message `text` of delta-rs; None when it is not about the storage."""
    code = _CODE.search(text)
    detail = f" ({code[1]})" if code else ""
    names = "AWS_*" if lake.kind == "s3" else "AZURE_STORAGE_*"
    if place := _NO_SUCH_PLACE.search(text):
        return ConfigurationError(f"Bucket or container not found for lake {lake} ({place[1]}). Create it first.")
    if refused := _REFUSED.search(text):
        answer = refused[1] or "not allowed"
        return ConfigurationError(
            f"The storage of the lake {lake} refuses: {answer}{detail}. Check the credentials and their rights "
            f"({names} in the environment, or storage.options)."
        )
    if unusable := _UNUSABLE.search(text):
        return ConfigurationError(
            f"The credentials for the lake {lake} can't be used ({unusable[0]}). Check {names} in the environment, or "
            "storage.options."
        )
    if _UNREACHABLE.search(text):
        cause = next((cause for cause in _CAUSES if cause in text), "no good answer")
        return LakeUnreachable(
            f"The storage of the lake {lake} can't be reached ({cause}{detail}). Nothing is lost: the log keeps what "
            "arrives. Check the network, and the endpoint if one is set."
        )
    return None
