"""The subcommands of `asr-kd`: thin command lines, one module a room."""
