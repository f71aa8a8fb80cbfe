"""The parser of the command line. For a mistyped word, its errors name the closest words that exist."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from gradmedic.protocol.names import closest_first, did_you_mean

EXIT_USAGE = 2


class CommandParser(argparse.ArgumentParser):
    """A parser of a command. An error is one line, and a second line names the help."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and end the program."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nSee `{self.prog} --help`.\n")

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse arguments. Unlike `parse_args`, it names the option that an unknown one is close to."""
        args, unknown = self.parse_known_args(arguments)
        if unknown:
            parser = self._parser_of(arguments)
            options = [name for name in parser._option_string_actions if name.startswith("--")]
            word = unknown[0].partition("=")[0]
            if not word.startswith("-"):
                parser.error(f"one argument too many: {unknown[0]!r}")
            parser.error(f"there is no option {word}{did_you_mean(word, options)}")
        return args

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise an error if a value is not among the choices of an argument; argparse calls it."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            kind = str(action.metavar or "argument").lower()
            hint = did_you_mean(str(value), choices) or f"; there are {', '.join(choices)}"
            raise argparse.ArgumentError(None, f"there is no {kind} {value!r}{hint}")
        raise argparse.ArgumentError(action, f"{value!r} is not one of {', '.join(closest_first(str(value), choices))}")

    def _parser_of(self, arguments: Sequence[str]) -> CommandParser:
        """Return the parser of the innermost command that the arguments name."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for index, word in enumerate(arguments):
                    if word in action.choices:
                        parser: CommandParser = action.choices[word]
                        return parser._parser_of(arguments[index + 1 :])
        return self

    def all_parsers(self) -> Iterator[CommandParser]:
        """Yield this parser and those of all commands within it."""
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.all_parsers()
