"""Functions of modules of the user's own, named in a config as `module:function`, and parts that installed packages bring.

A config may be anybody's. So a module that a config names is imported only where the user's command line (`--allow my_module`) or
environment allows it, and a package is asked only for what it declares as an entry point of ours.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bigcircuit.errors import ReportedError, UserError, first_line

VARIABLE = "BIGCIRCUIT_ALLOW"
"""Environment variable with the modules that configs may name, separated by commas; ranks and workers inherit it."""
_MODULE = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_REFERENCE = re.compile(rf"({_MODULE}):([^\W\d]\w*)")


def is_reference(name: str) -> bool:
    """Whether a name is that of a function of a module, `module:function`."""
    return _REFERENCE.fullmatch(name) is not None


def read_modules(text: str) -> list[str]:
    """Read names of modules, separated by commas. Raises ValueError for what is no name of a module."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not all(re.fullmatch(_MODULE, name) for name in names):
        raise ValueError(text)
    return names


def allow(modules: Sequence[str]) -> None:
    """Allow configs to name functions of these modules, and of modules within them, in this process and those that it starts."""
    if modules:
        os.environ[VARIABLE] = ",".join(dict.fromkeys([*allowed(), *modules]))


def allowed() -> list[str]:
    """List the modules that configs may name."""
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def load_function(reference: str, key: str) -> Any:
    """Import the function that a setting names. key: dotted key of the setting, for messages.

    Raises UserError where the module is not allowed, cannot be imported, or has no such function.
    """
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise UserError(f"{key} {reference}: not a function; write module:function")
    module, name = found.groups()
    if not any(module == one or module.startswith(f"{one}.") for one in allowed()):
        raise UserError(
            f"{key} {reference}: is code of the module {module}, which runs only if you allow it; read the module, then add "
            f"--allow {module}"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where `python -m` would look too
    try:
        function = getattr(import_module(module), name, None)
    except Exception as error:  # such as a SyntaxError of the module
        raise UserError(
            f"{key} {reference}: cannot be imported ({_said(error)}); mend the name or the module"
        ) from error
    if not callable(function):
        raise UserError(f"{key} {reference}: module {module} has no function {name}; mend the name")
    return function


def find_function(name: str, group: str, key: str) -> Any:
    """Find a function of the user: `module:function`, or a name that an installed package declares in a group of entry points.

    key: dotted key of the setting, for messages. Raises UserError.
    """
    if name in _GIVEN:
        return _GIVEN[name]
    if is_reference(name):
        return load_function(name, key)
    found = entry_point(group, name)
    if found is None:
        raise UserError(
            f"{key} {name}: is no function; write module:function, or a name that an installed package declares as an entry point "
            f"of {group}"
        )
    function = load_entry_point(found)
    if not callable(function):
        raise UserError(f"{key} {name}: {found.value} of an installed package is not a function; mend the package")
    return function


@contextmanager
def calling(subject: str) -> Iterator[None]:
    """Turn what a function of the user raises inside into a UserError. subject: setting and name of the function."""
    try:
        yield
    except ReportedError:
        raise
    except Exception as error:
        raise UserError(f"{subject}: raised {_said(error)}; mend the function") from error


def _said(error: Exception) -> str:
    """Describe an error of code that is not ours by its class and first line."""
    return f"{type(error).__name__}: {first_line(error)[:200]}"


_GIVEN: dict[str, Any] = {}
"""Functions that the caller of the library has given, by the names under which configs have them."""


@contextmanager
def given_function(function: Any, key: str) -> Iterator[str]:
    """Make a function of the caller known inside the context; yields its name.

    Raises UserError for one without a name.
    """
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__name__', '')}"
    if not callable(function) or not is_reference(name):
        raise UserError(f"{key}: is of type {type(function).__name__} or has no name; give a function made by def")
    _GIVEN[name] = function
    try:
        yield name
    finally:
        del _GIVEN[name]


def load_entry_point(found: EntryPoint) -> Any:
    """Import what a package declares. Raises UserError where the package cannot be imported."""
    try:
        return found.load()
    except Exception as error:
        raise UserError(
            f"{found.name}: {found.value} of an installed package cannot be imported ({_said(error)}); mend or remove it"
        ) from error


def entry_point(group: str, name: str) -> EntryPoint | None:
    """Find what an installed package declares in a group of entry points, such as `bigcircuit.tasks`; None if none does."""
    return next(iter(entry_points(group=group, name=name)), None)
