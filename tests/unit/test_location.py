"""Where a lake can be, how it is written, and that nothing secret is shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from cryptopulse.cli import run
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import SILVER
from cryptopulse.settings import Settings, load_settings
from cryptopulse.store.durability import check_file_system

SECRET = "nobody-may-see-this"
ABFSS = "abfss://lakes@account.dfs.core.windows.net"


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no variables that name a storage."""
    for name in list(os.environ):
        if name.startswith(("CRYPTOPULSE_", "AWS_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def secrets(**options: str) -> dict[str, SecretStr]:
    return {name: SecretStr(value) for name, value in options.items()}


@pytest.mark.parametrize(
    ("written", "url", "spark"),
    [
        ("s3://lakes", "s3://lakes", "s3a://lakes"),
        ("s3a://lakes/a/b.c/", "s3://lakes/a/b.c", "s3a://lakes/a/b.c"),
        (f"{ABFSS}/a_b/c", f"{ABFSS}/a_b/c", f"{ABFSS}/a_b/c"),
        ("abfs://lakes@account.blob.core.windows.net/a", f"{ABFSS}/a", f"{ABFSS}/a"),
        ("az://lakes/a", "az://lakes/a", f"{ABFSS}/a"),
        ("az://lakes", "az://lakes", ABFSS),
        ("abfss://lakes/a", "az://lakes/a", f"{ABFSS}/a"),
    ],
)
def test_each_form_of_an_address_is_one_place_for_both_engines(written: str, url: str, spark: str) -> None:
    lake = LakeLocation.of(written, secrets(azure_storage_account_name="account"))
    assert (lake.url, lake.folder) == (url, None)
    assert lake.spark_url == spark
    assert lake.table_url(SILVER) == f"{url}/silver/fact_crypto_trades"
    assert lake.spark_table_url(SILVER) == f"{spark}/silver/fact_crypto_trades"


@pytest.mark.parametrize("written", ["here", "./here", "{clean}/here", "file://{clean}/here", "file:{clean}/here"])
def test_a_local_folder_is_absolute_however_it_is_written(written: str, clean: Path) -> None:
    lake = LakeLocation.of(written.format(clean=clean))
    assert (lake.folder, lake.url) == (clean / "here", str(clean / "here"))
    assert lake.kind == "local"
    assert lake.table_folder(SILVER) == clean / "here" / "silver" / "fact_crypto_trades"
    assert lake.storage_options == lake.hadoop_options == {}


def test_only_a_file_address_is_unescaped(clean: Path) -> None:
    assert LakeLocation.of(f"file://{clean}/my%20lake").folder == clean / "my lake"
    assert LakeLocation.of("100%2").folder == clean / "100%2"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("gs://bucket/lake", "gs: is no storage"),
        ("dbfs:/lake", "dbfs: is no storage"),
        ("/dbfs/mnt/lake", "abfss://"),
        ("a[b]", "can't have"),
        ("s3://", "bucket's name"),
        ("s3://Bucket/lake", "bucket's name"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/../other", "prefix"),
        ("s3://bucket/a b", "prefix"),
        (f"s3://key:{SECRET}@bucket/lake", "keys, tokens"),
        (f"{ABFSS}/lake?sig={SECRET}", "keys, tokens"),
        ("abfss://lakes@account/lake", "container@account"),
        ("az://x/lake", "container@account"),
    ],
)
def test_what_is_no_place_for_a_lake_is_refused_in_one_line(written: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as error:
        load_settings(lake=written)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


def test_the_state_of_a_lake_elsewhere_is_a_local_folder_of_its_own(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(clean / "state"))
    folders = [load_settings(lake=url).state_dir for url in ("s3://lakes/a-b", "s3://lakes/a/b", "s3://lakes/a_b")]
    assert len(set(folders)) == 3
    assert all(folder.parent == clean / "state" / "cryptopulse" for folder in folders)
    assert all(folder.name.startswith("s3-lakes-a-b-") for folder in folders)
    assert load_settings(lake="s3://lakes/a", state="mine").state_dir == clean / "mine"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert load_settings(lake="s3://lakes/a").state_dir.parent == Path.home() / ".local" / "state" / "cryptopulse"
    assert load_settings(lake="here").state_dir == clean / "here" / "_cryptopulse"


def test_spark_gets_the_same_credentials_as_delta_rs_from_the_configuration_or_else_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-environment")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    options = secrets(aws_access_key_id="given", aws_endpoint_url="http://127.0.0.1:9000")
    lake = LakeLocation.of("s3://lakes/a", options)
    assert lake.storage_options == {
        "aws_access_key_id": "given",
        "aws_endpoint_url": "http://127.0.0.1:9000",
        "aws_allow_http": "true",
    }
    assert lake.hadoop_options == {
        "fs.s3a.endpoint": "http://127.0.0.1:9000",
        "fs.s3a.endpoint.region": "eu-central-1",
        "fs.s3a.access.key": "given",
        "fs.s3a.secret.key": "of-environment",
        "fs.s3a.path.style.access": "true",
        "fs.s3a.connection.ssl.enabled": "false",
    }


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (secrets(azure_storage_account_key="k"), {"fs.azure.account.key.account.dfs.core.windows.net": "k"}),
        (
            secrets(azure_storage_sas_token="?sv=1"),
            {
                "fs.azure.account.auth.type.account.dfs.core.windows.net": "SAS",
                "fs.azure.sas.fixed.token.account.dfs.core.windows.net": "sv=1",
            },
        ),
        (
            secrets(azure_client_id="c", azure_client_secret="s", azure_tenant_id="t"),
            {
                "fs.azure.account.auth.type.account.dfs.core.windows.net": "OAuth",
                "fs.azure.account.oauth.provider.type.account.dfs.core.windows.net": (
                    "org.apache.hadoop.fs.azurebfs.oauth2.ClientCredsTokenProvider"
                ),
                "fs.azure.account.oauth2.client.id.account.dfs.core.windows.net": "c",
                "fs.azure.account.oauth2.client.secret.account.dfs.core.windows.net": "s",
                "fs.azure.account.oauth2.client.endpoint.account.dfs.core.windows.net": (
                    "https://login.microsoftonline.com/t/oauth2/token"
                ),
            },
        ),
    ],
)
def test_each_way_to_sign_in_to_azure_reaches_spark(options: dict[str, SecretStr], wanted: dict[str, str]) -> None:
    assert LakeLocation.of(f"{ABFSS}/a", options).hadoop_options == wanted


def test_an_address_without_an_account_says_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        _ = LakeLocation.of("az://lakes/a").spark_url


@pytest.mark.parametrize("source", ["file", "environment", "json"])
def test_storage_options_are_read_from_every_source_and_shown_by_none(
    source: str, clean: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if source == "file":
        lines = f'AWS_SECRET_ACCESS_KEY = "{SECRET}"\naws_allow_http = true\ntimeout = 30'
        (clean / "cryptopulse.toml").write_text(f"[storage.options]\n{lines}")
    elif source == "environment":
        monkeypatch.setenv("CRYPTOPULSE_STORAGE__OPTIONS__AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("CRYPTOPULSE_STORAGE__OPTIONS__AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("CRYPTOPULSE_STORAGE__OPTIONS__TIMEOUT", "30")
    else:
        options = {"AWS_SECRET_ACCESS_KEY": SECRET, "aws_allow_http": True, "timeout": 30}
        monkeypatch.setenv("CRYPTOPULSE_STORAGE__OPTIONS", json.dumps(options))
    settings = load_settings(lake="s3://lakes/a")
    given = {"aws_secret_access_key": SECRET, "aws_allow_http": "true", "timeout": "30"}
    assert settings.location.storage_options == given
    for shown in (repr(settings), str(settings), repr(settings.location), str(settings.location)):
        assert SECRET not in shown
    assert run(["config"]) == run(["config", "--json"]) == 0
    assert SECRET not in capsys.readouterr().out
    assert SECRET not in settings.model_dump_json()


@pytest.mark.parametrize("options", [{"aws_key": {"a": SECRET}}, {"password": SECRET}, {"aws_region": 1.5}, [SECRET]])
def test_a_wrong_storage_option_is_named_without_its_value(options: object, clean: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"storage\.options") as error:
        load_settings(storage={"options": options})
    cause = error.value.__cause__
    assert SECRET not in str(error.value) + str(cause) + repr(cause)


def test_a_lake_on_s3_is_refused_where_commits_were_told_to_overwrite_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_file_system(LakeLocation.of("s3://lakes/a"))
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    with pytest.raises(ConfigurationError, match="overwrite"):
        check_file_system(LakeLocation.of("s3://lakes/a"))


def test_settings_know_no_storage_by_default() -> None:
    assert Settings().storage.options == {}
