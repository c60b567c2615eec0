"""The harness: federations and experiments on this machine.

What commands share, from the bottom up: settings, display, engines, emulation. A package for each
command, or for two that go together: paper, pretraining, planner, comparison, throughput, bench.
"""
