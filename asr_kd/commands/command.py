"""What a subcommand of `asr-kd` is made of: a decorated function, its options, and the configuration keys it obeys."""

import argparse
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr_kd.config import add_config_options, config_from_args
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import claimed
from asr_kd.store.table_names import files_of_table


@dataclass(frozen=True)
class Option:
    """One option or positional argument, as argparse's add_argument takes it; see `output` for the other two."""

    flag: str
    settings: dict[str, Any]
    writes: bool = False
    mark: str | None = None

    @property
    def key(self) -> str:
        """What argparse calls it."""
        return self.settings.get("dest", self.flag.lstrip("-").replace("-", "_"))

    def add_to(self, parser: Any) -> None:
        parser.add_argument(self.flag, **self.settings)


@dataclass(frozen=True)
class OneOf:
    """Options of which exactly one must be given."""

    options: tuple[Option, ...]

    def add_to(self, parser: Any) -> None:
        group = parser.add_mutually_exclusive_group(required=True)
        for each in self.options:
            each.add_to(group)


def option(flag: str, help: str, **settings: Any) -> Option:
    """An option that may be left out, of whatever argparse's `settings` say."""
    return Option(flag, {"help": help, **settings})


def path(flag: str, help: str, **settings: Any) -> Option:
    """A file or folder that must be given, unless `required=False`; a positional argument where `flag` has no dash."""
    if flag.startswith("-"):
        settings = {"required": True, **settings}
    return Option(flag, {"help": help, "type": Path, **settings})


def output(flag: str, help: str, mark: str | None = None, **settings: Any) -> Option:
    """A path that the command writes and that nobody else looks after, as runinfo.make and HDF5 do.

    It is not written over what is not ours: see runinfo.require_ours, for `mark` too.
    """
    return dataclasses.replace(path(flag, help, **settings), writes=True, mark=mark)


def optional(each: Option) -> Option:
    """An option that must be given elsewhere, where it need not be."""
    return Option(each.flag, {**each.settings, "required": False})


def one_of(*options: Option) -> OneOf:
    """Exactly one of `options`, none of which is required by itself."""
    return OneOf(tuple(map(optional, options)))


@dataclass(frozen=True)
class Command:
    """A subcommand. `main` gets the parsed options; its docstring is the description in `--help`.

    config: concerns (all of their keys become options) and single keys; None if the command has no configuration.
    by_torchrun: whether several processes of it can share its work.
    """

    name: str
    help: str
    main: Callable[[argparse.Namespace], None]
    options: Sequence[Option | OneOf] = ()
    config: Sequence[type | str] | None = field(default=None)
    by_torchrun: bool = False

    def add_to(self, subparsers: Any) -> None:
        """Add this subcommand to argparse's `subparsers`."""
        parser = subparsers.add_parser(
            self.name,
            help=self.help,
            description=inspect.cleandoc(self.main.__doc__),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for each in self.options:
            each.add_to(parser)
        if self.config is not None:
            add_config_options(parser, self.config)
        parser.set_defaults(main=self._run, by_torchrun=self.by_torchrun)

    def _run(self, args: argparse.Namespace) -> None:
        args.values = None if self.config is None else config_from_args(args)
        self._require_new_output(args)
        outputs, mark = self._outputs(), next((each.mark for each in self._outputs() if each.mark), None)
        with claimed(
            [file for each in outputs for file in _files_of(getattr(args, each.key))], args.command_line, mark
        ):
            self.main(args)

    def _outputs(self) -> list[Option]:
        return [each for each in self.options if isinstance(each, Option) and each.writes]

    def _require_new_output(self, args: argparse.Namespace) -> None:
        """Raise AsrKdError where an output would replace a file that the command reads, or another output."""
        named = {name: _files_of(value) for name, value in vars(args).items()}
        files = {name: [file for file in paths if file.is_file()] for name, paths in named.items()}
        names = dict.fromkeys(["out", *(each.key for each in self._outputs())])
        outputs = [(name, file) for name in names for file in files.pop(name, [])]
        places = [file.resolve() for name in names for file in named.get(name, [])]
        if twice := next((file for number, file in enumerate(places) if file in places[:number]), None):
            raise AsrKdError(f"{twice}: is named for two outputs, of which one would replace the other")
        for name, output in outputs:
            if same := [other for other, inputs in files.items() if any(file.samefile(output) for file in inputs)]:
                flag, other = (each.replace("_", "-") for each in (name, same[0]))
                raise AsrKdError(f"--{flag} {output}: is what --{other} names, too; write to another file")


def _files_of(value: Any) -> list[Path]:
    """What an option names: a path, several, or a table of Kaldi's (ark,scp:FILE,FILE)."""
    if isinstance(value, str):
        return files_of_table(value)
    if isinstance(value, list):
        return [file for each in value for file in _files_of(each)]
    return [value] if isinstance(value, Path) else []


def command(
    name: str,
    help: str,
    *options: Option | OneOf,
    config: Sequence[type | str] | None = None,
    by_torchrun: bool = False,
) -> Callable[[Callable[[argparse.Namespace], None]], Command]:
    """Make a function of the parsed options a subcommand; `args.values` holds the resolved configuration.

    Beside its options a main finds in `args`: `values` (all keys, as config_from_args gives them), `command_line` and
    `world`, which is of one process unless the command is `by_torchrun`.
    """
    return lambda main: Command(name, help, main, options, config, by_torchrun)
