"""The checks on a configuration, by message."""

import dataclasses
import subprocess
import sys

import pytest

from r23d_jax import config


def changed(group: str, **fields: object) -> config.Config:
    """The default config with fields of one group replaced, unchecked."""
    cfg = config.Config()
    target = cfg
    for name in filter(None, group.split(".")):
        target = getattr(target, name)
    for name, value in fields.items():
        setattr(target, name, value)
    return cfg


def test_default_is_valid_and_survives_json() -> None:
    cfg = config.validate(config.Config())
    assert config.from_json(config.to_json(cfg)) == cfg


def test_tuples_survive_json() -> None:
    cfg = changed("data", classes=("Diving", "Fencing"), crop_area=(0.5, 1.0))
    assert config.from_json(config.to_json(cfg)) == cfg


def test_preprocessing_survives_json_and_counts_the_extra_frame() -> None:
    pre = config.preprocessing(changed("data", input="rgb_diff").data)
    assert config.from_json(config.to_json(pre), config.Preprocessing) == pre
    assert pre.read_frames == pre.num_frames + 1


@pytest.mark.parametrize(
    ("group", "fields", "message"),
    [
        ("model.head", {"kind": "vitt"}, r"config\.model\.head\.kind='vitt': unknown; did you mean vit"),
        ("data", {"source": "frame"}, r"config\.data\.source='frame': unknown; did you mean frames"),
        ("data", {"split": 4}, r"config\.data\.split=4: unknown; known: 1, 2, 3"),
        ("data", {"short_side": 100}, r"config\.data\.short_side=100: must be at least crop_size=112"),
        ("data", {"crop_area": (0.9, 0.2)}, r"config\.data\.crop_area=\(0\.9, 0\.2\): must be \(low, high\)"),
        ("data", {"crop_area": (0.9,)}, r"config\.data\.crop_area=\(0\.9,\): must be a tuple \(float, float\)"),
        ("data", {"dct_scaling": 1.5}, r"config\.data\.dct_scaling=1\.5: must be"),
        ("data", {"num_frames": 1.5}, r"config\.data\.num_frames=1\.5: must be a whole number"),
        ("data", {"num_frames": True}, r"config\.data\.num_frames=True: must be a whole number"),
        ("data", {"flip": 1}, r"config\.data\.flip=1: must be True or False"),
        ("data", {"crop_scales": ("a",)}, r"config\.data\.crop_scales=\('a',\): must be a tuple of floats"),
        ("optimizer", {"learning_rate": 0.0}, r"config\.optimizer\.learning_rate=0\.0: must be above 0"),
        ("optimizer", {"schedule": "multistep"}, r"config\.optimizer\.milestones=\(\): must be rising epochs"),
        ("optimizer", {"freeze": ("stage9",)}, r"config\.optimizer\.freeze='stage9': unknown; did you mean stage"),
        ("train", {"accumulate": 3}, r"config\.train\.accumulate=3: must divide train\.global_batch_size=64"),
        ("eval", {"crops": 5}, r"config\.eval\.crops=5: unknown; known: 1, 3, 10"),
        ("model", {"widths": (64, 128)}, r"config\.model\.widths=\(64, 128\): must be \(\) or four positive widths"),
    ],
)
def test_wrong_values_are_named_with_a_remedy(group: str, fields: dict, message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.validate(changed(group, **fields))


def test_all_problems_are_listed_at_once() -> None:
    cfg = changed("data", source="x", crop="y")
    with pytest.raises(config.ConfigError) as error:
        config.validate(cfg)
    assert "config.data.source" in str(error.value) and "config.data.crop" in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("config.optimizer.learning_rte", r"config\.optimizer has no field 'learning_rte'; did you mean learning_rate"),
        ("config.optimiser.learning_rate", r"config has no field 'optimiser'; did you mean optimizer"),
        ("config.seed.value", r"config\.seed is a value and has no field 'value'"),
        ("config.optimizer", r"is a group; set one of its fields: name, learning_rate"),
    ],
)
def test_unknown_override_is_named_with_the_nearest_field(path: str, message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.check_override(path)


def test_every_field_can_be_overridden() -> None:
    def walk(kind: type, path: str) -> None:
        for field in dataclasses.fields(kind):
            value = getattr(kind(), field.name)
            if dataclasses.is_dataclass(value):
                walk(type(value), f"{path}.{field.name}")
            else:
                config.check_override(f"{path}.{field.name}")
                assert value is not None, "a None cannot be overridden on the command line"

    walk(config.Config, "config")


def test_json_of_another_version() -> None:
    """What an older version did not have takes its default; what this one does not know is refused by name."""
    with pytest.raises(config.ConfigError, match=r"config\.seeed: unknown field; did you mean seed"):
        config.from_json('{"seeed": 1}')
    assert config.from_json('{"model": {"depth": 34}}') == config.Config(model=config.ModelConfig(depth=34))
    with pytest.raises(config.ConfigError, match=r"config\.input: missing"):  # has no default
        config.from_json("{}", config.Preprocessing)


def test_reading_a_config_imports_neither_jax_nor_tensorflow() -> None:
    code = "import sys, r23d_jax.config; print({'jax', 'tensorflow'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
