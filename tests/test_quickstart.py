"""The quickstart from the pool to the table, in seconds."""

from hf_dfml import quickstart
from hf_dfml.evaluation import read_results
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.methods.tgr import TGRConfig
from tests.methods.tiny_tgr import TINY


def test_one_table_of_all_and_the_next_command(few_glyphs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "NUM_MEMBERS", 2)
    monkeypatch.setattr(quickstart, "EPISODES", 2)
    monkeypatch.setattr(quickstart, "VALIDATION_EPISODES", 2)
    monkeypatch.setattr(quickstart, "tgr_config", lambda: TGRConfig(**{**TINY, "steps": 1}))
    short = {"recovery_steps": 2, "images_per_class": 2, "joint_rounds": 0, "num_images": 40, "batch_size": 10}
    monkeypatch.setattr(quickstart, "distillation_config", lambda: PoolDistillationConfig(steps=1, **short))
    rows = quickstart.run_quickstart(tmp_path, seed=3)
    assert rows.exit_code == 0 and read_results(tmp_path) == rows
    shown = quickstart.in_short(rows, tmp_path)
    for shots in (1, 5):
        methods = [row.method for row in shown if row.shots == shots]
        assert methods[0] == "Pool distillation" and {"TGR", "Random init", "Best member + prototype"} <= set(methods)
        assert methods.count("Pool distillation") == methods.count("TGR") == 1
    said = capsys.readouterr().out
    assert said.rstrip().endswith(
        f"hf-dfml adapt {tmp_path} --support FOLDER_WITH_A_FOLDER_FOR_EACH_CLASS --query IMAGES"
    )
