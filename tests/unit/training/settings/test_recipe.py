from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem.catalogue.arithmetic import parameters
from tandem.errors import RecipeError
from tandem.training.inputs import write_mark
from tandem.training.job import Job
from tandem.training.settings.choice import choose
from tandem.training.settings.config import Launch, Recipe, build_recipe
from tandem.training.settings.recipe import built_in_recipes
from tandem.training.settings.values import Value

STAGE = {"steps": 4, "seq_length": 16, "global_batch": 4, "micro_batch": 2, "lr": 0.01, "min_lr": 0.001,
         "warmup_steps": 1, "save_every": 2}  # fmt: skip


def fields(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "hidden_size": 32,
            "layers": 1,
            "heads": 2,
            "kv_heads": 1,
            "feed_forward_size": 64,
            "max_position": 64,
        },
        "tokenizer": {"vocab_size": 300},
        "data": {"source": "python-stdlib"},
        "pretrain": dict(STAGE),
        "sft": dict(STAGE),
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = whole
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return whole


def read_recipe(what: str) -> Recipe:
    recipe = choose(what, "pretrain", environment={}, options={}, root=Path("out"))
    assert isinstance(recipe, Recipe)
    return recipe


def test_quickstart_is_the_model_it_says() -> None:
    recipe = read_recipe("quickstart")
    assert built_in_recipes() == ["quickstart"]
    assert 1_300_000 < parameters(recipe.model.with_vocabulary(recipe.tokenizer.vocab_size)) < 1_500_000


def test_yaml_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(fields()))
    assert read_recipe(str(tmp_path / "r.yaml")) == build_recipe(fields(), "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain__lr": -1}, r"pretrain\.lr = -1: write a number above 0$"),
        ({"pretrain__lrr": 1}, r"pretrain\.lrr = 1: is not known"),
        ({"pretrain__micro_batch": 3}, "pretrain: global_batch 4 is no multiple of micro_batch 3"),
        ({"pretrain__min_lr": 1.0}, "min_lr 1.0 is above lr"),
        ({"sft__warmup_steps": 9}, "warmup_steps 9 are more than steps 4"),
        ({"sft__balance": 0.1}, r"sft\.balance 0\.1 is for mixtures of experts; remove it"),
        ({"sft__seq_length": 99}, r"sft\.seq_length 99 is above model\.max_position 64"),
        ({"model__hidden_size": 10**13}, r"model\.hidden_size = 10{13}: write a number of at most 1e\+06$"),
        ({"tokenizer__vocab_size": 10**13}, r"tokenizer\.vocab_size = 10{13}: write a number of at most 1e\+06$"),
        ({"model__heads": 3}, "hidden_size 32 is not divisible by 3 heads"),
        ({"model__kv_heads": 3}, "not divisible by 3 kv heads"),
        ({"tokenizer__vocab_size": 10}, r"tokenizer\.vocab_size = 10: write a number of at least 263$"),
        ({"sft__steps": 1.5}, r"sft\.steps = 1\.5: write a whole number$"),
        ({"sft__schedule": "step"}, r"sft\.schedule = 'step': write 'constant', 'linear', 'cosine' or 'wsd'$"),
        ({"model__tied_embeddings": "perhaps"}, r"model\.tied_embeddings = 'perhaps': write true or false$"),
        ({"data__source": ""}, r"data\.source = '': write at least 1 character"),
        ({"data__source": 3}, r"data\.source = 3: write text"),
        ({"model": 3}, r"model = 3: write fields below it"),
        ({"threads": 2000}, r"threads = 2000: write a number of at most 1024$"),
        ({"tokenizer": {}}, r"tokenizer\.vocab_size: is missing"),
        ({"name": "no/slash"}, "name = 'no/slash'"),
    ],
)
def test_faults_name_field_value_and_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_recipe(fields(**changes), "here")


@pytest.mark.parametrize(("name", "message"), [("nothing", "use quickstart"), ("./missing.yaml", "cannot be read")])
def test_missing_recipes_are_refused(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(name)


@pytest.mark.parametrize("text", ["a: [", "just words", "", "a: 2020-99-99", f"a: {'9' * 5000}", "[" * 100_000])
def test_files_that_are_no_recipe_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        read_recipe(str(tmp_path / "r.yaml"))


def test_only_the_processes_of_a_new_model_are_the_environments_and_the_options() -> None:
    environment = {"MASTER_ADDR": "10.0.0.1", "NNODES": "2", "NODE_RANK": "1", "LR": "no number"}
    options = {"launch.ranks": Value(4, "--ranks")}
    chosen = choose("quickstart", "sft", environment=environment, options=options, root=Path())
    assert chosen == read_recipe("quickstart").model_copy(
        update={"launch": Launch(master_addr="10.0.0.1", nodes=2, node_rank=1, ranks=4)}
    )
    with pytest.raises(RecipeError, match="recipe quickstart: launch: node_rank 2 is none of 2 nodes"):
        choose("quickstart", "sft", environment=environment | {"NODE_RANK": "2"}, options={}, root=Path())
    with pytest.raises(RecipeError, match="NNODES=two: give a whole number"):
        choose("quickstart", "sft", environment={"NNODES": "two"}, options={}, root=Path())


def test_where_it_is_trained_does_not_change_what_a_job_depends_on(tmp_path: Path) -> None:
    for folder in ("tokens", "pretrain"):
        (tmp_path / folder).mkdir()
        write_mark(tmp_path / folder, {"made": "so"})
    recipe = build_recipe(fields(), "test")
    several = recipe.model_copy(update={"launch": Launch(ranks=3), "threads": 2})
    for stage in ("pretrain", "sft"):
        jobs = [Job(recipe=one, directory=tmp_path, stage=stage) for one in (recipe, several)]
        assert jobs[0].inputs() == jobs[1].inputs()
        assert Job.model_validate_json(jobs[1].model_dump_json()) == jobs[1]
