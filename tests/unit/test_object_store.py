"""Where a table is put, by the options that delta-rs takes; and what storage that fails is told as."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import SecretStr

from cryptopulse.errors import ConfigurationError, LakeUnreachable
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.storage import storage
from cryptopulse.lake.tables import SILVER
from cryptopulse.store.object_store import table_store

SECRET = "c2VjcmV0IG9mIHRoaXMgdGVzdA=="
S3 = {
    "aws_access_key_id": "somebody",
    "aws_secret_access_key": SECRET,
    "aws_endpoint_url": "http://127.0.0.1:1",
    "aws_region": "eu-central-1",
    "aws_allow_http": "true",
    "max_retries": "0",
    "retry_timeout": "1s",
    "timeout": "2s",
}
AZURE = {
    "azure_storage_account_name": "somebody",
    "azure_storage_account_key": SECRET,
    "azure_storage_endpoint": "http://127.0.0.1:1/somebody",
    "max_retries": "0",
    "connect_timeout": "2s",
}


def lake(url: str, options: dict[str, str]) -> LakeLocation:
    return replace(LakeLocation.of(url), options={name: SecretStr(value) for name, value in options.items()})


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://bucket/prefix", S3),
        ("abfss://container@somebody.dfs.core.windows.net/prefix", AZURE),
        ("az://container/prefix", AZURE),
    ],
)
def test_storage_that_does_not_answer_is_a_passing_error_that_names_no_secret(
    url: str, options: dict[str, str]
) -> None:
    place = lake(url, options)
    store = table_store(place, SILVER)
    for ask in (lambda: store.put("x", b"1", mode="create"), lambda: store.get("x"), lambda: store.delete(["x"])):
        with pytest.raises(LakeUnreachable, match="can't be reached") as told, storage(place):
            ask()
        assert SECRET not in str(told.value)


def test_an_option_that_nobody_knows_is_named() -> None:
    with pytest.raises(ConfigurationError, match="aws_spell_checking is not known"):
        table_store(lake("s3://bucket/prefix", {**S3, "aws_spell_checking": "on"}), SILVER)
