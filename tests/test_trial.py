"""One trial: work is shared, finished work stays, and what failed is explained."""

import hashlib
import json
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import torch

from medssl import backbones, results, status, trial, watch, weights
from medssl._work import Preempted
from medssl.datasets import medmnist
from medssl.evals import _heads, _training, finetune, knn, linear_probe, sgd_probe
from medssl.features import Judged
from medssl.pretrain import initial
from medssl.report import tables
from medssl.spec import Sweep, parent, settings
from medssl.store import Store


@pytest.fixture(autouse=True)
def _small(request):
    """The encoders are tiny ones, but where a test is about the named one."""
    if "whole" not in request.keywords:
        request.getfixturevalue("tiny_vits")


QUICK_TUNE = ("finetune", {"epochs": 1, "updates": 4})
QUICK = settings("evals", QUICK_TUNE)
HERE = trial.Here(torch.device("cpu"), code="test")


def sweep(**changes) -> Sweep:
    given = {
        "name": "t",
        "method": "simclr",
        "dataset": "phantom/lesions",
        "backbone": "vit/tiny-14",
    }
    given |= {"image_size": 28, "epochs": 1, "warmup_epochs": 0, "label_fraction": [0.1, 1.0]}
    return Sweep(**given | changes)


def _counting(calls, name, real):
    def count(*arguments, **named):
        calls[name] += 1
        return real(*arguments, **named)

    return count


@pytest.fixture
def counted(monkeypatch):
    """How often an encoder was pretrained and features were extracted."""
    calls = {"pretrain": 0, "extract": 0}
    for name, room in (("pretrain", trial), ("extract", trial.features)):
        monkeypatch.setattr(room, name, _counting(calls, name, getattr(room, name)))
    return calls


def test_one_encoder_serves_every_cell_and_comes_back_from_the_store(tmp_path, counted):
    store, cells = Store(tmp_path), sweep().cells()
    assert len(cells) == 4
    trial.run(cells, store, HERE)
    assert results.missing(cells, store) == []
    assert counted == {"pretrain": 1, "extract": 3}
    more = results.missing(sweep(label_fraction=[0.1, 0.5, 1.0]).cells(), store)
    assert {c.label_fraction for c in more} == {0.5}
    trial.run(more, store, HERE)
    assert counted == {"pretrain": 1, "extract": 3}  # a new fraction: no pretraining, no pass
    rows = results.table(store).to_pylist()
    assert {r["encoder_code"] for r in rows} == {"test"}
    assert all(r["views_per_s"] > 0 and r["pretrain_s"] > 0 for r in rows)
    assert len({(r["pretrain_s"], r["dataset_md5"], r["target_md5"]) for r in rows}) == 1
    assert not store.names("checkpoints", ".pt")


def test_features_read_back_give_the_same_numbers(tmp_path):
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    trial.run(sweep().cells(), a, HERE)
    for cell in sweep().cells():  # one trial per cell: encoder and features come from the store
        trial.run([cell], b, HERE)

    def values(store):
        return [(r["cell"], r["metric"], r["value"]) for r in results.table(store).to_pylist()]

    assert values(a) == values(b)


def test_a_transfer_cell_judges_on_the_target(tmp_path):
    store, cells = Store(tmp_path), sweep(target="phantom/xray", eval="knn").cells()
    trial.run(cells, store, HERE)
    rows = results.table(store).to_pylist()
    assert {(r["dataset"], r["target"]) for r in rows} == {("phantom/lesions", "phantom/xray")}
    assert results.predictions(store, cells[0])["scores"].shape[1] == 4


def test_a_cell_that_fails_is_absent_and_explained_and_the_others_are_done(tmp_path, monkeypatch):
    store, cells = Store(tmp_path), sweep(method="none").cells()

    def broken(subject, config):
        raise RuntimeError("no neighbours today")
        yield

    monkeypatch.setattr(knn, "evaluate", broken)
    with pytest.raises(
        trial.CellsFailed, match=r"knn on phantom/lesions at 10%: RuntimeError: no nei"
    ):
        trial.run(cells, store, HERE)
    assert {c.eval for c in results.missing(cells, store)} == {"knn"}
    said = json.loads(store.read(f"progress/{cells[0].encoder.id}.json"))
    assert said["state"] == "failed"
    assert "no neighbours today" in said["reason"]
    assert said["cells_done"] == 2
    assert "Traceback" in store.read(f"logs/{cells[0].encoder.id}.log").decode()


def test_progress_and_log_tell_what_happened(tmp_path):
    store, cells = Store(tmp_path), sweep(epochs=2, eval="knn").cells()
    trial.run(cells, store, HERE)
    said = json.loads(store.read(f"progress/{cells[0].encoder.id}.json"))
    assert (said["state"], said["cells_done"], said["cells"]) == ("finished", 2, 2)
    assert [
        set(e) >= {"loss", "lr", "spread", "views_per_s", "data_wait"} for e in said["curve"]
    ] == ([True, True])
    log = store.read(f"logs/{cells[0].encoder.id}.log").decode()
    assert "epoch 2: loss=" in log


def test_a_long_evaluation_is_not_taken_for_lost(tmp_path, monkeypatch):
    store, cells = Store(tmp_path), sweep(method="none", eval="knn", label_fraction=1.0).cells()
    name = f"progress/{cells[0].encoder.id}.json"
    monkeypatch.setattr(trial, "BEAT_S", 0.01)

    def long(subject, config):
        began = json.loads(store.read(name))["updated"]
        while json.loads(store.read(name))["updated"] == began:
            time.sleep(0.01)  # for ever, where there is no sign of life
        assert json.loads(store.read(name))["state"] == "evaluating"
        yield "auroc", 1.0

    monkeypatch.setattr(knn, "evaluate", long)
    trial.run(cells, store, HERE)
    said = store.read(name)
    time.sleep(0.05)
    assert store.read(name) == said  # and it ends with the trial
    assert json.loads(said)["state"] == "finished"


def leaving(after: int):
    """A process that is asked to end when it has looked so often whether it was."""
    looks = iter(range(10**9))
    return lambda: next(looks) >= after


@pytest.mark.parametrize("after", [0, 5, 9])  # in the first epoch, in the second, in the third
def test_a_preempted_trial_goes_on_from_its_last_step(tmp_path, after):
    cells = sweep(epochs=3, eval="knn").cells()
    calm, store = Store(tmp_path / "calm"), Store(tmp_path / "store")
    trial.run(cells, calm, HERE)
    with pytest.raises(Preempted, match=f"after step {after + 1} of 12"):
        trial.run(cells, store, replace(HERE, run="r", retries=0, leave=leaving(after)))
    id = cells[0].encoder.id
    said = json.loads(store.read(f"progress/{id}.json"))
    assert said["state"] == "preempted"
    assert store.has(f"checkpoints/{id}.pt")
    steps = []
    counted = replace(HERE, run="r", retries=0, leave=lambda: bool(steps.append(1)))
    trial.run(cells, store, counted)
    assert len(steps) == 12 - after - 2 + len(cells)  # of the rest but the last, and each cell
    found = [results.table(s, cells)["value"].to_pylist() for s in (calm, store)]
    assert found[0] == found[1]


def test_a_checkpoint_is_kept_until_its_encoder_can_be_read(tmp_path, monkeypatch):
    store, cells, write = Store(tmp_path), sweep(eval="knn").cells(), Store.write

    def torn(self, name, content, exclusive=False):
        write(self, name, content[:100] if name.startswith("encoders/") else content, exclusive)

    monkeypatch.setattr(Store, "write", torn)
    with pytest.raises(OSError, match="was written and cannot be read"):
        trial.run(cells, store, replace(HERE, checkpoint_s=0))
    monkeypatch.setattr(Store, "write", write)
    assert store.has(f"checkpoints/{cells[0].encoder.id}.pt")
    steps = []
    trial.run(cells, store, replace(HERE, leave=lambda: bool(steps.append(1))))
    assert len(steps) == len(cells)  # not one update: all had been made


def test_a_trial_that_is_preempted_between_evaluations_measures_the_rest_later(tmp_path):
    store, cells = Store(tmp_path), sweep(method="none", eval="knn").cells()
    assert len(cells) > 1
    with pytest.raises(Preempted, match="between two evaluations"):
        trial.run(cells, store, replace(HERE, leave=leaving(1)))
    assert len(results.missing(cells, store)) == len(cells) - 1
    trial.run(results.missing(cells, store), store, HERE)
    assert not results.missing(cells, store)


def test_a_long_fit_tells_how_far_it_is_and_is_preempted(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "PUBLISH_S", 0)
    asked = ("finetune", {"epochs": 1, "updates": 6, "batch_size": 8})
    store, cells = Store(tmp_path), sweep(method="none", eval=asked, label_fraction=1.0).cells()
    with pytest.raises(Preempted, match="after step 3 of"):
        trial.run(cells, store, replace(HERE, leave=leaving(3)))
    said = json.loads(store.read(f"progress/{cells[0].encoder.id}.json"))
    assert re.match(r"update 3 of \d+$", said["doing"])
    found = status.read(cells, store)
    assert found.states == {"waiting": 1}
    said["state"] = "evaluating"
    store.write(f"progress/{cells[0].encoder.id}.json", json.dumps(said).encode())
    assert watch._now(status.read(cells, store).trials[0]).startswith("evaluating 0/1, update 3 of")
    trial.run(cells, store, HERE)
    assert not results.missing(cells, store)


@pytest.mark.parametrize(
    ("ended", "spared"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (MemoryError(), True),
        (OSError("disk full"), False),
    ],
)
def test_after_memory_ran_out_the_next_attempts_take_less(tmp_path, monkeypatch, ended, spared):
    store, cells, seen = Store(tmp_path), sweep(eval="knn").cells(), []
    real = trial.pretrain

    def pretrain(*args, spare, **more):
        seen.append(spare)
        if len(seen) == 1:
            raise ended
        if len(seen) == 2:
            raise Preempted("after step 1 of 2")
        return real(*args, spare=spare, **more)

    monkeypatch.setattr(trial, "pretrain", pretrain)
    for _ in range(2):
        with pytest.raises((type(ended), Preempted)):
            trial.run(cells, store, replace(HERE, run="r"))
    trial.run(cells, store, replace(HERE, run="r"))
    assert seen == [False, spared, spared]
    notes = set(results.table(store, cells)["notes"].to_pylist())
    assert all(("less memory" in note) == spared for note in notes)


def test_attempts_of_one_run_are_counted_and_those_that_were_preempted_are_not(tmp_path):
    store, cells = Store(tmp_path), sweep(method="none", eval="knn").cells()
    name = f"progress/{cells[0].encoder.id}.json"

    def attempt(state: str, run="r", **more):
        """How many there were before the one that comes after one that left this behind."""
        said = json.loads(store.read(name) or b"{}")
        store.write(name, json.dumps(said | {"state": state, "run": run, **more}).encode())
        progress = trial.Progress(store, cells[0].encoder, 1, run="r")
        progress.publish("starting")
        return progress.ended

    assert attempt("evaluating") == 1  # killed
    assert attempt("preempted") == 1
    assert attempt("preempted") == 1
    assert attempt("failed", reason="OSError: disk full") == 2
    with pytest.raises(trial.WornOut, match=r"3 attempts .* the last without a word"):
        trial.run(cells, store, replace(HERE, run="r", retries=2))
    assert json.loads(store.read(name))["state"] == "failed"
    assert not trial.can_pass(trial.WornOut())
    trial.run(cells, store, replace(HERE, run="another", retries=0))
    assert not results.missing(cells, store)


def test_a_resumed_trial_tells_the_whole_curve(tmp_path, monkeypatch):
    """Not only the epochs since the checkpoint: MLflow counts them."""
    store, cells = Store(tmp_path), sweep(epochs=3, eval="knn").cells()
    often = trial.Here(torch.device("cpu"), code="test", checkpoint_s=0)
    saved = []
    write = Store.write

    def killed(self, name, content):
        write(self, name, content)
        saved.extend([name] * name.startswith("checkpoints/"))
        if len(saved) == 6:  # four steps an epoch: in the middle of the second
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        trial.run(cells, store, often)
    monkeypatch.setattr(Store, "write", write)
    lengths = []
    publish = trial.Progress.publish

    def listen(self, *arguments, **named):
        lengths.append(len(self.curve))
        publish(self, *arguments, **named)

    monkeypatch.setattr(trial.Progress, "publish", listen)
    trial.run(cells, store, HERE)
    assert lengths[-1] == 3
    assert [n for n in lengths if n] == sorted(n for n in lengths if n)
    assert min(n for n in lengths if n) == 1  # told at once what the first attempt had done


def test_the_subset_seed_draws_other_labels(tmp_path):
    store = Store(tmp_path)
    cells = sweep(method="none", subset_seed=[0, 1], label_fraction=0.1, eval="knn").cells()
    trial.run(cells, store, HERE)
    scores = [results.predictions(store, cell)["scores"] for cell in cells]
    assert (scores[0] != scores[1]).any()


def test_test_images_that_were_learned_from_are_counted_once_and_told(tmp_path, data, monkeypatch):
    here, store, counted = replace(HERE, data=data), Store(tmp_path), []
    real = trial.audit.overlap
    monkeypatch.setattr(trial.audit, "overlap", lambda *a: counted.append(1) or real(*a))
    breast, pneumonia = "medmnist/breastmnist", "medmnist/pneumoniamnist"
    grid = {"method": "none", "eval": "knn", "label_fraction": 1.0}
    cells = sweep(**grid, dataset=[breast, pneumonia], target=[breast, pneumonia]).cells()
    for cell in cells:
        trial.run([cell], store, here)
    assert len(counted) == 2  # an untrained encoder has seen nothing: each target's own splits
    rows = results.table(store, cells).to_pylist()
    leak = f"test images of {breast} have a twin in the training split of"
    told = f"58 of 156 {leak} {breast}: 1 the same, 57 nearly"
    assert {(r["target"], r["contamination"]) for r in rows} == {(breast, told), (pneumonia, "")}
    assert tables.notes(rows) == [told]
    trained = sweep(epochs=1, eval="knn", label_fraction=1.0, dataset=pneumonia, target=breast)
    monkeypatch.setattr(trial, "pretrain", lambda spec, *_, **__: initial(spec))
    monkeypatch.setattr(trial.audit, "NEAR", 9.0)  # everything is a twin
    trial.run(trained.cells(), store, here)
    assert len(counted) == 3  # what pretraining saw, against what it is judged on
    (row,) = {r["contamination"] for r in results.table(store, trained.cells()).to_pylist()}
    assert row == f"{told}; 156 of 156 {leak} {pneumonia}: 0 the same, 156 nearly"


def test_shots_reach_features_and_images(tmp_path, monkeypatch):
    seen = []
    real = knn.evaluate

    def look(subject, config):
        seen.append((subject.features("train").t_NK.sum(0), subject.images("train").t_NK.sum(0)))
        return real(subject, config)

    monkeypatch.setattr(knn, "evaluate", look)
    cells = sweep(method="none", eval="knn", label_fraction=[], shots=[1, 3]).cells()
    store = Store(tmp_path)
    trial.run(cells, store, HERE)
    assert [(set(f.tolist()), set(i.tolist())) for f, i in seen] == [({1.0}, {1.0}), ({3.0}, {3.0})]
    rows = results.table(store, cells).to_pylist()
    (shown,) = tables.summaries(rows)
    assert shown.header[-2:] == ["1-shot", "3-shot"]


@pytest.mark.parametrize("eval", ["knn", "finetune"])  # by features, and by images
def test_shots_that_a_class_has_not_are_noted(tmp_path, eval):
    few = (eval, {"epochs": 1, "updates": 1, "looks": 1}) if eval == "finetune" else eval
    cells = sweep(method="none", eval=few, label_fraction=[], shots=[3, 481]).cells()
    store = Store(tmp_path)
    trial.run(cells, store, HERE)
    rows = results.table(store, cells).to_pylist()
    told = {(r["shots"], r["scarce"], r["labelled"]) for r in rows}
    assert told == {(3, "", 6), (481, "class 1 has 480", 481 + 480)}
    assert tables.notes(rows) == ["481-shot on phantom/lesions: class 1 has 480, all known"]


def test_pretraining_may_see_a_sample_of_the_images(tmp_path, monkeypatch):
    seen = {}
    real = trial.pretrain

    def look(spec, images, *rest, **named):
        seen[spec.train_images] = images
        return real(spec, images, *rest, **named)

    monkeypatch.setattr(trial, "pretrain", look)
    store, many = Store(tmp_path), 10**6
    cells = sweep(eval="knn", label_fraction=1.0, train_images=[0, 40, 80, many]).cells()
    for cell in cells:
        trial.run([cell], store, HERE)
    whole = seen[0].x_NHWC
    assert len(seen[many]) == len(whole) > 80
    few, more = ({x.tobytes() for x in seen[n].x_NHWC} for n in (40, 80))
    assert few < more
    assert [len(seen[n]) for n in (40, 80)] == [40, 80]
    assert (seen[40].mean_DC == seen[0].mean_DC).all()  # features are judged in one scale
    notes = {r["train_images"]: r["notes"] for r in results.table(store, cells).to_pylist()}
    assert f"train_images cut to the {len(whole)} there are" in notes[many]
    assert "train_images" not in notes[40]


@pytest.mark.whole
def test_a_file_is_an_init_whose_checksum_and_misfits_are_kept(tmp_path):
    torch.manual_seed(1)
    theirs = backbones.build("vit/tiny-14", 56).state_dict()
    path = tmp_path / "mine.pth"
    torch.save({"model": {k: v for k, v in theirs.items() if k != "norm.bias"}}, path)
    store, init = Store(tmp_path), f"file:{path}"
    cells = sweep(method="none", init=init, eval="knn").cells()
    trial.run(cells, store, HERE)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for _ in range(2):  # the second time from the encoder in the store
        rows = results.table(store, cells).to_pylist()
        assert {(r["init"], r["init_sha256"]) for r in rows} == {(init, sha256)}
        assert {r["init_left_random"] for r in rows} == {"norm.bias"}
        assert tables.notes(rows) == [
            f"none on vit/tiny-14: init {init} left random: norm.bias (1 encoder)"
        ]
        for cell in cells:
            store.delete(f"rows/{cell.id}.parquet")
        trial.run(cells, store, HERE)
    log = store.read(f"logs/{cells[0].encoder.id}.log").decode()
    assert f"init {init} left random: norm.bias\n" in log
    assert f"init {init} changed to fit: pos_embed 1x17x192 to 1x5x192\n" in log
    with safetensors.safe_open(
        store.root / f"encoders/{cells[0].encoder.id}.safetensors", "pt"
    ) as f:
        kept = json.loads(f.metadata()["medssl"])["init"]
        assert torch.equal(
            f.get_tensor("blocks.3.attn.qkv.weight"), theirs["blocks.3.attn.qkv.weight"]
        )
    assert kept["left random"] == ["norm.bias"]


@pytest.mark.whole
def test_a_file_that_was_exchanged_is_refused_and_not_mixed_with_the_first(tmp_path):
    path, store = tmp_path / "mine.pth", Store(tmp_path)
    init = f"file:{path}"
    torch.save(backbones.build("vit/tiny-14", 28).state_dict(), path)
    first, second = (sweep(method="none", init=init, seed=s, eval="knn").cells() for s in (0, 1))
    trial.run(first, store, HERE)
    torch.save(backbones.build("vit/tiny-14", 56).state_dict(), path)
    with pytest.raises(ValueError, match="is not the file that this store knows by that name"):
        trial.run(second, store, HERE)
    assert results.missing(first + second, store) == second
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    named = sweep(method="none", init=f"{init}@{digits}", eval="knn").cells()
    trial.run(named, store, HERE)
    for cell in first:  # an encoder that is there needs no file
        store.delete(f"rows/{cell.id}.parquet")
    trial.run(first, store, HERE)
    assert results.missing(first + named, store) == []


@pytest.mark.whole
def test_a_file_that_does_not_load_locks_no_name(tmp_path):
    path, store = tmp_path / "mine.pth", Store(tmp_path)
    cells = sweep(method="none", init=f"file:{path}", eval="knn", label_fraction=1.0).cells()
    state = backbones.build("vit/tiny-14", 28).state_dict()
    for wrong in (b"torn", {"head": torch.ones(1)}):
        path.write_bytes(wrong) if isinstance(wrong, bytes) else torch.save(wrong, path)
        with pytest.raises(ValueError, match=r"cannot be read|does not fit"):
            trial.run(cells, store, HERE)
    assert not store.names("inits", "")
    torch.save(state, path)
    trial.run(cells, store, HERE)
    assert results.missing(cells, store) == []
    assert len(store.names("inits", ".sha256")) == 1


def test_of_two_trials_with_two_files_the_second_is_refused_before_it_trains(tmp_path, monkeypatch):
    store, path = Store(tmp_path), tmp_path / "mine.pth"
    spec = sweep(init=f"file:{path}").cells()[0].encoder
    torch.save(backbones.build("vit/tiny-14", 28).state_dict(), path)
    real = trial.initial

    def meanwhile(spec):  # another node looked just as early, and remembers its own file
        store.write(weights.pin(spec.backbone, spec.init), b"0" * 64)
        return real(spec)

    monkeypatch.setattr(trial, "initial", meanwhile)
    monkeypatch.setattr(trial, "pretrain", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(ValueError, match="is not the file that this store knows by that name"):
        trial.encoder_of(spec, store, HERE, trial.Progress(store, spec, 1))
    assert store.read(weights.pin(spec.backbone, spec.init)) == b"0" * 64


def test_a_file_exchanged_while_its_encoder_trains_costs_nothing(tmp_path, monkeypatch):
    """What counts is the file that was loaded; one that was read in between is not its."""
    store, path = Store(tmp_path), tmp_path / "mine.pth"
    cells = sweep(init=f"file:{path}", eval="knn", label_fraction=1.0).cells()
    one, other = (backbones.build("vit/tiny-14", 28).state_dict() for _ in range(2))
    torch.save(one, path)
    real = trial.pretrain

    def exchanged(after: bool):
        def pretrain(*given, **named):
            if after:
                trained = real(*given, **named)
            torch.save(other, path)
            return trained if after else real(*given, **named)

        return pretrain

    monkeypatch.setattr(trial, "pretrain", exchanged(after=False))
    with pytest.raises(ValueError, match="was exchanged just as it was read"):
        trial.run(cells, store, HERE)
    assert not store.names("encoders", ".safetensors")
    torch.save(one, path)
    monkeypatch.setattr(trial, "pretrain", exchanged(after=True))
    trial.run(cells, store, HERE)
    assert results.missing(cells, store) == []


def test_labels_that_a_file_of_the_store_has_seen_are_not_forgotten(tmp_path):
    store = Store(tmp_path)
    spec = replace(parent(sweep(init="supervised:phantom/xray").cells()[0].encoder), recipe=QUICK)
    trial.make(spec, store, HERE)
    init = f"file:{store.root}/encoders/{spec.id}.safetensors"
    cells = sweep(method="none", init=init, eval="knn", label_fraction=1.0).cells()
    trial.run(cells, store, HERE)
    (notes,) = {row["notes"] for row in results.table(store, cells).to_pylist()}
    assert notes == "init learned all labels of phantom/xray"


def test_a_good_encoder_that_no_longer_fits_is_an_error_and_is_not_made_again(
    tmp_path, monkeypatch, counted
):
    store, cells = Store(tmp_path), sweep(method="none", eval="knn").cells()
    trial.run(cells[:1], store, HERE)
    build = trial.backbones.build

    def renamed(*arguments):  # as a newer timm may do
        made = build(*arguments)
        made.other_norm = made.norm
        return made

    monkeypatch.setattr(trial.backbones, "build", renamed)
    name = f"encoders/{cells[0].encoder.id}.safetensors"
    sentence = rf"{name} is intact and does not fit vit/tiny-14 .*made with .*timm.*use another st"
    with pytest.raises(ValueError, match=sentence):
        trial.run(cells[1:], store, HERE)
    assert counted["pretrain"] == 1
    assert store.has(name)


@pytest.mark.data
def test_every_split_has_its_own_features_also_where_one_file_holds_all(tmp_path, data):
    here = trial.Here(torch.device("cpu"), data=data, code="test")
    store = Store(tmp_path)
    cells = sweep(method="none", dataset="medmnist/breastmnist", eval="knn").cells()
    trial.run(cells, store, here)
    kept = store.names(f"features/{cells[0].encoder.id}", ".safetensors")
    assert {name.split("-")[1] for name in kept} == {"train", "val", "test"}
    before = results.table(store, cells)["value"].to_pylist()
    for cell in cells:
        store.delete(f"rows/{cell.id}.parquet")
    trial.run(cells, store, here)  # from the features that were kept
    assert results.table(store, cells)["value"].to_pylist() == before


@pytest.mark.parametrize("kind", ["encoders", "features", "checkpoints"])
def test_a_broken_file_is_set_aside_and_made_again(tmp_path, kind, counted):
    store, cells = Store(tmp_path), sweep(eval="knn").cells()
    trial.run(cells, store, HERE)
    before = results.table(store, cells)["value"].to_pylist()
    id = cells[0].encoder.id
    if kind == "features":
        names = [
            f"features/{id}/{n}.safetensors" for n in store.names(f"features/{id}", ".safetensors")
        ]
    else:
        names = [f"encoders/{id}.safetensors"]
    if kind == "checkpoints":
        store.delete(names[0])
        names = [f"checkpoints/{id}.pt"]
    for name in names:
        store.write(name, b"torn")
    for cell in cells:
        store.delete(f"rows/{cell.id}.parquet")
    trial.run(cells, store, HERE)
    assert results.table(store, cells)["value"].to_pylist() == before
    assert all((store.root / f"{name}.broken").exists() for name in names)
    assert "was set aside" in store.read(f"logs/{id}.log").decode()


def test_a_row_says_where_encoder_and_features_were_made(tmp_path, monkeypatch):
    store, cells = Store(tmp_path), sweep(eval="knn", label_fraction=[0.1, 0.5, 1.0]).cells()
    told = {"device": "H200", "precision": "bf16", "threads": 4}
    monkeypatch.setattr(trial.device, "describe", lambda device: told)
    trial.run(cells[:1], store, HERE)
    monkeypatch.setattr(trial.device, "describe", lambda device: {**told, "device": "laptop"})
    trial.run(cells[1:2], store, HERE)  # on a laptop, from the features of the H200
    for name in store.names(f"features/{cells[0].encoder.id}", ""):
        store.delete(f"features/{cells[0].encoder.id}/{name}")
    trial.run(cells[2:], store, HERE)
    rows = results.table(store, cells).to_pylist()
    by_cell = {r["cell"]: r["device"] for r in rows}
    assert [by_cell[c.id] for c in cells] == ["H200", "H200", "laptop"]
    assert {r["encoder_device"] for r in rows} == {"H200"}
    assert {r["encoder_precision"] for r in rows} == {"bf16"}


def test_a_row_of_fine_tuning_says_where_that_was(tmp_path, monkeypatch):
    """Its features are not what it is made of: the encoder itself ran."""
    quick = ("finetune", {"epochs": 1, "updates": 2})
    cells = sweep(method="none", eval=["knn", quick], label_fraction=0.1).cells()
    store, told = Store(tmp_path), {"device": "H200", "precision": "bf16", "threads": 4}
    monkeypatch.setattr(trial.device, "describe", lambda device: told)
    trial.run(cells[:1], store, HERE)
    monkeypatch.setattr(trial.device, "describe", lambda device: {**told, "device": "laptop"})
    trial.run(cells[1:], store, HERE)
    rows = results.table(store, cells).to_pylist()
    assert {r["eval"]: r["device"] for r in rows} == {"knn": "H200", "finetune": "laptop"}


def once(monkeypatch, error):
    """The evaluation of the smaller share of labels raises `error`."""
    real = knn.evaluate

    def evaluate(subject, config):
        if len(subject.features("train").x_ND) < 200:
            raise error
        return real(subject, config)

    monkeypatch.setattr(knn, "evaluate", evaluate)


@pytest.mark.parametrize(
    "error",
    [
        OSError("disk full"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_an_error_that_can_pass_is_raised_once_the_other_cells_are_done(
    tmp_path, monkeypatch, error
):
    store, cells = Store(tmp_path), sweep(method="none").cells()
    once(monkeypatch, error)
    with pytest.raises(type(error)) as raised:
        trial.run(cells, store, HERE)
    assert trial.can_pass(raised.value)
    assert [(c.eval, c.label_fraction) for c in results.missing(cells, store)] == [("knn", 0.1)]


def test_after_an_error_of_the_device_nothing_more_is_tried(tmp_path, monkeypatch):
    store, cells = Store(tmp_path), sweep(method="none").cells()
    once(monkeypatch, torch.AcceleratorError("CUDA error: an illegal memory access"))
    with pytest.raises(torch.AcceleratorError):
        trial.run(cells, store, HERE)
    assert len(results.missing(cells, store)) == 4


def test_a_bug_cannot_pass():
    assert not trial.can_pass(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not trial.can_pass(trial.NotFinite("loss"))


def test_short_of_memory_a_good_file_is_not_called_broken(tmp_path, monkeypatch):
    store, cells = Store(tmp_path), sweep(method="none", eval="knn").cells()
    trial.run(cells[:1], store, HERE)

    def load(content):
        raise MemoryError

    monkeypatch.setattr(trial.safetensors.torch, "load", load)
    with pytest.raises(MemoryError):
        trial.run(cells[1:], store, HERE)
    assert store.names("encoders", ".safetensors") == {cells[0].encoder.id}
    assert not store.names("encoders", ".broken")


def test_features_belong_to_the_file_of_the_encoder_and_to_the_codes_version(
    tmp_path, counted, monkeypatch
):
    store, cells = Store(tmp_path), sweep(method="none", eval="knn").cells()
    trial.run(cells[:1], store, HERE)
    assert counted["extract"] == 3
    name = f"encoders/{cells[0].encoder.id}.safetensors"
    state = safetensors.torch.load(store.read(name))
    header = {"medssl": json.dumps(trial._about(store.read(name)))}
    other = {k: v + 0.1 if v.is_floating_point() else v for k, v in state.items()}
    store.write(name, safetensors.torch.save(other, header))  # as another machine would leave it
    trial.run(cells[1:], store, HERE)
    assert counted["extract"] == 6
    store.delete(f"rows/{cells[1].id}.parquet")
    trial.run(cells[1:], store, HERE)
    assert counted["extract"] == 6
    monkeypatch.setattr(trial.Cell, "eval_version", 99)
    store.delete(f"rows/{cells[1].id}.parquet")
    trial.run(cells[1:], store, HERE)
    assert counted["extract"] == 9


def test_a_driver_that_comes_second_judges_the_encoder_of_the_first(tmp_path, monkeypatch):
    store, cells = Store(tmp_path), sweep(method="none", eval="knn").cells()
    trial.run(cells[:1], store, HERE)
    name = f"encoders/{cells[0].encoder.id}.safetensors"
    first = store.read(name)
    store.delete(name)
    write = Store.write

    def late(self, asked, content, **how):  # the first finishes as the second is about to write
        if asked == name and not store.has(name):
            write(self, name, first)
        write(self, asked, content, **how)

    monkeypatch.setattr(Store, "write", late)
    monkeypatch.setattr(trial, "_pretrained", lambda *a: first[:-4] + b"\0\0\0\0")
    trial.run(cells[1:], store, HERE)
    assert store.read(name) == first
    assert results.missing(cells, store) == []


def test_a_diverged_run_leaves_no_checkpoint(tmp_path, monkeypatch):
    store, cells = Store(tmp_path), sweep(eval="knn").cells()
    store.write(f"checkpoints/{cells[0].encoder.id}.pt", b"with a loss that was not finite")

    def diverge(*arguments, **named):
        raise trial.NotFinite("3 of 4 losses")

    monkeypatch.setattr(trial, "pretrain", diverge)
    with pytest.raises(trial.NotFinite):
        trial.run(cells, store, HERE)
    assert not store.names("checkpoints", ".pt")


def test_a_row_says_if_features_collapsed_and_what_else_a_reader_should_know(tmp_path, monkeypatch):
    store = Store(tmp_path)
    cells = sweep(method="moco_v2", eval="knn", label_fraction=1.0).cells()
    monkeypatch.setattr(
        trial.monitor, "look", lambda *a: {"rankme": 1.0, "feature_spread": 0.1, "knn_auroc": 0.5}
    )
    trial.run(cells, store, HERE)
    rows = results.table(store, cells).to_pylist()
    assert {r["collapsed"] for r in rows} == {True}
    assert {r["notes"] for r in rows} == {"queue 65536 cut to half of the 1200 images"}
    (table,) = tables.summaries(rows)
    assert table.rows[0][1] == "moco_v2 (collapsed: 1)"
    assert tables.notes(rows) == [
        "moco_v2 on vit/tiny-14: queue 65536 cut to half of the 1200 images (1 encoder)"
    ]


def test_an_encoder_of_the_store_is_an_init(tmp_path):
    store = Store(tmp_path)
    first = sweep(eval="knn").cells()
    init = f"encoder:{first[0].encoder.id}"
    same = sweep(method="none", init=init, eval="knn").cells()
    with pytest.raises(ValueError, match="is not in the store: run the sweep that makes it"):
        trial.run(same, store, HERE)
    trial.run(first, store, HERE)
    trial.run(same, store, HERE)

    def values(cells):
        rows = results.table(store, cells).to_pylist()
        return [(r["label_fraction"], r["metric"], r["value"]) for r in rows]

    assert values(first) == values(same)
    kept = store.read(weights.source(init))
    rows = results.table(store, same).to_pylist()
    assert {r["init_sha256"] for r in rows} == {hashlib.sha256(kept).hexdigest()}
    further = sweep(init=init, eval="knn", label_fraction=1.0).cells()
    trial.run(further, store, HERE)
    assert results.missing(further, store) == []


def test_a_supervised_encoder_is_made_once_and_shared_by_all_that_start_from_it(tmp_path):
    store = Store(tmp_path)
    init = "supervised:phantom/xray"
    cells = sweep(method=["none", "simclr"], init=init, eval="knn", label_fraction=1.0).cells()
    quick = replace(parent(cells[0].encoder), recipe=QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "parent", lambda spec: quick if spec.init == init else None)
        fits = []
        real = _training.fit
        patch.setattr(_training, "fit", lambda *a: fits.append(1) or real(*a))
        for cell in cells:
            trial.run([cell], store, HERE)
    assert fits == [1]
    kept = store.read(f"encoders/{quick.id}.safetensors")
    rows = results.table(store, cells).to_pylist()
    assert {r["init_sha256"] for r in rows} == {hashlib.sha256(kept).hexdigest()}
    none = safetensors.torch.load(store.read(f"encoders/{cells[0].encoder.id}.safetensors"))
    assert all(torch.equal(none[k], v) for k, v in safetensors.torch.load(kept).items())
    log = store.read(f"logs/{cells[0].encoder.id}.log").decode()
    assert "supervised on phantom/xray: update" in log
    assert {r["notes"] for r in rows} == {"init learned all labels of phantom/xray"}
    further = sweep(init=f"encoder:{cells[1].encoder.id}", eval="knn", label_fraction=1.0).cells()
    trial.run(further, store, HERE)
    assert tables.notes(results.table(store, further).to_pylist()) == [
        "simclr on vit/tiny-14: init learned all labels of phantom/xray (1 encoder)"
    ]


def test_twins_are_looked_for_in_all_that_an_encoder_has_ever_learned_from(tmp_path, monkeypatch):
    store, init = Store(tmp_path), "supervised:phantom/xray"
    monkeypatch.setattr(trial.audit, "NEAR", 9.0)  # everything is a twin
    first = sweep(init=init, dataset=HOME, target=HOME, eval="knn", label_fraction=1.0).cells()
    quick = replace(parent(first[0].encoder), recipe=QUICK)
    monkeypatch.setattr(trial, "parent", lambda spec: quick if spec.init == init else None)
    trial.run(first, store, HERE)
    last = f"encoder:{first[0].encoder.id}"
    then = sweep(method="none", init=last, target=AWAY, eval="knn", label_fraction=1.0).cells()
    trial.run(then, store, HERE)

    def told(cells) -> list[str]:
        (said,) = {r["contamination"] for r in results.table(store, cells).to_pylist()}
        return re.findall(r"training split of (\S+):", said)

    assert told(first) == [HOME, "phantom/xray"]
    assert told(then) == [AWAY, "phantom/xray", HOME]

    checked = trial.datasets.check
    gone = lambda name, *rest: ["get it"] if name == HOME else checked(name, *rest)  # noqa: E731
    monkeypatch.setattr(trial.datasets, "check", gone)
    load = lambda d, s: trial.datasets.load(d, s, 28)  # noqa: E731
    said = trial._contamination(AWAY, [AWAY, HOME], 28, load, store, HERE)
    assert said.endswith(f"; {HOME}, which was learned from, is not here to be compared")


def test_a_file_that_is_gone_is_not_fetched_to_look_for_twins(tmp_path, monkeypatch):
    monkeypatch.setattr(medmnist, "fetch", lambda *_: pytest.fail("it was fetched"))
    here, gone = replace(HERE, data=tmp_path), "medmnist/breastmnist"
    load = lambda d, s: trial.datasets.load(d, s, 28, tmp_path)  # noqa: E731
    said = trial._contamination(AWAY, [AWAY, gone], 28, load, Store(tmp_path), here)
    assert said == f"{gone}, which was learned from, is not here to be compared"


def test_an_encoder_can_be_made_alone_and_tells_what_went_wrong(tmp_path, monkeypatch):
    store, spec = Store(tmp_path), parent(sweep(init="supervised:phantom/xray").cells()[0].encoder)

    def said() -> tuple[str, str]:
        found = json.loads(store.read(f"progress/{spec.id}.json"))
        return found["state"], found["reason"]

    def broken(*arguments):
        raise RuntimeError("no labels today")

    monkeypatch.setattr(_training, "fit", broken)
    with pytest.raises(RuntimeError, match="no labels today"):
        trial.make(spec, store, HERE)
    assert said() == ("failed", "RuntimeError: no labels today")
    quick = lambda subject, _: (torch.nn.Sequential(subject.encoder(), torch.nn.Identity()), 3)  # noqa: E731
    monkeypatch.setattr(_training, "fit", quick)
    trial.make(spec, store, HERE)
    assert said() == ("finished", "")
    assert store.names("encoders", ".safetensors") == {spec.id}
    assert not store.names("rows", ".parquet")


FAR = ("ood", {"far": ["phantom/xray", "phantom/cells"]})


def test_a_stranger_is_seen_as_the_targets_images_are(tmp_path, counted, monkeypatch):
    """Its own statistics would say where it is from."""
    store = Store(tmp_path)
    cells = sweep(method="none", eval=["knn", FAR], target=["same", "phantom/xray"]).cells()
    seen = []
    extract = trial.features.extract

    def watched(encoder, images, *arguments):
        seen.append((images.classes, images.mean_DC.tolist(), images.std_DC.tolist()))
        return extract(encoder, images, *arguments)

    monkeypatch.setattr(trial.features, "extract", watched)
    trial.run(cells, store, HERE)
    own = {n: trial.datasets.load(f"phantom/{n}", "test", 28) for n in ("lesions", "xray", "cells")}

    def pair(stranger, target):
        like = own[target]
        return (own[stranger].classes, like.mean_DC.tolist(), like.std_DC.tolist())

    expected = [pair(n, n) for n in ("lesions", "xray") for _ in range(3)]
    expected += [pair(a, b) for a, b in (("xray", "lesions"), ("cells", "lesions"))]
    assert sorted(seen) == sorted([*expected, pair("cells", "xray")])
    assert counted["extract"] == 9  # train, val and test of two targets, and three strangers
    rows = results.table(store, cells).to_pylist()
    md5s = {(r["eval"], r["target"]): r["target_md5"] for r in rows}
    lesions, xray, other = (own[n].md5 for n in ("lesions", "xray", "cells"))
    assert md5s == {
        ("knn", "phantom/lesions"): lesions,
        ("knn", "phantom/xray"): xray,
        ("ood", "phantom/lesions"): f"{lesions} {other} {xray}",
        ("ood", "phantom/xray"): f"{xray} {other}",
    }


HOME, AWAY = "phantom/lesions", "phantom/lesions-elsewhere"


def test_a_model_of_the_source_is_judged_on_the_target_as_it_is(tmp_path):
    """Its labels, its validation, its mean and spread: of the target, test images alone."""
    store = Store(tmp_path)
    grid = {"method": "none", "label_fraction": 0.1, "target": AWAY, "source": HOME}
    cells = sweep(**grid, eval=["linear_probe", QUICK_TUNE]).cells()
    trial.run(cells, store, HERE)
    encoder = trial.encoder_of(
        cells[0].encoder, store, HERE, trial.Progress(store, cells[0].encoder, 1)
    ).encoder
    home = {s: trial.datasets.load(HOME, s, 28) for s in ("train", "val", "test")}
    away = trial.datasets.load(AWAY, "test", 28)
    seen = replace(away, mean_DC=home["val"].mean_DC, std_DC=home["val"].std_DC)

    def features(images):
        made = trial.features.extract(encoder, images, HERE.device)
        return trial.Features(made, torch.from_numpy(images.t_NK))

    held = {s: features(images) for s, images in home.items()} | {"test": features(seen)}
    alone = Judged(lambda: encoder, lambda d, s, source: held[s], "any", "binary-class", 0.1)
    expected = dict(linear_probe.evaluate(alone, linear_probe.Config()))
    kept = results.predictions(store, cells[0])
    np.testing.assert_allclose(kept["scores"], expected["scores"], rtol=1e-5)
    np.testing.assert_array_equal(kept["target"], away.t_NK)
    rows = results.table(store, cells).to_pylist()
    assert {r["value"] for r in rows if r["metric"] == "val_auroc"} >= {expected["val_auroc"]}
    assert {r["target_md5"] for r in rows} == {f"{away.md5} {home['train'].md5}"}


@pytest.mark.parametrize("eval", ["linear_probe", QUICK_TUNE])
def test_rows_of_every_target_say_what_was_labelled(tmp_path, eval):
    """Of what is learned once, only the first cell asks for labels."""
    grid = {"method": "none", "source": HOME, "target": [HOME, AWAY], "eval": eval}
    cells = sweep(**grid, label_fraction=[0.001, 0.1], shots=481).cells()
    trial.run(cells, Store(tmp_path), HERE)
    rows = results.table(Store(tmp_path), cells).to_pylist()
    told = {(r["target"], r["shots"] or r["label_fraction"]): r["labelled"] for r in rows}
    one = {0.001: 2, 0.1: 120, 481: 961}  # of 720 and 480
    assert told == {(target, asked): n for target in (HOME, AWAY) for asked, n in one.items()}
    assert {r["target"] for r in rows if r["scarce"]} == {HOME, AWAY}


@pytest.mark.parametrize(
    ("eval", "module", "judge"),
    [("linear_probe", linear_probe, "judge"), (QUICK_TUNE, finetune, "judged")],
    ids=["linear_probe", "finetune"],
)
def test_what_was_labelled_is_said_though_the_target_failed_that_came_first(
    tmp_path, monkeypatch, eval, module, judge
):
    store, real = Store(tmp_path), getattr(module, judge)
    fails = iter([True])

    def once(*given):
        if next(fails, False):
            raise OSError("stale file handle")
        yield from real(*given)

    monkeypatch.setattr(module, judge, once)
    grid = {"method": "none", "source": HOME, "target": [HOME, AWAY], "eval": eval}
    cells = sweep(**grid, label_fraction=[], shots=481).cells()
    with pytest.raises(OSError, match="stale"):
        trial.run(cells, store, HERE)
    assert [cell.target for cell in results.missing(cells, store)] == [HOME]
    trial.run(results.missing(cells, store), store, HERE)
    told = {(r["target"], r["labelled"], r["scarce"]) for r in results.table(store).to_pylist()}
    assert told == {(target, 961, "class 1 has 480") for target in (HOME, AWAY)}


@pytest.mark.parametrize("method", ["none", "simclr"])
def test_what_was_learned_is_learned_once_for_all_targets(tmp_path, monkeypatch, method):
    """Of none, which has no set of its own, too: its encoder is the one of the source."""
    fitted, real = [], finetune.fit
    monkeypatch.setattr(finetune, "fit", lambda *a: fitted.append(1) or real(*a))
    grid = {"method": method, "eval": QUICK_TUNE, "dataset": HOME, "source": ["same", HOME]}
    every = sweep(**grid, target=[HOME, AWAY], label_fraction=[0.1, 1.0]).cells()
    assert len(every) == 6
    first = every[0].encoder
    cells = [cell for cell in every if cell.encoder == first]
    assert len(cells) == (6 if method == "simclr" else 4)
    trial.run(cells, Store(tmp_path / "all"), HERE)
    pairs = {(cell.source, cell.label_fraction) for cell in cells}
    assert len(fitted) == len(pairs) == (4 if method == "simclr" else 2)
    for cell in cells:
        trial.run([cell], Store(tmp_path / "each"), HERE)
    values = [
        results.table(Store(tmp_path / n), cells)["value"].to_pylist() for n in ("all", "each")
    ]
    assert values[0] == values[1]


def test_shares_of_labels_that_read_alike_are_learned_apart():
    """`labels` is for people: 12.34567 % and 12.34568 % are both "12.3457%"."""
    grid = {"method": "none", "eval": "knn", "label_fraction": [0.1234567, 0.1234568]}
    one, other = sweep(**grid).cells()
    assert one.labels == other.labels
    assert trial._learned(one) != trial._learned(other)


class Killed(BaseException):
    """As sudden as a signal."""


def dies_after(saves: int, monkeypatch) -> list[str]:
    """Kills at a save of a checkpoint; the names of what was saved until then."""
    saved, write = [], Store.write

    def dying(self, name, content, **given):
        write(self, name, content, **given)
        if name.startswith("checkpoints/"):
            saved.append(name)
            if len(saved) == saves:
                raise Killed

    monkeypatch.setattr(Store, "write", dying)
    return saved


def updates_of(monkeypatch) -> list[int]:
    """An entry for each update of a fit from now on."""
    updates, real = [], _training.look
    monkeypatch.setattr(_training, "look", lambda *a: updates.append(1) or real(*a))
    return updates


def test_a_killed_fine_tuning_goes_on_and_leaves_nothing_behind(tmp_path, monkeypatch):
    """Each share of the labels from its own checkpoint, and one for all targets of a source."""
    calm, store = Store(tmp_path / "calm"), Store(tmp_path / "killed")
    often = replace(HERE, checkpoint_s=0)
    grid = {"method": "none", "eval": QUICK_TUNE, "source": HOME, "target": [HOME, AWAY]}
    cells = sweep(**grid, label_fraction=[0.1, 1.0]).cells()
    trial.run(cells, calm, HERE)
    with monkeypatch.context() as patch:
        saved = dies_after(3, patch)
        with pytest.raises(Killed):
            trial.run(cells, store, often)
    assert len(set(saved)) == 1
    updates = updates_of(monkeypatch)
    trial.run(cells, store, often)
    rows = [results.table(of, cells) for of in (calm, store)]
    assert len(rows[0]) > 4
    assert rows[0]["value"].to_pylist() == rows[1]["value"].to_pylist()
    assert not store.names("checkpoints", ".pt")
    first = len(updates)
    updates.clear()
    trial.run(cells, Store(tmp_path / "other"), HERE)
    assert first == len(updates) - 3


def test_a_killed_supervised_init_goes_on(tmp_path, monkeypatch):
    spec = replace(parent(sweep(init="supervised:phantom/xray").cells()[0].encoder), recipe=QUICK)
    calm, store = Store(tmp_path / "calm"), Store(tmp_path / "killed")
    trial.make(spec, calm, HERE)
    with monkeypatch.context() as patch:
        dies_after(2, patch)
        with pytest.raises(Killed):
            trial.make(spec, store, replace(HERE, checkpoint_s=0))
    updates = updates_of(monkeypatch)
    trial.make(spec, store, HERE)
    name = f"encoders/{spec.id}.safetensors"
    one, other = (safetensors.torch.load(of.read(name)) for of in (calm, store))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert not store.names("checkpoints", ".pt")
    again = len(updates)
    trial.make(spec, Store(tmp_path / "other"), HERE)
    assert len(updates) - again == again + 2


def rows_of(store: Store, cells) -> list[tuple]:
    rows = results.table(store, cells).to_pylist()
    return sorted((r["cell"], r["metric"], r["value"]) for r in rows)


def test_a_fit_is_kept_until_its_last_target_is_judged(tmp_path, monkeypatch):
    calm, store = Store(tmp_path / "calm"), Store(tmp_path / "left")
    grid = {"method": "none", "eval": QUICK_TUNE, "source": HOME, "target": [HOME, AWAY]}
    cells = sweep(**grid, label_fraction=0.1).cells()
    trial.run(cells, calm, HERE)
    judged = lambda: bool(store.names("rows", ".parquet"))  # noqa: E731
    with pytest.raises(Preempted, match="between two evaluations"):
        trial.run(cells, store, replace(HERE, checkpoint_s=0, leave=judged))
    (rest,) = results.missing(cells, store)
    updates = updates_of(monkeypatch)
    trial.run([rest], store, HERE)
    assert len(updates) == 1
    assert rows_of(store, cells) == rows_of(calm, cells)
    assert not store.names("checkpoints", ".pt")


@pytest.mark.parametrize(
    "labels",
    [
        {"label_fraction": [0.01, 0.1]},
        {"label_fraction": 1.0, "shots": 3},
        {"label_fraction": 0.1, "subset_seed": [0, 1]},
    ],
    ids=lambda labels: list(labels)[-1],
)
def test_a_fit_goes_on_from_no_other_labels(tmp_path, monkeypatch, labels):
    calm, store = Store(tmp_path / "calm"), Store(tmp_path / "killed")
    cells = sweep(method="none", eval=QUICK_TUNE, **labels).cells()
    trial.run(cells, calm, HERE)
    first, other = sorted(cells, key=lambda cell: -cell.shots)
    with monkeypatch.context() as patch:
        dies_after(3, patch)
        with pytest.raises(Killed):
            trial.run([first], store, replace(HERE, checkpoint_s=0))
    trial.run([other], store, HERE)
    assert len(store.names("checkpoints", ".pt")) == 1
    updates = updates_of(monkeypatch)
    trial.run([first], store, HERE)
    assert len(updates) == 1
    assert rows_of(store, cells) == rows_of(calm, cells)


def test_a_fit_goes_on_from_no_other_encoders(tmp_path, monkeypatch):
    """The id is the same, the file is not: its own was lost, and it was made again elsewhere."""
    calm, store = Store(tmp_path / "calm"), Store(tmp_path / "killed")
    cells = sweep(method="none", eval=QUICK_TUNE, label_fraction=0.1).cells()
    with monkeypatch.context() as patch:
        dies_after(3, patch)
        with pytest.raises(Killed):
            trial.run(cells, store, replace(HERE, checkpoint_s=0))
    name = f"encoders/{cells[0].encoder.id}.safetensors"
    content = store.read(name)
    header = {"medssl": json.dumps(trial._about(content))}
    other = {k: v * 1.1 for k, v in safetensors.torch.load(content).items()}
    for each in (calm, store):
        each.write(name, safetensors.torch.save(other, header))
        trial.run(cells, each, HERE)
    assert rows_of(store, cells) == rows_of(calm, cells)


def dies_after_s(seconds: float, saves: int, monkeypatch) -> None:
    """The attempt is killed at a save, and its fit had been going on for so long."""
    dies_after(saves, monkeypatch)
    passed = iter([0.0])
    clock = SimpleNamespace(monotonic=lambda: next(passed, seconds))
    monkeypatch.setattr(_training, "time", clock)


def dies_twice(work):
    """After 1,000 seconds and, taken up again, after 5,000 more."""
    for seconds, saves in ((1000, 2), (5000, 1)):
        with pytest.MonkeyPatch.context() as patch:
            dies_after_s(seconds, saves, patch)
            with pytest.raises(Killed):
                work()


def test_the_seconds_of_a_fine_tuning_are_those_of_all_its_attempts(tmp_path):
    """Those of the target that learned it: the other's are its own."""
    store, often = Store(tmp_path), replace(HERE, checkpoint_s=0)
    grid = {"method": "none", "eval": QUICK_TUNE, "source": HOME, "target": [HOME, AWAY]}
    cells = sweep(**grid, label_fraction=0.1).cells()
    dies_twice(lambda: trial.run(cells, store, often))
    trial.run(cells, store, HERE)
    took = {r["target"]: r["eval_s"] for r in results.table(store, cells).to_pylist()}
    assert 6000 < took[HOME] < 6500
    assert took[AWAY] < 500


def test_the_seconds_of_a_supervised_init_are_those_of_all_its_attempts(tmp_path):
    spec = replace(parent(sweep(init="supervised:phantom/xray").cells()[0].encoder), recipe=QUICK)
    store, often = Store(tmp_path), replace(HERE, checkpoint_s=0)
    dies_twice(lambda: trial.make(spec, store, often))
    trial.make(spec, store, HERE)
    about = trial._about(store.read(f"encoders/{spec.id}.safetensors"))
    assert 6000 < about["pretrain_s"] < 6500


def test_the_twins_that_count_are_those_in_what_was_learned_from(tmp_path, monkeypatch):
    monkeypatch.setattr(trial.audit, "NEAR", 9.0)  # everything is a twin
    cells = sweep(method="none", eval="knn", label_fraction=1.0, target=AWAY, source=HOME).cells()
    trial.run(cells, Store(tmp_path), HERE)
    (told,) = {r["contamination"] for r in results.table(Store(tmp_path), cells).to_pylist()}
    assert told.startswith(f"600 of 600 test images of {AWAY} have a twin in the training split of")
    assert f"split of {HOME}:" in told
    assert told.count("twin") == 1


def test_strangers_are_told_from_the_target_as_the_source_sees_both(tmp_path):
    store = Store(tmp_path)
    grid = {"method": "none", "label_fraction": 1.0, "target": AWAY, "source": HOME}
    sets = {"far": [HOME, AWAY, "phantom/xray"]}
    cells = sweep(**grid, eval=("ood", sets)).cells()
    trial.run(cells, store, HERE)
    metrics = results.table(store, cells)["metric"].to_pylist()
    assert {m.partition(":")[2] for m in metrics} == {"", "far", "phantom/xray"}


def test_detection_is_measured_kept_and_the_same_from_features_of_the_store(tmp_path):
    store, cells = Store(tmp_path), sweep(method="none", eval=FAR, target=["same", "phantom/xray"])
    cells = cells.cells()
    trial.run(cells, store, HERE)
    before = results.table(store, cells)["value"].to_pylist()
    metrics = set(results.table(store, cells[:1])["metric"].to_pylist())
    assert {"auroc", "mahalanobis/auroc:phantom/xray", "knn/fpr95_id_flagged:far"} <= metrics
    kept = results.predictions(store, cells[0])
    assert kept["target"].shape[0] == len(kept["vim"])
    assert len(kept["vim:phantom/cells"]) == len(trial.datasets.load("phantom/cells", "test", 28))
    for cell in cells:
        store.delete(f"rows/{cell.id}.parquet")
    for cell in reversed(cells):  # each alone
        trial.run([cell], store, HERE)
    assert results.table(store, cells)["value"].to_pylist() == before


PROBE = ("sgd_probe", {"epochs": 4, "heads": 2})


@pytest.fixture
def heads(monkeypatch):
    """How many training sets each training of heads had."""
    calls, real = [], _heads.train

    def train(sets, *arguments):
        calls.append(len(sets))
        return real(sets, *arguments)

    monkeypatch.setattr(_heads, "train", train)
    return calls


def test_cells_that_differ_in_their_labelled_images_are_judged_together(tmp_path, heads):
    longer = ("sgd_probe", {**PROBE[1], "epochs": 5})
    given = {"method": "none", "subset_seed": [0, 1], "shots": 2, "eval": ["knn", PROBE, longer]}
    cells = sweep(**given).cells()
    together, alone = Store(tmp_path / "a"), Store(tmp_path / "b")
    trial.run(cells, together, HERE)
    assert heads == [5, 5]  # two at 10 %, two of two shots, one of all: of each setting
    heads.clear()
    for cell in cells:
        trial.run([cell], alone, HERE)
    assert heads == [1] * 10
    (a, b) = (results.table(store, cells).to_pylist() for store in (together, alone))
    same = [{k: row[k] for k in ("cell", "metric", "target_md5", "device")} for row in a]
    assert same == [{k: row[k] for k in same[0]} for row in b]
    assert [r["value"] for r in a] == pytest.approx([r["value"] for r in b], abs=1e-5)
    for cell in cells:
        of_each = [results.predictions(store, cell) for store in (together, alone)]
        assert of_each[0].keys() == of_each[1].keys()
        for name in of_each[0]:
            assert of_each[0][name] == pytest.approx(of_each[1][name], abs=1e-5)


def test_the_time_of_what_is_done_together_is_shared(tmp_path, monkeypatch):
    real = sgd_probe.together

    def slow(subjects, config):
        time.sleep(1.0)
        return real(subjects, config)

    monkeypatch.setattr(sgd_probe, "together", slow)
    store, cells = Store(tmp_path), sweep(method="none", eval=PROBE).cells()
    start = time.perf_counter()
    trial.run(cells, store, HERE)
    whole = time.perf_counter() - start
    took = {r["cell"]: r["eval_s"] for r in results.table(store, cells).to_pylist()}
    assert min(took.values()) >= 0.5
    assert sum(took.values()) <= whole


def test_where_one_of_several_cells_fails_the_others_are_done(tmp_path, monkeypatch):
    store, cells = Store(tmp_path), sweep(method="none", eval=["knn", PROBE], shots=2).cells()
    real = sgd_probe.together

    def broken(subjects, config):
        if min(len(subject.features("train").x_ND) for subject in subjects) < 20:
            raise RuntimeError("too few")
        return real(subjects, config)

    monkeypatch.setattr(sgd_probe, "together", broken)
    said = r"^sgd_probe on phantom/lesions at 2-shot: RuntimeError: too few$"
    with pytest.raises(trial.CellsFailed, match=said):
        trial.run(cells, store, HERE)
    assert [(c.eval, c.shots) for c in results.missing(cells, store)] == [("sgd_probe", 2)]
    log = store.read(f"logs/{cells[0].encoder.id}.log").decode()
    assert "not together, each alone: RuntimeError: too few" in log


def test_an_error_of_the_device_is_raised_at_once_by_cells_together_too(tmp_path, monkeypatch):
    store, cells = Store(tmp_path), sweep(method="none", eval=[PROBE, "knn"]).cells()

    real = sgd_probe.together

    def lost(subjects, config):
        if len(subjects) > 1:  # one alone would go on, on a device that is gone
            raise torch.AcceleratorError("CUDA error: an illegal memory access")
        return real(subjects, config)

    monkeypatch.setattr(sgd_probe, "together", lost)
    with pytest.raises(torch.AcceleratorError):
        trial.run(cells, store, HERE)
    assert len(results.missing(cells, store)) == 4
