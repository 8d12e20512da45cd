"""Runs under the Azure CLI's own Python: says of each command line on standard input what az itself thinks of it.

In: one JSON list of arguments a line. Out: one JSON text a line, "" when az takes it. az goes its usual way up to the
moment after parsing, and is stopped there: nothing is carried out and no network is used.
"""

import contextlib
import io
import json
import sys

import jmespath
from azure.cli.core import get_default_cli
from azure.cli.core.azclierror import AzCLIError
from azure.cli.core.commands.events import EVENT_INVOKER_PRE_LOAD_ARGUMENTS
from knack.events import EVENT_INVOKER_POST_PARSE_ARGS


class Stop(BaseException):  # nothing in az catches it
    """Carries what is wrong with the command line."""


def stop_at_unknown_command(cli, commands_loader):
    """Before az looks for an extension that might have the command."""
    command = cli.invocation.data["command_string"]
    if command not in commands_loader.command_table:
        raise Stop(f"az has no command {command!r}")


def stop_after_parsing(_cli, args, **_):
    """argparse takes the beginnings of options; in another version of az they may be ambiguous."""
    known = args._parser._option_string_actions
    short = [word for word in ARGUMENTS if word.startswith("--") and word not in known]
    raise Stop("".join(f"{word} is no option of {args.command}. " for word in short))


def complaint(argv):
    """What is wrong with the command line; "" when nothing is."""
    cli = get_default_cli()
    cli.register_event(EVENT_INVOKER_PRE_LOAD_ARGUMENTS, stop_at_unknown_command)
    cli.register_event(EVENT_INVOKER_POST_PARSE_ARGS, stop_after_parsing)
    invocation = cli.invocation_cls(
        cli_ctx=cli,
        parser_cls=cli.parser_cls,
        commands_loader_cls=cli.commands_loader_cls,
        help_cls=cli.help_cls,
    )
    cli.invocation = invocation
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            invocation.execute(argv)
    except Stop as stop:
        return str(stop)
    except SystemExit:
        return said.getvalue().strip() or "refused"
    except AzCLIError as error:  # values outside a choice
        return str(error)
    return "az was not stopped"


def query_complaint(argv):
    """What is wrong with its --query."""
    if "--query" in argv:
        try:
            jmespath.compile(argv[argv.index("--query") + 1])
        except jmespath.exceptions.JMESPathError as error:
            return f"--query: {error}"
    return ""


for line in sys.stdin:
    ARGUMENTS = json.loads(line)
    print(json.dumps(query_complaint(ARGUMENTS) or complaint(list(ARGUMENTS))), flush=True)
