"""The command line `rotateconv`; each subcommand is a file here and a word below.

What needs torch or Matplotlib a command imports after it has refused what it can, for which nobody should wait.
"""

import importlib
import inspect
import sys
import warnings
from collections.abc import Sequence

from cyclopts import App, Parameter
from cyclopts.completion.detect import ShellDetectionError

from rotateconv import __version__
from rotateconv.errors import INTERRUPTED, ConfigError
from rotateconv.lab.cli.shared.console import leave_stdout, prepare_streams
from rotateconv.lab.cli.shared.errors import report as report_failure
from rotateconv.lab.cli.shared.errors import show_warning
from rotateconv.lab.cli.shared.options import opens_runs, unwrapped
from rotateconv.lab.exit_codes import CommandError, Failure

app = App(
    name="rotateconv",
    help="Convolution kernels that are line segments with a learned angle: train, compare, inspect.",
    version=__version__,
    version_flags="--version",
    help_format="rich",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(
        negative_iterable=(),
        show_choices=False,
        allow_repeating=True,  # the last one wins, as after an alias of the user's shell
    ),
)
_COMMANDS = (
    *("train", "compare", "search", "evaluate", "predict", "convert", "finish", "shrink"),
    *("pack", "unpack", "export", "info", "report", "record", "analyse", "bench"),
)
for _place, _name in enumerate(_COMMANDS):
    _file = importlib.import_module(f"{__name__}.{_name}")
    _command = getattr(_file, _name)
    if _name not in ("unpack", "report", "record", "bench"):
        _command = opens_runs(_command)
    _text = unwrapped(inspect.getdoc(_command) or "")
    app.command(_command, help=_text, help_epilogue=_file.EXAMPLES, sort_key=_place)
app.register_install_completion_command()


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit code: 0 done, 2 the user's mistake, 1 ours, 130 interrupted."""
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            app(list(arguments), exit_on_error=False, print_error=False)
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            sentence = str(error) or "interrupted: nothing that was written before is lost"
            return report_failure(CommandError(Failure(INTERRUPTED, sentence)))
        except BrokenPipeError:  # a reader such as head has left, which is no mistake
            leave_stdout()
            return 0
        except ShellDetectionError:
            return report_failure(ConfigError("which shell is this? add --shell bash, zsh, fish or powershell"))
        except Exception as error:
            return report_failure(error)
    return 0


def main() -> None:
    """Run the command line and exit."""
    from rotateconv.lab.train.process_memory import keep_freed_memory

    keep_freed_memory()
    prepare_streams()
    sys.exit(run(sys.argv[1:]))
