"""How a code base and a network are found from names and shapes: every decision and message, without a real value."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flax import nnx

from r23d_jax import models
from r23d_jax.models.heads import NoHead
from r23d_jax.models.registry import FAMILIES
from r23d_jax.weights import layouts, matching
from r23d_jax.weights.matching import Found, differs_from_class, find, fit, is_2d, table_of, unwrapped, without_prefix
from r23d_jax.weights.sources import SOURCES
from r23d_jax.weights.tables import ConversionError, Entry, differences, make_table, part_of

Arrays = dict[str, np.ndarray]
SMALL = (4, 6, 8, 8)


@functools.cache
def network(name: str, **fields: Any) -> models.VideoNetwork:
    fields = {"num_classes": 7} | fields
    return nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0), **fields))


def zeros(shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Arrays of these shapes that take no memory; ones where a gamma must be."""
    one = np.ones((), np.float32)
    return {name: np.broadcast_to(one, shape) for name, shape in shapes.items()}


def weights(name: str, source: str, **fields: Any) -> Arrays:
    """What a code base would have saved of a network, with its counters."""
    table = table_of(network(name, **fields), source)
    return zeros(table.shapes) | {counter: np.zeros((), np.int64) for counter in table.counters}


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(ConversionError) as caught:
        call(*args)
    return str(caught.value)


# -- find --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "fields"),
    [
        ("r3d_18", "torchvision", {}),
        ("r2plus1d_tv_10", "torchvision", {}),
        ("r2plus1d_18", "vmz", {"in_channels": 2}),
        ("r2plus1d_50", "vmz", {"stem_pool": "2d"}),
        ("r2plus3d_10", "2d3d", {"num_classes": 0, "head": "none"}),
        ("r2plus1d_mmaction_10", "mmaction2", {"in_channels": 1}),
        ("r2plus1d_hara_50", "hara", {}),
        ("i3d_gamma", "i3d_hassony2", {"num_classes": 3}),
        ("i3d", "i3d_deepmind", {"in_channels": 2}),
        pytest.param("s3d_g", "torchvision_s3d", {}, marks=pytest.mark.slow),
        ("mc4_10", "r23d_jax", {}),
    ],
)
def test_a_network_is_found_with_its_channels_and_classes(name: str, source: str, fields: dict[str, Any]) -> None:
    arrays = weights(name, source, **fields)
    if name == "i3d_gamma":
        arrays["mixed_3b.branch_0.batch3d.weight"] = np.full(64, 2.0, np.float32)
    found = find(arrays, source=source)
    assert (found.source, found.candidate.name, found.problems, found.notes) == (source, name, [], ())
    assert found.num_classes == fields.get("num_classes", 7)
    assert found.model.in_channels == fields.get("in_channels", 3)
    assert found.model.spec == network(name, **fields).spec
    assert dict(found.candidate.fields) == {k: v for k, v in fields.items() if k == "stem_pool"}
    assert isinstance(found.model.head, NoHead) == (fields.get("head") == "none")
    assert found.arrays.keys() == found.table.shapes.keys()  # without torch's counters
    # without help the same network is found, perhaps under another source with the same names
    assert find(arrays).candidate.name == name == find(arrays, name).candidate.name


def test_another_network_than_the_expected_one() -> None:
    arrays = weights("r3d_18", "torchvision")
    assert refusal(find, arrays, "mc3_18") == (
        "these weights are r3d_18 (torchvision), not mc3_18: convolutions is ('3d', '3d', '3d', '3d'), not "
        "('3d', '2d', '2d', '2d')"
    )
    assert refusal(find, arrays, "r3d_34") == (
        "these weights are r3d_18 (torchvision), not r3d_34: layers is (2, 2, 2, 2), not (3, 4, 6, 3)"
    )
    assert refusal(find, arrays, "i3d") == "these weights are r3d_18 (torchvision), not i3d: another architecture"
    bottleneck = weights("r3d_50", "r23d_jax")
    assert "bottleneck is True, not False" in refusal(find, bottleneck, "r3d_34")
    with pytest.raises(ValueError, match="model 'r3d_19' is unknown; did you mean r3d_1"):
        find({}, "r3d_19")


def test_networks_that_differ_in_nothing_but_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "twin", dataclasses.replace(FAMILIES["r3d"], family="twin"))
    assert refusal(find, weights("r3d_18", "torchvision"), "twin_18").endswith("not twin_18: the same backbone")


def test_the_nearest_network_and_all_differences() -> None:
    arrays = weights("mc3_18", "torchvision")
    del arrays["layer4.1.conv2.0.weight"]
    arrays["extra.bias"] = np.zeros(3, np.float32)
    arrays["fc.bias"] = np.zeros(9, np.float32)
    lines = "  layer4.1.conv2.0.weight: missing\n  extra.bias: not in this network\n  fc.bias: [9], expected [7]"
    assert refusal(find, arrays) == (
        "no network has exactly these weights; the nearest is mc3_18 (torchvision), which differs in 3 names or "
        f"shapes:\n{lines}"
    )
    assert refusal(fit, arrays, network("mc3_18")) == f"the weights do not fit this network:\n{lines}"


def test_only_networks_with_as_many_blocks_of_their_kind_are_compared() -> None:
    for name, source in (("r3d_18", "torchvision"), ("r3d_34", "r23d_jax"), ("r3d_50", "r23d_jax")):
        plausible = matching._plausible(SOURCES["r23d_jax"], weights(name, source))
        spec = models.model_spec(name)
        assert plausible and all(models.model_spec(c.name).layers == spec.layers for c in plausible)  # type: ignore[attr-defined]
        assert all(models.model_spec(c.name).bottleneck == spec.bottleneck for c in plausible)
        wanted = [c for c in SOURCES["r23d_jax"].candidates if c.name.endswith(name[name.index("_") :])]
        assert plausible == wanted
    hara = weights("r2plus1d_hara_50", "hara")  # where a bottleneck's third convolution is conv3_s or conv3
    assert [c.name for c in matching._plausible(SOURCES["hara"], hara)] == ["r2plus1d_hara_50"]
    assert matching._plausible(SOURCES["vmz"], {"layer1.0.conv3.0.weight": np.zeros(1)}) == []


# -- fit ---------------------------------------------------------------------------------------------------------------


def test_fit_prefers_the_networks_own_source_and_takes_a_given_one() -> None:
    model = network("r3d_18")
    arrays = weights("r3d_18", "torchvision")
    assert fit(arrays, model).source == "torchvision"
    for source in ("published", "r23d_jax"):
        found = fit(arrays, model, source)
        assert (found.source, found.problems, found.num_classes, found.candidate.name) == (source, [], 0, "")
        assert found.candidate.layout is layouts.TORCHVISION and found.model is model
    assert fit(weights("mc4_18", "r23d_jax"), network("mc4_18")).source == "r23d_jax"
    assert fit(weights("r2plus1d_18", "vmz"), network("r2plus1d_18")).source == "vmz"


def test_a_source_without_names_for_a_network() -> None:
    hara = "3D-ResNets-PyTorch (K. Hara) R(2+1)D has no names for this network"
    # the last layout that was tried says which part has none
    assert refusal(table_of, network("r3d_10"), "hara") == (
        f"{hara}: these names have none for stem/conv: it is another network's"
    )
    assert refusal(table_of, network("r3d_10"), "vmz_csn") == "VMZ CSN has no names for this network"
    assert refusal(table_of, network("r3d_10"), "vzm") == "source 'vzm' is unknown; did you mean vmz?"
    assert refusal(find, weights("r3d_18", "torchvision"), None, "vzm") == "source 'vzm' is unknown; did you mean vmz?"
    # a bottleneck gets the layout of bottlenecks
    names = table_of(network("r2plus1d_hara_50"), "hara").shapes
    assert "layer1.0.bn1.weight" in names and "layer1.0.bn1_t.weight" not in names


@pytest.mark.parametrize(
    ("name", "fields", "source", "changed"),
    [
        ("r2plus1d_18", {}, "vmz", {}),
        ("r2plus1d_34", {"widths": (4, 6, 8, 8), "block_dropout": 0.3}, "vmz", {}),
        ("r2plus1d_18", {"temporal_strides": (1, 2, 2)}, "vmz", {"temporal_strides": ((1, 2, 2), ())}),
        ("r2plus1d_18", {"stem_pool": "2d"}, "vmz", {"stem_pool": ("2d", "none")}),
        ("r3d_18", {}, "torchvision", {}),
        ("r3d_18", {"stem": "motion"}, "torchvision", {"stem": ("motion", "3x7x7")}),
        # this project's own names are torchvision's
        ("r3d_18", {"stem": "motion"}, "r23d_jax", {"stem": ("motion", "3x7x7")}),
        ("r3d_18", {"temporal_strides": (1, 2, 1)}, "r23d_jax", {"temporal_strides": ((1, 2, 1), ())}),
        ("mc3_10", {"stem_pool": "2d", "in_channels": 2}, "r23d_jax", {"stem_pool": ("2d", "none")}),
        ("r3d_34", {"stem_pool": "2d", "widths": (4, 6, 8, 8)}, "r23d_jax", {"stem_pool": ("2d", "none")}),
        ("r3d_10", {"block_dropout": 0.3}, "r23d_jax", {}),
        ("r3d_18", {"stem": "motion", "head": "vit"}, "r23d_jax", {}),  # torchvision has no such head
        ("mc4_18", {"stem_pool": "2d"}, "r23d_jax", {}),  # nor such kernels
        ("r3d_50", {"stem_pool": "2d"}, "r23d_jax", {}),
        ("r3d_hara_18", {}, "r23d_jax", {}),
        ("r2plus1d_hara_10", {}, "r23d_jax", {}),
        ("r2plus3d_18", {}, "2d3d", {}),
        ("i3d", {}, "i3d_piergiaj", {}),
        ("s3d", {}, "torchvision_s3d", {}),
        ("ir_csn_50", {}, "vmz_csn", {}),
        ("r3d_hara_18", {}, "hara_r3d", {}),
        ("r2plus1d_mmaction_34", {}, "mmaction2", {}),
    ],
)
def test_what_the_class_of_a_source_would_compute_otherwise(
    name: str, fields: dict[str, Any], source: str, changed: dict[str, Any]
) -> None:
    own = "torchvision" if source == "r23d_jax" else source
    assert differs_from_class(network(name, **fields), source) == ((own, changed) if changed else ("", {}))


# -- statistics that are not there -------------------------------------------------------------------------------------


def test_missing_statistics_are_filled_in_and_named() -> None:
    arrays = weights("r2plus3d_10", "2d3d", num_classes=0, head="none")
    few = {k: v for k, v in arrays.items() if "running" not in k and "tracked" not in k}
    found = find(few)
    assert found.notes == (
        "these weights have no running statistics of BN (track_running_stats=False): mean 0 and variance 1 were filled "
        "in. Train the network before you evaluate it",
    )
    for name, shape in found.table.shapes.items():
        if name.endswith(("running_mean", "running_var")):
            value = 0.0 if name.endswith("mean") else 1.0
            np.testing.assert_array_equal(found.arrays[name], np.full(shape, value, np.float32), strict=True)
    assert found.arrays.keys() == found.table.shapes.keys()
    few["bn1.running_mean"] = arrays["bn1.running_mean"]  # one is there, so the others are missing
    assert "bn1.running_var: missing" in refusal(find, few)


# -- names -------------------------------------------------------------------------------------------------------------


def test_two_dimensional_kernels_alone_make_an_image_network() -> None:
    flat, solid, vector = np.zeros((2, 3, 7, 7)), np.zeros((2, 3, 1, 7, 7)), np.zeros(3)
    assert is_2d({"a": vector, "b": flat})
    assert not is_2d({"a": vector, "b": flat, "c": solid})
    assert not is_2d({"a": vector}) and not is_2d({"c": solid}) and not is_2d({})
    assert refusal(find, {"stem.0.weight": flat, "stem.1.weight": vector}) == (
        "these are the weights of an image network: inflate them, with --model NAME --inflate repeat, or in Python "
        "r23d_jax.inflate(weights, model)"
    )


def test_weights_of_no_known_code_base() -> None:
    arrays = {f"encoder.{k}.w": np.zeros(3) for k in range(4)}
    message = refusal(find, arrays)
    assert message.startswith(
        "no known code base names its weights like this (encoder.0.w, encoder.1.w, encoder.2.w, ...). Known ones, each "
        "with a typical name:\n  torchvision: stem.0.weight\n  torchvision s3d (S3D-G in its style): features.0.0.0."
    )
    assert len(message.splitlines()) == 1 + sum(source.automatic for source in SOURCES.values())
    assert "published video_resnet.py" not in message
    assert refusal(find, arrays, None, "vmz") == (
        "these are not weights of VMZ / ig65m R(2+1)D, which have stem.0.weight and stem.3.weight: they have "
        "encoder.0.w, encoder.1.w, encoder.2.w"
    )


def test_prefixes_are_taken_off_module_by_module() -> None:
    assert without_prefix("model.net.stem.0.weight", "model.net.") == "stem.0.weight"
    assert without_prefix("model.fc.bias", "model.net.") == "fc.bias"
    assert without_prefix("fc.bias", "model.net.") == "fc.bias"
    assert without_prefix("net.fc.bias", "model.net.") == "net.fc.bias"
    assert without_prefix("RGB/inception_i3d/Logits/b", "RGB/inception_i3d/") == "Logits/b"


def test_modules_that_wrap_a_network() -> None:
    arrays = {"module.model.conv1.weight": np.zeros(1), "module.fc.bias": np.zeros(2), "other": np.zeros(3)}
    short = unwrapped(arrays, ["conv1.weight"])
    assert list(short) == ["conv1.weight", "fc.bias", "other"]
    assert all(a is b for a, b in zip(short.values(), arrays.values(), strict=True))
    assert list(unwrapped({"a.conv1.weight": np.zeros(1)}, ["conv1.weight"])) == ["a.conv1.weight"]
    assert list(unwrapped({"module.convX": np.zeros(1)}, ["conv."])) == ["module.convX"]  # names are no patterns
    assert list(unwrapped({"module.b": np.zeros(1)}, ["a", "b"])) == ["b"]
    assert refusal(unwrapped, {"module.a": np.zeros(1), "a": np.zeros(1)}, ["a"]) == (
        "arrays with and without the prefix module. have the same names; save only one network"
    )


def test_the_shortest_prefix_counts_and_must_lead_to_every_distinctive_name() -> None:
    def prefix(names: list[str], source: str) -> str | None:
        return matching._prefix(dict.fromkeys(names), SOURCES[source])

    vmz = ["stem.0.weight", "stem.3.weight"]
    assert prefix(vmz, "vmz") == ""
    assert prefix([f"module.{name}" for name in vmz], "vmz") == "module."
    assert prefix([f"module.{name}" for name in vmz] + vmz, "vmz") == ""
    assert prefix(["module.stem.0.weight", "stem.3.weight"], "vmz") is None
    assert prefix([f"teacher.{name}" for name in vmz], "vmz") is None  # wraps no network that is known
    both = ["conv1.weight", "layer1.0.conv1.weight"]
    assert prefix(both, "2d3d") == "" and prefix([*both, "conv1_s.weight"], "2d3d") is None
    assert prefix(["Flow/inception_i3d/Conv3d_1a_7x7/conv_3d/w"], "i3d_deepmind") == "Flow/inception_i3d/"


def test_what_is_left_out_is_named_by_reason() -> None:
    arrays = weights("r2plus3d_10", "2d3d", num_classes=0, head="none")
    extras = ["agg.a", "agg.b", "network_pred.0.w", "final_fc.1.b", "layer1.total_params", "n_averaged", "loss_fn.w"]
    found = find({f"module.{name}": value for name, value in (arrays | dict.fromkeys(extras, np.zeros(1))).items()})
    assert found.notes == (
        "left out 4 arrays, not part of the backbone: agg.a, agg.b, network_pred.0.w, ...",
        "left out 1 arrays, a profiler's counters: layer1.total_params",
        "left out 1 arrays, the count of averaged states: n_averaged",
        "left out 1 arrays, part of the loss: loss_fn.w",
    )
    three = find(arrays | dict.fromkeys(extras[:3], np.zeros(1)))
    assert three.notes == ("left out 3 arrays, not part of the backbone: agg.a, agg.b, network_pred.0.w",)


def test_two_arrays_may_not_become_one() -> None:
    arrays = weights("mc3_18", "torchvision")
    arrays["fc.1.weight"], arrays["fc.4.weight"] = arrays["fc.weight"], arrays.pop("fc.weight")
    assert refusal(find, arrays) == (
        "fc.1.weight and fc.4.weight would both become fc.weight: a classifier of several layers is not supported, and "
        "no array may be lost. To convert the backbone alone, save the file without the classifier; --num-classes then "
        "adds a new one"
    )


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_table_names_every_value_once_with_its_shape() -> None:
    table = make_table(network("r3d_10", widths=SMALL, num_classes=5), layouts.TORCHVISION)
    assert table.layout is layouts.TORCHVISION and table.gammas == ()
    assert len({entry.path for entry in table.entries}) == len(table.entries)
    shapes = table.shapes
    assert len(shapes) == len(table.entries)
    assert shapes["stem.0.weight"] == (4, 3, 3, 7, 7) and shapes["stem.1.running_var"] == (4,)
    assert shapes["layer2.0.downsample.0.weight"] == (6, 4, 1, 1, 1) and shapes["fc.weight"] == (5, 8)
    assert Entry(("head", "classifier", "bias"), "fc.bias", (5,)) in table.entries
    norms = [name.removesuffix("running_var") for name in shapes if name.endswith("running_var")]
    assert sorted(table.counters) == sorted(f"{name}num_batches_tracked" for name in norms)


def test_gammas_that_a_network_lacks_are_in_its_table_where_the_layout_has_them() -> None:
    table = make_table(network("i3d"), layouts.PIERGIAJ)
    norms = [entry.name.removesuffix("running_var") for entry in table.entries if entry.path[-1] == "var"]
    assert dict(table.gammas).keys() == {f"{name}weight" for name in norms}
    assert dict(table.gammas)["Mixed_3b.b1a.bn.weight"] == (96,) == table.shapes["Mixed_3b.b1a.bn.weight"]
    own = make_table(network("i3d"), layouts.DEEPMIND)
    assert own.gammas == () == own.counters  # TensorFlow's layout has neither
    assert make_table(network("i3d_gamma"), layouts.PIERGIAJ).gammas == ()
    arrays = zeros(table.shapes)
    assert differences(table, arrays) == []
    arrays["Mixed_3b.b1a.bn.weight"] = np.linspace(0, 1, 96)
    assert differences(table, arrays) == ["Mixed_3b.b1a.bn.weight: not all ones, and this network's BN has no gamma"]
    del arrays["Mixed_3b.b1a.bn.weight"]
    assert differences(table, arrays) == ["Mixed_3b.b1a.bn.weight: missing"]


def test_heads_other_than_the_average_pool_keep_their_names() -> None:
    shapes = make_table(network("r3d_10", widths=SMALL, head="vit"), layouts.TORCHVISION).shapes
    assert shapes["head.classifier.weight"] == (7, 8) and "fc.weight" not in shapes


def test_a_part_without_a_name_is_named() -> None:
    assert refusal(make_table, network("s3d"), layouts.PIERGIAJ) == (
        "these names have none for stage1/blocks/1/spatial/conv: it is another network's"
    )


def test_parts() -> None:
    assert [part_of(("stem", "conv")), part_of(("stages", "0", "x")), part_of(("stages", "3")), part_of(("head",))] == [
        "stem",
        "stage1",
        "stage4",
        "head",
    ]


def test_found_has_no_candidate_unless_one_was_found() -> None:
    model = network("r3d_18")
    found = Found("torchvision", model, table_of(model, "torchvision"), {}, (), [])
    assert (found.candidate.name, found.num_classes) == ("", 0)
