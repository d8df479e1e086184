"""Checks of the user's own devices and machine before a long run, by the project's own functions.

Each check is a function from a Subject to a Record: ok, note or FAIL, what was found, the way out.

    record         Record, and the table of tolerances
    subject        what is checked: a config's set-up, and a tiny model of the same family
    versions       packages, and known-bad versions with their sources
    machine        memory, grader, hosts
    rates          matmul, copy, collectives beside the chip's peaks
    precision      fp32 that is fp32
    attention      the chosen form of attention beside the formula
    agreement      sampler and trainer; one update on other devices; two equal updates
    storage        a checkpoint's round trip
    real           --real: the config's own programs, 64 tokens, one update
    step_programs  those programs, compiled, and rows of random tokens
    checks         their order, and how a check that raises an error is recorded
"""
