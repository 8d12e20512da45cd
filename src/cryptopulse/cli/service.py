"""`install-service`: a unit for systemd that keeps `run` running."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptopulse.cli.options import Config, Lake, settings_from

if TYPE_CHECKING:
    from cryptopulse.settings import Settings

_STOP_S = 180  # more than all processes together may take to end in order

_UNIT = """\
# Written by `cryptopulse install-service`; edit it with `systemctl edit`.
[Unit]
Description=CryptoPulse records trades into {lake_text}
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={command}
WorkingDirectory={folder}
{user}# What belongs to no lake on this machine: locks, status, a log beside a lake in the cloud.
StateDirectory=cryptopulse
Environment=XDG_STATE_HOME=%S
Restart=on-failure
RestartSec=5
# A wrong setting, a damaged table, another pipeline: starting again would not help.
RestartPreventExitStatus=2 4 5
# The supervisor ends its processes in order, without loss.
KillMode=mixed
TimeoutStopSec={stop_s}
LimitNOFILE=65536
UMask=0027

# Only the lake and the state can be written.
ProtectSystem=strict
ProtectHome=read-only
{writable}PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
LockPersonality=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy={target}
"""


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    example = "sudo cryptopulse install-service --user recorder --lake /srv/lake --config /etc/cryptopulse.toml"
    app.command("install-service", epilog=f"Example: {example}")(install_service)


def install_service(
    lake: Lake = None,
    config: Config = None,
    user: Annotated[
        str | None, typer.Option("--user", metavar="NAME", help="Whom the service runs as; needs root.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Another place for the unit; - prints it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing unit.")] = False,
) -> None:
    """Write a unit for systemd that starts `run` with the machine and again after a failure."""
    from cryptopulse.errors import ConfigurationError

    settings = settings_from(lake, config)
    is_system = os.geteuid() == 0 or user is not None
    text = _unit(settings, config and config.absolute(), user, is_system=is_system)
    if file == Path("-"):
        typer.echo(text, nl=False)
        return
    if is_system and os.geteuid() != 0 and file is None:
        raise ConfigurationError("--user needs root: run the command with sudo, or print the unit with --file -.")
    folder = Path("/etc/systemd/system") if is_system else Path.home() / ".config" / "systemd" / "user"
    is_elsewhere, file = file is not None, file or folder / "cryptopulse.service"
    if file.exists() and not force:
        raise ConfigurationError(f"{file} exists already; --force replaces it.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"Can't write {file}: {error.strerror}.") from error
    if is_elsewhere:
        typer.echo(f"Wrote {file}; put it into {folder}.")
        return
    systemctl = "systemctl" if is_system else "systemctl --user"
    typer.echo(f"Wrote {file}. Start it, now and with the machine:")
    if settings.location.folder is not None and not settings.location.folder.exists():
        lake_folder = shlex.quote(str(settings.location.folder.absolute()))
        owner = f" && chown {user}: {lake_folder}" if user else ""
        typer.echo(f"  mkdir -p {lake_folder}{owner}")
    typer.echo(f"  {systemctl} daemon-reload && {systemctl} enable --now {file.stem}")
    typer.echo(f"  {systemctl} status {file.stem}; journalctl {'' if is_system else '--user '}-u {file.stem} -f")


def _unit(settings: Settings, config: Path | None, user: str | None, *, is_system: bool) -> str:
    """The unit. Raises ConfigurationError for a user's name or a path that systemd would not take."""
    from cryptopulse.errors import ConfigurationError

    if user is not None and not (user.isascii() and user.replace("-", "").replace("_", "").isalnum()):
        raise ConfigurationError(f"--user {user!r} is no name of a user.")
    folder, here = settings.location.folder, str(Path.cwd())
    place = settings.lake if folder is None else str(folder.absolute())
    command = [sys.executable, "-m", "cryptopulse", "run", "--lake", place]
    if config is not None:
        command += ["--config", str(config)]
    writable = [] if folder is None else [place]
    if settings.log.url and "://" not in settings.log.url:
        writable.append(str(settings.log_path.parent))
    if settings.state is not None and folder is None:
        writable.append(str(settings.state_dir))
    if unprintable := [text for text in (*command, *writable, here) if not text.isprintable()]:
        raise ConfigurationError(f"{unprintable[0]!r} can't stand in a unit: choose a path of visible characters.")
    return _UNIT.format(
        lake_text=_escaped(place),
        command=" ".join(_quoted(part).replace("$", "$$") for part in command),
        folder=_escaped(here),
        user=f"User={user}\n" if user else "",
        writable=f"ReadWritePaths={' '.join(map(_quoted, writable))}\n" if writable else "",
        stop_s=_STOP_S,
        target="multi-user.target" if is_system else "default.target",
    )


def _escaped(text: str) -> str:
    """`text` in a unit, where % begins a specifier."""
    return text.replace("%", "%%")


def _quoted(part: object) -> str:
    """One argument or path, in quotes if it needs them."""
    text = _escaped(str(part)).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if set(text) & set(" \"'\\;") else text
