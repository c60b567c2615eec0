"""The server side: strategy, aggregation, evaluation, the ServerApp."""
