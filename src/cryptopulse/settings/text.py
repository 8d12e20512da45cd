"""The settings as text: a commented configuration file, and a list of the values in force.

Names, defaults and meanings come from the declarations in `cryptopulse.settings`; there is no second list.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cryptopulse.settings import AlertRule, Settings
from cryptopulse.settings.notify import NotifyTarget

_HEADER = """\
# CryptoPulse's settings. A line that starts with `#` and a name shows a default; remove its `#` to change it.
# Stronger than this file, in rising order: environment variables (CRYPTOPULSE_FEED__DIALECT=advanced),
# `.env`, command-line options. `cryptopulse config` shows what is in force.
"""


_PASSWORD = re.compile(r"(://[^\s:@]*:)\S*@")  # of a user in a URL
_SECRET = re.compile(r"([?&][^=&\s]*(?:password|secret|token|key|sig)[^=&\s]*=)[^&\s]+", re.IGNORECASE)
_STARS = "**********"


@dataclass(frozen=True)
class DescribedSetting:
    """One setting: its dotted name, its value in force, its default and its meaning, as text or plain
    data."""

    name: str
    value: Any
    default: Any
    meaning: str


def described(settings: Settings) -> list[DescribedSetting]:
    """Every setting of `settings`, in the order of their declaration."""
    return list(_walk("", Settings, settings))


def as_toml() -> str:
    """A configuration file with every setting, commented out, with its default and its meaning."""
    lines = [_HEADER]
    sections = [(name, info) for name, info in Settings.model_fields.items() if _section(info)]
    for name, info in Settings.model_fields.items():
        if not _section(info):
            lines += _toml_lines(name, info)
    for name, info in sections:
        model = _section(info)
        assert model is not None
        lines += ["", *_comment(model.__doc__ or ""), f"[{name}]"]
        for key, field in model.model_fields.items():
            if (name, key) == ("alerts", "rules"):
                lines += ["", *_comment(AlertRule.__doc__ or ""), "# [[alerts.rules]]"]
                for rule_key, rule_field in AlertRule.model_fields.items():
                    lines += _toml_lines(rule_key, rule_field)
            else:
                lines += _toml_lines(key, field)
            if (name, key) == ("notify", "targets"):
                # Targets have no defaults, so their lines are commented out twice.
                lines += ["## In the place of that list, for each target:", "## [[notify.targets]]"]
                for target_key, target_field in NotifyTarget.model_fields.items():
                    lines += [re.sub("^# ", "## ", line) for line in _toml_lines(target_key, target_field)]
    return "\n".join(lines) + "\n"


def _walk(prefix: str, model: type[BaseModel], values: BaseModel) -> Iterator[DescribedSetting]:
    for name, info in model.model_fields.items():
        value = getattr(values, name)
        section = _section(info)
        if section:
            yield from _walk(f"{prefix}{name}.", section, value)
        else:
            meaning = " ".join((info.description or "").split())
            yield DescribedSetting(prefix + name, _plain(value), _plain(_default(info)), meaning)


def _section(info: FieldInfo) -> type[BaseModel] | None:
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _default(info: FieldInfo) -> Any:
    return info.get_default(call_default_factory=True, validated_data={})


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(part) for name, part in value}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, Path | Decimal | SecretStr):  # str() of a secret gives stars
        return str(value)
    if isinstance(value, str):  # hides only the secrets in a URL, also where none belongs
        return _SECRET.sub(rf"\1{_STARS}", _PASSWORD.sub(rf"\1{_STARS}@", value))
    return value


def _toml_lines(name: str, info: FieldInfo) -> list[str]:
    default = _default(info)
    if default in (None, PydanticUndefined):
        line = f'# {name} = ""  # not set'
    else:
        line = f"# {name} = {default if isinstance(default, Decimal) else json.dumps(_plain(default))}"
    return [*_comment(info.description or ""), line, ""]


def _comment(text: str) -> list[str]:
    paragraphs = " ".join(text.split())
    return [f"## {line}" for line in textwrap.wrap(paragraphs, 100)]
