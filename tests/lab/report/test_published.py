"""Published points come from a file beside the studies, each with where it stands."""

from pathlib import Path

import pytest

from rotateconv.errors import RunError
from rotateconv.lab.report.published import find_published

POINT = """[[point]]
name = "ResNet-20"
parameters = 270000
accuracy = 91.25
source = "He et al."
data = ["cifar10"]
note = "published"
"""


def test_every_file_below_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "published.toml").write_text(POINT * 2)
    first, second = find_published([tmp_path])
    assert first == second
    assert (first.name, first.parameters, first.data) == ("ResNet-20", 270_000.0, ("cifar10",))
    assert find_published([tmp_path / "studies", tmp_path / "nowhere"]) == [first, second]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "He et al."\n', "", "published.toml: expected the key source, found none"),
        ("91.25", '"high"', "published.toml: accuracy must be a valid number, found 'high'"),
        ("note", "remark", "published.toml: expected the key note, found none"),
    ],
)
def test_a_damaged_point_names_its_file_and_key(old: str, new: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "published.toml").write_text(POINT.replace(old, new))
    with pytest.raises(RunError, match=message):
        find_published([tmp_path])
