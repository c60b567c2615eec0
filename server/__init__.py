"""The server side: the ServerApp (app) and the operator's commands (cli), above their packages.

From the bottom up, each importing only those before it: model, exchange, records, strategies,
checkpoints, rounds; deployment stands beside them, for the command line alone.
"""
