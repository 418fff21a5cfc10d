"""From a recipe, the documents' variables and options to one checked `Run`; each outranks the one before it.

What none of them says follows from what they say: paths by the documents' rules, the layout from the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tandem.catalogue.models import find_model
from tandem.catalogue.named import NamedModel
from tandem.errors import RecipeError
from tandem.training.settings.faults import describe
from tandem.training.settings.named_recipe import layout_values, recipe_values
from tandem.training.settings.paths import default_paths
from tandem.training.settings.rules import contradictions, remarks
from tandem.training.settings.run import Run, StageName
from tandem.training.settings.stores import on_this_machine
from tandem.training.settings.values import Value, Values, flat, nested
from tandem.training.settings.variables import VARIABLES, hints, stage_of, variable_values

REQUIRED = {
    "paths.data": "raw data: set ORIGINAL_TRAIN_DATA_PATH, or give --data",
    "paths.weights": "model folder: set ORIGINAL_HF_WEIGHT, or give --weights",
}
"""What nothing can be put in place of."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A run, and how it came about."""

    run: Run
    origins: Mapping[str, str]
    """Dotted name -> where the value came from, for all that are not built-in defaults."""
    notes: tuple[str, ...]
    """What the user should know, a line each."""


def resolve(
    name: str,
    stage: StageName,
    *,
    file: Mapping[str, Any] | None = None,
    file_name: str = "recipe file",
    environment: Mapping[str, str],
    options: Values,
    root: str | Path,
) -> Resolved:
    """Resolve one run.

    Args:
        name: The model's name.
        stage: What to do with it.
        file: Fields of the user's own recipe file, over the built-in ones.
        file_name: Of that file, for messages.
        environment: The process's environment variables.
        options: What the command line set (`assignments`).
        root: Folder, or location on an object store, for what has no place of its own.

    Raises:
        RecipeError: Something is missing, no value, unknown, or contradicts something else; all of a kind are named.
        UsageError: There is no such model.
    """
    model = find_model(name)
    _agree(name, stage, environment)
    values = recipe_values(model, stage) | flat(file or {}, file_name)
    values |= variable_values(environment) | options
    values |= {"model": Value(model.name, "command"), "stage": Value(stage, "command")}
    stored, folder = on_this_machine(values, root, environment)
    values |= stored
    values = default_paths(values, model.name, folder) | _recommended_layout(model, values) | values
    lines = hints(environment)
    _require(values, lines)
    run = _checked(values)
    if faults := list(contradictions(run, model)):
        raise RecipeError("; ".join(faults))
    origins = {field: value.origin for field, value in values.items()}
    return Resolved(run=run, origins=origins, notes=(*remarks(run, model), *lines))


def assignments(texts: Sequence[str]) -> Values:
    """`--set` options: each `section.field=value`.

    Raises:
        RecipeError: One is no assignment, its field is not known, or its value is no YAML.
    """
    values: Values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"--set {text}: give it as section.field=value, such as training.lr=1e-5")
        _require_known(name)
        values[name] = Value(_read(text, value), "--set")
    return values


def _read(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {text}: is no value that YAML knows; put it in quotes") from None


def fields_of(kind: type[BaseModel] = Run, prefix: str = "") -> list[str]:
    """The dotted names of all settings."""
    names = []
    for name, field in kind.model_fields.items():
        inner = _section(field.annotation)
        names += [prefix + name] if inner is None else fields_of(inner, f"{prefix}{name}.")
    return names


def setting_rows() -> list[tuple[str, str, str]]:
    """Every setting with the documents' variables for it and its meaning."""
    return [(name, ", ".join(_variables(name)), _meaning(name)) for name in fields_of()]


def _variables(setting: str) -> list[str]:
    return [variable.name for variable in VARIABLES.values() if variable.setting == setting]


def _meaning(name: str) -> str:
    kind: type[BaseModel] = Run
    *sections, last = name.split(".")
    for section in sections:
        inner = _section(kind.model_fields[section].annotation)
        assert inner is not None, f"{section} is a section of {name}"
        kind = inner
    field = kind.model_fields[last]
    choices = ", ".join(str(word) for word in get_args(field.annotation) if isinstance(word, str))
    return f"{field.description or ''} One of {choices}." if choices else field.description or ""


def _section(annotation: Any) -> type[BaseModel] | None:
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def _agree(name: str, stage: StageName, environment: Mapping[str, str]) -> None:
    """Refuse variables that speak of another model or stage than the command."""
    named = environment.get("MODEL_NAME", "").strip()
    if named and named.lower() != name.lower():
        raise RecipeError(f"MODEL_NAME={named} contradicts the command, which says {name}; change one")
    told = stage_of(environment)
    if told is not None and told[0] != stage:
        raise RecipeError(f"{told[1]} contradicts the command, which says {stage}; change one")


def _recommended_layout(model: NamedModel, values: Values) -> Values:
    length = values.get("training.seq_length")
    try:
        return layout_values(model, int(length.value) if length else 0)
    except (TypeError, ValueError):
        return {}  # no number: refused by name when the settings are checked


def _require(values: Values, lines: Sequence[str]) -> None:
    needless = {"paths.data"} if values.get("paths.prepared") else set()
    missing = [says for field, says in REQUIRED.items() if field not in values and field not in needless]
    if missing:
        raise RecipeError("; ".join([f"missing: {'; '.join(missing)}", *lines]))


def _checked(values: Values) -> Run:
    try:
        return Run.model_validate(nested(values))
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            field, says = ".".join(map(str, fault["loc"])), describe(fault)
            alike = _alike(field) if fault["type"] == "extra_forbidden" else []
            hint = f"; did you mean {', '.join(alike)}?" if alike else ""
            faults.append(says + hint + _origin(field, says, values))
        raise RecipeError("; ".join(faults)) from None


def _origin(field: str, fault: str, values: Values) -> str:
    """Where the value at fault came from or, where several of a section contradict each other, each of them."""
    if field in values:
        return f" (from {values[field].origin})"
    words = fault.split()
    named = [name for name in values if name.startswith(f"{field}.") and name.rpartition(".")[2] in words]
    return f" ({'; '.join(_named_origin(name, values[name].origin) for name in named)})" if named else ""


def _named_origin(setting: str, origin: str) -> str:
    others = [name for name in _variables(setting) if name != origin]
    return f"{', '.join([setting, *others])}: from {origin}"


def _require_known(name: str) -> None:
    if name in fields_of() and name not in ("model", "stage"):
        return
    hint = f"did you mean {', '.join(alike)}?" if (alike := _alike(name)) else "`tandem train settings` lists all"
    raise RecipeError(f"--set {name}: there is no such setting; {hint}")


def _alike(name: str) -> list[str]:
    known = fields_of()
    alike = get_close_matches(name, known, n=3, cutoff=0.5)
    return alike + [field for field in known if field.endswith(f".{name}") and field not in alike]
