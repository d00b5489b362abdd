"""Measures `streamavg merge`; `scripts/benchmark.py` is the door.

    results     every measurement, and what follows from them; plain data, JSON
    machine     what was measured on
    cgroups     a memory cgroup around a command
    measuring   one command as a process of its own: time, peak memory, page cache
    inputs      checkpoints of any size, as Keras writes them
    contenders  the commands that are compared
    checks      whether they wrote the same values
    rounds      contenders in turn, several times over
    accuracy    errors in ULP against rational arithmetic
    profiling   where the time of a merge goes
    modes       what is measured under which conditions
    goals       what is promised of speed and memory
    page        the results as Markdown
    plot        ... and as a picture

A module imports only modules above its own. `programs/` has what runs as a process of its own.
"""
