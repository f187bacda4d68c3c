"""What a user gets wrong is told before anything starts, and planning needs no torch."""

import hashlib
import importlib
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from medssl import datasets, plan, registry
from medssl.spec import Sweep, parent
from medssl.store import Store

ROOT = Path(__file__).parents[1]
PIN = partial(plan.weights.pin, "resnet/18-3x3")
SATURATE = ("robustness", {"corruptions": "jpeg+saturate"})
HEAVY = [
    "torch",
    "timm",
    "ray",
    "mlflow",
    "sklearn",
    "scipy",
    "medmnist",
    "matplotlib",
    "torchvision",
    "pandas",
]


def grid(**changes) -> Sweep:
    given = {"name": "t", "method": ["none", "simclr"], "dataset": "phantom/cells"}
    return Sweep(**given | {"backbone": "resnet/18-3x3", "image_size": 28} | changes)


def test_counts(tmp_path):
    store = Store(tmp_path)
    found = plan.make(grid(seed=[0, 1]), store, None)
    assert (found.encoders, len(found.cells), len(found.missing)) == (4, 24, 24)
    assert (found.problems, found.absent, found.to_pretrain(store)) == ([], [], 4)
    store.write(f"rows/{found.cells[0].id}.parquet", b"-")
    store.write(f"encoders/{found.cells[0].encoder.id}.safetensors", b"-")
    again = plan.make(grid(seed=[0, 1]), store, None)
    assert (len(again.missing), again.to_pretrain(store)) == (23, 3)


def test_every_axis_that_varies_is_shown_and_no_other():
    assert plan.axes(grid().cells()) == {
        **{"method": ["none", "simclr"], "dataset": ["phantom/cells"], "views": ["asymmetric"]},
        **{"backbone": ["resnet/18-3x3"], "init": ["random"], "seed": ["0"]},
        **{"eval": ["knn", "linear_probe"], "label_fraction": ["0.01", "0.1", "1"]},
    }
    sweep = grid(
        method=["none", ("simclr", {"temperature": 0.1}), ("simclr", {"temperature": 0.5})],
        learning_rate=[1e-3, 1e-4],
        image_size=[28, 64],
        eval=["knn", ("ood", {"far": ["phantom/xray", "phantom/organs"]}), ("ood", {"far": "x/y"})],
        target=["same", "phantom/xray"],
        label_fraction=1.0,
        shots=5,
        subset_seed=[0, 1],
    )
    shown = plan.axes(sweep.cells())
    assert list(shown)[:6] == list(plan.ALWAYS)
    assert {axis: shown[axis] for axis in list(shown)[6:]} == {
        "image_size": ["28", "64"],
        "learning_rate": ["0.001", "0.0001"],
        "simclr temperature": ["0.1", "0.5"],
        "eval": ["knn", "ood"],
        "target": ["phantom/cells", "phantom/xray"],
        "label_fraction": ["1"],
        "shots": ["5"],
        "subset_seed": ["0", "1"],
        "ood far": ["phantom/organs and phantom/xray", "x/y"],
    }
    assert "epochs" not in shown  # of none there are 0, which is no value


def test_a_source_that_is_another_set_is_an_axis_and_what_none_has_not_seen_is_no_dataset():
    both = ["phantom/lesions", "phantom/lesions-elsewhere"]
    shown = plan.axes(grid(dataset=both[0], target=both, source=["same", both[0]]).cells())
    assert (shown["dataset"], shown["target"]) == ([both[0]], both)
    assert shown["source"] == ["same", both[0]]
    alone = plan.axes(grid(method="none", dataset=both[0], target=both).cells())
    assert alone["dataset"] == both


@pytest.mark.parametrize("sources", [["same", "phantom/lesions"], ["phantom/lesions", "same"]])
@pytest.mark.parametrize("near", ["phantom/lesions", "phantom/xray+lesions"])
def test_every_source_is_asked_what_it_cannot_do(tmp_path, sources, near):
    """What is near may be a stranger to the one source, and the other itself, or hold it."""
    strangers = ("ood", {"near": near})
    asked = grid(target="phantom/lesions-elsewhere", source=sources, eval=strangers)
    (problem,) = plan.make(asked, Store(tmp_path), None).problems
    assert "nothing to tell from phantom/lesions-elsewhere and phantom/lesions: name" in problem


def test_a_target_that_is_always_the_encoders_own_is_no_axis():
    shown = plan.axes(grid(dataset=["phantom/cells", "phantom/xray"], label_fraction=1.0).cells())
    assert not {"target", "label_fraction", "subset_seed"} & shown.keys()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"backbone": "resnet/18"}, "no resnet/18: did you mean resnet/18-7x7?"),
        ({"backbone": "resnett/18"}, "no 'resnett' among backbones: did you mean resnet?"),
        ({"backbone": "vit/tiny-16"}, "vit/tiny-16 cannot cut 28 px"),
        ({"views": "symetric"}, "no views 'symetric': did you mean asymmetric?"),
        ({"init": "imgnet"}, "no init 'imgnet': choose from random, imagenet"),
        ({"init": "imagenet", "backbone": "resnet/10-3x3"}, "no weights of init 'imagenet' for re"),
        ({"init": "dinov2", "backbone": "vit/tiny-14"}, "vit/tiny-14 has random, imagenet, file:P"),
        ({"backbone": "timm/resnet5O"}, "no timm/resnet5O: choose for example timm/resnet50"),
        ({"dataset": "phantom/cels"}, "cels"),
        (
            {"dataset": "medmnist/brestmnist"},
            "no 'brestmnist' in medmnist: did you mean breastmnist?",
        ),
        ({"image_size": 32, "backbone": "resnet/18-3x3"}, "32"),
        ({"target": ["same", "mnist/x"]}, "no 'mnist' among datasets"),
        (
            {"eval": ("ood", {"far": "phantom/xrays"})},
            "no 'xrays' among phantoms: did you mean xray?",
        ),
        ({"eval": ("ood", {"near": ["mnist/x"]})}, "no 'mnist' among datasets"),
        (
            {"eval": ("ood", {"far": "medmnist/breastmnist"}), "image_size": 32},
            "medmnist/breastmnist has no 32 px",
        ),
        ({"eval": ["knn", "ood"]}, "ood has nothing to tell from phantom/cells: name sets in near"),
        ({"eval": ("ood", {"far": "phantom/cells"})}, "ood has nothing to tell from phantom/cells"),
        (
            {"eval": ("ood", {"near": "phantom/cells+xray"})},
            "ood has nothing to tell from phantom/cells: name sets",
        ),
        (
            {"eval": ("ood", {"near": "phantom/cells+xray", "far": "phantom/organs+cells"})},
            "ood has nothing to tell from phantom/cells: name sets",
        ),
        (
            {"eval": ("ood", {"far": ["phantom/xray", "phantom/organs"], "near": "phantom/xray"})},
            "ood has phantom/xray in far and in near: leave it in one of them",
        ),
        (
            {"target": ["same", "phantom/xray"], "eval": SATURATE},
            "saturate changes nothing on phantom/xray, which is grey: leave it out",
        ),
        (
            {"dataset": "medmnist/breastmnist", "eval": SATURATE},
            "saturate changes nothing on medmnist/breastmnist, which is grey: leave it out",
        ),
        (
            {"shots": 241},
            "shots=241: the rarest class of phantom/cells has at most 240 training images: ask",
        ),
        (
            {"shots": [10, 274], "target": "medmnist/breastmnist"},  # 546 images of two classes
            "shots=274: the rarest class of medmnist/breastmnist has at most 273 training images",
        ),
        (
            {"shots": 274, "target": "medmnist/breastmnist+pneumoniamnist"},
            "has at most 273 training images",
        ),
    ],
)
def test_a_wrong_name_is_a_problem(tmp_path, wrong, sentence):
    found = plan.make(grid(**wrong), Store(tmp_path), None)
    assert any(sentence in problem for problem in found.problems)


@pytest.mark.parametrize(
    "fine",
    [
        {"eval": SATURATE},
        {"target": "medmnist/dermamnist", "eval": SATURATE},
        {"target": "phantom/xray+cells", "eval": SATURATE},  # grey beside colour is colour
        {"target": "phantom/xray", "eval": ("robustness", {"corruptions": "jpeg"})},
        {"shots": 240},
        {"target": "medmnist/breastmnist", "shots": 273},
    ],
)
def test_what_can_be_asked_of_a_set_is_no_problem(tmp_path, fine):
    assert plan.make(grid(**fine), Store(tmp_path), None).problems == []


def test_every_absent_file_is_listed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(plan.weights, "_cached", lambda file: None)
    sweep = grid(
        dataset=["medmnist/breastmnist", "medmnist/pneumoniamnist"],
        target=["same", "medmnist/breastmnist", "phantom/xray"],
        init=["random", "imagenet"],
    )
    found = plan.make(sweep, Store(tmp_path), tmp_path)
    assert sum("breastmnist.npz" in s for s in found.absent) == 1
    assert sum("pneumoniamnist.npz" in s for s in found.absent) == 1
    assert sum("resnet18.tv_in1k.safetensors" in s for s in found.absent) == 1
    assert len(found.absent) == 3


def test_files_of_sets_that_settings_name_are_asked_for(tmp_path):
    far = ["medmnist/dermamnist", "phantom/cells", "phantom/xray"]
    sweep = grid(eval=["knn", ("ood", {"far": far, "near": "medmnist/bloodmnist"})])
    found = plan.make(sweep, Store(tmp_path), tmp_path)
    assert found.problems == []
    assert [("derma" in s, "blood" in s) for s in found.absent] == [(False, True), (True, False)]
    failed = plan.ready(found, Store(tmp_path), tmp_path / "none")
    assert [("derma" in s, "blood" in s) for s in failed] == [(False, True), (True, False)]


def test_the_file_of_a_source_is_asked_for_and_its_name_is_checked(tmp_path):
    asked = grid(target="medmnist/organcmnist", source="medmnist/organamnist", eval="knn")
    found = plan.make(asked, Store(tmp_path), tmp_path)
    assert found.problems == []
    assert [f"organ{x}mnist.npz" in s for s, x in zip(found.absent, "ac", strict=True)] == [
        True
    ] * 2
    (told,) = plan.make(grid(source="medmnist/organmnist"), Store(tmp_path), tmp_path).problems
    assert told.startswith("no 'organmnist' in medmnist: did you mean organ")


def test_a_list_that_serves_every_target_leaves_each_of_them_out(tmp_path):
    sets = ["phantom/cells", "phantom/xray"]
    found = plan.make(grid(dataset=sets, eval=("ood", {"far": sets})), Store(tmp_path), None)
    assert found.problems == []
    assert {cell.datasets[1:] for cell in found.cells} == {("phantom/xray",), ("phantom/cells",)}


def test_another_file_under_a_name_that_the_store_knows_is_a_problem(tmp_path):
    path, store = tmp_path / "mine.pth", Store(tmp_path)
    path.write_bytes(b"one")
    init = f"file:{path}"
    assert plan.make(grid(init=init), store, None).problems == []
    store.write(PIN(init), hashlib.sha256(b"one").hexdigest().encode())
    assert plan.make(grid(init=[init, "random"]), store, None).problems == []
    path.write_bytes(b"another")
    (told,) = plan.make(grid(init=[init, "random"]), store, None).problems
    named = f"{init}@{hashlib.sha256(b'another').hexdigest()[:12]}"
    above = f"supervised:phantom/xray@{init}"
    assert plan.make(grid(init=above), store, None).problems == [told]
    assert told.endswith(f"put that one back, or name this one {named}")
    again = plan.make(grid(init=named), store, None)
    assert (again.problems, again.absent) == ([], [])
    for cell in grid(init=init).cells():  # encoders that are there need no file
        store.write(f"encoders/{cell.encoder.id}.safetensors", b"-")
    assert plan.make(grid(init=init), store, None).problems == []
    path.unlink()
    assert plan.make(grid(init=init), store, None).absent == []
    assert "there is no" in plan.make(grid(init=named), store, None).absent[0]


@pytest.mark.parametrize("method", ["byol", "moco_v1", "moco_v2", "nnclr", "ressl", "simsiam"])
def test_a_missing_solo_learn_is_answered_with_the_command_that_adds_it(
    method, tmp_path, monkeypatch
):
    real = plan.importlib.util.find_spec
    monkeypatch.setattr(
        plan.importlib.util, "find_spec", lambda n: None if n == "solo" else real(n)
    )
    found = plan.make(grid(method=method), Store(tmp_path), None)
    assert found.problems == ["solo-learn is missing: pip install --no-deps solo-learn==1.0.2"]
    assert plan.make(grid(), Store(tmp_path), None).problems == []  # SimCLR needs none of it


def test_an_empty_grid_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="has no cells: an axis is empty"):
        plan.make(grid(dataset=[]), Store(tmp_path), None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "no sweep at .*: name a Python file with a function sweep"),
        ("x = 1", r"has no function sweep\(\)"),
        ("def sweep(): return 3", "returned a int, not a Sweep"),
    ],
)
def test_a_file_that_is_no_sweep_is_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "s.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        plan.load(path)


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.py")), ids=lambda p: p.name)
def test_every_sweep_in_the_repository_can_be_planned_and_says_what_it_costs(path, tmp_path):
    found = plan.make(plan.load(path), Store(tmp_path), tmp_path)
    assert found.problems == []
    assert found.cells
    doc = path.read_text().split('"""')[1]
    for part in ("Cost:", "Success:", "sweeps/" + path.name):
        assert part in doc


def test_the_sweep_over_inits_drops_what_a_backbone_has_not_and_has_every_kind_of_init():
    found = plan.load(ROOT / "sweeps/inits.py")
    kept = {(c.encoder.backbone, c.encoder.init) for c in found.cells()}
    assert found.dropped()["this backbone has no such weights"] > 0
    assert all(plan.weights.wrong(*pair) == [] for pair in kept)
    kinds = {init.partition(":")[0] for _, init in kept}
    assert kinds == {"random", "imagenet", "imagenet_ssl/dino", "dinov2", "bit", "supervised"}


def test_remedis_is_in_distribution_shifted_and_retrained():
    found = plan.load(ROOT / "sweeps/remedis.py")
    cells = found.cells()
    a, c, s = (f"medmnist/organ{plane}mnist" for plane in "acs")
    scenarios = {
        "in distribution": {(a, a)},
        "zero-shot": {(c, a), (s, a)},
        "retrained": {(c, c), (s, s)},
    }
    assert {of.encoder.dataset for of in cells if of.encoder.method == "simclr"} == {a}
    assert {(of.encoder.init, of.encoder.backbone) for of in cells} == {("bit", "bit/50x1")}
    known = {(f, subset) for f in (0.01, 0.03, 0.1, 0.3) for subset in range(3)} | {(1.0, 0)}
    asked = {
        (method, seed, *pair, *labels)
        for method in ("none", "simclr")
        for seed in range(3)
        for pair in set.union(*scenarios.values())
        for labels in known
    }
    assert asked == {
        (
            of.encoder.method,
            of.encoder.seed,
            of.target,
            of.source,
            of.label_fraction,
            of.subset_seed,
        )
        for of in cells
    }
    assert len(cells) == len(asked)
    assert {(of.eval, dict(of.settings)["flip"]) for of in cells} == {("finetune", 0)}
    assert not any(found.dropped().values())  # their classes are the same
    assert len({(of.encoder.id, of.source, of.labels, of.subset_seed) for of in cells}) == 234


def test_solo_learn_is_found_before_and_after_its_door_was_opened(tmp_path):
    importlib.import_module("medssl.methods._solo")
    found = plan.make(plan.load(ROOT / "sweeps/full_grid.py"), Store(tmp_path), tmp_path)
    assert found.problems == []


def test_the_full_grid_is_the_papers():
    """arXiv 2412.19124: the values are written out here, from its code and not from the sweep."""
    cells = plan.load(ROOT / "sweeps/full_grid.py").cells()
    encoders = {c.encoder for c in cells}
    trained = [e for e in encoders if e.method != "none"]

    def has(axis: str, of=trained) -> set:
        return {getattr(e, axis) for e in of}

    eight = {"simclr", "dino", "byol", "ressl", "moco_v3", "nnclr", "vicreg", "barlow_twins"}
    sets = ["path", "derma", "oct", "pneumonia", "retina", "breast", "blood", "tissue"]
    sets += ["organa", "organc", "organs"]
    assert has("method") == eight
    assert has("method", encoders) == eight | {"none"}
    assert has("dataset", encoders) == {f"medmnist/{name}mnist" for name in sets}
    assert has("backbone", encoders) == {"resnet/50-7x7", "vit/small-16"}
    assert has("init", encoders) == {"random", "imagenet"}
    assert has("image_size", encoders) == {64}
    assert (has("epochs"), has("batch_size"), has("warmup_epochs")) == ({400}, {256}, {10})
    rates = has("optimizer"), has("learning_rate"), has("weight_decay")  # the base values
    assert rates == ({"adamw"}, {3e-4}, {0.05})
    assert (has("sampling"), has("early_stop")) == ({"proportional"}, {"never"})
    own = {"vicreg": "vicreg"}
    assert {(e.method, e.views) for e in trained} == {(m, own.get(m, "asymmetric")) for m in eight}
    assert {c.label_fraction for c in cells} == {0.01, 0.1, 1.0}
    assert {c.eval for c in cells} == {"knn", "linear_probe"}
    assert all(c.target == c.encoder.dataset for c in cells)
    assert len(trained) == 8 * 11 * 2 * 2
    assert len(cells) == 9 * 11 * 2 * 2 * 2 * 3


@pytest.mark.parametrize("verb", [["--help"], ["plan", str(ROOT / "sweeps/full_grid.py")]])
def test_planning_imports_nothing_heavy(verb, tmp_path):
    code = (
        "import sys; from medssl.cli import app\n"
        f"try: app({verb!r})\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert out.stdout.splitlines()[-1] == "HEAVY []", out.stdout[-500:]


def test_the_code_version_names_the_commit_of_a_checkout():
    version = plan.code_version()
    head = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    if (ROOT / ".git").exists():
        commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
        assert version.removesuffix(".dirty") == f"0.1.0+{commit}"
    else:
        assert version.startswith("0.1.0+files.")


def test_the_code_version_is_of_the_files_where_there_is_no_git(monkeypatch):
    def none(*arguments, **named):
        raise FileNotFoundError("git")

    monkeypatch.setattr(plan.subprocess, "run", none)
    assert re.fullmatch(r"0\.1\.0\+files\.[0-9a-f]{7}", plan.code_version())


def test_a_dataset_family_owes_no_more_than_its_contract(monkeypatch):
    from types import SimpleNamespace

    family = SimpleNamespace(names=lambda: ["a"], check=lambda name, size, root=None: [name])
    monkeypatch.setattr(registry, "known", lambda kind, name: "mine")
    monkeypatch.setattr(registry, "load", lambda kind, name: family)
    assert datasets.wrong("mine/a", 28) == []
    assert datasets.wrong("mine/b", 28) == ["b"]


def test_an_init_from_the_store_is_looked_for_there(tmp_path):
    given = {"dataset": "phantom/cells", "backbone": "vit/tiny-14", "image_size": 28}
    sweep = Sweep(name="t", method="none", init="encoder:0123456789ab", **given)
    store = Store(tmp_path)
    found = plan.make(sweep, store, None)
    assert found.problems == []
    assert found.absent == [
        "encoders/0123456789ab.safetensors is not in the store: run the sweep that makes it"
    ]
    assert plan.ready(found, store, None) == found.absent
    store.write("encoders/0123456789ab.safetensors", b"-")
    assert plan.make(sweep, store, None).absent == []
    wrong = Sweep(name="t", method="none", init="encoder:abc", **given)
    assert "no init 'encoder:abc'" in plan.make(wrong, store, None).problems[0]


def test_the_data_and_the_weights_of_a_supervised_init_are_asked_for(tmp_path):
    given = {"dataset": "phantom/cells", "backbone": "resnet/18-7x7", "image_size": 28}
    init = "supervised:medmnist/chestmnist@imagenet"
    found = plan.make(Sweep(name="t", method="none", init=init, **given), Store(tmp_path), tmp_path)
    assert found.problems == []
    assert any("chestmnist.npz" in sentence for sentence in found.absent)
    assert any("resnet18.tv_in1k" in sentence for sentence in found.absent)
    wrong = Sweep(name="t", method="none", init="supervised:medmnist/chest@bit", **given)
    told = " ".join(plan.make(wrong, Store(tmp_path), tmp_path).problems)
    assert "no 'chest' in medmnist" in told
    assert "no weights of init 'bit' for resnet/18-7x7" in told


@pytest.mark.parametrize("above", ["supervised:phantom/xray", "encoder:0123456789ab"])
def test_a_supervised_init_starts_from_no_encoder_of_the_store(tmp_path, above):
    init = f"supervised:phantom/cells@{above}"
    (told,) = plan.make(grid(init=init), Store(tmp_path), None).problems
    assert told == f"init {init!r} starts from {above!r}: after @ name no encoder of the store"


def test_only_what_encoders_to_be_made_need_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(plan.weights, "_cached", lambda file: None)
    given = {"backbone": "resnet/18-7x7", "image_size": 28, "target": "phantom/xray"}
    init = "supervised:medmnist/chestmnist@imagenet"
    sweep = Sweep(name="t", method="simclr", dataset="medmnist/pathmnist", init=init, **given)
    store, child = Store(tmp_path), sweep.cells()[0].encoder

    def asked() -> tuple[list[str], int]:
        found = plan.make(sweep, store, tmp_path)
        names = ("pathmnist.npz", "chestmnist.npz", "resnet18.tv_in1k")
        failed = plan.ready(found, store, tmp_path)
        assert [[n in s for n in names] for s in failed] == (
            [[n in s for n in names] for s in found.absent]
        )
        return [n for n in names if any(n in s for s in found.absent)], found.to_pretrain(store)

    monkeypatch.setattr(plan.datasets, "ready", fail_if_absent)
    monkeypatch.setattr(plan.weights, "_fetched", no_network)
    assert asked() == (["pathmnist.npz", "chestmnist.npz", "resnet18.tv_in1k"], 2)
    store.write(f"encoders/{parent(child).id}.safetensors", b"-")
    assert asked() == (["pathmnist.npz"], 1)
    store.write(f"encoders/{child.id}.safetensors", b"-")
    store.delete(f"encoders/{parent(child).id}.safetensors")
    assert asked() == ([], 0)


def fail_if_absent(name, size, root):
    if problems := datasets.check(name, size, root):
        raise ValueError(problems[0])


def no_network(backbone, init):
    raise OSError(plan.weights._absent(backbone, init))


def test_the_sweep_over_pairs_has_all_of_them_and_the_encoders_of_the_full_grid():
    pairs, grid = (plan.load(ROOT / f"sweeps/{name}.py").cells() for name in ("ood", "full_grid"))
    assert {c.encoder.id for c in pairs} == {c.encoder.id for c in grid}
    sets = {c.target for c in grid}
    found = {(c.target, name) for c in pairs for name in c.datasets[1:]}
    assert found == {(a, b) for a in sets for b in sets if a != b}
    assert len(found) == 11 * 10
