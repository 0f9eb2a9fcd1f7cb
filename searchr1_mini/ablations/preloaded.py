"""What the process that runs are forked from has loaded, with libraries as quiet as in a command."""

from searchr1_mini.options.entry import quiet_libraries

quiet_libraries()

import searchr1_mini.run.training  # noqa: E402, F401
