"""Settings of runs: what ships with the project, YAML files and the command line -> one Config."""
