"""From settings to what Kafka's clients are told; and that no secret is ever shown."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from cryptopulse.errors import ConfigurationError
from cryptopulse.log.kafka_address import KafkaAddress, kafka_address
from cryptopulse.log.opening import open_log
from cryptopulse.settings import LogSettings, load_settings
from cryptopulse.settings.text import described

KEY = "c2VjcmV0LWtleQ=="
HUB = f"Endpoint=sb://space.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey={KEY}"


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no variables that count."""
    for name in list(os.environ):
        if name.startswith(("CRYPTOPULSE_", "EVENT_HUB_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def address(**log: Any) -> KafkaAddress:
    found = kafka_address(LogSettings.model_validate(log))
    assert found is not None
    return found


def test_without_an_address_the_log_is_the_embedded_one() -> None:
    assert kafka_address(LogSettings()) is None
    assert kafka_address(LogSettings(url="sqlite:/tmp/log.db")) is None
    assert kafka_address(LogSettings(url="sqlite:log.db", eventhub_connection_string=SecretStr(HUB))) is None


def test_a_url_names_servers_and_topic() -> None:
    found = address(url="kafka://one:9092, two,[::1]:19092/coinbase.raw")
    assert found.servers == ("one:9092", "two:9092", "[::1]:19092")
    assert (found.topic, found.security_protocol, found.sasl_mechanism) == ("coinbase.raw", "PLAINTEXT", None)
    assert found.client_options() == {
        "bootstrap.servers": "one:9092,two:9092,[::1]:19092",
        "security.protocol": "PLAINTEXT",
        "socket.keepalive.enable": "true",
    }
    assert found.spark_options() == {
        "kafka.bootstrap.servers": "one:9092,two:9092,[::1]:19092",
        "kafka.security.protocol": "PLAINTEXT",
    }


def test_a_user_means_sasl_over_tls_unless_something_else_is_said() -> None:
    user = {"kafka_username": "me", "kafka_password": "word"}
    assert address(url="kafka://h/t", **user).security_protocol == "SASL_SSL"
    found = address(
        url="kafka://h/t?security_protocol=sasl_plaintext&sasl_mechanism=scram-sha-256&ssl_ca_location=/ca.pem", **user
    )
    options = found.client_options()
    assert (options["security.protocol"], options["sasl.mechanism"]) == ("SASL_PLAINTEXT", "SCRAM-SHA-256")
    assert (options["sasl.username"], options["sasl.password"]) == ("me", "word")
    assert options["ssl.ca.location"] == "/ca.pem"


def test_options_of_the_client_come_on_top_and_are_texts() -> None:
    found = address(url="kafka://h/t", kafka_options={"message.max.bytes": 2_000_000, "socket.keepalive.enable": False})
    assert found.client_options()["message.max.bytes"] == "2000000"
    assert found.client_options()["socket.keepalive.enable"] == "false"


def test_a_connection_string_is_translated_to_the_hubs_kafka_endpoint() -> None:
    found = address(eventhub_connection_string=HUB)
    assert str(found) == "kafka://space.servicebus.windows.net:9093/coinbase-raw-trades"
    options = found.producer_options()
    assert options["security.protocol"] == "SASL_SSL"
    assert (options["sasl.mechanism"], options["sasl.username"], options["sasl.password"]) == (
        "PLAIN",
        "$ConnectionString",
        HUB,
    )
    assert options["compression.type"] == "gzip"
    assert options["connections.max.idle.ms"] == options["metadata.max.age.ms"] == 180_000
    assert options["request.timeout.ms"] == 60_000
    assert int(options["message.max.bytes"]) < 1_046_528
    assert "compression.type" not in found.client_options()  # a consumer does not know it


@pytest.mark.parametrize("password", ["Pa/ssW0rd", "Pa?ssW0rd", "ssW0rd", "Pa/s?sW0rd"])
def test_a_password_in_the_url_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(ConfigurationError, match="don't belong into the URL") as told:
        address(url=f"kafka://user:{password}@host:9092/topic")
    assert "W0rd" not in str(told.value)


def test_a_hub_is_named_by_the_connection_string_or_else_by_its_setting() -> None:
    assert address(eventhub_connection_string=HUB, eventhub_name="other").topic == "other"
    assert address(eventhub_connection_string=HUB + ";EntityPath=in-it", eventhub_name="other").topic == "in-it"


def test_the_emulator_is_reached_without_tls() -> None:
    text = f"Endpoint=sb://localhost;SharedAccessKeyName=Root;SharedAccessKey={KEY};UseDevelopmentEmulator=true;"
    found = address(eventhub_connection_string=text)
    assert (found.servers, found.security_protocol) == (("localhost:9092",), "SASL_PLAINTEXT")


def test_spark_is_told_the_same_in_its_own_words() -> None:
    options = address(eventhub_connection_string=HUB).spark_options()
    assert options["kafka.bootstrap.servers"] == "space.servicebus.windows.net:9093"
    assert options["kafka.sasl.mechanism"] == "PLAIN"
    assert options["kafka.sasl.jaas.config"] == (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'username="$ConnectionString" password="{HUB}";'
    )
    shaded = address(eventhub_connection_string=HUB).spark_options(databricks=True)
    assert shaded["kafka.sasl.jaas.config"].startswith("kafkashaded.org.apache.kafka.")
    scram = address(url="kafka://h/t?sasl_mechanism=SCRAM-SHA-512", kafka_username="u", kafka_password="p")
    assert "scram.ScramLoginModule" in scram.spark_options()["kafka.sasl.jaas.config"]


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1))
def test_any_password_survives_the_quoting_for_java(password: str) -> None:
    options = address(url="kafka://h/t", kafka_username="u", kafka_password=password).spark_options()
    quoted = re.fullmatch(r'.* required username="u" password="(.*)";', options["kafka.sasl.jaas.config"], re.DOTALL)
    assert quoted
    assert not re.search(r'(?<!\\)(\\\\)*"', quoted[1])  # no quote ends it early
    assert re.sub(r"\\(.)", r"\1", quoted[1]) == password


def test_azures_own_variables_work_and_a_url_is_stronger(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENT_HUB_CONNECTION_STRING", HUB)
    monkeypatch.setenv("EVENT_HUB_NAME", "mine")
    found = kafka_address(load_settings().log)
    assert found is not None
    assert found.topic == "mine"
    assert found.is_event_hub
    (clean / ".env").write_text("EVENT_HUB_NAME=from-file\nOTHER=1")
    assert load_settings().log.eventhub_name == "from-file"
    monkeypatch.setenv("CRYPTOPULSE_LOG__EVENTHUB_NAME", "ours")
    assert load_settings().log.eventhub_name == "ours"
    found = kafka_address(load_settings(log={"url": "kafka://h/t"}).log)
    assert found is not None
    assert not found.is_event_hub


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ({"url": "kafka://h:9092"}, "is no topic"),
        ({"url": "kafka:///t"}, "is no server"),
        ({"url": "kafka://h:99999/t"}, "'h:99999' is no server"),
        ({"url": "kafka://h/t/u"}, "is no topic"),
        ({"url": "kafka://h/t?group.id=x"}, "no parameter 'group.id'"),
        ({"url": "kafka://h/t?security_protocol=tls"}, "'TLS' is none of PLAINTEXT, SSL"),
        ({"url": "kafka://h/t?security_protocol=SASL_SSL"}, "needs log.kafka_username and log.kafka_password"),
        ({"url": "kafka://h/t?security_protocol=SSL", "kafka_username": "u"}, "SSL has no user"),
        (
            {"url": "kafka://h/t?sasl_mechanism=GSSAPI", "kafka_username": "u", "kafka_password": KEY},
            "'GSSAPI' is none",
        ),
        ({"url": f"kafka://u:{KEY}@h/t"}, "don't belong into the URL"),
        ({"eventhub_connection_string": KEY}, "has no Endpoint"),
        ({"eventhub_connection_string": f"{KEY[:4]};x"}, "has no '='"),
        ({"eventhub_connection_string": f"Endpoint=https://x/;SharedAccessKey={KEY}"}, "has no Endpoint=sb://"),
        ({"eventhub_connection_string": f"Endpoint=sb://x/;SharedAccessKey={KEY}"}, "SharedAccessKeyName"),
        ({"eventhub_connection_string": HUB, "eventhub_name": "a b"}, "can't be a hub's name"),
    ],
)
def test_what_can_not_be_read_is_said_in_one_line_without_the_secret(log: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)) as error:
        address(**log)
    assert "\n" not in str(error.value)
    assert KEY not in str(error.value)


@given(st.text())
def test_no_connection_string_ends_in_anything_but_an_address_or_a_configuration_error(text: str) -> None:
    try:
        found = address(eventhub_connection_string=text)
    except ConfigurationError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ends are right
    else:
        assert found.is_event_hub


def test_an_unknown_kind_of_log_is_not_taken_for_a_file(clean: Path) -> None:
    with pytest.raises(ConfigurationError, match="redis:// is no file"):
        open_log(load_settings(lake=clean / "lake", log={"url": "redis://h/t"}))
    assert not list(clean.glob("redis*"))


def test_a_log_in_kafka_has_no_file() -> None:
    with pytest.raises(ConfigurationError, match="kafka:// is no file"):
        _ = load_settings(log={"url": "kafka://127.0.0.1:9092/trades"}).log_path


def test_secrets_are_shown_nowhere(clean: Path) -> None:
    (clean / "cryptopulse.toml").write_text(
        f'[log]\nurl = "kafka://h/t"\nkafka_username = "u"\nkafka_password = "{KEY}"\n'
        f'eventhub_connection_string = "{HUB}"\nkafka_options = {{ "ssl.key.password" = "{KEY}" }}\n'
    )
    settings = load_settings()
    found = kafka_address(settings.log)
    assert found is not None
    listed = json.dumps([vars(setting) for setting in described(settings)], default=str)
    for text in (repr(settings), str(settings.log), repr(found), str(found), listed):
        assert KEY not in text
    assert found.client_options()["ssl.key.password"] == KEY


@pytest.mark.parametrize("epoch", [-1, 200_001])
def test_an_epoch_is_a_number_that_bronze_can_hold(epoch: int) -> None:
    with pytest.raises(ConfigurationError, match=r"log\.epoch"):
        load_settings(log={"epoch": epoch})
