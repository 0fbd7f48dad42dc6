"""What every command line of the project does alike: print itself, run, and turn a user's error into one line."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from asr_kd.errors import AsrKdError

# What torch and numpy say of memory that they do not get, in errors of no type of their own.
_TOO_LARGE = re.compile(
    r"can't allocate memory|out of memory|Storage size calculation overflowed|array is too big|Maximum allowed"
)


def command_line(program: str, argv: Sequence[str]) -> str:
    """The command as it can be pasted into a shell."""
    return shlex.join([program, *argv])


def log(message: str) -> None:
    """One line of progress for people: to stderr, at once."""
    print(message, file=sys.stderr, flush=True)


def boolean(text: str) -> bool:
    """The type of an option that is true or false, as Kaldi's are; raises argparse's error for anything else."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def share(text: str) -> float:
    """The type of an option that is a share, from 0 to 1; raises argparse's error for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def at_least_one(text: str) -> int:
    """The type of an option that counts from 1 on; raises argparse's error for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


MAX_SEED = 999_999  # of six digits, since most are a folder of their own, seedN


def seed_number(text: str) -> int:
    """The type of an option that is a seed; raises argparse's error for anything but 0 to MAX_SEED."""
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {MAX_SEED}")
    return int(text)


class Parser(argparse.ArgumentParser):
    """Options by their whole names only: an abbreviation that works today breaks when an option is added."""

    def __init__(self, **kwargs):
        super().__init__(**{"allow_abbrev": False, **kwargs})
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        """One line, as every other mistake gets."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the defaults behind it, of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def run_main(
    main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Parse, print the command line to stderr, call `main`; 0 on success, 1 with one line on an AsrKdError.

    Beside its options `main` finds in its argument `command_line` and `world`, the processes that torchrun started;
    several are refused unless the parser's defaults say `by_torchrun`.

    What the system refuses (a file that is missing or may not be read, memory for sizes beyond it) is the user's to
    mend too.
    """
    status = _status_of(main, parser, argv)
    distributed = sys.modules.get("torch.distributed")
    if status and distributed and distributed.is_available() and distributed.is_initialized():
        # The group of processes cannot be ended without the others, and a thread of it that still frees a tensor while
        # Python exits would abort this process with a message of its own.
        sys.stdout.flush()
        os._exit(status)
    return status


def sentence_of(error: Exception) -> str | None:
    """What a user is told of an error that is not ours to mend; None of one that is."""
    if isinstance(error, AsrKdError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror or error}"
    if isinstance(error, (MemoryError, RuntimeError, ValueError)):
        words = " ".join(str(error).split())
        if isinstance(error, MemoryError) or _TOO_LARGE.search(words):
            return f"sizes that were asked for need more memory than there is ({words or 'out of memory'})"
    return None


def _status_of(
    main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    from asr_kd.world import World  # which logs

    argv = list(sys.argv[1:] if argv is None else argv)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        getattr(args, "parser", parser).error(f"unrecognized arguments: {shlex.join(unknown)}")
    args.command_line = command_line(parser.prog, argv)
    try:
        args.world = World.of_environment()
        args.world.log(f"# {args.command_line}")
        if args.world.size > 1 and not vars(args).get("by_torchrun"):
            number = args.world.size
            args.world.log(
                f"error: torchrun started {number} processes of this command, but it is for one; start it alone"
            )
            return 1
        with args.world.connected():
            main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output went away (`| head`); point stdout elsewhere so that exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        log(f"error: {sentence}")
        return 1
    except KeyboardInterrupt:
        log("error: interrupted; the same command continues where this one stopped")
        return 130
    return 0
