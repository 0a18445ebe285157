"""By what names the classes of different members are one class."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hf_dfml.pool import ModelPool
from hf_dfml.pool.inspection import class_table
from hf_dfml.pool.names import class_keys
from hf_dfml.recovery.joint import joint_classes
from tests.pool.members import config_of, write_member


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("Polar_bear", "polar  Bear"),
        ("jack-o'-lantern", "Jack o' lantern"),
        ("n02123045", "Tabby"),
    ],
)
def test_spellings_of_one_class(name, same):
    assert class_keys((name,)) == class_keys((same,))


def test_what_is_not_one_class():
    # ImageNet's two cranes, a bird and a machine; ids that it does not have; a member that tells its own names apart.
    assert class_keys(("n02012849",)) == ("n02012849",) and class_keys(("n03126707",)) == ("n03126707",)
    assert class_keys(("n99999999", "tabbies")) == ("n99999999", "tabbies")
    assert class_keys(("Turkey", "turkey")) == ("Turkey", "turkey")


def test_members_with_other_spellings_know_one_class(tmp_path):
    settings = config_of()["pretrained_cfg"] | {"num_classes": 2}
    for index, names in enumerate([["Tabby", "owl"], ["n02123045", "Snow_Owl"]]):
        write_member(
            tmp_path / f"m-{index}", seed=index, num_classes=2, pretrained_cfg=settings, label_names=names, dfml={}
        )
    pool = ModelPool.from_dir(tmp_path)
    assert joint_classes(pool) == {"tabby": [0, 1], "owl": [0], "snow owl": [1]}
    console = Console(file=io.StringIO(), width=120)
    console.print(class_table(pool))
    first = next(line for line in console.file.getvalue().splitlines() if "tabby" in line)
    assert "2" in first and "Tabby, n02123045" in first and "m-0, m-1" in first
