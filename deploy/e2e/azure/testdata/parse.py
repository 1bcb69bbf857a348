# Reads shell from standard input, one command a line, and parses each command of az in it with az's own parser. Runs none of them.
# Prints how many there were, or what is wrong. It uses az's internals, so it belongs to the version of az that the tests pin.
import contextlib
import io
import shlex
import sys

from azure.cli.core import get_default_cli
from knack.events import EVENT_INVOKER_POST_PARSE_ARGS


class Parsed(Exception):
    pass


def stop(*_, **__):
    raise Parsed


def commands(line):
    """The commands of az in a line of shell, as lists of words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    found, command = [], None
    before = "("
    for word in words:
        if word and set(word) <= set("();<>|&"):
            command = None
        elif command is not None:
            command.append(word)
        elif word == "az" and (set(before) <= set("();|&") or before in ("run:", "$", "if", "until", "!", "then", "do")):
            command = []
            found.append(command)
        before = word
    return found


def problem_of(command):
    cli = get_default_cli()
    cli.register_event(EVENT_INVOKER_POST_PARSE_ARGS, stop)
    cli.invocation = cli.invocation_cls(
        cli_ctx=cli, parser_cls=cli.parser_cls, commands_loader_cls=cli.commands_loader_cls, help_cls=cli.help_cls)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            cli.invocation.execute(command)
    except Parsed:
        return None
    except SystemExit:
        pass
    return errors.getvalue().strip().split("\n")[0] or "it is not parsed"


count = 0
failed = False
for line in sys.stdin:
    try:
        parts = commands(line)
    except ValueError as error:
        failed = True
        print(f"{line.strip()}: {error}")
        continue
    for command in parts:
        count += 1
        problem = problem_of(command)
        if problem:
            failed = True
            print("az", shlex.join(command) + ": " + problem)
if failed:
    sys.exit(1)
print(count)
