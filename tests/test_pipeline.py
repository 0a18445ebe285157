"""A run from the pool to the card: what is measured is written at once, whatever fails later."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_dfml import pipeline
from hf_dfml.cli import main
from hf_dfml.evaluation import read_results, reporting
from hf_dfml.evaluation.frozen_members import FrozenMembers
from hf_dfml.meta_model import MetaModel
from hf_dfml.methods.purer import PURER, PURERConfig
from hf_dfml.pipeline import adaptation_of, run
from hf_dfml.run_config import RunConfig
from hf_dfml.trackers import trackers_of
from tests.hub_server import HubServer
from tests.methods.own import Nudge, NudgeConfig
from tests.methods.pools import make_model
from tests.pool.members import files_of, ids, write_pool

pytestmark = pytest.mark.usefixtures("few_glyphs")


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("pipeline") / "pool", 3)


def config_of(members, folder, **changes):
    settings = {
        "dataset": "glyphs",
        "arch": "conv4_16",
        "ways": 3,
        "shots": [1],
        "episodes": 2,
        "validation_episodes": 2,
        "log_with": "none",
    }
    return RunConfig(pool=str(members), output_dir=str(folder), **{**settings, **changes})


def test_a_method_of_ones_own_runs_to_its_card(members, tmp_path):
    results = run(Nudge, NudgeConfig(), config_of(members, tmp_path), argv=["test"])
    assert read_results(tmp_path) == results and results[0].method == "Nudge"
    card = (tmp_path / "README.md").read_text()
    assert "A. Uthor. Nudging. Workshop 2026" in card
    assert json.loads((tmp_path / "config.json").read_text())["hf_dfml"]["method_config"] == {"steps": 2, "size": 0.1}


def test_without_fine_tuned_rows_all_are_nearest_class_means_but_the_methods_own(members, tmp_path):
    results = run(Nudge, NudgeConfig(), config_of(members, tmp_path, finetuned_rows=False), argv=["test"])
    ours = {(row.head, row.bn) for row in results if row.method == "Nudge"}
    assert {row.head for row in results if row.method != "Nudge"} == {"prototype"}
    assert ours <= {(Nudge.eval_head, Nudge.eval_bn), ("prototype", "running"), ("prototype", "transductive")}
    chosen = MetaModel.from_pretrained(str(tmp_path)).config.adapt
    assert (chosen.head, chosen.bn) == ("prototype", "running")


def test_a_method_of_ones_own_goes_on_where_it_was(members, tmp_path):
    def weights(folder, steps, **changes):
        config = config_of(members, tmp_path / folder, dataset=None, **changes)
        run(Nudge, NudgeConfig(steps=steps), config, argv=["test"])
        return load_file(tmp_path / folder / "model.safetensors")["fc.weight"]

    half = weights("resumed", 2)
    whole = weights("whole", 4)
    assert weights("resumed", 4, resume_from_checkpoint="latest").equal(whole) and not half.equal(whole)


def test_pictures_that_cannot_be_drawn_cost_neither_results_nor_weights(members, tmp_path):
    class NoPictures(Nudge):
        def pictures(self, folder):
            raise OSError("no ink")

    with pytest.raises(OSError, match="no ink"):
        run(NoPictures, NudgeConfig(), config_of(members, tmp_path), argv=["test"])
    rows = read_results(tmp_path)
    assert {row.method for row in rows} >= {"NoPictures", "Random init", "All 3 members + prototype"}
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["fc.weight"].shape[0] == 3 and (tmp_path / "pool.lock.json").is_file()


@pytest.mark.parametrize("fails_at", [2, 3])
def test_rows_that_were_measured_are_written_although_a_later_one_fails(members, tmp_path, monkeypatch, fails_at):
    measured, evaluate_each = [], reporting.evaluate_each

    def failing(*arguments, **options):
        for rows in evaluate_each(*arguments, **options):
            if len(measured) == fails_at - 1:
                raise RuntimeError("the second protocol fails")
            measured.append(rows)
            yield rows

    monkeypatch.setattr(reporting, "evaluate_each", failing)
    with pytest.raises(RuntimeError, match="second protocol"):
        run(Nudge, NudgeConfig(), config_of(members, tmp_path), argv=["test"])
    assert read_results(tmp_path) == [replace(row, pool="one architecture") for rows in measured for row in rows]
    assert len(measured) == fails_at - 1


def test_rows_of_baselines_are_written_one_by_one(members, tmp_path, monkeypatch):
    def failing(*arguments, **options):
        raise RuntimeError("features fail")

    monkeypatch.setattr(FrozenMembers, "of_one", failing)
    with pytest.raises(RuntimeError, match="features fail"):
        run(Nudge, NudgeConfig(), config_of(members, tmp_path), argv=["test"])
    methods = [row.method for row in read_results(tmp_path)]
    assert methods[0] == "Nudge" and methods[-3:-1] == ["Random init", "Average"]


@pytest.mark.parametrize("baselines", [True, False])
def test_the_course_of_a_run_is_drawn_beside_the_baselines_of_its_validation(
    members, tmp_path, monkeypatch, baselines
):
    drawn = {}

    def learning_curves(lines, path, **options):
        drawn.update(lines=lines, path=path, **options)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")
        return path

    monkeypatch.setattr(pipeline, "learning_curves", learning_curves)
    run(Nudge, NudgeConfig(), config_of(members, tmp_path, shots=[1, 2], baselines=baselines), argv=["test"])
    assert drawn["path"] == tmp_path / "pictures" / "training.png" and list(drawn["lines"]) == ["1-shot", "2-shot"]
    names = ["Random init", "Best member + prototype", "All 3 members + prototype"] if baselines else []
    assert list(drawn["baselines"]) == names
    assert all(list(values) == ["1-shot", "2-shot"] for values in drawn["baselines"].values())
    assert "![Accuracy on the validation classes in the course of training." in (tmp_path / "README.md").read_text()


def hyper_parameters_of(folder):
    """What TensorBoard shows as a run's hyper-parameters, and its scalars by tag."""
    found, scalars = {}, {}
    for file in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            scalars[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
        content = events.summary_metadata.get("_hparams_/session_start_info")
        if content:
            from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

            data = HParamsPluginData.FromString(content.plugin_data.content)
            for name, value in data.session_start_info.hparams.items():
                found[name] = getattr(value, value.WhichOneof("kind"))
    return found, scalars


def test_the_tracker_is_given_the_method_its_options_and_the_pool(members, tmp_path):
    config = config_of(members, tmp_path, log_with="tensorboard", dataset=None, seed=7)
    run(Nudge, NudgeConfig(size=0.25), config, argv=["test"])
    hyper, scalars = hyper_parameters_of(tmp_path / "logs")
    assert (hyper["method"], hyper["size"], hyper["steps"], hyper["seed"]) == ("Nudge", 0.25, 2, 7)
    assert (hyper["members"], hyper["pool"], hyper["shots"]) == (3, "pool", "[1]")
    assert scalars["loss"] == [(1, 0.0), (2, 1.0)]


def test_a_tracker_that_there_is_not_is_refused_before_work(members, tmp_path):
    with pytest.raises(ValueError, match=r"--log_with tensorbord: expected none or a tracker .*tensorboard, wandb"):
        run(Nudge, NudgeConfig(), config_of(members, tmp_path / "run", log_with="tensorbord"), argv=["test"])
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("hf_dfml.trackers.get_available_trackers", lambda: ["tensorboard"])
    assert trackers_of("tensorboard") == ["tensorboard"] and trackers_of("none") == []
    with pytest.raises(ValueError, match="not installed. Install it .pip install wandb., or choose one of none, tens"):
        trackers_of("tensorboard, wandb")


def test_the_method_of_the_documentation_runs_from_the_command_line(members, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    block = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert len(block.splitlines()) <= 40
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    Path("pool_reptile.py").write_text(block)
    config = config_of(members, "run", black_box="probs")
    words = ["--pool", config.pool, "--output_dir", "run", "--arch", "conv4_16", "--ways", "3", "--shots", "1"]
    words += ["--episodes", "2", "--validation_episodes", "2", "--dataset", "glyphs", "--log_with", "none"]
    with pytest.raises(SystemExit) as end:
        main(["train", "pool_reptile.py:PoolReptile", *words, "--steps", "2", "--images", "8", "--black_box", "probs"])
    assert end.value.code == 0, capsys.readouterr().out
    card = Path("run/README.md").read_text()
    assert "On First-Order Meta-Learning Algorithms. arXiv 2018" in card and "only answers" in card
    rows = read_results("run")
    assert {row.method for row in rows} == {"PoolReptile"} and "pool_reptile.py:PoolReptile" in rows[0].command
    history = json.loads(Path("run/config.json").read_text())["hf_dfml"]["method_config"]
    assert history["images"] == 8
    with pytest.raises(SystemExit) as end:
        main(["train", "pool_reptile.py:PoolReptile", "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and "--outer_lr" in out and "Share of the way that the meta-model moves." in out
    with pytest.raises(SystemExit, match="pool_reptile.py has no class 'Pool': its methods are PoolReptile"):
        main(["train", "pool_reptile.py:Pool", *words])


def test_a_model_carries_the_inner_loop_of_its_meta_training(members, tmp_path):
    """Adaptation of the method's own, the papers' on demand, or what is asked for; the published model says which."""
    method = PURER(PURERConfig(inner_steps=3, inner_lr=0.05, images_per_class=16), make_model())
    found = {
        name: adaptation_of(method, RunConfig(**changes))
        for name, changes in {
            "own": {},
            "papers": {"eval_inner_loop": "papers"},
            "asked": {"eval_inner_loop": "papers", "eval_inner_steps": 0},
        }.items()
    }
    assert {name: (how.steps, how.lr) for name, how in found.items()} == {
        "own": (3, 0.05),
        "papers": (10, 0.01),
        "asked": (0, 0.01),
    }
    options = {"images_per_class": 4, "replay_queries": 3, "replay_batch": 1, "warmup": 1, "steps": 1}
    config = config_of(members, tmp_path / "run", eval_inner_steps=2)
    rows = run(PURER, PURERConfig(inner_lr=0.3, **options), config, argv=["test"])
    assert MetaModel.from_pretrained(tmp_path / "run").config.adapt.lr == 0.3
    mine = [row for row in rows if row.method == "PURER" and row.head == "finetune"]
    ours = [(row.inner_steps, row.inner_lr, row.bn) for row in mine]
    assert ours[0] == (2, 0.3, "support") and {(10, 0.01, "support"), (10, 0.01, "transductive")} <= set(ours)


@pytest.fixture
def with_a_copy(hub: HubServer, members: Path) -> HubServer:
    """An organisation whose member m-2 has the weights of m-1; nothing of it is on this disk."""
    for index, source in enumerate((0, 1, 1)):
        hub.add_repo(f"org/m-{index}", files_of(members / f"m-{source}"))
    return hub


class Loading(Nudge):
    """Loads its members, as methods do; the run is broken off in the setup where `broken` is set."""

    broken = False
    taught_by: list[list[str]] = []

    def setup(self, pool, context):
        super().setup(pool, context)
        context.begin()  # As before the first file of a setup.
        for _ in pool.stream():
            pass
        self.taught_by.append(ids(pool))
        if self.broken:
            raise ConnectionError("broken off")


@pytest.mark.parametrize("in_setup", [True, False])
def test_a_run_of_a_hub_pool_goes_on_with_its_members_when_their_weights_are_there(
    with_a_copy, tmp_path, monkeypatch, caplog, in_setup
):
    """Soundness is asked of members on this disk: none of a cold cache, all of a warm one."""
    everyone = ["org/m-0", "org/m-1", "org/m-2"]
    monkeypatch.setattr(Loading, "taught_by", [])
    monkeypatch.setattr(Loading, "broken", in_setup)
    config = config_of("org", tmp_path / "run", dataset=None)
    if in_setup:
        with pytest.raises(ConnectionError, match="broken off"):
            run(Loading, NudgeConfig(), config, argv=["test"])
    else:
        run(Loading, NudgeConfig(), config, argv=["test"])
    assert Loading.taught_by == [everyone] and "not on this disk yet: 3 of 3 members" in caplog.text
    monkeypatch.setattr(Loading, "broken", False)
    resumed = replace(config, resume_from_checkpoint="latest")
    run(Loading, NudgeConfig(steps=4), resumed, argv=["test"])
    assert Loading.taught_by == [everyone] * (1 + in_setup)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["hf_dfml"]
    assert [row["id"] for row in stored["pool"]] == everyone and stored["method_config"]["steps"] == 4
    # A new run asks the members that the first one has brought here.
    run(Loading, NudgeConfig(), replace(config, output_dir=str(tmp_path / "new")), argv=["test"])
    assert Loading.taught_by[-1] == ["org/m-0", "org/m-1"]


def test_a_run_goes_on_without_members_that_are_new_and_says_where_those_are_that_changed(
    with_a_copy, members, tmp_path, caplog
):
    config = config_of("org", tmp_path / "run", dataset=None)
    run(Nudge, NudgeConfig(), config, argv=["test"])
    with_a_copy.add_repo("org/m-9", files_of(members / "m-2"))
    resumed = replace(config, resume_from_checkpoint="latest")
    run(Nudge, NudgeConfig(steps=3), resumed, argv=["test"])
    assert f"org/m-9: the run in {tmp_path / 'run'} was begun without it" in caplog.text
    with_a_copy.add_repo("org/m-1", {"README.md": b"new"})
    lock = tmp_path / "run" / "pool.lock.json"
    with pytest.raises(ValueError, match=rf"written with other members: .* as they were: --pool {lock}\."):
        run(Nudge, NudgeConfig(steps=4), resumed, argv=["test"])
    run(Nudge, NudgeConfig(steps=4), replace(resumed, pool=str(lock)), argv=["test"])
