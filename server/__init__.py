"""The server side: the ServerApp (app) and the operator's commands (cli), above their packages.

From the bottom up: model; exchange; records and strategies; checkpoints; rounds. Beside them stands
deployment, for the operator's commands alone.
"""
