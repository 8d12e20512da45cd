"""The object store for a table's files: one interface for local folders, S3 and Azure."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from obstore.exceptions import UnknownConfigurationKeyError
from obstore.store import LocalStore, ObjectStore, from_url

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import Table
from cryptopulse.text import parse_duration

# delta-rs takes these with or without the storage's prefix; obstore takes them in arguments of their own.
_CLIENT = re.compile(r"(aws_|azure_)?(allow_http|allow_invalid_certificates|connect_timeout|timeout|proxy_url)")
_RETRY: dict[str, Callable[[str], Any]] = {
    "max_retries": int,
    "retry_timeout": lambda text: timedelta(seconds=parse_duration(text)),
}


def table_store(lake: LakeLocation, table: Table) -> ObjectStore:
    """The store of the folder of `table` (a local one must exist), with the lake's options for delta-rs.

    Raises ConfigurationError for an unknown option, and errors that `cryptopulse.lake.storage.storage` translates.
    """
    if lake.folder:
        return LocalStore(lake.table_url(table))
    config: Any = {}
    client: Any = {}
    retry: Any = {}
    for name, value in lake.storage_options.items():
        if found := _CLIENT.fullmatch(name):
            client[found[2]] = value
        elif name in _RETRY:
            retry[name] = _RETRY[name](value)
        elif name not in ("azure_storage_account_name", "azure_account_name") or lake.url.startswith("az:"):
            config[name] = value  # abfss://… names the account already; giving it twice is refused
    endpoint = lake.option("aws_endpoint_url" if lake.kind == "s3" else "azure_storage_endpoint")
    if endpoint and endpoint.startswith("http:"):
        client.setdefault("allow_http", "true")  # an explicit http:// is intended
    try:
        return from_url(lake.table_url(table), config=config, client_options=client, retry_config=retry or None)
    except UnknownConfigurationKeyError as error:
        unknown = re.search(r"'([a-z0-9_]{1,60})'", str(error))
        told = unknown[1] if unknown else "an option"
        raise ConfigurationError(f"storage.options: {told} is not known for {lake}. Remove it.") from None
