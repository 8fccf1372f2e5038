from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from raydiff.config import Config
from raydiff.envs.registry import canonical
from raydiff.errors import UserError
from raydiff.presets import arms_of, config_hash, derive, describe, dump, load_config, together, validate

PRESETS = (Path(__file__).parents[1] / "configs").rglob("*.yaml")
CONFIGS = sorted(path for path in PRESETS if path.stem != "d4rl")  # those need a task: test_tasks.py


def write(folder: Path, text: str, name: str = "preset.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def complaint(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    return str(error.value)


def sections(model: type[BaseModel] = Config) -> list[type[BaseModel]]:
    below = [type(field.default) for field in model.model_fields.values() if isinstance(field.default, BaseModel)]
    return [model, *(inner for section in below for inner in sections(section))]


@pytest.mark.parametrize(("key", "nearest"), [
    ("learner.batchsize", "learner.batch_size"),
    ("lerner.chunk", "learner"),
    ("generator.coun", "generator.count"),
    ("guidance.stregth", "guidance.strength"),
    ("updates", "learner.updates"),
    ("learner.td3_bc.alfa", "learner.td3_bc.alpha"),
])  # fmt: skip
def test_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    text = complaint(f"{key}=1")
    assert "Unknown key" in text
    assert "in the command line" in text
    if nearest != "learner":  # a misspelt section is reported by itself
        assert f"Unknown key {key} " in text
        assert f"The nearest is {nearest}." in text
    assert "--help lists every key" in text


@pytest.mark.parametrize(("override", "part"), [
    ("learner.updates=many", "learner.updates='many': input should be a valid integer"),
    ("learner.updates=0", "learner.updates=0: input should be greater than or equal to 1"),
    ("learner.td3_bc.alpha=-1", "learner.td3_bc.alpha=-1"),
    ("learner.hidden=64", "learner.hidden=64"),
    ("guidance.kind=polcy", "guidance.kind='polcy': input should be 'none', 'policy', 'value' or 'analytic_energy'"),
    ("learner=5", "learner in the command line is a group of keys, not a single value (5)"),
    ("learner.updates.x=5", "learner.updates={'x': 5}"),
    ("arms.x=5", "arms.x=5"),
])  # fmt: skip
def test_wrong_values_name_the_key(override: str, part: str) -> None:
    assert part in complaint(override)


@pytest.mark.parametrize("override", ["learner.updates", "=5", " =5"])
def test_overrides_must_read_key_value(override: str) -> None:
    assert "must read key=value" in complaint(override)


def test_overrides_are_dotted_and_typed_and_the_last_wins() -> None:
    config = load_config(None, ["learner.updates=5", "learner.learning_rate=1e-3", "learner.hidden=[64, 32]",
                                "replay.max_lag=100", "replay.max_lag=", "learner.updates=7"])  # fmt: skip
    assert config.learner.updates == 7
    assert config.learner.learning_rate == 1e-3
    assert config.learner.hidden == (64, 32)
    assert config.replay.max_lag is None
    assert config.learner.chunk == Config().learner.chunk


def test_later_wins_from_defaults_to_the_command_line(tmp_path: Path) -> None:
    write(tmp_path, "learner: {updates: 1, chunk: 1, batch_size: 1}\ngenerator.count: 1", "base.yaml")
    path = write(tmp_path, "extends: base.yaml\nlearner: {chunk: 2, batch_size: 2}\n"
                           "scales: {tiny: {learner.batch_size: 3, learner.in_flight: 3}}")  # fmt: skip
    plain = load_config(path).learner
    assert (plain.updates, plain.chunk, plain.batch_size) == (1, 2, 2)
    config = load_config(path, ["scale=tiny", "learner.in_flight=4"])
    learner = config.learner
    assert (learner.updates, learner.chunk, learner.batch_size, learner.in_flight) == (1, 2, 3, 4)
    assert config.generator.count == 1
    assert learner.tau == Config().learner.tau


def test_scales_of_the_base_are_offered_too(tmp_path: Path) -> None:
    write(tmp_path, "scales: {small: {learner.updates: 5}, big: {learner.updates: 500}}", "base.yaml")
    path = write(tmp_path, "extends: base.yaml\nscales: {small: {learner.updates: 6}}")
    assert load_config(path, ["scale=small"]).learner.updates == 6
    assert load_config(path, ["scale=big"]).learner.updates == 500


def test_unknown_scale_says_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path, "scales: {tiny: {learner.updates: 7}, huge: {}}")
    text = complaint("scale=tinny", path=path)
    assert text == f"scale=tinny: {path} has no such scale. On offer: tiny, huge."
    assert "none is given" in complaint("scale=tiny")


@pytest.mark.parametrize(("text", "part"), [
    ("- learner", "must hold keys and values at its top level, not a list"),
    ("learner: [", "cannot be read as YAML"),
    ("learner: null", "learner in"),
    ("scales: [tiny]", "scales must map the name of each scale"),
    ("scales: {tiny: 5}", "scales must map the name of each scale"),
    ("extends: preset.yaml", "extends itself"),
    ("extends: other.yaml", "There is no configuration file"),
    ("learner: !!python/name:os.system", "cannot be read as YAML"),
])  # fmt: skip
def test_malformed_presets(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path, text)
    message = complaint(path=path)
    assert part in message
    assert str(tmp_path) in message


def test_bad_key_of_a_scale_names_the_scale(tmp_path: Path) -> None:
    path = write(tmp_path, "scales: {tiny: {learner.updats: 7}}")
    assert "learner.updates" in complaint("scale=tiny", path=path)
    assert load_config(path) == Config()  # not looked at unless chosen


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "", "demo.yaml")
    assert f"Did you mean {tmp_path / 'demo.yaml'}?" in complaint(path=tmp_path / "dem.yaml")


def test_arms_keep_dotted_overrides_and_derive_from_the_run(tmp_path: Path) -> None:
    path = write(tmp_path, "learner.updates: 9\narms: {real_only: {generator.count: 0, learner: {chunk: 3}}}")
    config = load_config(path, ["arms.real_only.learner.td3_bc.alpha=10", "arms.wide.learner.hidden=[8]"])
    arm = derive(config, config.arms["real_only"], "arms.real_only")
    assert (arm.generator.count, arm.learner.chunk, arm.learner.td3_bc.alpha) == (0, 3, 10.0)
    assert (arm.learner.updates, arm.arms) == (9, {})
    assert derive(config, config.arms["wide"], "arms.wide").learner.hidden == (8,)
    assert config.generator.count == Config().generator.count
    with pytest.raises(UserError, match=r"Unknown key learner\.chunks in arms\.x\. The nearest is learner\.chunk\."):
        derive(config, {"learner.chunks": 3}, "arms.x")


def test_arms_of_a_preset_can_be_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, "arms: {a: {seed: 1}, b: {seed: 2}}")
    assert list(load_config(path, ["arms.a=null"]).arms) == ["b"]
    assert load_config(path, ["arms={}"]).arms == {}


def test_arms_that_would_be_their_run_again_are_left_out() -> None:
    arms = ["arms.unguided.guidance.kind=none", "arms.cloning.learner.td3_bc.alpha=1", "arms.again.seed=1"]
    assert list(arms_of(load_config(None, arms))) == ["unguided", "cloning", "again"]
    assert list(arms_of(load_config(None, [*arms, "generator.count=0"]))) == ["cloning", "again"]
    generating = ["arms.unguided.generator.count=2", "generator.count=0"]
    assert list(arms_of(load_config(None, [*arms, *generating]))) == ["unguided", "cloning", "again"]


@pytest.mark.parametrize("key", ["data.seed", "denoiser.length", "reward.steps"])
def test_arms_share_data_and_models(key: str) -> None:
    with pytest.raises(UserError, match=rf"arms\.x changes {key.split('.')[0]}, but the arms of a run share"):
        derive(Config(), {key: 7}, "arms.x")


def test_describe_covers_every_field_once() -> None:
    rows = describe()
    names = [name for name, _, _ in rows]
    assert len(names) == len(set(names))
    assert len(names) == sum(
        not isinstance(field.default, BaseModel) for section in sections() for field in section.model_fields.values()
    )
    assert all(description.strip().endswith(".") for _, _, description in rows)
    for name, default, _ in rows:
        value: object = Config()
        for part in name.split("."):
            value = getattr(value, part)
        assert default == ("" if value is None else str(value))


def test_sections_are_small_frozen_and_strict() -> None:
    found = sections()
    assert len(found) > 10
    for section in found:
        # Settings of its own: a section within it is looked at by itself.
        own = [field for field in section.model_fields.values() if not isinstance(field.default, BaseModel)]
        assert len(own) <= 25, section.__name__
        assert all(field.description for field in section.model_fields.values()), section.__name__
        assert section.model_config["frozen"]
        assert section.model_config["extra"] == "forbid"
    with pytest.raises(ValidationError, match="frozen"):
        Config().learner.updates = 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_dump_is_read_back_unchanged(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["learner.learning_rate=1e-05", "replay.max_lag=", "name='on'", "learner.hidden=[7]"])
    again = load_config(write(tmp_path, dump(config)))
    assert again == config
    assert config_hash(again) == config_hash(config)


def test_hash_ignores_where_a_run_is_kept_and_nothing_else() -> None:
    plain = config_hash(Config())
    assert len(plain) == 12
    assert plain == config_hash(load_config(None, ["name=other", "output=elsewhere", "data.cache=there"]))
    for other in ("seed=1", "learner.updates=9999", "data.seed=1", "arms.x.seed=3", "sampler.churn=0"):
        assert config_hash(load_config(None, [other])) != plain


def test_validate_takes_nested_values() -> None:
    assert validate({"data": {"transitions": 123}}, "here").data.transitions == 123
    with pytest.raises(UserError, match=r"In here: data\.level='best'"):
        validate({"data": {"level": "best"}}, "here")


def test_presets_exist() -> None:
    assert "demo" in [path.stem for path in CONFIGS]


def scales_of(path: Path) -> list[str]:
    with pytest.raises(UserError) as error:
        load_config(path, ["scale=?"])
    listed = str(error.value).rsplit("On offer: ", 1)[1].rstrip(".")
    return [] if listed == "none" else listed.split(", ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_preset_loads_at_every_scale_with_all_its_arms(path: Path) -> None:
    for overrides in [[], *([f"scale={scale}"] for scale in scales_of(path))]:
        config = load_config(path, overrides)
        assert config.data.environment is None or canonical(config.data.environment)
        for name, values in config.arms.items():
            assert derive(config, values, f"arms.{name}") != config


def test_a_scale_adds_to_that_of_the_preset_below(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("scales: {tiny: {learner.updates: 5, denoiser: {steps: 6, batch_size: 7}}}")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\nscales: {tiny: {denoiser.steps: 8}}")
    config = load_config(tmp_path / "own.yaml", ["scale=tiny"])
    assert (config.learner.updates, config.denoiser.steps, config.denoiser.batch_size) == (5, 8, 7)


def test_an_arm_with_several_seeds_is_an_arm_for_each() -> None:
    config = load_config(None, ["arms.seed.seed=[1, 2]", "arms.iql={learner.algorithm: iql, seed: [0, 3]}"])
    assert config.arms == {
        "seed_1": {"seed": 1}, "seed_2": {"seed": 2},
        "iql_0": {"learner.algorithm": "iql", "seed": 0}, "iql_3": {"learner.algorithm": "iql", "seed": 3},
    }  # fmt: skip
    arms = arms_of(config)
    assert [(arm.seed, arm.learner.algorithm) for arm in arms.values()] == [
        (1, "td3_bc"), (2, "td3_bc"), (0, "iql"), (3, "iql"),
    ]  # fmt: skip
    assert load_config(None, ["arms.seed.seed=4"]).arms == {"seed": {"seed": 4}}


@pytest.mark.parametrize(("overrides", "part"), [
    (["arms.a.seed=[]"], "arms.a.seed=[] must list seeds, each once"),
    (["arms.a.seed=[1, 1]"], "arms.a.seed=[1, 1] must list seeds, each once"),
    (["arms.a.seed=[1]", "arms.a_1.generator.count=1"], "two arms are called a_1"),
])  # fmt: skip
def test_lists_of_seeds_that_make_no_sense(overrides: list[str], part: str) -> None:
    assert part in complaint(*overrides)


def test_a_seed_of_an_arm_is_checked() -> None:
    with pytest.raises(UserError, match=r"seed='x'"):
        arms_of(load_config(None, ["arms.a.seed=[x]"]))


def test_who_learns_at_the_same_time() -> None:
    arms = ["arms.iql.learner.algorithm=iql", "arms.real.generator.count=0"]
    assert list(together(load_config(None, arms))) == ["guided"]
    assert list(together(load_config(None, [*arms, "arms_together=true"]))) == ["guided", "iql"]
    real = load_config(None, ["generator.count=0", "arms.seed.seed=[1, 2]", "arms_together=true"])
    assert list(together(real)) == ["real_only", "seed_1", "seed_2"]
    mixed = load_config(None, ["generator.count=0", "arms.more.generator.count=2", "arms.seed.seed=[1]",
                               "arms_together=true"])  # fmt: skip
    assert list(together(mixed)) == ["real_only", "more"]
