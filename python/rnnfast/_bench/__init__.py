"""The benchmark: rnnfast against whatever other libraries are installed, and against the limits of the machine.

`runner` starts a process for each contestant, because two thread pools in one process slow each other down, and lets
them take turns. Those processes load this package without rnnfast around it (see `worker`), so nothing here imports
rnnfast but the contestant of that name.
"""
