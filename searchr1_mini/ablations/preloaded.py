"""What the process that runs are forked from has loaded, with libraries as quiet as in the command that starts them."""

import os

from searchr1_mini.options.entry import quiet_libraries

if os.environ.get("TRANSFORMERS_VERBOSITY") == "error":  # as the command sets it, unless it is told --verbose
    quiet_libraries()

import searchr1_mini.run.training  # noqa: F401
