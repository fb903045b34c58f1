"""The option --budget."""

import pytest

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared.budget import bytes_in


@pytest.mark.parametrize("text", ["", "40 bananas", "0", "-4KB", "1e3", "KB", "40 GB", "1" * 400])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--budget must be a number of bytes such as 40KB, 40000 or 0\.1MB, not"):
        bytes_in(text)
