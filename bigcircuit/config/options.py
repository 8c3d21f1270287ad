"""Parse the words after a verb with argparse: one parser a verb, made of the verb's entry in the table and of its settings."""

from argparse import SUPPRESS, ArgumentError, ArgumentParser
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from bigcircuit.config.load import dotted_keys, nearest, setting_fields
from bigcircuit.config.plain import check_name
from bigcircuit.config.schema import Config, Section
from bigcircuit.config.values import open_keys, read_value
from bigcircuit.config.verbs import Option, Settings, Verb
from bigcircuit.errors import UserError


class Command(NamedTuple):
    """The words after a verb, read."""

    names: list[str]
    """Words that are no options: files and folders."""
    options: dict[str, Any]
    """Every option of the verb by its key; None, or False for a flag, where it is not given."""
    settings: dict[type[Section], dict[str, Any]]
    """Section -> the settings that are given, by dotted key."""


def parse_command(
    verb: Verb, words: Sequence[str], settings: Settings, notes: Callable[[], Sequence[str]] | None = None
) -> Command:
    """Read the words after a verb.

    settings: what the verb takes beside its own options; notes: makes paragraphs for its help. Raises UserError for a mistake,
    and SystemExit after `--help`.
    """
    parser = _VerbParser(verb, settings)
    given, rest = parser.parse(words)
    topic = given.pop("help", None)
    if topic is not None:
        from rich.console import Console  # 25 ms that a mistake need not wait for

        from bigcircuit.config.help import show_help

        show_help(Console(highlight=False), verb, settings, topic, notes() if notes else ())
        raise SystemExit(0)
    for word in rest:
        _check_name(verb, word, parser.kinds)
    options = {option.key: _read_option(option, given.pop(option.key, None)) for option in verb.options}
    found: dict[type[Section], dict[str, Any]] = {section: {} for section in settings}
    for key, text in given.items():
        if parts := [other for other in given if other.startswith(f"{key}.")]:
            raise UserError(f"--{key} and --{parts[0]} are both given; give one of them")
        found[parser.sections[key]][key] = read_value(key, text, parser.kinds[key])
    verb.check_read(key for section, keys in found.items() if section is Config for key in keys)
    return Command(rest, options, found)


class _VerbParser(ArgumentParser):
    """Parser of one verb. Values stay text and words that are no options are handed back: the caller has better messages."""

    def __init__(self, verb: Verb, settings: Settings) -> None:
        super().__init__(add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=SUPPRESS)
        self.kinds: dict[str, Any] = {}
        """Dotted key of a setting -> type of its field."""
        self.sections: dict[str, type[Section]] = {}
        """Dotted key of a setting -> its section."""
        self._valued: set[str] = set()
        """Options that take a value."""
        self.add_argument("-h", "--help", nargs="?", const="")
        self._add("local_rank")
        for option in verb.options:
            if option.value:
                self._add(option.key, "append")
            else:
                self.add_argument(f"--{option.key}", action="store_true")
        for section, prefix in settings.items():
            for key, field in setting_fields(section, prefix).items():
                if key not in self.kinds:
                    self._add_setting(key, field.annotation, section)
        self._open = open_keys(self.kinds)

    def _add(self, key: str, action: str = "store") -> None:
        self.add_argument(f"--{key}", dest=key, action=action)
        self._valued.add(f"--{key}")

    def _add_setting(self, key: str, kind: Any, section: type[Section]) -> None:
        self._add(key)
        self.kinds[key], self.sections[key] = kind, section

    def parse(self, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Divide words into the texts of options and settings, by key, and those that are neither. Raises UserError."""
        try:
            found, rest = self.parse_known_args(list(self._spelled(words)))
        except ArgumentError as error:
            needs = "needs a value" if error.argument_name in self._valued else "takes no value"
            raise UserError(f"{error.argument_name} {needs}") from error
        given = {key: _with_dashes(value) for key, value in vars(found).items()}
        given.pop("local_rank", None)  # launchers add it; the rank itself is in the environment
        return given, rest

    def _spelled(self, words: Sequence[str]) -> Iterator[str]:
        """Spell words as argparse expects them: keys with `_` for `-`, and `--key -1e3` as `--key=-1e3`."""
        left = list(words)
        while left:
            option, equals, text = left.pop(0).partition("=")
            if option.startswith("--") and " " not in option:  # with a space it is a value: `--output "--my-folder x"`
                option = "--" + option[2:].replace("-", "_")
                self._add_open(option[2:])
                if option in self._valued and not equals and left and _is_dashed_value(left[0]):
                    equals, text = "=", left.pop(0)
            yield option + equals + text

    def _add_open(self, key: str) -> None:
        """Add the key of an open-ended setting, such as `task.columns.clean`, when it is met."""
        for prefix, kind in self._open.items():
            if key.startswith(prefix) and key not in self.kinds:
                self._add_setting(key, kind, self.sections[prefix.rstrip(".")])

    def error(self, message: str) -> NoReturn:
        """Raise UserError, where argparse would print its usage and exit."""
        raise UserError(message)


def _with_dashes(value: Any) -> Any:
    """Put back the value of `--key=--`, for which argparse has an empty list; an option's own list holds its words."""
    if not isinstance(value, list):
        return value
    return [_with_dashes(word) for word in value] or "--"


def _is_dashed_value(word: str) -> bool:
    return word.startswith("-") and not word.startswith("--") and word != "-h"


def _read_option(option: Option, given: Any) -> Any:
    """Read what argparse has found of an option: a list of words, True for a flag, or None. Raises UserError."""
    if not option.value or given is None:
        return given if option.value else bool(given)
    if len(given) > 1:
        raise UserError(f"--{option.name} is given {len(given)} times; give it once")
    [text] = given
    if not text:
        raise UserError(f"--{option.name} needs a value")
    check_name(text, f"--{option.name}")
    try:
        return option.read(text)
    except ValueError as error:
        raise UserError(f"--{option.name} {text[:60]}: give a {option.wanted}") from error


def _check_name(verb: Verb, word: str, known: Collection[str]) -> None:
    """Raises UserError for a word that is no option, unless the verb takes names and the word can be one."""
    option = word.partition("=")[0]
    if verb.names and not word.startswith("-"):
        return check_name(word, verb.name)
    if known and not word.startswith("--"):
        like = "train.steps 500" if "train.steps" in known else f"{verb.settings[0]} VALUE"
        raise UserError(f"{word!r} is not an option; options look like --{like}")
    if option[2:] not in known and option[2:] in dotted_keys():
        raise UserError(f"{verb.name} has no option {option}; that is a setting of `bigcircuit prune`")
    if known:
        raise UserError(
            f"{option} is not a setting{nearest(option[2:], [*known, *(one.name for one in verb.options)])}"
        )
    if verb.options:
        own = " and ".join(f"--{one.name} {one.value}".rstrip() for one in verb.options)
        raise UserError(f"{verb.name} has no option {option}; it has {own}")
    raise UserError(f"{verb.name} takes no options, not {word!r}")
