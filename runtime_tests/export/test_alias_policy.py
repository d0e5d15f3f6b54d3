"""The policy that an alias comes with, on export."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from sol_rt.bundle.actions import Action
from sol_rt.cli.make import export as command
from sol_rt.errors import SolError
from sol_rt.export.actions.candidates import BITS, CHANNEL_DENSITIES, KV_DENSITIES
from sol_rt.export.actions.stored import StoredCalibration
from sol_rt.export.graphs.policy_graph import PolicyShape, random_policy_parameters
from sol_rt.export.policy_file import TrainedPolicy, read_policy, write_policy
from sol_rt.store.home import bundles_dir, remember_source
from sol_rt.store.pull import bundle_name, source_of
from sol_rt.store.recipes import recipe as recipes

MODELS = Path(str(resources.files("sol_rt.models")))
LEVELS = {"bits": (8, 6, 4), "channel_density": (1.0, 0.5), "kv_density": (1.0, 0.1)}
TAGS = ("k100-s100-q8", "k010-s100-q4", "k010-s050-q4")


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "known.policy.safetensors"
    shape = PolicyShape(32, 1, len(TAGS), 4, 8, 2, 4, 4)
    actions = tuple(Action.parse(tag) for tag in TAGS)
    write_policy(path, TrainedPolicy(shape, ("budget",), actions, "", random_policy_parameters(0, shape), "known"))
    known = recipes.Recipe("known", "", "", hub="someone/known", policy=str(path))
    monkeypatch.setattr(recipes, "aliases", lambda: {"known": known})
    return path


def test_an_alias_brings_its_policy(policy: Path) -> None:
    assert command._policy_of_alias("known", LEVELS, by_default=True) == policy
    assert command._policy_of_alias("someone/else", LEVELS, by_default=True) is None


@pytest.mark.parametrize(
    ("axis", "levels", "tag"),
    [("bits", (8, 6), TAGS[1]), ("channel_density", (1.0, 0.75), TAGS[2]), ("kv_density", (1.0, 0.25), TAGS[1])],
)
def test_a_policy_is_left_out_if_the_levels_lack_one_of_its_actions(
    policy: Path, axis: str, levels: tuple[float, ...], tag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command._policy_of_alias("known", {**LEVELS, axis: levels}, by_default=True) is None
    said = " ".join(capsys.readouterr().err.split())
    assert f"no policy: known's policy picks {tag}, which --{axis.replace('_', '-')} leaves out" in said


def test_a_policy_is_left_out_under_another_calibration(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command._policy_of_alias("known", LEVELS, by_default=False) is None
    assert "no policy: known's was measured on a default export" in " ".join(capsys.readouterr().err.split())


def test_a_recipe_whose_policy_is_not_installed(policy: Path) -> None:
    policy.unlink()
    with pytest.raises(SolError, match=r"known\.policy\.safetensors is missing; install sol_rt again"):
        command._policy_of_alias("known", LEVELS, by_default=True)


@pytest.mark.parametrize("model", ["own", "someone/Known-2.5-0.5B", "checkpoints/known-2.5-0.5b", "known-2.gguf"])
def test_the_bundle_that_a_model_was_exported_to(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name under the home, or whatever the export of a checkpoint is named."""
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("checkpoints", "known-2.5-0.5b").mkdir(parents=True)
    Path("known-2.gguf").touch()
    target = bundles_dir() / (model if model == "own" else bundle_name(model))
    assert command._existing("smollm2-135m", None, False) is None
    target.mkdir(parents=True)
    (target / "sol_config.json").touch()
    remember_source(target, source_of(model))
    assert command._existing(model, None, False) == target
    assert command._existing(model, None, True) is None


def test_every_recipe_has_the_policy_that_it_names() -> None:
    for recipe in recipes.aliases().values():
        recipe.policy_path()  # raises where the file is missing


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.policy.safetensors")), ids=lambda path: path.name)
def test_a_shipped_policy_comes_from_the_config_beside_it(path: Path) -> None:
    pytest.importorskip("yaml")
    from sol_rt.train.config import read_config

    policy, config = read_policy(path), read_config(str(path.with_suffix(".yaml")))
    (recipe,) = [recipe for recipe in recipes.aliases().values() if recipe.policy == path.name]
    assert recipe.name == policy.model
    assert {action.tag for action in policy.actions} == set(config.policy.actions)
    assert (policy.shape.horizon, policy.shape.width) == (config.policy.horizon, config.policy.width)
    assert policy.description.startswith(f"warm start on {config.warm_start.windows} windows")
    default = {"bits": BITS, "channel_density": CHANNEL_DENSITIES, "kv_density": KV_DENSITIES}
    assert command._policy_of_alias(recipe.name, default, by_default=True) == path
    if (calibration := recipe.calibration_path()) is not None:  # else every export measures which actions to keep
        fronts = StoredCalibration.read(calibration).measured.fronts
        assert all(set(policy.actions) <= set(front) for front in fronts.values())


def test_the_smallest_alias_with_a_policy_measures_nothing() -> None:
    assert recipes.aliases()["smollm2-135m"].calibration_path() is not None
