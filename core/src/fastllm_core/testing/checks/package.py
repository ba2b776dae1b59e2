"""Checks of the package itself: metadata, options, what its import costs."""

from __future__ import annotations

import subprocess
import sys

from pydantic import ValidationError

from ...options import Options
from ...selection import options_class
from ..subject import Subject


def check_metadata(subject: Subject) -> None:
    """The distribution has a name, a version and an origin, the class a docstring, and some hook is implemented."""
    plugin = subject.installed
    assert plugin.distribution != "unknown", "its entry point belongs to no distribution: install it with pip"
    assert (subject.cls.__doc__ or "").strip(), f"class {subject.cls.__name__} has no docstring to show in listings"
    assert subject.hooks, "it implements no hook: decorate at least one method with @fastllm_core.hookimpl"


def check_options(subject: Subject) -> None:
    """Every option is described, and an unknown key is refused by name."""
    kind = options_class(subject.cls)
    for name, field in kind.model_fields.items():
        assert field.description, f"option '{name}' has no description for `fastllm plugins show`"
    assert _refused(kind, {**subject.options(subject.target()), "no_such_option": 1}), (
        "an unknown option is accepted in silence: derive Options from fastllm_core.Options"
    )
    assert kind.model_config.get("frozen"), "its options can be changed after they were checked: keep them frozen"


def check_import_is_light(subject: Subject) -> None:
    """Importing the plugin's module imports no torch, so that listing and help stay quick."""
    module = subject.installed.entry_point.partition(":")[0]
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import {module}; "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"importing {module} in a fresh process failed: {done.stderr.strip()[-300:]}"
    assert done.stdout.strip() == "[]", (
        f"importing {module} also imports {done.stdout.strip()}: move that import into the hook that needs it"
    )


def _refused(kind: type[Options], values: dict[str, object]) -> bool:
    try:
        kind(**values)
    except ValidationError:
        return True
    return False
