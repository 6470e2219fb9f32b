"""The checks on a configuration, by message."""

import copy
import dataclasses
import importlib.util
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from hypothesis import example, given
from hypothesis import strategies as st
from ml_collections import config_flags

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
        ("data", {"short_side": 100}, r"config\.data\.short_side=100: must be at least data\.crop_size=112"),
        ("data", {"source": "packed", "shuffle_shards": -1}, r"config\.data\.shuffle_shards=-1: must be at least 0"),
        (
            "data",
            {"shuffle_shards": 16},
            r"config\.data\.shuffle_shards=16: data\.source='frames' has no shards; set shuffle_shards=0, or",
        ),
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
        ("optimizer", {"decay_factor": -3.0}, r"config\.optimizer\.decay_factor=-3\.0: must be above 0"),
        ("optimizer", {"decay_factor": 2.0}, r"config\.optimizer\.decay_factor=2\.0: must be at most 1"),
        ("optimizer", {"milestones": (-5.0, 2.0)}, r"config\.optimizer\.milestones=-5\.0: must be above 0"),
        (
            "optimizer",
            {"milestones": (5.0, 2.0)},
            r"config\.optimizer\.milestones=\(5\.0, 2\.0\): must be rising epochs",
        ),
        (
            "optimizer",
            {"milestones": (2.0, 2.0)},
            r"config\.optimizer\.milestones=\(2\.0, 2\.0\): must be rising epochs",
        ),
        ("optimizer", {"momentum": 1.0}, r"config\.optimizer\.momentum=1\.0: must be below 1"),
        ("optimizer", {"b2": -0.1}, r"config\.optimizer\.b2=-0\.1: must be at least 0"),
        ("optimizer", {"warmup_epochs": -1.0}, r"config\.optimizer\.warmup_epochs=-1\.0: must be at least 0"),
        ("train", {"label_smoothing": 1.0}, r"config\.train\.label_smoothing=1\.0: must be below 1"),
        ("train", {"ema_decay": 1.0}, r"config\.train\.ema_decay=1\.0: must be below 1"),
        ("data", {"crop_scales": (1.0, 1.5)}, r"config\.data\.crop_scales=1\.5: must be at most 1"),
        ("data", {"crop_scales": ()}, r"config\.data\.crop_scales=\(\): must be one scale or more"),
        ("data", {"std": (0.2, 0.0, 0.2)}, r"config\.data\.std=0\.0: must be above 0"),
        ("model.head", {"dropout": 1.0}, r"config\.model\.head\.dropout=1\.0: must be below 1"),
        ("", {"optimizer": {"name": "sgd"}}, r"config\.optimizer=\{'name': 'sgd'\}: must be a OptimizerConfig"),
        ("", {"profile": "5:5"}, r"config\.profile='5:5': must be START:STOP"),
        ("train", {"accumulate": 3}, r"config\.train\.accumulate=3: must divide train\.global_batch_size=64"),
        (
            "data",
            {"repeats": 3},
            r"config\.data\.repeats=3: must divide train\.global_batch_size / accumulate = 64 / 1",
        ),
        (
            "train",
            {"accumulate": 64, "mixup": 0.8},
            r"config\.train\.mixup=0\.8: must be 0 where there is no clip of another video to mix with .*= 64 / 64,",
        ),
        ("data", {"augment_on": "gpu"}, r"config\.data\.augment_on='gpu': unknown; known: auto, host, device"),
        (
            "data",
            {"input": "rgb_and_diff"},
            r"config\.model\.in_channels=3: must be 6 for data\.input='rgb_and_diff'",
        ),
        (
            "data",
            {"input": "rgb_and_diff", "mean": (0.5,) * 6},
            r"config\.data\.mean=.*: must be 3 values for data\.input='rgb_and_diff'",
        ),
        (
            "model",
            {"temporal_strides": (1, 2)},
            r"config\.model\.temporal_strides=\(1, 2\): must be \(\) or three values",
        ),
        ("model", {"stem": "5x7x7"}, r"config\.model\.stem='5x7x7': unknown; did you mean .*7x7x7"),
        ("train", {"still_mix": 1.0}, r"config\.train\.still_mix=1\.0: must be .*below 1"),
        ("eval", {"crops": 5}, r"config\.eval\.crops=5: unknown; known: 1, 3, 10"),
        ("model", {"widths": (64, 128)}, r"config\.model\.widths=\(64, 128\): must be \(\) or four positive widths"),
    ],
)
def test_wrong_values_are_named_with_a_remedy(group: str, fields: dict, message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.validate(changed(group, **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"motion.speeds": (4, 2)},
            r"config\.data\.motion\.speeds=\(4, 2\): must be \(\) or two rising speeds above 0",
        ),
        ({"motion.speeds": (2,)}, r"config\.data\.motion\.speeds=\(2,\): must be \(\) or two rising"),
        ({"motion.box": (0.5, 0.3)}, r"config\.data\.motion\.box=\(0\.5, 0\.3\): must be \(low, high\) with"),
        ({"motion.frozen": 1.5}, r"config\.data\.motion\.frozen=1\.5: must be between 0 and 1"),
        ({"motion.gray": -1.0}, r"config\.data\.motion\.gray=-1\.0: must be between 0 and 1"),
        ({"motion.colors": "frames"}, r"config\.data\.motion\.colors='frames': unknown; did you mean frame"),
        ({"repeats": 1}, r"config\.data\.repeats=1: must be 9, or a multiple of it, .*: a clip of each class"),
        ({"hold_out": 0.0}, r"config\.data\.hold_out=0: must be above 0 .* are the validation set"),
        ({"flip": True}, r"config\.data\.flip=True: must be False .*, because a mirror image moves the other way"),
        (
            {"frame_seconds": 0.1},
            r"config\.data\.frame_seconds=0\.1: must be 0 .*, because a clip is made of one frame",
        ),
        (
            {"short_side": 171},
            r"config\.data\.short_side=171: must be at least 172 .* 112 pixels has room for 16 frames",
        ),
        ({"short_side": 175, "input": "rgb_diff"}, r"short_side=175: must be at least 176 .* room for 17 frames"),
        ({"input": "flow"}, r"config\.data\.input='flow': must be rgb or rgb_diff .*, because a picture has no other"),
        (
            {"input": "rgb_diff", "color_jitter": 0.5},
            r"config\.data\.motion\.colors='frame': must be 'clip' for data\.input='rgb_diff'",
        ),
        ({"hue_jitter": 0.2}, r"config\.data\.hue_jitter=0\.2: must be 0 .*, where data\.color_jitter changes colors"),
        ({"random_gray": 0.3}, r"config\.data\.random_gray=0\.3: must be 0 .*, where data\.motion\.gray takes colors"),
        ({"stride_jitter": 1.0}, r"config\.data\.stride_jitter=1: must be 0 .*, where data\.motion\.speeds are the"),
        (
            {"motion.speeds": (), "source": "pictures"},
            r"config\.data\.source='pictures': has no classes of its own; set config\.data\.motion\.speeds",
        ),
    ],
)
def test_what_does_not_go_with_pseudo_motion(fields: dict[str, Any], message: str) -> None:
    cfg = changed("data", repeats=9, hold_out=0.2, short_side=180)
    cfg.data.motion.speeds = (2, 4)
    config.validate(config.from_json(config.to_json(cfg)).data)
    for name, value in fields.items():
        setattr(cfg.data.motion if name.startswith("motion.") else cfg.data, name.removeprefix("motion."), value)
    with pytest.raises(config.ConfigError, match=message):
        config.validate(cfg.data)


def test_pseudo_motion_is_evaluated_with_one_crop() -> None:
    cfg = changed("data", repeats=9, hold_out=0.2, short_side=180)
    cfg.data.motion.speeds, cfg.train.global_batch_size = (2, 4), 36
    config.validate(cfg)
    cfg.eval.crops = 3
    with pytest.raises(
        config.ConfigError, match=r"config\.eval\.crops=3: must be 1 with data\.motion\.speeds=\(2, 4\)"
    ):
        config.validate(cfg)


def test_all_problems_are_listed_at_once() -> None:
    cfg = changed("data", source="x", crop="y", short_side=100)
    cfg.train.epochs = -1.0
    with pytest.raises(config.ConfigError) as error:
        config.validate(cfg)
    lines = str(error.value).splitlines()[1:]
    assert [line.strip().partition("=")[0] for line in lines] == [
        "config.data.source",
        "config.data.crop",
        "config.data.short_side",
        "config.train.epochs",
    ]


def test_a_group_is_checked_on_its_own() -> None:
    with pytest.raises(config.ConfigError, match=r"config\.data\.crop='y': unknown; known: multi_scale"):
        config.validate(config.DataConfig(crop="y"))


def test_a_group_refuses_names_it_does_not_have() -> None:
    """Where they are set, where a group is made, and in JSON: always by the same words."""
    cfg: Any = config.Config()
    wrong: Any = {"lr": 0.1}
    attempts = {
        r"config\.optimizer\.lr: unknown; did you mean learning_rate\?": [
            lambda: setattr(cfg.optimizer, "lr", 0.1),
            lambda: config.OptimizerConfig(**wrong),
            lambda: dataclasses.replace(cfg.optimizer, **{"lr": 0.1}),
            lambda: config.from_json('{"optimizer": {"lr": 0.1}}'),
        ],
        r"config\.train\.batch_size: unknown; did you mean global_batch_size\?": [
            lambda: setattr(cfg.train, "batch_size", 8)
        ],
        r"config\.optimiser: unknown; did you mean optimizer\?": [lambda: setattr(cfg, "optimiser", 1)],
        r"config\.model\.head\.zzz: unknown; known: kind, tokens": [lambda: setattr(cfg.model.head, "zzz", 1)],
    }
    for message, refused in attempts.items():
        for attempt in refused:
            with pytest.raises(config.ConfigError, match=message):
                attempt()
    assert cfg == config.Config() == copy.deepcopy(cfg) == pickle.loads(pickle.dumps(cfg))


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


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")  # ml_collections' own way to run a file
def test_ml_collections_parses_an_override_of_every_field(tmp_path: Path) -> None:
    """It reads a field's type from the dataclass, and refuses types with constraints."""
    file = tmp_path / "mine.py"
    file.write_text("from r23d_jax.config import Config\ndef get_config():\n    return Config()\n")
    wanted = config.Config(seed=7)
    wanted.data.crop_area, wanted.data.flip, wanted.model.widths = (0.5, 0.75), False, (8, 8, 8, 8)
    wanted.optimizer.learning_rate, wanted.optimizer.milestones = 0.5, (1.5, 2.0)
    wanted.optimizer.freeze, wanted.model.head.kind = ("stem",), "avgpool"

    def overrides(group: config.Group, path: str) -> list[str]:
        texts = []
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            below = f"{path}.{field.name}"
            texts += overrides(value, below) if isinstance(value, config.Group) else [f"{below}={value}"]
        return texts

    argv = ["launch.py", f"--config={file}", *overrides(wanted, "--config")]
    parsed = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=parsed, sys_argv=argv)
    parsed(argv)
    assert parsed["config"].value == wanted and len(argv) > 80


def test_json_of_another_version() -> None:
    """What an older version did not have takes its default; what this one does not know is refused by name."""
    with pytest.raises(config.ConfigError, match=r"config\.seeed: unknown; did you mean seed"):
        config.from_json('{"seeed": 1}')
    assert config.from_json('{"model": {"depth": 34}}') == config.Config(model=config.ModelConfig(depth=34))
    with pytest.raises(config.ConfigError, match=r"config\.input: missing"):  # has no default
        config.from_json("{}", config.Preprocessing)


def test_reading_a_config_imports_neither_jax_nor_tensorflow() -> None:
    code = "import sys, r23d_jax.config; print({'jax', 'tensorflow'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


# -- properties --------------------------------------------------------------------------------------------------------


def fields_of(kind: type, path: str = "config") -> list[str]:
    """Dotted names of all values below a group."""
    names = []
    for field in dataclasses.fields(kind):
        value = getattr(kind(), field.name)
        below = f"{path}.{field.name}"
        names += fields_of(type(value), below) if dataclasses.is_dataclass(value) else [below]
    return names


FIELDS = fields_of(config.Config)
numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.integers(-3, 300))
values = st.one_of(
    numbers, st.text(max_size=20), st.none(), st.lists(numbers, max_size=4).map(tuple), st.binary(max_size=3)
)


def overridden(name: str, value: object) -> config.Config:
    cfg: Any = config.Config()
    target = cfg
    *groups, last = name.split(".")[1:]
    for group in groups:
        target = getattr(target, group)
    setattr(target, last, value)
    return cfg


@given(name=st.sampled_from(FIELDS), value=values)
@example(name="config.data.crop_size", value=200)  # these go against another field
@example(name="config.data.input", value="flow")
@example(name="config.optimizer.schedule", value="multistep")
@example(name="config.train.global_batch_size", value=7)
def test_any_value_of_any_field_is_valid_or_named(name: str, value: object) -> None:
    cfg = overridden(name, value)
    try:
        config.validate(cfg)
    except config.ConfigError as error:
        assert name in str(error) or name.removeprefix("config.") in str(error)
    else:
        assert config.from_dict(dataclasses.asdict(cfg)) == cfg
        assert config.from_json(config.to_json(cfg)) == cfg


@given(
    name=st.sampled_from(FIELDS),
    value=st.sampled_from([float("inf"), float("-inf"), float("nan"), 10**400, -(10**400)]),
)
def test_no_field_takes_what_no_array_holds(name: str, value: float) -> None:
    with pytest.raises(config.ConfigError, match=re.escape(name)):
        config.validate(overridden(name, value))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["model", "data", "head", "seed", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_a_config_or_refused_by_name(value: Any) -> None:
    try:
        cfg = config.from_json(json.dumps(value))
    except config.ConfigError as error:
        assert "config" in str(error)
    else:
        assert isinstance(cfg, config.Config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", r"config: not JSON \("),
        ("[" * 100_000, r"config: not JSON \("),
        ("[]", r"config=\[\]: must be the group seed, "),
        ('{"model": 5}', r"config\.model=5: must be the group family, depth"),
        ('{"model": {"depth": "x"}}', r"config\.model\.depth='x': must be a whole number"),
        ('{"profile": 5}', r"config\.profile=5: must be a string"),
    ],
)
def test_what_is_no_config(text: str, message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.from_json(text)


def test_the_page_of_all_fields_is_up_to_date() -> None:
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location("config_page", root / ".ci" / "config_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "python .ci/config_page.py writes it"
    assert "| `dropout` | `0.5` | float; at least 0; below 1 | before the classifier |" in module.page()
    assert "| `classes` | `()` | tuple of str |" in module.page()


@pytest.mark.parametrize(
    ("batch", "repeats", "accumulate", "refused"), [(4, 2, 2, True), (4, 4, 1, True), (4, 1, 4, True), (8, 2, 2, False)]
)
def test_clips_are_not_mixed_with_themselves(batch: int, repeats: int, accumulate: int, refused: bool) -> None:
    cfg = config.Config()
    cfg.train.global_batch_size, cfg.data.repeats, cfg.train.accumulate = batch, repeats, accumulate
    cfg.train.mixup = 0.5
    if not refused:
        config.validate(cfg)
        return
    with pytest.raises(config.ConfigError, match=r"mixup=0\.5: must be 0 where there is no clip of another video"):
        config.validate(cfg)


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("model", "stem", "motion", r"model\.stem='motion': sees only what moves, so nothing of data\.num_frames=1"),
        ("train", "still_mix", 0.5, r"train\.still_mix=0\.5: must be 0 for data\.num_frames=1"),
    ],
)
def test_one_frame_has_no_motion(group: str, field: str, value: object, message: str) -> None:
    cfg = config.Config()
    cfg.data.num_frames = 1
    setattr(getattr(cfg, group), field, value)
    with pytest.raises(config.ConfigError, match=message):
        config.validate(cfg)


def test_still_frames_need_frames() -> None:
    cfg = config.Config()
    cfg.train.still_mix, cfg.data.input = 0.5, "rgb_diff"
    with pytest.raises(
        config.ConfigError, match=r"still_mix=0\.5: must be 0 for data\.input='rgb_diff', which has no frames"
    ):
        config.validate(cfg)
